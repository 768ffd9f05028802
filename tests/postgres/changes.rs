//! Incrementals of which the server tells what has changed (PostgreSQL 17 and later): they are the same as if everything had been read, and where they
//! cannot be had, everything is read and the reason is said.

use super::physical::{Home, revive, with_tablespace};
use crate::support::binary;
use crate::support::postgres::{Cluster, Setup, own_all};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUMMARIES: &str = "summarize_wal = on\nautovacuum = off\ncheckpoint_timeout = 1h";

fn number(report: &Value, what: &str) -> u64 {
    report["stats"][what].as_u64().unwrap()
}

/// Asserts that a run was told what had changed, and read little.
fn assert_told(report: &Value) {
    assert!(report["facts"]["read_whole"].is_null(), "{report}");
    assert!(report["facts"]["changes_since"].is_string(), "{report}");
    assert_eq!((&report["mode"], &report["outcome"]), (&"incremental".into(), &"complete".into()));
}

/// Asserts that a run read everything, for this reason.
fn assert_whole(report: &Value, why: &str) {
    let said = report["facts"]["read_whole"].as_str().unwrap_or_default();
    assert!(said.contains(why), "{why:?} was expected: {report}");
    assert!(report["facts"]["changes_since"].is_null(), "{report}");
    assert_eq!(number(report, "bytes_read"), number(report, "bytes"));
    assert_eq!(report["outcome"], "complete");
}

/// Restores by the script that lies in the repository: the tree as it is stored.
fn recover(home: &Home, to: &Path) {
    let repository = home.0.path().join("repository");
    let output = Command::new("python3")
        .arg(repository.join("recover.py"))
        .arg("--repository")
        .arg(&repository)
        .arg("--identity")
        .arg(home.0.path().join("blackstart/keys/recovery.key"))
        .args(["--root", &binary::root_of(home.0.path()), "restore", "pg"])
        .arg(to)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Files of relations below `directory`, by their paths in it.
fn relations(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["base", "global", "pg_tblspc"] {
        let listing = Command::new("find").arg("-L").arg(directory.join(part)).args(["-type", "f"]).output().unwrap();
        assert!(listing.status.success());
        let text = String::from_utf8(listing.stdout).unwrap();
        found.extend(text.lines().map(|line| Path::new(line).strip_prefix(directory).unwrap().to_owned()));
    }
    let is_relation = |path: &PathBuf| blackstart::source::postgres::is_relation(path.to_str().unwrap().as_bytes());
    found.retain(is_relation);
    found.sort();
    found
}

/// Compares a snapshot of a quiet cluster with the files that the server has: nothing may have been taken over that had changed.
fn assert_same_pages(home: &Home, cluster: &Cluster) {
    let copy = tempfile::tempdir().unwrap();
    let copy = copy.path().join("copy");
    recover(home, &copy);
    let (live, stored) = (relations(&cluster.data), relations(&copy));
    assert!(live.len() > 500, "{}", live.len());
    // What the server makes anew on its own is not backed up.
    assert_eq!(live, stored);
    for path in live {
        let (live, stored) = (fs::read(cluster.data.join(&path)).unwrap(), fs::read(copy.join(&path)).unwrap());
        assert_eq!(live.len(), stored.len(), "{}", path.display());
        let differing = live.chunks(8192).zip(stored.chunks(8192)).position(|(a, b)| a != b);
        assert_eq!(differing, None, "the first differing page of {}", path.display());
    }
    own_all(copy.parent().unwrap());
    cluster.tool("pg_verifybackup", &["-n", copy.to_str().unwrap()]);
}

const TABLES: &str = "
    create table still as select n, repeat('s', 500) t from generate_series(1, 60000) n;
    create table cut as select n, repeat('c', 100) t from generate_series(1, 5000) n;
    create table again as select n, repeat('a', 100) t from generate_series(1, 5000) n;
    create table packed as select n, repeat('p', 100) t from generate_series(1, 5000) n;
    create table tail as select n, repeat('t', 500) t from generate_series(1, 5000) n;
    create index on packed (n); create table elsewhere_too (n int) tablespace fast; vacuum";

/// What changes between two snapshots.
const CHANGES: &str = "
    truncate cut; insert into cut select n, 'new' from generate_series(1, 700) n;
    drop table again; create table again as select n, repeat('b', 90) t from generate_series(1, 4000) n;
    delete from packed where n % 3 = 0; vacuum full packed;
    update still set t = repeat('u', 500) where n % 20000 = 7;
    create table fresh as select n from generate_series(1, 3000) n;
    insert into elsewhere select generate_series(20001, 30000);
    create database other";

#[test]
fn what_has_changed_is_read_and_the_snapshot_is_whole() {
    for major in [17, 18] {
        let cluster = Setup { segment: 1, ..Setup::new(major) }.config(SUMMARIES).start();
        with_tablespace(&cluster);
        cluster.pgbench_init(1);
        each(&cluster, TABLES);
        // Whoever reads rows, to count them for example, sets hint bits: the server's pages would not be those of the snapshot any more.
        let home = Home::new(&cluster, "transport = \"stream\"\ncount = false");
        let first = home.backup(0);
        assert!(first["facts"]["changes_since"].is_null() && first["facts"]["read_whole"].is_null(), "{first}");
        each(&cluster, CHANGES);
        // A relation shrinks; the rows behind its new end must not come back when it grows again by more than it needs.
        each(
            &cluster,
            "delete from tail where n > 500; vacuum tail; insert into tail select n, 'x' from generate_series(1, 30000) n",
        );
        let second = home.backup(0);
        assert_told(&second);
        assert_same_pages(&home, &cluster);
        let (bytes, read) = (number(&second, "bytes"), number(&second, "bytes_read"));
        assert!(read < bytes / 2, "{major}: {read} of {bytes} bytes were read");
        assert!(number(&second, "bytes_new") < number(&first, "bytes_new") / 2, "{first}\n{second}");
        // A snapshot that came so is a basis as good as any, under load as well.
        let load = cluster.pgbench(60);
        let third = home.backup(0);
        drop(load);
        assert_told(&third);
        home.run(&["drill", "pg"], 0);
        cluster.sql("drop database other");
        // Too much of what the changes have replaced is stored: what it lies among is read and stored again, so much in each run. Then nothing
        // happens: what is read is what the server always sends as a whole.
        let is_idle = |report: &Value| number(report, "bytes_read") < bytes / 4;
        let idle = (0..6).map(|_| home.backup(0)).find(is_idle).expect("there must be an end of what is stored again");
        assert_told(&idle);
        assert_same_pages(&home, &cluster);
        let copy = revive(&home, major);
        for table in ["still", "cut", "again", "packed", "tail", "fresh", "elsewhere", "pgbench_accounts"] {
            let sum = format!("select count(*) || ' ' || coalesce(sum(hashtext(x::text)), 0) from {table} x");
            assert_eq!(copy.value(&sum), cluster.value(&sum), "{major}: {table}");
        }
        // A full asks nobody what has changed, and stores no more.
        let full = home.run(&["backup", "--full", "--json"], 0).json()["report"]["sources"][0].clone();
        assert!(full["facts"]["changes_since"].is_null() && full["mode"] == "full", "{full}");
        assert_eq!(number(&full, "bytes_read"), number(&full, "bytes"));
    }
}

/// Each statement for itself: some cannot be in a transaction.
fn each(cluster: &Cluster, statements: &str) {
    let mut client = cluster.client();
    for statement in statements.split(';').filter(|s| !s.trim().is_empty()) {
        client.query(statement).unwrap();
    }
}

#[test]
fn where_the_server_cannot_tell_everything_is_read() {
    let cluster = Setup { segment: 1, ..Setup::new(17) }.config("autovacuum = off").start();
    cluster.sql("create table t as select n, repeat('x', 300) t from generate_series(1, 20000) n");
    let home = Home::new(&cluster, "transport = \"stream\"");
    home.backup(0);
    assert_whole(&home.backup(0), "summarize_wal is off");
    let said = home.run(&["backup"], 0).all();
    assert!(said.contains("everything was read, since summarize_wal is off"), "{said}");
    cluster.sql("alter system set summarize_wal = on");
    cluster.sql("select pg_reload_conf()");
    wait_for(&cluster, "show summarize_wal", "on");
    // The WAL since the last snapshot is still there to be summarized.
    cluster.sql("update t set t = 'y' where n = 5");
    assert_told(&home.backup(0));
    // Local copies of the index are a cache.
    let caches: Vec<PathBuf> = ["index", "cache"].iter().flat_map(|name| directories(home.0.path(), name)).collect();
    let caches: Vec<&PathBuf> =
        caches.iter().filter(|path| !path.starts_with(home.0.path().join("repository"))).collect();
    assert!(!caches.is_empty());
    caches.iter().for_each(|cache| fs::remove_dir_all(cache).unwrap());
    assert_told(&home.backup(0));
    // The next checkpoint ends the summary that begins with the last snapshot. It is lost.
    let start = cluster.value("select max(start_lsn) from pg_available_wal_summaries()");
    cluster.sql("checkpoint");
    wait_for(
        &cluster,
        &format!("select count(*) > 0 from pg_available_wal_summaries() where start_lsn > '{start}'"),
        "t",
    );
    for summary in fs::read_dir(cluster.data.join("pg_wal/summaries")).unwrap() {
        fs::remove_file(summary.unwrap().path()).unwrap();
    }
    assert_whole(&home.backup(0), "WAL summaries are required");
    assert_same_pages(&home, &cluster);
    // Whoever is let in for replication only cannot look at the summaries.
    cluster.sql("create role streamer login replication");
    let hba = cluster.data.join("pg_hba.conf");
    let lines = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("local replication streamer trust\nlocal all streamer reject\n{lines}")).unwrap();
    cluster.sql("select pg_reload_conf()");
    let config = home.0.path().join("blackstart.toml");
    let text = fs::read_to_string(&config).unwrap().replace("postgres://postgres@", "postgres://streamer@");
    fs::write(&config, text).unwrap();
    assert_whole(&home.backup(0), "let in for replication only");
}

fn directories(below: &Path, name: &str) -> Vec<PathBuf> {
    let listing = Command::new("find").arg(below).args(["-type", "d", "-name", name, "-prune"]).output().unwrap();
    String::from_utf8(listing.stdout).unwrap().lines().map(PathBuf::from).collect()
}

fn wait_for(cluster: &Cluster, query: &str, value: &str) {
    let began = std::time::Instant::now();
    while cluster.value(query) != value {
        assert!(began.elapsed().as_secs() < 30, "{query} is not {value}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn an_older_server_is_read_whole() {
    let cluster = Cluster::new(15);
    let home = Home::new(&cluster, "transport = \"stream\"");
    home.backup(0);
    assert_whole(&home.backup(0), "begins with 17");
}

/// A machine that is put back to an older state has the same identifier and timeline, and another history.
#[test]
fn a_server_that_was_put_back_is_read_whole() {
    let mut cluster = Setup { segment: 1, ..Setup::new(18) }.config(SUMMARIES).start();
    cluster.sql("create table t as select n, repeat('x', 300) t from generate_series(1, 20000) n");
    let home = Home::new(&cluster, "transport = \"stream\"");
    home.backup(0);
    cluster.stop();
    let older = cluster.directory.join("older");
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&cluster.data, &older);
    cluster.start();
    // A restart alone does no harm.
    cluster.sql("update t set t = 'lost' where n % 5000 = 1");
    assert_told(&home.backup(0));
    cluster.stop();
    fs::remove_dir_all(&cluster.data).unwrap();
    copy(&older, &cluster.data);
    cluster.start();
    cluster.sql("create table other as select n from generate_series(1, 100000) n; update t set t = 'kept' where n % 5000 = 2; checkpoint");
    let put_back = home.backup(0);
    assert!(put_back["facts"]["read_whole"].is_string(), "{put_back}");
    assert_same_pages(&home, &cluster);
    let copy = revive(&home, 18);
    assert_eq!(copy.value("select count(*) from t where t = 'lost'"), "0");
    // And from there on it goes on as before; a crash is no obstacle either.
    cluster.kill();
    cluster.start();
    cluster.sql("update t set t = 'late' where n % 5000 = 3");
    assert_told(&home.backup(0));
    assert_same_pages(&home, &cluster);
}

#[test]
fn an_idle_standby_and_a_promoted_one_are_read_whole() {
    let primary = Setup { segment: 1, ..Setup::new(17) }.config(SUMMARIES).config("wal_keep_size = '64MB'").start();
    primary.sql("create table t as select n, repeat('x', 300) t from generate_series(1, 20000) n");
    let mut standby = Cluster::empty(17);
    let mut arguments: Vec<String> = primary.reach().to_vec();
    let data = standby.data.display().to_string();
    arguments.extend(["-D", &data, "-c", "fast", "--no-sync"].map(str::to_owned));
    primary.tool("pg_basebackup", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let socket = primary.directory.display();
    standby.configure(&format!("primary_conninfo = 'host={socket} port={} user=postgres'", primary.port));
    fs::write(standby.data.join("standby.signal"), "").unwrap();
    own_all(&standby.data);
    standby.start();
    let home = Home::new(&standby, "transport = \"stream\"");
    home.backup(0);
    assert_whole(&home.backup(0), "but this backup starts at");
    primary.sql("update t set t = 'y' where n = 5; checkpoint");
    let there = primary.value("select pg_current_wal_flush_lsn()");
    wait_for(&standby, &format!("select pg_last_wal_replay_lsn() >= '{there}'"), "t");
    assert_told(&home.backup(0));
    standby.sql("select pg_promote()");
    standby.sql("update t set t = 'z' where n = 6");
    assert_whole(&home.backup(0), "promoted");
    standby.sql("update t set t = 'z' where n = 7");
    assert_told(&home.backup(0));
    assert_same_pages(&home, &standby);
}

/// What was damaged when it was read is not taken over as if it were sound.
#[test]
fn after_damage_everything_is_read() {
    let mut cluster = Setup { segment: 1, ..Setup::new(17) }.config(SUMMARIES).start();
    cluster.sql("create table broken as select generate_series(1, 5000) n; checkpoint");
    let file = cluster.value("select pg_relation_filepath('broken')");
    cluster.stop();
    let path = cluster.data.join(file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8192 + 4000] ^= 0xff;
    fs::write(&path, &bytes).unwrap();
    cluster.start();
    let home = Home::new(&cluster, "transport = \"stream\"");
    home.backup(3);
    let again = home.backup(3);
    assert!(again["facts"]["read_whole"].as_str().unwrap().contains("damaged pages"), "{again}");
    assert_eq!(again["outcome"], "partial");
}
