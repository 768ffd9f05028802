//! Every kind of damage to every object of a repository: what is hurt is named, what is not hurt comes back, nothing half comes back.

use super::world::{World, assert_same_tree, name, noise};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::contents::compare;
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Open, prune, verified, verify};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::{self, Hash};
use blackstart::repository::sealed::SealedPart;
use blackstart::repository::series::{self, Series};
use blackstart::repository::signed::SigningKey;
use blackstart::repository::snapshot::Mode;
use blackstart::repository::trust::{Certificate, Role, Trust, TrustRecord};
use blackstart::storage::Key;
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn store_on(memory: &Memory) -> Store {
    Store::new(Arc::new(memory.clone())).unwrap()
}

fn options() -> Options {
    Options { workers: 1, ..Options::default() }
}

/// A world with snapshots of a tree and a database, a prune record, drill reports, leases.
fn full_world() -> (World, Memory) {
    let memory = Memory::default();
    let world = World::on(store_on(&memory), tempfile::tempdir().unwrap());
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
    db.execute_batch("CREATE TABLE t(body BLOB)").unwrap();
    for round in 0..4 {
        fs::write(data.join(format!("file-{round}")), format!("{round}\n").repeat(9000 + round)).unwrap();
        world.backup_files(&data, options()).unwrap();
        db.execute("INSERT INTO t VALUES(randomblob(9000))", []).unwrap();
        world.backup_sqlite(&world.path("app.db"), options()).unwrap();
    }
    for source in ["tree", "db"] {
        let policy = Policy { last: 3, ..Policy::default() };
        let plan = prune::plan(&world.host.open, &name(source), &policy, SignedDuration::ZERO).unwrap();
        prune::sweep(&world.host, plan).unwrap();
        assert!(world.drill(source).unwrap().passed);
    }
    (world, memory)
}

/// The objects of a store by key.
fn contents(store: &Store) -> BTreeMap<String, bytes::Bytes> {
    let listed = store.list("").unwrap();
    listed.into_iter().map(|o| (o.key.to_string(), store.get(&o.key).unwrap())).collect()
}

/// A store of its own with these objects.
fn store_with(objects: &BTreeMap<String, bytes::Bytes>) -> Store {
    let store = store_on(&Memory::default());
    for (key, body) in objects {
        store.create(&Key::new(key.clone()), body.clone(), &Hash::of(body).0).unwrap();
    }
    store
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Delete,
    CutOne,
    Empty,
    Flip,
    Swap,
}

const DAMAGES: [Damage; 5] = [Damage::Delete, Damage::CutOne, Damage::Empty, Damage::Flip, Damage::Swap];

fn area(key: &str) -> &str {
    &key[..key.rfind('/').map_or(key.len(), |at| key[..at].find('/').map_or(at, |first| first))]
}

/// `None` where there is no other object of the kind to swap with.
fn damaged(
    objects: &BTreeMap<String, bytes::Bytes>,
    key: &str,
    damage: Damage,
) -> Option<BTreeMap<String, bytes::Bytes>> {
    let mut objects = objects.clone();
    let mut body = objects[key].to_vec();
    match damage {
        Damage::Delete => {
            objects.remove(key);
            return Some(objects);
        }
        Damage::CutOne => drop(body.pop()),
        Damage::Empty => body.clear(),
        Damage::Flip => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        Damage::Swap => {
            body = objects
                .iter()
                .find(|(other, b)| *other != key && area(other) == area(key) && b[..] != body[..])?
                .1
                .to_vec();
        }
    }
    objects.insert(key.to_owned(), body.into());
    Some(objects)
}

/// Restores a snapshot without any local copy of an index.
fn restore_from(world: &World, open: &Open, source: &str, seq: u64, to: &Path) -> anyhow::Result<()> {
    let (commit, snapshot) = restore::find(open, &name(source), &Pick::Seq(seq))?;
    let request = Request::new(to.to_owned(), 1);
    restore::restore(open, std::slice::from_ref(&world.recovery.identity), &commit, &snapshot, &request)?;
    Ok(())
}

type Needs = BTreeMap<(String, u64), BTreeSet<String>>;

/// What each snapshot needs.
fn needs(open: &Open) -> Needs {
    let mut needs = Needs::new();
    for source in ["tree", "db"] {
        let source = name(source);
        let whole = Series::list(&open.store, &open.trust, &source).unwrap().whole();
        for (_, s) in whole.snapshots() {
            let mut keys: BTreeSet<String> =
                series::index_objects(s).map(|(h, _)| layout::index(&source, h).to_string()).collect();
            keys.extend(series::packs_of(&open.store, s).unwrap().keys().map(|h| layout::pack(&source, h).to_string()));
            keys.insert(layout::snapshot(&source, s.seq).to_string());
            needs.insert((source.to_string(), s.seq), keys);
        }
    }
    needs
}

#[test]
fn damage_is_named_and_stays_where_it_is() {
    let (world, _) = full_world();
    let objects = contents(&world.host.open.store);
    let needs = needs(&world.host.open);
    assert_eq!(needs.len(), 6);
    for (source, seq) in needs.keys() {
        world.restore(source, &Pick::Seq(*seq), &format!("sound-{source}-{seq}")).unwrap();
    }
    let root = world.host.open.trust.root.id();
    let mut cases = 0;
    for key in objects.keys() {
        for damage in DAMAGES {
            let Some(broken) = damaged(&objects, key, damage) else { continue };
            cases += 1;
            let context = format!("{damage:?} of {key}");
            let store = store_with(&broken);
            let trust = Trust::load(&store, Some(&root));
            if key == "repository.json" || key.starts_with("trust/") {
                let error = format!("{:#}", trust.expect_err(&context));
                assert!(error.contains("repository") || error.contains("trust record"), "{context}: {error}");
                continue;
            }
            let open = Open { store, trust: trust.unwrap(), clock: Arc::clone(&world.host.open.clock), state: None };
            let report =
                verify::verify(&open, None, &verify::Options { hashes: true, ..verify::Options::default() }).unwrap();
            let faults: Vec<_> = report.sources.iter().flat_map(|s| &s.faults).collect();
            let head = ["tree", "db"].iter().any(|s| *key == layout::snapshot(&name(s), 5).to_string());
            let silent =
                key.starts_with("leases/") || (damage == Damage::Delete && (head || key.starts_with("drills/")));
            let named: BTreeSet<_> = faults.iter().map(|f| f.object.as_str()).collect();
            if silent {
                assert!(named.is_empty() || head, "{context}: {faults:?}");
            } else {
                // Without the prune record, what it removed is missing too.
                assert!(named.contains(key.as_str()) && faults.len() <= 1 + usize::from(head), "{context}: {faults:?}");
            }
            let hurt: Vec<&(String, u64)> = needs.iter().filter(|(_, n)| n.contains(key)).map(|(s, _)| s).collect();
            let content = key.starts_with("packs/") || key.starts_with("index/");
            if content {
                let seqs: Vec<u64> = hurt.iter().map(|(_, seq)| *seq).collect();
                assert_eq!(faults[0].hurts, seqs, "{context}");
            }
            if key.starts_with("drills/") {
                let source = if key.starts_with("drills/tree/") { "tree" } else { "db" };
                assert!(verified::of(&open, &name(source)).unwrap().is_empty(), "{context}");
            }
            if !matches!(damage, Damage::Delete | Damage::Flip) {
                continue;
            }
            for (source, seq) in needs.keys() {
                let to = world.path("out");
                let result = restore_from(&world, &open, source, *seq, &to);
                if hurt.contains(&&(source.clone(), *seq)) {
                    let error = format!("{:#}", result.expect_err(&context));
                    let last = key.rsplit('/').next().unwrap();
                    let says = error.contains(last) || (!content && error.contains(&format!("no snapshot {seq}")));
                    assert!(says, "{context}: {error}");
                    assert!(!to.exists(), "{context}: something is at the target");
                } else {
                    result.unwrap_or_else(|e| panic!("{context}: {source} {seq}: {e:#}"));
                    assert_same_tree(&world.path(&format!("sound-{source}-{seq}")), &to);
                    fs::remove_dir_all(&to).unwrap();
                }
                // What a failed restore leaves for its continuation.
                for left in fs::read_dir(world.dir.path()).unwrap().map(|e| e.unwrap().path()) {
                    if left.file_name().unwrap().to_string_lossy().starts_with(".out.") {
                        if left.is_dir() { fs::remove_dir_all(left).unwrap() } else { fs::remove_file(left).unwrap() }
                    }
                }
            }
        }
    }
    assert!(cases > 100, "{cases}");
}

/// Puts the commit `seq` of `tree` through `change`, signs it with `key`, and stores it under `at`.
fn forge(world: &World, memory: &Memory, key: &SigningKey, seq: u64, at: u64, change: impl Fn(&mut serde_json::Value)) {
    let store = &world.host.open.store;
    let object = store.get(&layout::snapshot(&name("tree"), seq)).unwrap();
    let line = object.split(|b| *b == b'\n').next().unwrap();
    let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
    line["key"] = key.public().id().into();
    line["seq"] = at.into();
    change(&mut line);
    let body = key.sign_line(&line).unwrap();
    let target = layout::snapshot(&name("tree"), at);
    if store.get(&target).is_ok() {
        memory.tamper(&target, |b| *b = body);
    } else {
        store.create(&target, body.clone().into(), &Hash::of(&body).0).unwrap();
    }
}

#[test]
fn forged_commits_are_refused() {
    let (mut world, memory) = full_world();
    let stranger = KeyPair::generate().unwrap();
    let neighbour = KeyPair::generate().unwrap();
    let record = TrustRecord {
        keys: vec![Certificate {
            role: Role::Host,
            name: "neighbour".into(),
            key: neighbour.signing.public(),
            index: None,
            sources: vec!["other".into()],
        }],
        ..TrustRecord::default()
    };
    let store = world.host.open.store.clone();
    let now = world.host.open.now();
    world.host.open.trust.append(&store, &world.recovery.signing, record, now).unwrap();
    for key in [&stranger.signing, &neighbour.signing] {
        forge(&world, &memory, key, 4, 4, |_| ());
        let report = verify::verify(&world.host.open, Some(&name("tree")), &verify::Options::default()).unwrap();
        assert!(format!("{report:?}").contains("has not certified"), "{report:?}");
        world.restore("tree", &Pick::Seq(4), "forged").unwrap_err();
        world.restore("tree", &Pick::Seq(3), &format!("sound-{}", key.public().id().len())).ok();
        let error = world.backup_files(&world.path("data"), options()).unwrap_err();
        assert!(format!("{error:#}").contains("has not certified"), "{error:#}");
    }
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    let (world, memory) = full_world();
    let head = layout::snapshot(&name("tree"), 5);
    let previous = Hash::of(&world.host.open.store.get(&head).unwrap()).to_string();
    forge(&world, &memory, &world.host.keys.signing, 4, 6, |line| {
        line["format"] = 2.into();
        line["previous"] = previous.clone().into();
        line["layers"] = "something else altogether".into();
    });
    let before = contents(&world.host.open.store).len();
    let policy = Policy { last: 1, ..Policy::default() };
    let newer = |text: String| assert!(text.contains("written by a newer version"), "{text}");
    newer(format!("{:#}", prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::ZERO).unwrap_err()));
    newer(format!("{:#}", world.backup_files(&world.path("data"), options()).unwrap_err()));
    newer(format!("{:?}", verify::verify(&world.host.open, None, &verify::Options::default()).unwrap()));
    assert_eq!(contents(&world.host.open.store).len(), before, "something was deleted");
    world.restore("tree", &Pick::Seq(4), "older").unwrap();
}

#[test]
fn a_head_that_is_gone_raises_the_alarm_once() {
    for (delete, seq) in [(vec![5, 4], 4), (vec![5], 5)] {
        let (world, _) = full_world();
        // Seen by a further run, so that the prune record is known too.
        let before = world.backup_files(&world.path("data"), options()).unwrap();
        assert!(before.notices.is_empty() && before.seq == 6, "{:?}", before.notices);
        for gone in delete.iter().chain(&[6]) {
            world.host.open.store.delete(&layout::snapshot(&name("tree"), *gone)).unwrap();
        }
        let report = world.backup_files(&world.path("data"), options()).unwrap();
        assert_eq!((report.mode, report.seq), (Mode::Full, seq));
        assert!(report.notices.iter().any(|n| n.contains("ALARM") && n.contains("commit 6")), "{:?}", report.notices);
        let next = world.backup_files(&world.path("data"), options()).unwrap();
        assert_eq!((next.mode, next.notices.len()), (Mode::Incremental, 0), "{:?}", next.notices);
        world.restore("tree", &Pick::Latest, "after").unwrap();
        assert_same_tree(&world.path("data"), &world.path("after"));
    }
}

#[test]
fn a_missing_index_object_of_the_basis_leads_to_a_baseline() {
    let (world, _) = full_world();
    let (_, snapshot) = restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap();
    let (hash, _) = snapshot.layers[0].entries[0];
    world.host.open.store.delete(&layout::index(&name("tree"), &hash)).unwrap();
    let report = world.backup_files(&world.path("data"), options()).unwrap();
    assert!(report.why.contains("index objects"), "{}", report.why);
    assert!(report.notices[0].contains(&hash.to_string()), "{:?}", report.notices);
    let open = Open { state: None, ..world.host.open.clone() };
    restore_from(&world, &open, "tree", report.seq, &world.path("after")).unwrap();
    assert_same_tree(&world.path("data"), &world.path("after"));
}

#[test]
fn a_copy_that_cannot_be_read_is_told_from_one_that_differs() {
    let world = World::local();
    let root = world.path("src");
    fs::create_dir(&root).unwrap();
    for name in ["changed", "cut", "loops", "sound"] {
        fs::write(root.join(name), noise(1, 5000)).unwrap();
    }
    world.backup_files(&root, Options::default()).unwrap();
    world.restore("tree", &Pick::Latest, "back").unwrap();
    let back = world.path("back");
    fs::write(back.join("changed"), noise(2, 5000)).unwrap();
    fs::write(back.join("cut"), noise(1, 4000)).unwrap();
    fs::remove_file(back.join("loops")).unwrap();
    std::os::unix::fs::symlink("loops", back.join("loops")).unwrap();
    let open = &world.host.open;
    let identities = std::slice::from_ref(&world.recovery.identity);
    let (_, snapshot) = restore::find(open, &name("tree"), &Pick::Latest).unwrap();
    let secrets = SealedPart::open(&snapshot, identities).unwrap().secrets;
    let checks = compare(open, identities, &snapshot, &secrets, &back).unwrap();
    let found = &checks.iter().find(|check| check.name.contains("as they were read")).unwrap().actual;
    assert!(
        found.starts_with("3 differ: changed: differs at 0; cut: differs at 0; loops: cannot be read at 0: "),
        "{found}"
    );
}

#[test]
fn a_journal_without_its_staging_tree_is_not_believed() {
    let (world, memory) = full_world();
    let (_, snapshot) = restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap();
    // All packs but the last are written, then the restore stops.
    let packs = series::packs_of(&world.host.open.store, &snapshot).unwrap();
    let last = layout::pack(&name("tree"), packs.keys().next_back().unwrap());
    memory.tamper(&last, |body| *body.last_mut().unwrap() ^= 1);
    world.restore("tree", &Pick::Latest, "out").unwrap_err();
    memory.tamper(&last, |body| *body.last_mut().unwrap() ^= 1);
    for left in fs::read_dir(world.dir.path()).unwrap().map(|e| e.unwrap().path()) {
        if left.is_dir() && left.file_name().unwrap().to_string_lossy().starts_with(".out.") {
            fs::remove_dir_all(left).unwrap();
        }
    }
    world.restore("tree", &Pick::Latest, "out").unwrap();
    assert_same_tree(&world.path("data"), &world.path("out"));
}
