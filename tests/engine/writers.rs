//! Several writers of one source: of two one wins, nothing is ever half.

use super::faults::hooked;
use super::world::{World, assert_same_tree, name, one_worker};
use blackstart::bridge::Store;
use blackstart::clock::{Clock, SystemClock};
use blackstart::error::{Kind, kind_of};
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::{Host, prune, verify};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout;
use blackstart::repository::snapshot::Mode;
use blackstart::repository::trust::{Certificate, Role, TrustRecord};
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

fn run(world: &World, host: &Host, options: Options) -> anyhow::Result<BackupReport> {
    let root = world.path("data");
    let open = || -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(Files::open(&root, FilesOptions::default(), &*host.open.clock)?))
    };
    backup::backup(host, &name("tree"), &open, options)
}

fn copy_of(keys: &KeyPair) -> KeyPair {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), keys.to_text("copy").as_bytes()).unwrap();
    KeyPair::read(&dir.path().join("key")).unwrap()
}

/// A host like the world's, with a copy of its keys and state.
pub fn clone_of(world: &World, store: Store, state: &str) -> Host {
    let (from, to) = (world.path("state"), world.path(state));
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(&to).status().unwrap().success());
    let open = blackstart::operations::Open { store, state: Some(to), ..world.host.open.clone() };
    // Another name, so that its leases are not taken for those of the original.
    Host { open, keys: copy_of(&world.host.keys), name: "clone".into() }
}

fn sound(world: &World) {
    let report =
        verify::verify(&world.host.open, None, &verify::Options { hashes: true, ..verify::Options::default() })
            .unwrap();
    assert!(report.sound(), "{report:?}");
    world.restore("tree", &Pick::Latest, "check").unwrap();
    assert_same_tree(&world.path("data"), &world.path("check"));
    fs::remove_dir_all(world.path("check")).unwrap();
}

#[test]
fn a_second_host_stops_until_it_is_told_to_adopt() {
    let (mut world, _) = World::in_memory();
    let keys = KeyPair::generate().unwrap();
    let record = TrustRecord {
        keys: vec![Certificate {
            role: Role::Host,
            name: "second".into(),
            key: keys.signing.public(),
            index: Some(keys.identity.to_public().to_string()),
            sources: vec!["*".into()],
        }],
        ..TrustRecord::default()
    };
    let (store, now) = (world.host.open.store.clone(), world.host.open.now());
    world.host.open.trust.append(&store, &world.recovery.signing, record, now).unwrap();
    run(&world, &world.host, one_worker()).unwrap();
    let open = blackstart::operations::Open { state: Some(world.path("state-2")), ..world.host.open.clone() };
    let second = Host { open, keys, name: "second".into() };
    let error = run(&world, &second, one_worker()).unwrap_err();
    assert_eq!(kind_of(&error), Kind::Busy, "{error:#}");
    let adopted = run(&world, &second, Options { adopt: true, ..one_worker() }).unwrap();
    assert_eq!((adopted.seq, adopted.mode), (2, Mode::Full));
    assert_eq!(run(&world, &second, one_worker()).unwrap().mode, Mode::Incremental);
    // The first has lost the series.
    assert_eq!(kind_of(&run(&world, &world.host, one_worker()).unwrap_err()), Kind::Busy);
    sound(&world);
}

#[test]
fn of_two_clones_one_loses_and_begins_a_new_lineage() {
    let (world, memory) = World::in_memory();
    run(&world, &world.host, one_worker()).unwrap();
    let lineage = |seq: u64| {
        let (_, s) = blackstart::operations::restore::find(&world.host.open, &name("tree"), &Pick::Seq(seq)).unwrap();
        s.lineage
    };
    // The clone stops before its commit, and the original commits meanwhile, past the clone's lease.
    let twin = Arc::new(Mutex::new(None::<Host>));
    let clone = clone_of(&world, Store::new(Arc::new(memory.clone())).unwrap(), "state-clone");
    *twin.lock().unwrap() = Some(clone_of(&world, Store::new(Arc::new(memory.clone())).unwrap(), "state-twin"));
    let once = AtomicBool::new(true);
    let (root, bare) = (world.path("data"), Store::new(Arc::new(memory.clone())).unwrap());
    let held = Arc::clone(&twin);
    let store = hooked(&memory, move |operation, key| {
        if operation == "create" && key.starts_with("snapshots/") && once.swap(false, Ordering::SeqCst) {
            bare.delete(&layout::lease(&name("tree"))).unwrap();
            let guard = held.lock().unwrap();
            let host = guard.as_ref().unwrap();
            let open = || -> anyhow::Result<Box<dyn Source>> {
                Ok(Box::new(Files::open(&root, FilesOptions::default(), &*host.open.clock)?))
            };
            backup::backup(host, &name("tree"), &open, one_worker()).unwrap();
        }
    });
    let clone = Host { open: blackstart::operations::Open { store, ..clone.open.clone() }, ..clone };
    let report = run(&world, &clone, one_worker()).unwrap();
    assert_eq!((report.seq, report.mode), (3, Mode::Full), "{}", report.why);
    assert!(report.why.contains("does not remember"), "{}", report.why);
    assert_eq!(lineage(1), lineage(2));
    assert_ne!(lineage(2), lineage(3));
    sound(&world);
    let guard = twin.lock().unwrap();
    let again = run(&world, guard.as_ref().unwrap(), one_worker()).unwrap();
    assert_eq!((again.seq, again.mode), (4, Mode::Full));
    // A baseline that is due does not hide that another has written.
    let baseline = run(&world, &world.host, Options { baseline: true, ..one_worker() }).unwrap();
    assert_eq!(baseline.notices.len(), 1, "{:?}", baseline.notices);
    assert!(![lineage(1), lineage(3), lineage(4)].contains(&lineage(5)));
    sound(&world);
}

#[test]
fn two_runs_at_once_commit_one_after_the_other_or_one_stops() {
    let (world, _) = World::in_memory();
    for _ in 0..5 {
        let before = world.host.open.store.list("snapshots/").unwrap().len();
        let results: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| run(&world, &world.host, one_worker()))).collect();
            runs.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let done = results.iter().filter(|r| r.is_ok()).count();
        assert!(done >= 1, "{results:?}");
        for error in results.iter().filter_map(|r| r.as_ref().err()) {
            assert_eq!(kind_of(error), Kind::Busy, "{error:#}");
        }
        assert_eq!(world.host.open.store.list("snapshots/").unwrap().len(), before + done);
        sound(&world);
    }
}

/// A prune by another machine, at each write of a backup whose lease has been lost, with no grace at all.
#[test]
fn a_prune_in_the_middle_of_a_backup_leaves_no_snapshot_without_its_objects() {
    for area in ["leases/", "packs/", "index/", "snapshots/"] {
        let (world, memory) = World::in_memory();
        for n in 0..3 {
            fs::write(world.path("data/file"), format!("contents {n}")).unwrap();
            run(&world, &world.host, one_worker()).unwrap();
        }
        fs::write(world.path("data/file"), "the newest").unwrap();
        let keeper = clone_of(&world, Store::new(Arc::new(memory.clone())).unwrap(), "state-keeper");
        let once = AtomicBool::new(true);
        let store = hooked(&memory, move |operation, key| {
            let write = operation == "create" || operation == "replace";
            if write && key.starts_with(area) && once.swap(false, Ordering::SeqCst) {
                let open = &keeper.open;
                open.store.delete(&layout::lease(&name("tree"))).unwrap();
                let policy = Policy { last: 1, ..Policy::default() };
                let plan = prune::plan(open, &name("tree"), &policy, SignedDuration::ZERO).unwrap();
                prune::sweep(&keeper, plan).unwrap();
            }
        });
        let host = clone_of(&world, store, "state-racer");
        match run(&world, &host, one_worker()) {
            Ok(report) => assert!(report.seq >= 4),
            Err(e) => assert_eq!(kind_of(&e), Kind::Busy, "{area}: {e:#}"),
        }
        let report =
            verify::verify(&world.host.open, None, &verify::Options { hashes: true, ..verify::Options::default() })
                .unwrap();
        assert!(report.sound(), "{area}: {report:?}");
        world.restore("tree", &Pick::Latest, "check").unwrap();
    }
}

/// A prune commits before it deletes. What was still there when the writer looked, but is as old as what a prune takes, counts as gone.
#[test]
fn a_prune_that_has_committed_and_not_yet_deleted_takes_nothing_that_a_snapshot_names() {
    let (world, memory) = World::in_memory();
    run(&world, &world.host, one_worker()).unwrap();
    fs::write(world.path("data/file"), "the newest").unwrap();
    let (reached, deletes) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let (reached, gate) = (Mutex::new(reached), Mutex::new(gate));
    // Deletes nothing of the data before it is let go, or the test has ended.
    let store = hooked(&memory, move |operation, key| {
        if operation == "delete" && (key.starts_with("packs/") || key.starts_with("index/")) {
            let _gone = reached.lock().unwrap().send(());
            let _ended = gate.lock().unwrap().recv();
        }
    });
    let keeper = Mutex::new(Some(clone_of(&world, store, "state-keeper")));
    let sweep = Arc::new(Mutex::new(None));
    let (old, sweeping) = (memory.clone(), Arc::clone(&sweep));
    let deletes = Mutex::new(deletes);
    let store = hooked(&memory, move |operation, key| {
        if operation != "create" || !key.starts_with("snapshots/") {
            return;
        }
        let Some(keeper) = keeper.lock().unwrap().take() else { return };
        let open = &keeper.open;
        open.store.delete(&layout::lease(&name("tree"))).unwrap();
        // The run has taken longer than the grace period.
        for object in ["packs/", "index/"].map(|area| open.store.list(area).unwrap()).concat() {
            old.set_modified(&object.key, open.now() - SignedDuration::from_hours(25));
        }
        let policy = Policy { last: 9, ..Policy::default() };
        let plan = prune::plan(open, &name("tree"), &policy, SignedDuration::from_hours(24)).unwrap();
        assert!(plan.unnamed_count > 0);
        *sweeping.lock().unwrap() = Some(std::thread::spawn(move || prune::sweep(&keeper, plan).unwrap()));
        deletes.lock().unwrap().recv().unwrap();
    });
    let host = clone_of(&world, store, "state-racer");
    let report = run(&world, &host, one_worker()).unwrap();
    assert_eq!(report.seq, 3);
    drop(go);
    let swept = sweep.lock().unwrap().take().unwrap().join().unwrap();
    assert!(swept.objects_deleted > 0);
    sound(&world);
}

/// As above where prune has no commit to remove: only what nothing names goes, and still the writer must notice.
#[test]
fn a_prune_of_unnamed_objects_alone_is_noticed_by_a_writer_that_stalled() {
    let (world, memory) = World::in_memory();
    run(&world, &world.host, one_worker()).unwrap();
    fs::write(world.path("data/file"), "the newest").unwrap();
    let keeper = clone_of(&world, Store::new(Arc::new(memory.clone())).unwrap(), "state-keeper");
    let once = AtomicBool::new(true);
    let store = hooked(&memory, move |operation, key| {
        if operation == "create" && key.starts_with("snapshots/") && once.swap(false, Ordering::SeqCst) {
            let open = &keeper.open;
            open.store.delete(&layout::lease(&name("tree"))).unwrap();
            let policy = Policy { last: 9, ..Policy::default() };
            let plan = prune::plan(open, &name("tree"), &policy, SignedDuration::ZERO).unwrap();
            assert!(plan.remove.is_empty() && plan.unnamed_count > 0);
            prune::sweep(&keeper, plan).unwrap();
        }
    });
    let host = clone_of(&world, store, "state-racer");
    let report = run(&world, &host, one_worker()).unwrap();
    assert_eq!(report.seq, 3);
    sound(&world);
}

/// By a clock that runs ahead everything is old.
#[test]
fn a_prune_whose_clock_runs_ahead_deletes_nothing() {
    let (world, memory) = World::in_memory();
    for n in 0..3 {
        fs::write(world.path("data/file"), format!("contents {n}")).unwrap();
        run(&world, &world.host, one_worker()).unwrap();
    }
    let before = world.host.open.store.list("").unwrap().len();
    let mut keeper = clone_of(&world, Store::new(Arc::new(memory)).unwrap(), "state-keeper");
    keeper.open.clock = Arc::new(Ahead);
    let policy = Policy { last: 1, ..Policy::default() };
    let plan = prune::plan(&keeper.open, &name("tree"), &policy, SignedDuration::from_hours(24)).unwrap();
    assert!(!plan.is_empty());
    let error = prune::sweep(&keeper, plan).unwrap_err();
    assert!(format!("{error:#}").contains("ahead of the store's"), "{error:#}");
    assert!(world.host.open.store.list("").unwrap().len() >= before);
    sound(&world);
}

#[derive(Debug)]
struct Ahead;

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now() + SignedDuration::from_hours(24 * 365)
    }
}
