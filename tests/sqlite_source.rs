//! The `sqlite` source against real databases, with writers in other processes (Python's sqlite3) at work meanwhile.
#![allow(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "test files need no durability")]

use blackstart::clock::SystemClock;
use blackstart::entry::Entry;
use blackstart::error::help_of;
use blackstart::report::Check;
use blackstart::source::sqlite::Sqlite;
use blackstart::source::sqlite::check::check;
use blackstart::source::{Finished, Piece, Source};
use rusqlite::Connection;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

fn source(db: &Path) -> Sqlite {
    Sqlite::open(db, Arc::new(SystemClock)).unwrap()
}

/// Reads the rest of the file into `to` and ends the run.
fn copy_rest(source: &mut Sqlite, entry: &Entry, to: &Path) -> Finished {
    let mut file = std::fs::File::create(to).unwrap();
    // No multiple of most page sizes, so that whole pages must be chosen.
    let mut buffer = vec![0; 100_000];
    loop {
        match source.read(&mut buffer).unwrap() {
            Piece::Data(n) => {
                assert_eq!(n % entry.page.unwrap() as usize, 0);
                file.write_all(&buffer[..n]).unwrap();
            }
            Piece::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(file.metadata().unwrap().len(), entry.size);
    assert!(source.next().unwrap().is_none());
    source.finish().unwrap()
}

fn snapshot(db: &Path, to: &Path) -> (Entry, Finished) {
    let mut source = source(db);
    let entry = source.next().unwrap().unwrap();
    let finished = copy_rest(&mut source, &entry, to);
    (entry, finished)
}

fn failed(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|c| !c.passed).collect()
}

/// Message and help of what goes wrong when `db` is read.
fn refusal(db: &Path) -> String {
    let error = match Sqlite::open(db, Arc::new(SystemClock)) {
        Ok(mut source) => source.next().unwrap_err(),
        Err(error) => error,
    };
    format!("{error:#} | {}", help_of(&error).unwrap_or("no help"))
}

fn python(code: &str, db: &Path) -> Command {
    let mut command = Command::new("python3");
    command.arg("-c").arg(format!("import sqlite3, sys, os, signal\npath = sys.argv[1]\n{code}")).arg(db);
    command
}

/// Runs Python to its end; its output, or its last line of error.
fn run_python(code: &str, db: &Path) -> String {
    let output = python(code, db).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if err.is_empty() { out.trim().to_owned() } else { err.trim().lines().last().unwrap().to_owned() }
}

/// A database in which each commit puts one row into `a` and one into `b`, and changes pages all over.
fn create(db: &Path, journal: &str) {
    let connection = Connection::open(db).unwrap();
    connection.query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(())).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE a(id INTEGER PRIMARY KEY, x BLOB); CREATE TABLE b(id INTEGER PRIMARY KEY, a REFERENCES a, x BLOB);
             CREATE TABLE bulk(id INTEGER PRIMARY KEY, n INT, x BLOB); CREATE INDEX bulk_n ON bulk(n);
             INSERT INTO bulk WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 5000) SELECT i, 0, randomblob(700) FROM n;",
        )
        .unwrap();
}

const COMMIT: &str = "
c = sqlite3.connect(path, timeout=60, isolation_level=None)
def commit():
    c.execute('BEGIN IMMEDIATE')
    c.execute('INSERT INTO a(x) VALUES (randomblob(300))')
    c.execute('INSERT INTO b(a, x) VALUES (last_insert_rowid(), randomblob(300))')
    c.execute('UPDATE bulk SET n = n + 1, x = randomblob(700) WHERE id % 97 = (SELECT count(*) FROM a) % 97')
    c.execute('COMMIT')
";

/// A process that commits without pause until it is dropped.
struct Writer(Child);

impl Writer {
    fn start(db: &Path) -> Writer {
        let code = format!("{COMMIT}\ncommit(); print('ready', flush=True)\nwhile True: commit()");
        let mut child = python(&code, db).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn rows(copy: &Path, table: &str) -> i64 {
    let uri = format!("file:{}?immutable=1", copy.display());
    Connection::open(uri).unwrap().query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).unwrap()
}

fn under_load(journal: &str) {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    create(&db, journal);
    let writer = Writer::start(&db);
    let mut before = 0;
    for i in 0..6 {
        let copy = dir.path().join(format!("copy{i}.db"));
        let (_, finished) = snapshot(&db, &copy);
        assert_eq!(finished.skipped, []);
        let checks = check(&copy, &finished.facts).unwrap();
        assert_eq!(failed(&checks), Vec::<&Check>::new());
        let (a, b) = (rows(&copy, "a"), rows(&copy, "b"));
        assert!(a == b && a >= before, "{a} {b} {before}");
        before = a;
        std::thread::sleep(std::time::Duration::from_millis(150));
    }
    drop(writer);
    assert!(before > 1, "the writer got nowhere");
}

#[test]
fn consistent_under_load_in_wal_mode() {
    under_load("wal");
}

#[test]
fn consistent_under_load_in_rollback_mode() {
    under_load("delete");
}

#[test]
fn consistent_under_load_in_truncate_mode() {
    under_load("truncate");
}

#[test]
fn a_wal_writer_is_never_blocked_and_a_checkpoint_only_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (db, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    create(&db, "wal");
    run_python(&format!("{COMMIT}\ncommit(); os._exit(0)"), &db);
    let mut source = source(&db);
    let entry = source.next().unwrap().unwrap();
    assert_eq!(source.read(&mut vec![0; 50_000]).unwrap(), Piece::Data(49_152));
    let code = format!(
        "{COMMIT}\nc.execute('PRAGMA busy_timeout=0')\nfor i in range(50): commit()\nprint(c.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0])"
    );
    assert_eq!(run_python(&code, &db), "1", "all commits pass, the checkpoint is told busy");
    // The rest is read on, from the same moment.
    let mut rest = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Piece::Data(n) = source.read(&mut buffer).unwrap() {
        rest += n as u64;
    }
    assert_eq!(rest + 49_152, entry.size);
    let finished = source.finish().unwrap();
    assert_eq!(finished.facts["tables"]["a"], 1);
    assert_eq!(finished.facts["journal_mode"], "wal");
    let code = "print(sqlite3.connect(path).execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0])";
    assert_eq!(run_python(code, &db), "0", "the end of the run lets checkpoints through");
    let (_, finished) = snapshot(&db, &copy);
    assert_eq!(finished.facts["tables"]["a"], 51);
    assert_eq!(failed(&check(&copy, &finished.facts).unwrap()), Vec::<&Check>::new());
}

#[test]
fn the_wal_of_a_crashed_application_is_read_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (db, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    create(&db, "wal");
    let crash = format!(
        "{COMMIT}\nc.execute('PRAGMA wal_autocheckpoint=0')\nfor i in range(30): commit()\nos.kill(os.getpid(), signal.SIGKILL)"
    );
    run_python(&crash, &db);
    let wal = dir.path().join("app.db-wal");
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let before = (bytes(&db), bytes(&wal));
    assert!(before.1.len() > 100_000);
    let (entry, finished) = snapshot(&db, &copy);
    assert_eq!(entry.stat, None, "with frames in the WAL, the file's times prove nothing");
    assert_eq!(finished.facts["tables"]["a"], 30);
    assert!(before == (bytes(&db), bytes(&wal)), "the database was changed");
    assert_eq!(failed(&check(&copy, &finished.facts).unwrap()), Vec::<&Check>::new());
    // The application finds its data when it comes back.
    assert_eq!(run_python("print(sqlite3.connect(path).execute('SELECT count(*) FROM b').fetchone()[0])", &db), "30");
}

#[test]
fn other_processes_cannot_lock_the_file_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    create(&db, "delete");
    let exclusive =
        "sqlite3.connect(path, timeout=0, isolation_level=None).execute('BEGIN EXCLUSIVE'); print('got it')";
    let mut source = source(&db);
    source.next().unwrap().unwrap();
    source.read(&mut vec![0; 8192]).unwrap();
    // A second run on the same file in the same process must not drop the locks of the first.
    snapshot(&db, &dir.path().join("copy.db"));
    assert_eq!(run_python(exclusive, &db), "sqlite3.OperationalError: database is locked");
    source.finish().unwrap();
    assert_eq!(run_python(exclusive, &db), "got it");
}

#[test]
fn the_shortcut_is_set_only_where_it_proves_something() {
    let dir = tempfile::tempdir().unwrap();
    let stat = |db: &Path| snapshot(db, &dir.path().join("copy.db")).0.stat;
    let db = dir.path().join("rollback.db");
    create(&db, "delete");
    let first = stat(&db).unwrap();
    assert_eq!((first.0, first.1), (db.metadata().unwrap().dev(), db.metadata().unwrap().ino()));
    assert_eq!(stat(&db), Some(first));
    run_python(&format!("{COMMIT}\ncommit()"), &db);
    assert_ne!(stat(&db), Some(first));
    let db = dir.path().join("wal.db");
    create(&db, "wal");
    assert!(stat(&db).is_some());
    let open = Connection::open(&db).unwrap();
    open.execute_batch("DELETE FROM bulk WHERE id = 7").unwrap();
    assert_eq!(stat(&db), None);
    open.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    assert!(stat(&db).is_some());
}

#[test]
fn every_page_size_and_a_vacuum_between_runs() {
    let dir = tempfile::tempdir().unwrap();
    for page in [512u32, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let (db, copy) = (dir.path().join(format!("{page}.db")), dir.path().join("copy.db"));
        Connection::open(&db).unwrap().execute_batch(&format!("PRAGMA page_size={page}")).unwrap();
        let connection = Connection::open(&db).unwrap();
        connection.execute_batch(&format!("PRAGMA page_size={page}; VACUUM; CREATE TABLE t(x)")).unwrap();
        connection.execute("INSERT INTO t VALUES (randomblob(300000))", []).unwrap();
        connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
        let (entry, finished) = snapshot(&db, &copy);
        assert_eq!(entry.page, Some(page));
        assert_eq!(failed(&check(&copy, &finished.facts).unwrap()), Vec::<&Check>::new());
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&db).unwrap());
        connection.execute_batch("DELETE FROM t WHERE x <> 1; VACUUM").unwrap();
        let (smaller, finished) = snapshot(&db, &copy);
        assert!(smaller.size < entry.size);
        assert_eq!(failed(&check(&copy, &finished.facts).unwrap()), Vec::<&Check>::new());
    }
}

#[test]
fn beyond_the_lock_page_at_one_gibibyte() {
    const PAGE: u64 = 65536;
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("big.db");
    Connection::open(&db).unwrap().execute_batch("PRAGMA page_size=65536; CREATE TABLE t(x)").unwrap();
    // Sparse: a header that promises more pages, and a mark in the last of them.
    let pages = (1u64 << 30) / PAGE + 3;
    let mut file = std::fs::File::options().write(true).open(&db).unwrap();
    file.seek(SeekFrom::Start(28)).unwrap();
    file.write_all(&u32::try_from(pages).unwrap().to_be_bytes()).unwrap();
    file.set_len(pages * PAGE).unwrap();
    file.seek(SeekFrom::Start((pages - 1) * PAGE)).unwrap();
    file.write_all(b"the end").unwrap();
    drop(file);
    let mut source = source(&db);
    assert_eq!(source.next().unwrap().unwrap().size, pages * PAGE);
    let (mut buffer, mut total, mut tail) = (vec![0; 1 << 20], 0, Vec::new());
    while let Piece::Data(n) = source.read(&mut buffer).unwrap() {
        total += n as u64;
        tail = buffer[..n].to_vec();
    }
    assert_eq!(total, pages * PAGE);
    let last = tail.len() - PAGE as usize;
    assert_eq!(&tail[last..last + 7], b"the end");
    assert!(tail[..last].iter().all(|&b| b == 0));
    source.finish().unwrap();
}

#[test]
fn what_is_no_database_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let says = |name: &str, words: &[&str]| {
        let refusal = refusal(&at(name));
        assert!(words.iter().all(|word| refusal.contains(word)), "{name}: {refusal}");
        assert!(refusal.contains("Nothing was backed up"), "{name}: {refusal}");
    };
    std::fs::write(at("text"), "just text ".repeat(1000)).unwrap();
    says("text", &["not a SQLite database, or it is encrypted"]);
    let random: Vec<u8> = (0..40_960u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(at("encrypted"), random).unwrap();
    says("encrypted", &["encrypted", "source of kind `files`"]);
    std::fs::write(at("empty"), "").unwrap();
    std::fs::write(at("empty-wal"), "somebody's data").unwrap();
    says("empty", &["empty (0 bytes)"]);
    assert!(at("empty-wal").exists(), "SQLite deletes the WAL of an empty database");
    says("missing", &["cannot find"]);
    says(".", &["not a regular file"]);
    create(&at("good"), "delete");
    let good = std::fs::read(at("good")).unwrap();
    for cut in [1, 100, 4096, good.len() / 2, good.len() - 4096] {
        std::fs::write(at("cut"), &good[..good.len() - cut]).unwrap();
        says("cut", &["truncated", "newest verified snapshot"]);
    }
    std::fs::write(at("stub"), &good[..50]).unwrap();
    says("stub", &["cannot read"]);
    let crash = "
c = sqlite3.connect(path, isolation_level=None)
c.execute('PRAGMA cache_size=5'); c.execute('BEGIN'); c.execute('UPDATE bulk SET x = randomblob(700)')
os.kill(os.getpid(), signal.SIGKILL)";
    run_python(crash, &at("good"));
    let journal = std::fs::read(at("good-journal")).unwrap();
    says("good", &["hot -journal", "Start the application once"]);
    assert!(std::fs::read(at("good-journal")).unwrap() == journal);
}

#[test]
fn a_locked_database_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    create(&db, "delete");
    let hold = "c = sqlite3.connect(path, isolation_level=None); c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()";
    let mut child = python(hold, &db).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let refusal = refusal(&db);
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(refusal.contains("locked for longer than 5 s") && refusal.contains("journal_mode=WAL"), "{refusal}");
}

#[test]
fn a_file_replaced_while_it_is_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (db, other, copy) = (dir.path().join("app.db"), dir.path().join("other.db"), dir.path().join("copy.db"));
    create(&db, "delete");
    create(&other, "delete");
    let mut source = source(&db);
    let entry = source.next().unwrap().unwrap();
    std::fs::rename(&other, &db).unwrap();
    let finished = copy_rest(&mut source, &entry, &copy);
    assert!(finished.skipped[0].why.contains("replaced"), "{:?}", finished.skipped);
    assert_eq!(failed(&check(&copy, &finished.facts).unwrap()), Vec::<&Check>::new());
}

#[test]
fn facts_of_a_mixed_schema() {
    let dir = tempfile::tempdir().unwrap();
    let (db, link, copy) = (dir.path().join("app?x#%.db"), dir.path().join("link.db"), dir.path().join("copy #1?.db"));
    Connection::open(&db)
        .unwrap()
        .execute_batch(
            "PRAGMA user_version=7; PRAGMA application_id=-5; PRAGMA foreign_keys=OFF;
             CREATE TABLE \"odd \"\" name\"(x); INSERT INTO \"odd \"\" name\" VALUES (1), (2);
             CREATE VIRTUAL TABLE words USING fts5(t); INSERT INTO words VALUES ('hello');
             CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); INSERT INTO c VALUES (9);
             CREATE VIEW v AS SELECT * FROM p;
             PRAGMA writable_schema=ON;
             INSERT INTO sqlite_schema VALUES ('table', 'ghost', 'ghost', 0, 'CREATE VIRTUAL TABLE ghost USING nosuch(x)');",
        )
        .unwrap();
    std::os::unix::fs::symlink(&db, &link).unwrap();
    let (entry, finished) = snapshot(&link, &copy);
    assert_eq!(entry.path.as_bytes(), b"link.db");
    let facts = &finished.facts;
    assert_eq!(facts["tables"], serde_json::json!({"odd \" name": 2, "p": 0, "c": 1}));
    assert_eq!(facts["uncounted"], serde_json::json!(["ghost", "words"]));
    assert_eq!((&facts["user_version"], &facts["application_id"]), (&7.into(), &(-5).into()));
    assert_eq!((&facts["foreign_keys"], &facts["encoding"]), (&"1 violations".into(), &"UTF-8".into()));
    assert_eq!(facts["written_by"], rusqlite::version());
    assert_eq!(failed(&check(&copy, facts).unwrap()), Vec::<&Check>::new());
}

#[test]
fn damage_in_the_source_makes_the_run_partial() {
    let dir = tempfile::tempdir().unwrap();
    let (db, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    create(&db, "delete");
    let root: u64 = Connection::open(&db)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'bulk_n'", [], |row| row.get::<_, i64>(0))
        .unwrap()
        .unsigned_abs();
    let mut file = std::fs::File::options().write(true).open(&db).unwrap();
    file.seek(SeekFrom::Start((root - 1) * 4096)).unwrap();
    file.write_all(&[0xff; 4096]).unwrap();
    drop(file);
    let (_, finished) = snapshot(&db, &copy);
    assert!(finished.skipped[0].why.contains("damaged (bulk"), "{:?}", finished.skipped);
    assert_eq!(finished.facts["uncounted"], serde_json::json!(["bulk"]));
    assert!(!failed(&check(&copy, &finished.facts).unwrap()).is_empty());
}

#[test]
fn a_collation_of_the_application_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (db, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let code = "
c = sqlite3.connect(path)
c.create_collation('backwards', lambda a, b: (a < b) - (a > b))
c.execute('CREATE TABLE t(x TEXT COLLATE backwards)'); c.execute('CREATE INDEX i ON t(x)')
c.executemany('INSERT INTO t VALUES (?)', [(str(i),) for i in range(500)]); c.commit()";
    assert_eq!(run_python(code, &db), "");
    let (_, finished) = snapshot(&db, &copy);
    assert_eq!((&finished.facts["tables"]["t"], finished.skipped.len()), (&500.into(), 0));
    let checks = check(&copy, &finished.facts).unwrap();
    assert_eq!(failed(&checks), Vec::<&Check>::new());
    assert!(checks.iter().any(|c| c.actual.starts_with("ok but for t (no such collation")), "{checks:?}");
}

#[test]
fn the_proof_finds_damage_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (db, copy) = (dir.path().join("app.db"), dir.path().join("restored").join("app.db"));
    std::fs::create_dir(dir.path().join("restored")).unwrap();
    create(&db, "wal");
    let (_, finished) = snapshot(&db, &copy);
    let good = std::fs::read(&copy).unwrap();
    let names = |checks: &[Check]| failed(checks).iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let verdict = || names(&check(&copy, &finished.facts).unwrap());
    assert_eq!(verdict(), Vec::<String>::new());
    assert!(std::fs::read(&copy).unwrap() == good && std::fs::read_dir(copy.parent().unwrap()).unwrap().count() == 1);

    std::fs::write(copy.with_file_name("app.db-wal"), "x").unwrap();
    assert_eq!(verdict(), ["leftovers"]);
    std::fs::remove_file(copy.with_file_name("app.db-wal")).unwrap();

    let edit = |sql: &str| {
        std::fs::write(&copy, &good).unwrap();
        Connection::open(&copy).unwrap().execute_batch(sql).unwrap();
    };
    edit("DELETE FROM bulk WHERE id = 3; INSERT INTO a(x) VALUES (1)");
    assert_eq!(verdict(), ["rows of a", "rows of bulk"]);
    edit("ALTER TABLE b RENAME TO z");
    let checks = check(&copy, &finished.facts).unwrap();
    assert_eq!(failed(&checks)[0].actual, "missing: b, extra: z");
    edit("PRAGMA foreign_keys=OFF; INSERT INTO b(a) VALUES (99)");
    assert!(verdict().contains(&"foreign_key_check".to_owned()));

    let mut bad = good.clone();
    bad[good.len() / 2 / 4096 * 4096..][..2000].fill(0xff);
    std::fs::write(&copy, &bad).unwrap();
    assert!(verdict().contains(&"integrity_check".to_owned()), "{:?}", verdict());
    std::fs::write(&copy, &good[..good.len() - 4096]).unwrap();
    assert!(
        verdict().contains(&"file_size".to_owned()) && verdict().contains(&"readable".to_owned()),
        "{:?}",
        verdict()
    );
    std::fs::write(&copy, "gone").unwrap();
    assert!(verdict().contains(&"readable".to_owned()));
    std::fs::remove_file(&copy).unwrap();
    assert!(check(&copy, &finished.facts).is_err());
}

#[test]
fn what_reading_leaves_behind_belongs_to_the_owner_of_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    create(&db, "wal");
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&db, Some(1234), Some(1235)).unwrap();
    }
    snapshot(&db, &dir.path().join("copy.db"));
    let (owner, wal) = (db.metadata().unwrap(), dir.path().join("app.db-wal").metadata().unwrap());
    let shm = dir.path().join("app.db-shm").metadata().unwrap();
    assert_eq!((wal.len(), wal.uid(), wal.gid(), wal.mode()), (0, owner.uid(), owner.gid(), owner.mode()));
    assert_eq!((shm.uid(), shm.gid(), shm.mode()), (owner.uid(), owner.gid(), owner.mode()));
}

/// Root may write anywhere, so this runs once more as nobody.
#[test]
fn directories_without_the_right_to_write() {
    let dir = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        let foreign = dir.path().join("foreign.db");
        create(&foreign, "wal");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let exe = std::env::current_exe().unwrap();
        let mut command = Command::new(exe);
        command
            .args(["--exact", "directories_without_the_right_to_write"])
            .env("FOREIGN_DB", &foreign)
            .uid(65534)
            .gid(65534);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(!dir.path().join("foreign.db-shm").exists());
        return;
    }
    if let Some(foreign) = std::env::var_os("FOREIGN_DB").map(PathBuf::from) {
        let refusal = refusal(&foreign);
        assert!(refusal.contains("nobody has it open") && refusal.contains("as the owner"), "{refusal}");
    }
    let (wal, rollback) = (dir.path().join("wal.db"), dir.path().join("rollback.db"));
    create(&wal, "wal");
    create(&rollback, "delete");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let (_, finished) = snapshot(&rollback, &copies.path().join("copy.db"));
    assert_eq!(finished.skipped, []);
    let refusal = refusal(&wal);
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(refusal.contains("may not open it") && refusal.contains("write access to the directory"), "{refusal}");
}
