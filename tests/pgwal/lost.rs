//! A log of which a part cannot be used, from the command line: what is said of it by whom, and what still comes back.

use crate::recovery::Home;
use crate::support::binary::{files_below, flip, run};
use crate::support::postgres::{Cluster, Setup};
use std::path::PathBuf;

/// A snapshot of a server with a table of 100 rows, and a log behind it with 100 more.
fn home() -> (Cluster, Home) {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB");
    setup.segment = 1;
    let cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t as select generate_series(1, 100) n");
    home.run(&["backup"], 0);
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    (cluster, home)
}

fn refused(home: &Home) -> String {
    let to = home.0.path().join("never");
    let ran = home.run(&["restore", "pg", "--to", to.to_str().unwrap()], 4);
    assert!(!to.exists(), "{}", ran.all());
    ran.err
}

#[test]
fn a_log_that_cannot_be_used_is_not_taken_for_none() {
    let (cluster, home) = home();
    let path = home.0.path();
    home.run(&["drill", "pg"], 0);
    let pieces: Vec<PathBuf> = files_below(&path.join("repository/wal/pg/0000000001"), |_| true);
    let record = vec![path.join("repository/wal/pg/stretches/0000000001")];
    for damaged in [record, pieces] {
        damaged.iter().for_each(|object| flip(object));
        let told = refused(&home);
        assert!(told.contains("stretch 1 of the log of pg") && told.contains("--snapshot 1"), "{told}");
        for arguments in [&["drill", "pg"][..], &["status"], &["timeline", "pg"], &["check"]] {
            let told = home.run(arguments, 4).all();
            assert!(told.contains("repository/wal/pg/") || told.contains("wal/pg/"), "{arguments:?}: {told}");
        }
        let current = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
        let to = path.join("segment");
        let got = run(path, &["wal-get", "pg", &current, to.to_str().unwrap()]);
        assert_eq!((got.code, to.exists()), (200, false), "a server would open for writing: {}", got.all());
        damaged.iter().for_each(|object| flip(object));
    }
    let copy = home.back_to(&cluster, &[]);
    copy.await_recovery();
    assert_eq!(copy.value("select count(*) from t"), "200");
}

/// The log after the snapshot before it stands for a commit that is broken only if it goes on beyond that.
#[test]
fn a_broken_newest_commit_is_not_passed_over_where_the_log_ends_before_it() {
    let (cluster, home) = home();
    home.run(&["backup"], 0);
    flip(&home.0.path().join("repository/snapshots/pg/0000000002"));
    let told = refused(&home);
    assert!(told.contains("commit 2 of pg") && told.contains("`--lsn "), "{told}");
    let end = told.split("`--lsn ").nth(1).unwrap().split('`').next().unwrap();
    let copy = home.back_to(&cluster, &["--lsn", end]);
    copy.await_recovery();
    assert_eq!(copy.value("select count(*) from t"), "200");
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    let copy = home.back_to(&cluster, &[]);
    copy.await_recovery();
    assert_eq!(copy.value("select count(*) from t"), "300", "the log has all that the snapshot had");
}
