//! A replication stream of which a part cannot be used: what is said of it by whom, and what still comes back.

use super::stream::{Home, text};
use crate::support::binary::{Ran, files_below, flip};
use crate::support::engines::Server;
use std::path::PathBuf;

/// A snapshot, and writes after it that are in the stored stream.
fn home(server: &Server) -> Home {
    server.run("SET early 1");
    let home = Home::of(server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    server.run("SET later 2");
    home.run(&["wal-receive", "store", "--once"], 0);
    home
}

fn refused(home: &Home, code: i32) -> Ran {
    let to = home.0.path().join("never");
    let ran = home.run(&["restore", "store", "--to", to.to_str().unwrap()], code);
    assert!(!to.exists(), "{}", ran.all());
    ran
}

fn is_there(server: &Server, key: &str) -> bool {
    !text(&server.run(&format!("GET {key}"))).is_empty()
}

#[test]
fn a_stream_that_cannot_be_used_is_not_taken_for_none() {
    let server = Server::start("redis-server", "");
    let home = home(&server);
    home.run(&["drill"], 0);
    home.run(&["status"], 0);
    let record = home.0.path().join("repo/wal/store/stretches/0000000001");
    flip(&record);
    let told = refused(&home, 4);
    assert!(told.err.contains("stretch 1 of the log of store") && told.err.contains("--snapshot 1"), "{}", told.all());
    for (verb, code) in [("drill", 4), ("status", 4), ("timeline", 4), ("check", 4), ("verify", 4)] {
        let arguments = if verb == "timeline" { vec![verb, "store"] } else { vec![verb] };
        let told = home.run(&arguments, code);
        assert!(told.all().contains("wal/store/stretches/0000000001"), "{verb}: {}", told.all());
    }
    let directory = tempfile::tempdir().unwrap();
    let alone = directory.path().join("alone");
    home.run(&["restore", "store", "--snapshot", "1", "--to", alone.to_str().unwrap()], 0);
    flip(&record);
    let copy = home.restore("redis-server", &[]);
    assert!(is_there(&copy, "early") && is_there(&copy, "later"));
    for verb in ["drill", "verify", "status"] {
        home.run(&[verb], 0);
    }
    // Of its pieces none.
    let pieces: Vec<PathBuf> = files_below(&home.0.path().join("repo/wal/store/0000000001"), |_| true);
    pieces.iter().for_each(|piece| flip(piece));
    assert!(refused(&home, 4).err.contains("cannot be used"));
}

/// The log after the snapshot before it stands for a commit that is broken only if it goes on beyond that.
#[test]
fn a_broken_newest_commit_is_not_passed_over_where_the_stream_ends_before_it() {
    let server = Server::start("redis-server", "");
    let home = home(&server);
    server.run("SET between 3");
    home.run(&["backup"], 0);
    flip(&home.0.path().join("repo/snapshots/store/0000000002"));
    let told = refused(&home, 4);
    assert!(told.err.contains("commit 2 of store") && told.err.contains("--offset "), "{}", told.all());
    let aim = told.err.split("`--offset ").nth(1).unwrap().split('`').next().unwrap();
    let aim: Vec<&str> = std::iter::once("--offset").chain(aim.split(' ')).collect();
    let copy = home.restore("redis-server", &aim);
    assert!(is_there(&copy, "later") && !is_there(&copy, "between"));
    server.run("SET last 4");
    home.run(&["wal-receive", "store", "--once"], 0);
    let copy = home.restore("redis-server", &[]);
    assert!(is_there(&copy, "between") && is_there(&copy, "last"), "the log has all that the snapshot had");
}
