//! A store that keeps versions, and somebody who may write and delete in it, but not delete versions: nothing is lost, all is said.

use super::world::{World, assert_same_tree, name};
use blackstart::bridge::Store;
use blackstart::clock::SystemClock;
use blackstart::error::{Kind, kind_of};
use blackstart::operations::backup::Options;
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Open, prune, verified, verify};
use blackstart::repository::history;
use blackstart::repository::layout;
use blackstart::repository::snapshot::Mode;
use blackstart::repository::trust::Trust;
use blackstart::storage::Key;
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

fn options() -> Options {
    Options { workers: 1, ..Options::default() }
}

/// Three snapshots of a tree and a drill, in a store that keeps versions; and a sound restore of the newest at `sound`.
fn versioned_world() -> (World, Memory) {
    let memory = Memory::versioned(Arc::new(SystemClock));
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    for round in 0..3 {
        fs::write(data.join(format!("file-{round}")), format!("{round}\n").repeat(9000)).unwrap();
        world.backup_files(&data, options()).unwrap();
    }
    assert!(world.drill("tree").unwrap().passed);
    world.restore("tree", &Pick::Latest, "sound").unwrap();
    (world, memory)
}

/// The keys of everything but leases.
fn written_once(world: &World) -> Vec<Key> {
    let all = history::list(&world.host.open.store, "").unwrap();
    all.into_iter().map(|w| w.key).filter(|key| !key.as_str().starts_with("leases/")).collect()
}

/// As a machine that knows no more than the root key's fingerprint sees the repository.
fn from_outside(world: &World) -> Open {
    let open = &world.host.open;
    let trust = Trust::load(&open.store, Some(&open.trust.root.id())).unwrap();
    Open { store: open.store.clone(), trust, clock: Arc::clone(&open.clock), state: None }
}

fn restores_as_it_was(world: &World, to: &str) {
    let open = from_outside(world);
    let (commit, snapshot) = restore::find(&open, &name("tree"), &Pick::Latest).unwrap();
    assert_eq!(snapshot.seq, 3);
    let request = Request::new(world.path(to), 2);
    restore::restore(&open, std::slice::from_ref(&world.recovery.identity), &commit, &snapshot, &request).unwrap();
    assert_same_tree(&world.path("sound"), &world.path(to));
}

fn verified(world: &World) -> verify::VerifyReport {
    let options = verify::Options { hashes: true, ..verify::Options::default() };
    verify::verify(&from_outside(world), None, &options).unwrap()
}

fn keep_last(world: &World, last: u32) -> prune::Plan {
    let policy = Policy { last, ..Policy::default() };
    prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::ZERO).unwrap()
}

/// The whole story after an attack on every object that was written once.
fn outlives(world: &World, deleted: bool) {
    restores_as_it_was(world, "after");
    assert_eq!(verified::of(&from_outside(world), &name("tree")).unwrap().len(), 1, "the proof holds");

    let report = verified(world);
    let source = &report.sources[0];
    assert!(source.faults.is_empty() && !report.sound(), "{source:?}");
    assert!(source.covers.iter().all(|cover| cover.deleted == deleted));
    let named: BTreeSet<&str> = source.covers.iter().map(|cover| cover.object.as_str()).collect();
    let expected: BTreeSet<String> = written_once(world).iter().map(Key::to_string).collect();
    let named: BTreeSet<&str> = report.covers.iter().map(|cover| cover.object.as_str()).chain(named).collect();
    assert_eq!(named, expected.iter().map(String::as_str).collect());

    let error = prune::sweep(&world.host, keep_last(world, 1)).unwrap_err();
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");

    // The host goes on where it was, and says loudly that somebody is at work.
    let backup = world.backup_files(&world.path("data"), options()).unwrap();
    assert_eq!((backup.seq, backup.mode, backup.alarm), (4, Mode::Incremental, true), "{:?}", backup.notices);
    assert!(backup.notices.iter().any(|notice| notice.contains("ALARM")), "{:?}", backup.notices);

    let mut plan = keep_last(world, 10);
    plan.remove_covers = true;
    prune::sweep(&world.host, plan).unwrap();
    let clean = verified(world);
    assert!(clean.sound(), "{clean:?}");
    assert!(!world.backup_files(&world.path("data"), options()).unwrap().alarm);
}

#[test]
fn delete_markers_over_everything_lose_nothing() {
    let (world, memory) = versioned_world();
    for key in written_once(&world) {
        memory.cover(&key, None);
    }
    assert_eq!(world.host.open.store.list("snapshots/").unwrap(), [], "a plain listing shows nothing");
    outlives(&world, true);
}

#[test]
fn garbage_over_everything_loses_nothing() {
    let (world, memory) = versioned_world();
    for key in written_once(&world) {
        memory.cover(&key, Some(b"gone, ha"));
    }
    outlives(&world, false);
}

#[test]
fn bytes_of_the_same_length_over_a_pack_are_noticed_and_looked_through() {
    let (world, memory) = versioned_world();
    let store = &world.host.open.store;
    for object in store.list("packs/").unwrap() {
        let mut body = store.get(&object.key).unwrap().to_vec();
        let middle = body.len() / 2;
        body[middle] ^= 1;
        memory.cover(&object.key, Some(&body));
    }
    restores_as_it_was(&world, "after");
    assert!(!verified(&world).sound());
}

#[test]
fn a_commit_forged_over_another_with_the_hosts_own_key_does_not_count() {
    let (world, memory) = versioned_world();
    let key = layout::snapshot(&name("tree"), 3);
    let object = world.host.open.store.get(&key).unwrap();
    let line = object.split(|b| *b == b'\n').next().unwrap();
    let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
    line["data_time"] = "2020-01-01T00:00:00Z".into();
    memory.cover(&key, Some(&world.host.keys.signing.sign_line(&line).unwrap()));
    let (_, snapshot) = restore::find(&from_outside(&world), &name("tree"), &Pick::Latest).unwrap();
    assert!(snapshot.data_time > "2021-01-01T00:00:00Z".parse().unwrap(), "{}", snapshot.data_time);
    let report = verified(&world);
    assert_eq!(report.sources[0].covers.len(), 1, "{report:?}");
}

#[test]
fn a_part_of_a_covered_pack_comes_back() {
    let memory = Memory::versioned(Arc::new(SystemClock));
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    let mut random = 1u64;
    let noise = |length: usize, random: &mut u64| -> Vec<u8> {
        let mut next = || {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*random >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    };
    for file in ["a", "b", "c", "d"] {
        fs::write(data.join(file), noise(2 << 20, &mut random)).unwrap();
    }
    world.backup_files(&data, options()).unwrap();
    for cover in [None, Some(&b"short"[..])] {
        for object in history::list(&world.host.open.store, "packs/").unwrap() {
            memory.cover(&object.key, cover);
        }
        let open = from_outside(&world);
        let (commit, snapshot) = restore::find(&open, &name("tree"), &Pick::Latest).unwrap();
        let to = world.path(if cover.is_some() { "covered" } else { "deleted" });
        let paths = vec![blackstart::entry::Name::new(b"b")];
        let request = Request { paths, ..Request::new(to.clone(), 1) };
        restore::restore(&open, std::slice::from_ref(&world.recovery.identity), &commit, &snapshot, &request).unwrap();
        assert!(fs::read(to.join("b")).unwrap() == fs::read(data.join("b")).unwrap());
    }
}

#[test]
fn a_sweep_leaves_no_version_behind() {
    let (world, _) = versioned_world();
    let before = written_once(&world);
    prune::sweep(&world.host, keep_last(&world, 1)).unwrap();
    let after = written_once(&world);
    for seq in [1, 2] {
        let key = layout::snapshot(&name("tree"), seq);
        assert!(before.contains(&key) == (seq != 3) && !after.contains(&key));
    }
    let leases = history::list(&world.host.open.store, "leases/").unwrap();
    // The sweep itself has taken, and let go of, the lease since.
    assert!(leases[0].versions.len() <= 3, "{leases:?}");
    assert!(verified(&world).sound());
    restores_as_it_was(&world, "after");
}

#[test]
fn a_clock_that_is_wrong_makes_a_snapshot_suspect_and_keeps_it() {
    let (world, memory) = versioned_world();
    let now = world.host.open.now();
    let plan = || keep_last(&world, 1).remove.iter().map(|r| r.seq).collect::<Vec<_>>();
    assert_eq!(plan(), [1, 2]);
    memory.set_modified(&layout::snapshot(&name("tree"), 1), now - SignedDuration::from_mins(59));
    assert_eq!(plan(), [1, 2]);
    memory.set_modified(&layout::snapshot(&name("tree"), 1), now - SignedDuration::from_mins(61));
    assert_eq!(plan(), [2]);
    memory.set_modified(&layout::snapshot(&name("tree"), 2), now + SignedDuration::from_mins(61));
    assert_eq!(plan(), [] as [u64; 0]);
}
