//! What goes in comes out, again and again.

use super::world::{World, assert_same_tree, name};
use blackstart::operations::backup::Options;
use blackstart::operations::restore::Pick;
use blackstart::operations::verify;
use blackstart::report::Outcome;
use blackstart::repository::snapshot::Mode;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut step = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..n).map(|_| step()).collect()
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    for i in 0..300 {
        fs::write(root.join(format!("etc/file-{i}.conf")), format!("setting = {i}\n").repeat(i)).unwrap();
    }
    fs::write(root.join("big.bin"), noise(7, 9_000_000)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    symlink("etc/file-1.conf", root.join("link")).unwrap();
    fs::hard_link(root.join("etc/file-2.conf"), root.join("etc/deep/same")).unwrap();
}

#[test]
fn a_tree_through_full_unchanged_and_changed_runs() {
    let world = World::local();
    let root = world.path("data");
    make_tree(&root);
    let first = world.backup_files(&root, Options::default()).unwrap();
    assert_eq!((first.seq, first.outcome, first.mode), (1, Outcome::Complete, Mode::Full));
    world.restore("tree", &Pick::Latest, "out1").unwrap();
    assert_same_tree(&root, &world.path("out1"));

    // Past the grain of the clock, so that unchanged files need not be read.
    std::thread::sleep(std::time::Duration::from_millis(3500));
    world.backup_files(&root, Options::default()).unwrap();
    let unchanged = world.backup_files(&root, Options::default()).unwrap();
    assert_eq!((unchanged.seq, unchanged.mode, unchanged.stats.bytes_read), (3, Mode::Incremental, 0));
    assert!(unchanged.stats.bytes_new == 0, "{:?}", unchanged.stats);

    let mut big = fs::read(root.join("big.bin")).unwrap();
    big.splice(4_000_000..4_000_000, *b"a few bytes in the middle");
    fs::write(root.join("big.bin"), &big).unwrap();
    fs::remove_file(root.join("etc/file-5.conf")).unwrap();
    fs::write(root.join("etc/file-6.conf"), b"").unwrap();
    fs::write(root.join("new"), noise(9, 100_000)).unwrap();
    let changed = world.backup_files(&root, Options::default()).unwrap();
    assert!(changed.stats.bytes_new < 800_000, "{:?}", changed.stats);
    world.restore("tree", &Pick::Latest, "out2").unwrap();
    assert_same_tree(&root, &world.path("out2"));
    world.restore("tree", &Pick::Seq(1), "out3").unwrap();
    assert!(world.path("out3/etc/file-5.conf").exists());

    let report = verify::verify(&world.host.open, None, &verify::Options { hashes: true, read_data: None }).unwrap();
    assert!(report.sound(), "{report:?}");
    let keys = Some(vec![world.recovery.identity.clone()]);
    let report = verify::verify(&world.host.open, None, &verify::Options { hashes: false, read_data: keys }).unwrap();
    assert!(report.sound() && report.sources[0].bytes_read > 9_000_000, "{report:?}");
    let drill = world.drill("tree").unwrap();
    assert!(drill.passed && drill.scratch_removed, "{drill:?}");
}

#[test]
fn a_database_stores_only_its_changed_pages() {
    let world = World::local();
    let path = world.path("app.db");
    let sql = |text: &str| {
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(text).unwrap();
    };
    sql("PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60000) INSERT INTO t SELECT i, randomblob(300) FROM n;");
    let first = world.backup_sqlite(&path, Options::default()).unwrap();
    assert!(world.drill("db").unwrap().passed);
    for round in 0..20 {
        sql(&format!("UPDATE t SET body=randomblob(300) WHERE id % 997 = {round}"));
        let report = world.backup_sqlite(&path, Options::default()).unwrap();
        assert!(report.stats.bytes_new < first.stats.bytes / 20, "{:?}", report.stats);
    }
    sql("DELETE FROM t WHERE id > 30000; VACUUM;");
    world.backup_sqlite(&path, Options::default()).unwrap();
    sql(
        "WITH RECURSIVE n(i) AS (SELECT 100000 UNION ALL SELECT i+1 FROM n WHERE i<110000) INSERT INTO t SELECT i, randomblob(300) FROM n;",
    );
    let last = world.backup_sqlite(&path, Options::default()).unwrap();
    let drill = world.drill("db").unwrap();
    assert!(drill.passed, "{:?}", drill.checks);
    assert_eq!(drill.seq, last.seq);
    // An old one, from below many layers.
    world.restore("db", &Pick::Seq(9), "old").unwrap();
    let db = rusqlite::Connection::open(world.path("old/app.db")).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 60000);

    break_glass(&world, "db");
}

/// recover.py, in an environment without the binary, brings back what `restore` brings back.
pub fn break_glass(world: &World, source: &str) {
    let keys = world.path("recovery.key");
    blackstart::durable::publish_new(&keys, world.recovery.to_text("test").as_bytes(), 0o600).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recover/recover.py");
    let output = Command::new("python3")
        .arg(script)
        .arg("--repository")
        .arg(world.path("repository"))
        .args(["--identity".as_ref(), keys.as_os_str()])
        .args(["--root", &world.host.open.trust.root.id(), "restore", source])
        .arg(world.path("by-hand"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    world.restore(source, &Pick::Latest, "by-us").unwrap();
    assert_same_tree(&world.path("by-us"), &world.path("by-hand"));
    assert_eq!(name(source).as_str(), source);
}
