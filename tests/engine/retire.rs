//! Retiring a source: one commit that ends nothing but alarms, wherever it is interrupted and whoever else writes.

use super::faults::{Fault, Faulty, hooked};
use super::world::{World, assert_same_tree, name, one_worker};
use blackstart::agent::observe;
use blackstart::bridge::Store;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::operations::backup::{Options, backup};
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::retire::retire;
use blackstart::operations::watch::{self, Bounds};
use blackstart::operations::{Host, Open, prune, verify};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout;
use blackstart::repository::series::Series;
use blackstart::repository::snapshot::Mode;
use blackstart::repository::trust::{Certificate, Role, TrustRecord};
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn revive() -> Options {
    Options { revive: true, ..one_worker() }
}

fn back_up(world: &World, options: Options) -> anyhow::Result<(u64, Mode)> {
    world.backup_files(&world.path("data"), options).map(|report| (report.seq, report.mode))
}

fn is_retired(world: &World) -> bool {
    let open = &world.host.open;
    Series::list(&open.store, &open.trust, &name("tree")).unwrap().retired().unwrap().is_some()
}

/// A snapshot came after the record, and nobody can read it any more: to be silent of the source would be a mistake.
#[test]
fn a_source_is_not_taken_for_retired_behind_a_commit_that_does_not_verify() {
    let (world, memory) = World::in_memory();
    back_up(&world, one_worker()).unwrap();
    retire(&world.host, &name("tree"), None).unwrap();
    back_up(&world, revive()).unwrap();
    let open = &world.host.open;
    memory.tamper(&layout::snapshot(&name("tree"), 3), |bytes| bytes[20] ^= 1);
    let whole = Series::list(&open.store, &open.trust, &name("tree")).unwrap().whole();
    assert!(whole.retired().is_none() && whole.faults.len() == 1, "{:?}", whole.faults);
    let sources = BTreeMap::from([(name("tree"), BTreeSet::new())]);
    let seen = observe(open, &sources, &BTreeMap::new()).unwrap();
    assert_eq!(seen[&name("tree")].retired, None, "its jobs go on, and its alarms");
    let bounds = Bounds { newest: SignedDuration::ZERO, of_source: [].into(), verified: None };
    let looked = watch::look(open, &watch::Seen::default(), &bounds, &[]).unwrap();
    let causes: Vec<watch::Cause> = watch::judge(&looked, &bounds, open.now()).into_iter().map(|a| a.cause).collect();
    assert_eq!(causes, [watch::Cause::Damaged, watch::Cause::Stale], "its silence is no more meant");
}

/// All that is there restores and verifies.
fn sound(world: &World) {
    let options = verify::Options { hashes: true, expected: vec![name("tree")], ..verify::Options::default() };
    let report = verify::verify(&world.host.open, None, &options).unwrap();
    assert!(report.sound(), "{report:?}");
    world.restore("tree", &Pick::Latest, "check").unwrap();
    assert_same_tree(&world.path("data"), &world.path("check"));
    fs::remove_dir_all(world.path("check")).unwrap();
}

#[test]
fn a_retired_source_is_silent_restores_and_is_taken_up_again_by_name_only() {
    let (world, _) = World::in_memory();
    assert_eq!(kind_of(&retire(&world.host, &name("tree"), None).unwrap_err()), Kind::Usage);
    assert!(world.host.open.store.list(layout::LEASES).unwrap().is_empty(), "a misspelt name leaves no trace");
    back_up(&world, one_worker()).unwrap();
    let report = retire(&world.host, &name("tree"), Some("moved".into())).unwrap();
    assert_eq!((report.seq, report.snapshots), (2, 1));
    assert!(is_retired(&world));
    sound(&world);
    let bounds = Bounds { newest: SignedDuration::ZERO, of_source: [].into(), verified: Some(SignedDuration::ZERO) };
    let open = &world.host.open;
    let look = || watch::look(open, &watch::Seen::default(), &bounds, &[]).unwrap();
    assert_eq!(watch::judge(&look(), &bounds, open.now()), [], "silence is meant");
    // Twice is a mistake; a run that does not ask for it does nothing.
    assert_eq!(kind_of(&retire(&world.host, &name("tree"), None).unwrap_err()), Kind::Usage);
    let refused = back_up(&world, one_worker()).unwrap_err();
    let said = format!("{refused:#} {}", help_of(&refused).unwrap());
    assert!(said.contains("was retired") && said.contains(": moved") && said.contains("backup tree"), "{said}");
    // Prune by name goes on as ever, and leaves it retired.
    let policy = Policy { last: 1, ..Policy::default() };
    let grace = SignedDuration::ZERO;
    prune::sweep(&world.host, prune::plan(open, &name("tree"), &policy, grace).unwrap()).unwrap();
    assert!(is_retired(&world));
    // By name it is taken up again, incrementally: the head rule leaves the record aside.
    fs::write(world.path("data/more"), "more").unwrap();
    let (seq, mode) = back_up(&world, revive()).unwrap();
    assert_eq!(mode, Mode::Incremental, "commit {seq}");
    assert!(!is_retired(&world));
    assert!(!watch::judge(&look(), &bounds, open.now()).is_empty(), "silence alarms again");
    prune::sweep(&world.host, prune::plan(open, &name("tree"), &policy, grace).unwrap()).unwrap();
    sound(&world);
    back_up(&world, one_worker()).unwrap();
}

#[test]
fn wherever_it_is_interrupted_it_is_done_or_not_begun() {
    for (fault, what) in [(Fault::Call as fn(usize) -> Fault, "call"), (Fault::Unanswered, "write")] {
        for n in 1.. {
            let (mut world, memory) = World::in_memory();
            back_up(&world, one_worker()).unwrap();
            let faulty = Faulty::new(memory.clone(), fault(n));
            let sane = std::mem::replace(&mut world.host.open.store, Store::new(faulty.clone()).unwrap());
            let done = retire(&world.host, &name("tree"), None);
            world.host.open.store = sane;
            if !faulty.struck() {
                assert!(done.is_ok() && n > 2, "{what} {n}: {done:?}");
                break;
            }
            // The lease of whoever died stands in nobody's way for long: here it is his own host's.
            sound(&world);
            if is_retired(&world) {
                assert_eq!(kind_of(&back_up(&world, one_worker()).unwrap_err()), Kind::Usage, "{what} {n}");
                back_up(&world, revive()).unwrap();
            } else {
                back_up(&world, one_worker()).unwrap();
                retire(&world.host, &name("tree"), None).unwrap();
                assert!(is_retired(&world), "{what} {n}");
            }
            sound(&world);
        }
    }
}

/// Another process of the same host, past its lease.
fn other(world: &World, memory: &Memory) -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), world.host.keys.to_text("copy").as_bytes()).unwrap();
    let keys = KeyPair::read(&dir.path().join("key")).unwrap();
    let store = Store::new(Arc::new(memory.clone())).unwrap();
    let state = Some(world.path("state-other"));
    Host { open: Open { store, state, ..world.host.open.clone() }, keys, name: "other".into() }
}

#[test]
fn a_backup_that_was_under_way_does_not_undo_what_it_did_not_know() {
    let (mut world, memory) = World::in_memory();
    back_up(&world, one_worker()).unwrap();
    let (keeper, once) = (other(&world, &memory), AtomicBool::new(true));
    let bare = Store::new(Arc::new(memory.clone())).unwrap();
    let store = hooked(&memory, move |operation, key| {
        if operation == "create" && key.starts_with("snapshots/") && once.swap(false, Ordering::SeqCst) {
            bare.delete(&layout::lease(&name("tree"))).unwrap();
            retire(&keeper, &name("tree"), None).unwrap();
        }
    });
    let sane = std::mem::replace(&mut world.host.open.store, store);
    fs::write(world.path("data/more"), "more").unwrap();
    // Although its operator asked for just this source: he did not know.
    let lost = back_up(&world, revive()).unwrap_err();
    world.host.open.store = sane;
    assert!(format!("{lost:#}").contains("was retired"), "{lost:#}");
    assert!(is_retired(&world));
    assert_eq!(Series::list(&world.host.open.store, &world.host.open.trust, &name("tree")).unwrap().head(), 2);
    back_up(&world, revive()).unwrap();
    sound(&world);
}

#[test]
fn a_source_that_somebody_backs_up_meanwhile_is_not_retired() {
    let (mut world, memory) = World::in_memory();
    back_up(&world, one_worker()).unwrap();
    let (host, once, root) = (other(&world, &memory), AtomicBool::new(true), world.path("data"));
    let bare = Store::new(Arc::new(memory.clone())).unwrap();
    let store = hooked(&memory, move |operation, key| {
        if operation == "create" && key.starts_with("snapshots/") && once.swap(false, Ordering::SeqCst) {
            bare.delete(&layout::lease(&name("tree"))).unwrap();
            let open = || -> anyhow::Result<Box<dyn Source>> {
                Ok(Box::new(Files::open(&root, FilesOptions::default(), &*host.open.clock)?))
            };
            backup(&host, &name("tree"), &open, one_worker()).unwrap();
        }
    });
    world.host.open.store = store;
    let lost = retire(&world.host, &name("tree"), None).unwrap_err();
    assert_eq!(kind_of(&lost), Kind::Busy, "{lost:#}");
    assert!(!is_retired(&world));
}

/// The roles that may, and nobody else; and what a later version may add.
#[test]
fn hosts_and_keepers_may_and_what_is_not_known_is_refused() {
    let (mut world, memory) = World::in_memory();
    back_up(&world, one_worker()).unwrap();
    let keeper = KeyPair::generate().unwrap();
    let stranger = Host { keys: KeyPair::generate().unwrap(), open: world.host.open.clone(), name: "stranger".into() };
    assert_eq!(kind_of(&retire(&stranger, &name("tree"), None).unwrap_err()), Kind::WrongKey);
    let record = TrustRecord {
        keys: vec![Certificate {
            role: Role::Keeper,
            name: "keeper".into(),
            key: keeper.signing.public(),
            index: None,
            sources: vec!["tree".into()],
        }],
        ..TrustRecord::default()
    };
    let (store, now) = (world.host.open.store.clone(), world.host.open.now());
    world.host.open.trust.append(&store, &world.recovery.signing, record, now).unwrap();
    let keeper = Host { keys: keeper, open: world.host.open.clone(), name: "keeper".into() };
    retire(&keeper, &name("tree"), None).unwrap();
    assert!(is_retired(&world));
    // Of another type, as a later version may write: refused by everybody, and not called damage.
    let object = store.get(&layout::snapshot(&name("tree"), 2)).unwrap();
    let mut line: Value = serde_json::from_slice(object.split(|b| *b == b'\n').next().unwrap()).unwrap();
    (line["type"], line["seq"]) = (json!("supersede"), json!(3));
    let body = keeper.keys.signing.sign_line(&line).unwrap();
    let hash = layout::Hash::of(&body);
    store.create(&layout::snapshot(&name("tree"), 3), body.into(), &hash.0).unwrap();
    let newer = "which this program does not know: it was written by a newer version";
    let policy = Policy { last: 1, ..Policy::default() };
    let refusals = [
        back_up(&world, revive()).unwrap_err(),
        retire(&keeper, &name("tree"), None).unwrap_err(),
        prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::ZERO).unwrap_err(),
    ];
    for refusal in refusals {
        assert!(format!("{refusal:#}").contains(newer), "{refusal:#}");
    }
    let verified = verify::verify(&world.host.open, None, &verify::Options::default()).unwrap();
    assert!(verified.sources[0].faults[0].what.contains(newer), "{verified:?}");
    world.restore("tree", &Pick::Seq(1), "one").unwrap();
    drop(memory);
}
