//! SIGINT and SIGTERM: one sentence, exit 130, and nothing left that stands in the way. And what a killed run leaves in the spool.

use crate::support::binary::{command, configure, expect, files_below, finish, noise};
use crate::support::proxy::{Plan, Proxy};
use crate::support::servers::{BUCKET, seaweedfs};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn start(home: &Path, arguments: &[&str]) -> Child {
    command(home, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A tree that takes a moment, in a local repository.
fn tree(at: &Path) {
    fs::create_dir(at.join("tree")).unwrap();
    for n in 0..14 {
        fs::write(at.join(format!("tree/{n:02}")), noise(n, 12 << 20)).unwrap();
    }
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
}

fn packs(at: &Path) -> usize {
    files_below(&at.join("repo/packs"), |name| !name.starts_with('.')).len()
}

#[test]
fn a_backup_that_is_interrupted_says_so_and_the_next_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    tree(at);
    for signal in [Signal::INT, Signal::TERM] {
        let before = packs(at);
        let child = start(at, &["backup"]);
        wait_until("it stores packs", || packs(at) > before + 1);
        send(&child, signal);
        let ran = finish(&child.wait_with_output().unwrap());
        println!("{}", ran.all());
        assert_eq!(ran.code, 130, "{}", ran.all());
        assert!(ran.err.contains("interrupted by a signal") && ran.err.contains("No snapshot was made"), "{}", ran.err);
        assert!(files_below(&at.join("repo/snapshots"), |_| true).is_empty());
    }
    let next = expect(at, &["backup", "--json"], 0).json();
    println!("{next}");
    expect(at, &["drill"], 0);
    expect(at, &["verify", "--hashes"], 0);
}

#[test]
fn a_restore_that_is_interrupted_is_resumed() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    tree(at);
    expect(at, &["backup"], 0);
    let child = start(at, &["restore", "tree", "--to", "back", "--json"]);
    let journal = || {
        let names = fs::read_dir(at).unwrap().map(|e| e.unwrap().path());
        names
            .filter(|p| p.extension().is_some_and(|e| e == "done"))
            .map(|p| fs::read_to_string(p).unwrap_or_default())
            .next()
    };
    wait_until("some packs are written", || journal().is_some_and(|text| text.lines().count() > 2));
    send(&child, Signal::INT);
    let ran = finish(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.all());
    assert_eq!(ran.json()["error"]["kind"], "interrupted");
    assert!(!at.join("back").exists());
    let again = expect(at, &["restore", "tree", "--to", "back", "--json"], 0).json();
    assert_eq!(again["report"]["resumed"], true);
    assert!(fs::read(at.join("back/13")).unwrap() == noise(13, 12 << 20));
}

/// A database in a bucket behind a slow line; killed while packs wait in the spool.
#[test]
fn a_killed_run_leaves_a_spool_that_the_next_one_clears() {
    const SLOW: &[Plan] = &[Plan::SlowRequest(Duration::from_millis(12))];
    let server = seaweedfs();
    let proxy = Proxy::start(server.port, SLOW);
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    let database = rusqlite::Connection::open(at.join("app.db")).unwrap();
    database.execute_batch("create table t (body blob)").unwrap();
    let rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1800) insert into t select randomblob(65536) from n";
    database.execute(rows, []).unwrap();
    drop(database);
    let repo = format!("s3://{BUCKET}/{}?endpoint=http://127.0.0.1:{}", server.options().prefix, proxy.port);
    expect(at, &["init", "--repo", &repo], 0);
    configure(at, "spool = \"1GiB\"\n[[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"app.db\"\n");
    let spool = at.join("blackstart/state/spool");
    let waiting = || files_below(&spool, |name| name != "lock").len();
    let mut child = start(at, &["backup"]);
    wait_until("packs wait in the spool", || waiting() > 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(waiting() > 0, "nothing is left, so that this test shows nothing");
    let report = expect(at, &["backup", "--json"], 0).json();
    println!("{report}");
    assert_eq!(waiting(), 0);
    expect(at, &["restore", "db", "--to", "back"], 0);
    assert!(fs::read(at.join("back/app.db")).unwrap() == fs::read(at.join("app.db")).unwrap());
}
