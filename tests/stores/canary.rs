//! Canaries in Redis and in Chroma, with the real engines beside.

use super::{protect, report};
use crate::support::binary::{expect, run};
use crate::support::engines::{Leashed, Server, make, program, python, writer};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn canary(home: &Path, code: i32) -> (String, Value) {
    let drill = report(home, &["drill"], code);
    let check = drill["checks"].as_array().unwrap().iter().find(|c| c["name"] == "canary").unwrap().clone();
    assert_eq!(check["passed"], code == 0, "{check}");
    (check["actual"].as_str().unwrap().to_owned(), drill["canary"].clone())
}

#[test]
fn a_key_of_redis_tells_how_old_the_copy_is() {
    let server = Server::start("redis-server", "--requirepass hunter2 --appendonly no");
    let admin = |words: &[&str]| {
        let mut connection = server.connect();
        connection.command(&["AUTH", "hunter2"]).unwrap();
        connection.command(&["SELECT", "3"]).unwrap();
        connection.command(words).unwrap()
    };
    for n in 0..10 {
        admin(&["SET", &format!("application:{n}"), "data"]);
    }
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("password"), "hunter2").unwrap();
    let engine = program("redis-server");
    protect(
        home.path(),
        &format!(
            "kind = \"redis\"\nurl = \"{}\"\npassword = {{ file = \"password\" }}\n[source.redis]\nserver = \"{}\"\n[source.canary]\ndatabase = \"3\"",
            server.url(),
            engine.display()
        ),
    );
    let checked = run(home.path(), &["check"]).out;
    assert!(checked.contains("can be written"), "{checked}");
    let key = "blackstart:canary:store";
    assert_eq!(admin(&["GET", key]).text(), None, "`check` leaves nothing behind");
    expect(home.path(), &["canary"], 0);
    report(home.path(), &["backup"], 0);
    let (_, found) = canary(home.path(), 0);
    assert!((-5.0..600.0).contains(&found["age_seconds"].as_f64().unwrap()), "{found}");
    admin(&["SET", key, "2020-01-01T00:00:00Z"]);
    report(home.path(), &["backup"], 0);
    assert!(canary(home.path(), 4).0.contains("STALE"));
    admin(&["DEL", key]);
    report(home.path(), &["backup"], 0);
    // The server may have evicted it, or somebody emptied the database: the copy is as the server was.
    assert!(canary(home.path(), 0).0.contains("none in the copy"));
    // A user without the right is told what to grant.
    admin(&["ACL", "SETUSER", "default", "-set"]);
    let refused = expect(home.path(), &["canary"], 1).err;
    assert!(refused.contains("ACL SETUSER default") && refused.contains("Backups go on"), "{refused}");
}

#[test]
fn a_row_beside_chroma_tells_how_old_the_copy_is_and_disturbs_nobody() {
    let version = "1.5.9";
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    make(version, &data, 32, 300);
    protect(
        home.path(),
        &format!(
            "kind = \"chroma\"\npath = \"data\"\ncanary = true\n[source.chroma]\npython = \"{}\"",
            python(version).display()
        ),
    );
    let log = home.path().join("log");
    let load = Leashed::start(&writer(version, "load", &data, 32, 300), &log);
    let until = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(&log).unwrap_or_default().contains("ready") {
        assert!(Instant::now() < until, "the writer does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..5 {
        expect(home.path(), &["canary"], 0);
    }
    report(home.path(), &["backup"], 0);
    drop(load);
    let errors = fs::read_to_string(&log).unwrap();
    assert!(!errors.contains("Error"), "the application was disturbed: {errors}");
    let (_, found) = canary(home.path(), 0);
    assert!((-5.0..600.0).contains(&found["age_seconds"].as_f64().unwrap()), "{found}");
    let database = rusqlite::Connection::open(data.join("chroma.sqlite3")).unwrap();
    database.execute_batch("update blackstart_canary set at = '2020-01-01T00:00:00Z'").unwrap();
    drop(database);
    report(home.path(), &["backup"], 0);
    assert!(canary(home.path(), 4).0.contains("STALE"));
}
