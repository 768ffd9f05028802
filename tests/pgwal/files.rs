//! `wal-push` and `wal-get`: the commands that a server calls.

use crate::support::postgres::{Cluster, Setup};
use crate::world::{World, options, source, wait};
use blackstart::operations::wal::get::{Got, get};
use blackstart::operations::wal::push::push;
use blackstart::source::postgres::wal::WalFile;
use std::fs;
use std::path::PathBuf;

fn setup() -> Setup {
    let mut setup = Setup::new(15).config("wal_keep_size = 1GB\nmax_wal_size = 2GB");
    setup.segment = 1;
    setup
}

fn segments(cluster: &Cluster) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(cluster.data.join("pg_wal")).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|p| WalFile::parse(p.file_name().unwrap().to_str().unwrap(), 1 << 20).is_some());
    found.sort();
    found
}

/// Those whose log is complete: a switch after them.
fn complete(cluster: &Cluster) -> Vec<PathBuf> {
    let current = cluster.value("select pg_walfile_name(pg_switch_wal())");
    let name = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().to_owned();
    segments(cluster).into_iter().filter(|p| name(p) <= current).collect()
}

fn got(world: &World, name: &str) -> (Got, Vec<u8>) {
    let to = world.path("RECOVERYXLOG");
    fs::remove_file(&to).ok();
    let identities = std::slice::from_ref(&world.recovery.identity);
    let got = get(&world.host.open, identities, &source(), name, &to).unwrap();
    (got, fs::read(&to).unwrap_or_default())
}

#[test]
fn what_is_pushed_is_got_again() {
    let (world, cluster) = (World::new(), setup().start());
    cluster.sql("create table t as select g, repeat('x', 300) s from generate_series(1, 30000) g");
    let files = complete(&cluster);
    assert!(files.len() >= 8, "{}", files.len());
    for file in &files {
        let report = push(&world.host, &source(), file, 1).unwrap();
        assert_eq!((report.bytes, report.notes.len()), (1 << 20, 0), "{report:?}");
        // The server calls again after a crash.
        assert_eq!(push(&world.host, &source(), file, 1).unwrap().bytes, 0);
    }
    assert_eq!(world.windows().len(), 1);
    for file in &files {
        let (got, bytes) = got(&world, file.file_name().unwrap().to_str().unwrap());
        assert_eq!(got, Got::Written(1 << 20));
        assert!(bytes == fs::read(file).unwrap(), "{}", file.display());
    }
    let spool = world.path("state").join(&world.host.open.trust.id).join("wal/db");
    assert!(fs::read_dir(spool).unwrap().count() <= 8, "what was fetched ahead is used up");
    for name in [
        "000000010000000000000FFF",
        "00000002.history",
        "000000020000000000000001",
        "000000010000000000000002.00000028.backup",
    ] {
        assert_eq!(got(&world, name).0, Got::NotThere, "{name}");
    }
    // Another segment under an old name is a fork; nothing is stored of it.
    let old = &files[2];
    let mut changed = fs::read(old).unwrap();
    changed[500_000] ^= 1;
    let place = world.path(old.file_name().unwrap().to_str().unwrap());
    fs::write(&place, changed).unwrap();
    assert!(format!("{:#}", push(&world.host, &source(), &place, 1).unwrap_err()).contains("forked"));
}

#[test]
fn pushing_and_streaming_write_one_log() {
    let (world, cluster) = (World::new(), setup().start());
    cluster.sql("create table t as select g, repeat('x', 300) s from generate_series(1, 5000) g");
    for file in complete(&cluster) {
        push(&world.host, &source(), &file, 1).unwrap();
    }
    cluster.sql("insert into t select g, repeat('y', 300) from generate_series(1, 5000) g");
    assert!(world.receive_once(&cluster, &options()).unwrap().gaps.is_empty());
    cluster.sql("insert into t select g, repeat('z', 300) from generate_series(1, 5000) g");
    let all = complete(&cluster);
    let stored: Vec<u64> = all.iter().map(|file| push(&world.host, &source(), file, 1).unwrap().bytes).collect();
    assert!(stored.contains(&0) && stored.iter().any(|n| *n > 0 && *n < 1 << 20), "{stored:?}");
    assert_eq!(world.windows().len(), 1);
    for file in &all {
        assert!(got(&world, file.file_name().unwrap().to_str().unwrap()).1 == fs::read(file).unwrap());
    }
    // The newest, partial segment has its full size, too.
    cluster.sql("insert into t values (1, 'a')");
    world.receive_once(&cluster, &options()).unwrap();
    let name = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
    let (written, bytes) = got(&world, &name);
    assert!(matches!(written, Got::Written(n) if n > 0 && n < 1 << 20), "{written:?}");
    assert_eq!(bytes.len(), 1 << 20);
}

#[test]
fn a_gap_is_an_error_and_not_the_end() {
    let (world, cluster) = (World::new(), setup().start());
    cluster.sql("create table t as select g, repeat('x', 300) s from generate_series(1, 20000) g");
    let files = complete(&cluster);
    for (n, file) in files.iter().enumerate().filter(|(n, _)| *n != 3) {
        let report = push(&world.host, &source(), file, 1).unwrap();
        assert_eq!(report.notes.is_empty(), n != 4, "{report:?}");
    }
    assert_eq!(world.windows().len(), 2);
    let identities = std::slice::from_ref(&world.recovery.identity);
    let name = files[3].file_name().unwrap().to_str().unwrap();
    let error = get(&world.host.open, identities, &source(), name, &world.path("x")).unwrap_err();
    assert!(format!("{error:#}").contains("gap"), "{error:#}");
    assert_eq!(got(&world, files[2].file_name().unwrap().to_str().unwrap()).0, Got::Written(1 << 20));
    assert_eq!(got(&world, files[4].file_name().unwrap().to_str().unwrap()).0, Got::Written(1 << 20));
}

/// A server that archives, is recovered to another timeline, and archives on.
#[test]
fn a_promotion_is_followed_by_pushed_files_too() {
    let (world, primary) = (World::new(), setup().start());
    primary.sql("create table t as select g, repeat('x', 300) s from generate_series(1, 5000) g");
    for file in complete(&primary) {
        push(&world.host, &source(), &file, 1).unwrap();
    }
    let base = crate::world::base(&primary, "base");
    let mut standby = crate::world::on_copy(&base, &primary);
    standby.configure(&format!(
        "primary_conninfo = 'host={} port={} user=postgres'\nwal_keep_size = 1GB\n",
        primary.directory.display(),
        primary.port
    ));
    fs::write(standby.data.join("standby.signal"), "").unwrap();
    crate::support::postgres::own_all(&standby.data);
    standby.start();
    primary.sql("insert into t values (0, 'last')");
    wait("the standby has it", || standby.value("select count(*) from t where g = 0") == "1");
    standby.sql("select pg_promote()");
    standby.sql("insert into t select g, repeat('y', 300) from generate_series(1, 5000) g");
    let mut files = complete(&standby);
    files.retain(|f| !f.file_name().unwrap().to_str().unwrap().ends_with(".partial"));
    files.sort_by_key(|f| (!f.to_str().unwrap().ends_with(".history"), f.clone()));
    // What the standby received itself, before it was promoted, is pushed as well where `archive_mode = always`.
    for file in &files {
        push(&world.host, &source(), file, 1).unwrap();
    }
    let windows = world.windows();
    assert_eq!((windows.len(), windows[0].to.0), (1, 2), "{windows:?}");
    for file in files.iter().filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with("00000002")) {
        assert!(
            got(&world, file.file_name().unwrap().to_str().unwrap()).1 == fs::read(file).unwrap(),
            "{}",
            file.display()
        );
    }
}
