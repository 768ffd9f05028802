//! A run that was interrupted is not in vain: the next one stores only what is missing, and what it commits is the source as it is then.

use super::faults::{Fault, Faulty};
use super::order::{Shuffled, check, take};
use super::world::{World, assert_same_tree, name};
use blackstart::bridge::Store;
use blackstart::operations::backup::{BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::{prune, verify};
use blackstart::repository::layout;
use blackstart::storage::memory::Memory;
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn world() -> (World, Memory) {
    let memory = Memory::default();
    (World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap()), memory)
}

fn options() -> Options {
    Options { workers: 1, level: Some(1), checkpoint_every: Duration::ZERO, ..Options::default() }
}

/// Files of bytes that do not compress, one of them large.
fn tree(world: &World) {
    fs::create_dir_all(world.path("data/sub")).unwrap();
    fs::write(world.path("data/large"), noise(1, 40 << 20)).unwrap();
    for n in 0..24 {
        fs::write(world.path(&format!("data/sub/{n:02}")), noise(100 + n, 1 << 20)).unwrap();
    }
}

fn database(path: &Path, mib: u64) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<?1) INSERT INTO t SELECT i, randomblob(65536) FROM n";
    db.execute(rows, [mib * 16]).unwrap();
}

use super::world::noise;

/// Runs `act` on a store that dies as the `n`th pack is sent. Whether it died.
fn dying<T>(world: &mut World, memory: &Memory, n: usize, act: impl Fn(&World) -> anyhow::Result<T>) -> bool {
    let faulty = Faulty::new(memory.clone(), Fault::Create("packs/", n));
    let sound = std::mem::replace(&mut world.host.open.store, Store::new(faulty.clone()).unwrap());
    let result = act(world);
    world.host.open.store = sound;
    assert!(result.is_ok() || faulty.struck());
    result.is_err()
}

/// Stored bytes of packs.
fn pack_bytes(world: &World) -> u64 {
    world.host.open.store.list("packs/").unwrap().iter().map(|o| o.size).sum()
}

fn sound(world: &World) {
    let identities = vec![world.recovery.identity.clone()];
    let options = verify::Options { read_data: Some(identities), ..verify::Options::default() };
    let report = verify::verify(&world.host.open, None, &options).unwrap();
    assert!(report.sound(), "{report:?}");
}

fn tree_comes_back(world: &World) {
    world.restore("tree", &Pick::Latest, "back").unwrap();
    assert_same_tree(&world.path("data"), &world.path("back"));
    fs::remove_dir_all(world.path("back")).unwrap();
}

fn database_comes_back(world: &World) {
    world.restore("db", &Pick::Latest, "back").unwrap();
    assert!(fs::read(world.path("app.db")).unwrap() == fs::read(world.path("back/app.db")).unwrap());
    fs::remove_dir_all(world.path("back")).unwrap();
}

/// Dies over and over, each time after a pack or two, until it gets through.
fn interrupted_over_and_over(
    backup: impl Fn(&World) -> anyhow::Result<BackupReport>,
    prepare: impl Fn(&World),
) -> World {
    let (mut world, memory) = world();
    prepare(&world);
    let mut deaths = 0;
    while dying(&mut world, &memory, 2 + deaths % 2, &backup) {
        deaths += 1;
        assert!(deaths < 9, "it gets nowhere");
    }
    assert!(deaths > 1, "{deaths}");
    world
}

#[test]
fn a_first_backup_that_dies_over_and_over_stores_everything_about_once() {
    let world = interrupted_over_and_over(|w| w.backup_files(&w.path("data"), options()), tree);
    assert!(pack_bytes(&world) < 100 * MIB, "{} MiB", pack_bytes(&world) / MIB);
    tree_comes_back(&world);
    sound(&world);
}

#[test]
fn a_database_that_dies_over_and_over_is_stored_about_once() {
    let backup = |w: &World| w.backup_sqlite(&w.path("app.db"), options());
    let world = interrupted_over_and_over(backup, |w| database(&w.path("app.db"), 64));
    assert!(pack_bytes(&world) < 100 * MIB, "{} MiB", pack_bytes(&world) / MIB);
    database_comes_back(&world);
    sound(&world);
}

/// One death in the middle of a first backup.
fn halfway() -> (World, Memory) {
    let (mut world, memory) = world();
    tree(&world);
    assert!(dying(&mut world, &memory, 3, |w| w.backup_files(&w.path("data"), options())));
    assert!(pack_bytes(&world) > 30 * MIB, "{}", pack_bytes(&world));
    (world, memory)
}

#[test]
fn the_next_run_stores_what_is_missing_and_says_so() {
    let (world, _) = halfway();
    let before = pack_bytes(&world);
    let report = world.backup_files(&world.path("data"), options()).unwrap();
    assert!(report.taken_over > 30 * MIB, "{}", report.taken_over);
    assert!(report.stats.bytes_stored < 38 * MIB, "{}", report.stats.bytes_stored);
    assert_eq!(report.stats.bytes_read, 64 * MIB, "everything is read again");
    assert!(pack_bytes(&world) - before < 38 * MIB);
    tree_comes_back(&world);
    sound(&world);
    // And all goes on as ever: an incremental that finds nothing to do, one that finds something.
    let report = world.backup_files(&world.path("data"), options()).unwrap();
    assert_eq!((report.stats.bytes_new, report.taken_over), (0, 0));
    fs::write(world.path("data/sub/07"), noise(9, 1 << 20)).unwrap();
    world.backup_files(&world.path("data"), options()).unwrap();
    tree_comes_back(&world);
    sound(&world);
}

#[test]
fn what_changed_since_the_interruption_is_stored_as_it_is_now() {
    let (world, _) = halfway();
    fs::write(world.path("data/large"), noise(77, 3 << 20)).unwrap();
    fs::remove_file(world.path("data/sub/00")).unwrap();
    fs::write(world.path("data/a-new-one"), "new").unwrap();
    fs::remove_file(world.path("data/sub/01")).unwrap();
    fs::create_dir(world.path("data/sub/01")).unwrap();
    world.backup_files(&world.path("data"), options()).unwrap();
    tree_comes_back(&world);
    sound(&world);
}

#[test]
fn packs_that_are_gone_or_too_old_are_stored_again() {
    for old in [false, true] {
        let (world, memory) = halfway();
        let store = &world.host.open.store;
        let packs = store.list("packs/").unwrap();
        for pack in packs.iter().step_by(2) {
            if old {
                memory.set_modified(&pack.key, Timestamp::now() - SignedDuration::from_hours(13));
            } else {
                store.delete(&pack.key).unwrap();
            }
        }
        let report = world.backup_files(&world.path("data"), options()).unwrap();
        let half: u64 = packs.iter().skip(1).step_by(2).map(|o| o.size).sum();
        assert_eq!(report.taken_over, half);
        tree_comes_back(&world);
        // A prune right after takes what is old, which nothing names.
        let policy = Policy { last: 1, ..Policy::default() };
        let plan = prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::from_hours(1)).unwrap();
        prune::sweep(&world.host, plan).unwrap();
        tree_comes_back(&world);
        sound(&world);
    }
}

#[test]
fn a_missing_index_object_ends_what_is_taken_over() {
    for gone in [0, 1] {
        let (world, _) = halfway();
        let journal = world.path("state").join(&world.host.open.trust.id).join("checkpoints/tree.jsonl");
        let text = fs::read_to_string(&journal).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let names: Vec<String> = lines.filter_map(|l| Some(l["entries"]["object"][0].as_str()?.to_owned())).collect();
        assert!(names.len() > 2, "{names:?}");
        let lost = layout::Hash::parse(&names[gone]).unwrap();
        world.host.open.store.delete(&layout::index(&name("tree"), &lost)).unwrap();
        let report = world.backup_files(&world.path("data"), options()).unwrap();
        assert_eq!(report.taken_over > 0, gone > 0);
        tree_comes_back(&world);
        sound(&world);
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_is_left_alone() {
    // A baseline asked for wants nothing from before; a journal that is no journal says nothing; its state lost, a host begins anew.
    for case in ["baseline", "nonsense", "cut", "lost"] {
        let (world, _) = halfway();
        let journal = world.path("state").join(&world.host.open.trust.id).join("checkpoints/tree.jsonl");
        let text = fs::read(&journal).unwrap();
        let mut options = options();
        match case {
            "baseline" => options.baseline = true,
            "nonsense" => fs::write(&journal, "{}\n").unwrap(),
            // Within the first line.
            "cut" => fs::write(&journal, &text[..100]).unwrap(),
            _ => fs::remove_dir_all(world.path("state")).unwrap(),
        }
        let report = world.backup_files(&world.path("data"), options).unwrap();
        assert_eq!(report.taken_over, 0, "{case}");
        tree_comes_back(&world);
        sound(&world);
        assert!(!journal.exists(), "{case}: the checkpoint of a run that is committed is still there");
    }
}

/// Shortcuts and a checkpoint together: a file of which the interrupted run stored the first half only, and whose times say that nothing
/// has changed, must be read nonetheless.
#[test]
fn an_interrupted_incremental_does_not_make_half_a_file_whole() {
    let (mut world, memory) = world();
    tree(&world);
    world.backup_files(&world.path("data"), options()).unwrap();
    fs::write(world.path("data/large"), noise(2, 40 << 20)).unwrap();
    fs::write(world.path("data/zzz"), noise(3, 16 << 20)).unwrap();
    let stored = pack_bytes(&world);
    let mut deaths = 0;
    while dying(&mut world, &memory, 2, |w| w.backup_files(&w.path("data"), options())) {
        deaths += 1;
        assert!(deaths < 9, "it gets nowhere");
    }
    assert!(deaths > 1, "{deaths}");
    // Not the 24 MiB that have not changed.
    let added = pack_bytes(&world) - stored;
    assert!(added < 76 * MIB, "{} MiB", added / MIB);
    tree_comes_back(&world);
    sound(&world);
    world.backup_files(&world.path("data"), options()).unwrap();
    tree_comes_back(&world);
}

/// A data directory as a base backup sends it: tables first, large ones among them, in no order; the log last.
fn shuffled() -> Shuffled {
    let mut files = Vec::new();
    let mut add = |path: &str, seed, mib: usize| files.push((path.to_owned(), noise(seed, mib << 20)));
    for directory in ["", "base/", "pg_wal/"] {
        add(directory, 0, 0);
    }
    for (path, mib) in [("base/9", 3), ("base/2", 24), ("base/16384", 1), ("base/1", 20), ("base/3", 2)] {
        add(path, mib as u64, mib);
    }
    for n in 0..14 {
        add(&format!("pg_wal/{n}.segment"), 200 + n, 1);
    }
    Shuffled::of(files)
}

#[test]
fn entries_that_come_in_no_order_are_stored_about_once_however_often_the_run_dies() {
    let source = shuffled();
    let backup = |w: &World| take(w, &source, options());
    let world = interrupted_over_and_over(backup, |_| ());
    assert!(pack_bytes(&world) < 100 * MIB, "{} MiB", pack_bytes(&world) / MIB);
    check(&world, &source, "back");
    sound(&world);
    let again = take(&world, &source, options()).unwrap();
    assert_eq!((again.stats.bytes_new, again.taken_over), (0, 0), "all of it is there, and the checkpoint is gone");
}

/// One interrupted in the middle of an incremental; before the next the source changes again, on both sides of where it had come to.
#[test]
fn an_interrupted_incremental_of_entries_in_no_order_goes_on() {
    let (mut world, memory) = world();
    let mut source = shuffled();
    take(&world, &source, options()).unwrap();
    let stored = pack_bytes(&world);
    let mut change = |path: &str, seed| {
        let file = source.files.iter_mut().find(|(name, _)| name == path).unwrap();
        file.1 = noise(seed, file.1.len());
        source.clone()
    };
    change("base/9", 31);
    let changed = change("base/2", 32);
    let changed =
        dying(&mut world, &memory, 2, |w| take(w, &changed, options())).then(|| change("base/1", 33)).unwrap();
    let added = pack_bytes(&world) - stored;
    assert!(added > 10 * MIB, "it was interrupted before it stored anything: {added}");
    let report = take(&world, &changed, options()).unwrap();
    assert!(report.taken_over > 10 * MIB, "{}", report.taken_over);
    assert!(report.stats.bytes_stored < 38 * MIB, "what was stored is not stored again: {}", report.stats.bytes_stored);
    check(&world, &changed, "back");
    sound(&world);
    // What the interrupted run has left beside it is swept by the next prune, and nothing else.
    for area in ["packs/", "index/"] {
        for object in world.host.open.store.list(area).unwrap() {
            memory.set_modified(&object.key, Timestamp::now() - SignedDuration::from_hours(48));
        }
    }
    let policy = Policy { last: 2, ..Policy::default() };
    let plan = prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::from_hours(24)).unwrap();
    prune::sweep(&world.host, plan).unwrap();
    check(&world, &changed, "after the prune");
    sound(&world);
}
