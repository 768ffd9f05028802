//! A store that is slower than the source: the source is read at local speed all the same, and lets go of its locks.

use super::faults::{Fault, Faulty, Gate, OpensAtEnd, gated};
use super::world::{World, assert_same_tree, name};
use blackstart::bridge::Store;
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::pipeline::SpoolPlace;
use blackstart::progress::Progress;
use blackstart::source::{Finished, Piece, Source};
use blackstart::storage::memory::Memory;
use rusqlite::Connection;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What a test waits for happens at once, or never.
const LONG: Duration = Duration::from_secs(60);

fn world(memory: &Memory) -> World {
    World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap())
}

fn options(world: &World, limit: u64) -> Options {
    let spool = Some(SpoolPlace { directory: world.path("spool"), limit, left_free: 0 });
    Options { workers: 2, level: Some(1), spool, ..Options::default() }
}

/// A database of so many MiB that do not compress, in rollback-journal mode: a reader keeps writers from committing.
fn database(path: &Path, mib: u64) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("PRAGMA journal_mode=delete; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<?1) INSERT INTO t SELECT i, randomblob(65536) FROM n";
    db.execute(rows, [mib * 16]).unwrap();
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn files_in_spool(world: &World) -> usize {
    let runs = fs::read_dir(world.path("spool")).into_iter().flatten().map(|e| e.unwrap().path());
    runs.filter(|p| p.is_dir()).map(|run| fs::read_dir(run).map_or(0, Iterator::count)).sum()
}

/// Everything comes back, and nothing is left in the spool.
fn sound(world: &World, source: &str, original: &Path, file: &str) {
    world.restore(source, &Pick::Latest, "back").unwrap();
    assert!(fs::read(original).unwrap() == fs::read(world.path("back").join(file)).unwrap(), "it differs");
    fs::remove_dir_all(world.path("back")).unwrap();
    let left: Vec<_> = fs::read_dir(world.path("spool")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn a_database_is_free_again_while_the_store_has_taken_nothing() {
    let memory = Memory::default();
    let mut world = world(&memory);
    let path = world.path("app.db");
    database(&path, 80);
    let copy = fs::read(&path).unwrap();
    // Index objects, too: nothing at all goes through but the lease.
    for area in ["packs/", "index/"] {
        let gate = Gate::new();
        let report = thread::scope(|scope| {
            world.host.open.store = gated(&memory, area, &gate);
            let _opens = OpensAtEnd(&gate);
            let world = &world;
            let options = Options { baseline: true, ..options(world, 1 << 30) };
            let run = scope.spawn(|| world.backup_sqlite(&path, options).unwrap());
            if area == "packs/" {
                wait_until("packs wait in the spool", || files_in_spool(world) > 1);
            }
            // A commit, which the reading would not let through. It gives up after a minute.
            let writer = Connection::open(&path).unwrap();
            writer.busy_timeout(LONG).unwrap();
            writer.execute("UPDATE t SET body=randomblob(65536) WHERE id=1", []).unwrap();
            assert!(!run.is_finished());
            gate.open();
            run.join().unwrap()
        });
        assert!(area == "index/" || report.spooled > 16 * MIB, "{}", report.spooled);
        world.restore("db", &Pick::Latest, "back").unwrap();
        if area == "packs/" {
            assert!(
                fs::read(world.path("back/app.db")).unwrap() == copy,
                "what was stored is not what was there before"
            );
        }
        fs::remove_dir_all(world.path("back")).unwrap();
    }
}

#[test]
fn a_full_spool_makes_the_source_wait_and_nothing_is_lost() {
    let memory = Memory::default();
    let mut world = world(&memory);
    let path = world.path("app.db");
    database(&path, 180);
    let gate = Gate::new();
    world.host.open.store = gated(&memory, "packs/", &gate);
    let progress = Progress::default();
    let options = Options { progress: progress.clone(), ..options(&world, 40 * MIB) };
    let report = thread::scope(|scope| {
        let _opens = OpensAtEnd(&gate);
        let run = scope.spawn(|| world.backup_sqlite(&path, options).unwrap());
        wait_until("the spool is full", || files_in_spool(&world) == 2);
        // Until it stands still: two packs in the spool, at most six in memory, some batches.
        let mut read = 0;
        wait_until("the source stands still", || {
            thread::sleep(Duration::from_millis(400));
            std::mem::replace(&mut read, progress.done()) == progress.done()
        });
        assert!(read < 168 * MIB, "{} MiB were read: more than memory and the spool may hold", read / MIB);
        assert!(!run.is_finished());
        for _ in 0..4 {
            gate.let_one_through();
        }
        wait_until("it goes on as the store takes packs", || progress.done() > read);
        gate.open();
        run.join().unwrap()
    });
    assert!(report.spooled >= 32 * MIB, "{}", report.spooled);
    sound(&world, "db", &path, "app.db");
}

#[test]
fn without_a_usable_spool_the_source_waits_and_a_notice_says_so() {
    let memory = Memory::default();
    let world = world(&memory);
    let path = world.path("app.db");
    database(&path, 64);
    fs::write(world.path("spool"), "no directory").unwrap();
    let report = world.backup_sqlite(&path, options(&world, 1 << 30)).unwrap();
    assert!(report.notices.iter().any(|n| n.contains("the spool could not be used")), "{:?}", report.notices);
    assert_eq!(report.spooled, 0);
    world.restore("db", &Pick::Latest, "back").unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(world.path("back/app.db")).unwrap());
}

#[test]
fn a_tree_holds_nobody_up_and_does_without_a_spool() {
    let memory = Memory::default();
    let world = world(&memory);
    fs::create_dir(world.path("data")).unwrap();
    fs::write(world.path("data/file"), vec![7; 40 << 20]).unwrap();
    let report = world.backup_files(&world.path("data"), options(&world, 1 << 30)).unwrap();
    assert_eq!(report.spooled, 0);
    assert!(!world.path("spool").exists());
    world.restore("tree", &Pick::Latest, "back").unwrap();
    assert_same_tree(&world.path("data"), &world.path("back"));
}

#[test]
fn a_store_that_dies_meanwhile_fails_the_run_and_leaves_nothing_in_the_spool() {
    let memory = Memory::default();
    let mut world = world(&memory);
    let path = world.path("app.db");
    database(&path, 64);
    for call in [6, 7, 8] {
        let sound = world.host.open.store.clone();
        world.host.open.store = Store::new(Faulty::new(memory.clone(), Fault::Call(call))).unwrap();
        world.backup_sqlite(&path, options(&world, 1 << 30)).unwrap_err();
        wait_until("the spool is empty", || fs::read_dir(world.path("spool")).map_or(true, |d| d.count() == 1));
        world.host.open.store = sound;
    }
    world.backup_sqlite(&path, options(&world, 1 << 30)).unwrap();
    sound(&world, "db", &path, "app.db");
}

/// Counts how often it is asked for what, in which order.
struct Watched {
    inner: Box<dyn Source>,
    finished: Arc<std::sync::atomic::AtomicUsize>,
}

impl Source for Watched {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    fn root(&self) -> String {
        self.inner.root()
    }
    fn next(&mut self) -> anyhow::Result<Option<blackstart::entry::Entry>> {
        assert_eq!(self.finished.load(std::sync::atomic::Ordering::SeqCst), 0, "asked for more after its end");
        self.inner.next()
    }
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<Piece> {
        self.inner.read(buffer)
    }
    fn finish(&mut self) -> anyhow::Result<Finished> {
        self.finished.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.inner.finish()
    }
}

/// A source is ended once, and before anything of it is committed.
#[test]
fn a_source_is_ended_once_and_before_the_commit() {
    let memory = Memory::default();
    let world = world(&memory);
    let path = world.path("app.db");
    database(&path, 1);
    let finished = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let open = || -> anyhow::Result<Box<dyn Source>> {
        let inner = Box::new(blackstart::source::sqlite::Sqlite::open(&path, Arc::clone(&world.host.open.clock))?);
        Ok(Box::new(Watched { inner, finished: Arc::clone(&finished) }))
    };
    let report: BackupReport = backup::backup(&world.host, &name("db"), &open, options(&world, 0)).unwrap();
    assert_eq!((report.seq, finished.load(std::sync::atomic::Ordering::SeqCst)), (1, 1));
}
