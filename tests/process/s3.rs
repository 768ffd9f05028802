//! The whole cycle over real S3 servers, as an operator runs it: good, slow, broken, absent and lacking ones.

use crate::support::binary::{command, configure, expect, finish, home, noise, root_of, run};
use crate::support::proxy::{Plan, Proxy};
use crate::support::servers::{BUCKET, Server, rclone, seaweedfs};
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A place in the server's bucket that no one else has, reached by `port`.
fn place(server: &Server, port: u16) -> String {
    format!("s3://{BUCKET}/{}?endpoint=http://127.0.0.1:{port}", server.options().prefix)
}

#[test]
fn the_whole_cycle() {
    let server = seaweedfs();
    let repo = place(server, server.port);
    let home = home();
    let at = home.path();
    let said = expect(at, &["protect", "app", "--repo", &repo], 0);
    assert!(said.out.contains("PROVEN") && !said.err.contains("create-if-absent"), "{}", said.all());
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(
        at.join("blackstart.toml"),
        config.replace("kind = \"files\"\n", "kind = \"files\"\nretention = { last = 1 }\n"),
    )
    .unwrap();
    fs::write(at.join("app/etc/big"), noise(1, 40 << 20)).unwrap();
    expect(at, &["backup"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect(at, &["backup"], 0);
    assert!(expect(at, &["snapshots"], 0).out.contains("verified"));
    expect(at, &["verify", "--hashes"], 0);
    // The newest, and the newest verified.
    assert!(expect(at, &["prune", "--dry-run"], 0).out.contains("would remove 1 snapshot [2]"));
    expect(at, &["prune"], 0);
    expect(at, &["drill"], 0);
    expect(at, &["status"], 0);
    expect(at, &["check"], 0);
    expect(at, &["verify", "--read-data"], 0);
    expect(at, &["kit", "kit", "--identity", "blackstart/keys/recovery.key"], 0);

    let fresh = tempfile::tempdir().unwrap();
    fs::copy(at.join("kit/recovery.key"), fresh.path().join("key")).unwrap();
    let named = ["--repo", &repo, "--root", &root_of(at)];
    let status = expect(fresh.path(), &[&["status"], &named[..]].concat(), 0);
    assert!(status.out.starts_with("All 2 sources are protected"), "{}", status.all());
    expect(fresh.path(), &[&["restore", "app", "--to", "back", "--identity", "key"], &named[..]].concat(), 0);
    assert_eq!(fs::read(fresh.path().join("back/etc/app.toml")).unwrap(), b"port = 2\n");
    assert!(fs::read(fresh.path().join("back/etc/big")).unwrap() == noise(1, 40 << 20));
}

#[test]
fn a_bad_network_only_takes_longer() {
    const PLANS: &[Plan] = &[
        Plan::Delay(Duration::from_millis(15)),
        Plan::CutRequest(3 << 20),
        Plan::Unavailable,
        Plan::CutAnswer(2 << 20),
        Plan::CutRequest(700),
    ];
    let server = seaweedfs();
    let proxy = Proxy::start(server.port, PLANS);
    let repo = place(server, proxy.port);
    let home = home();
    let at = home.path();
    fs::write(at.join("app/big"), noise(2, 10 << 20)).unwrap();
    expect(at, &["init", "--repo", &repo], 0);
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\nretention = { last = 1 }\n");
    expect(at, &["backup"], 0);
    fs::write(at.join("app/big"), noise(3, 10 << 20)).unwrap();
    expect(at, &["backup"], 0);
    expect(at, &["restore", "app", "--to", "back"], 0);
    assert!(fs::read(at.join("back/big")).unwrap() == noise(3, 10 << 20));
    expect(at, &["prune"], 0);
    expect(at, &["verify", "--hashes"], 0);
    println!("{} connections", proxy.connections.load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn a_wrong_secret_is_said_and_not_shown() {
    let server = seaweedfs();
    let repo = place(server, server.port);
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", &repo], 0);
    let wrong = "wrong-7f3a9c51";
    for arguments in [&["backup"][..], &["status"], &["restore", "app", "--to", "back"]] {
        let ran = finish(&command(at, arguments).env("AWS_SECRET_ACCESS_KEY", wrong).output().unwrap());
        println!("{}", ran.all());
        assert_eq!(ran.code, 1, "{}", ran.all());
        assert!(ran.err.contains("denied") && !ran.all().contains(wrong), "{}", ran.all());
        assert!(ran.err.contains("AWS_ACCESS_KEY_ID"), "says nothing of credentials: {}", ran.all());
    }
    let mut without = command(at, &["status"]);
    without.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let without = without.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", at);
    let ran = finish(&without.output().unwrap());
    println!("{}", ran.all());
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.err.contains("AWS_ACCESS_KEY_ID"), "says nothing of credentials: {}", ran.all());
}

#[test]
fn a_dead_endpoint_is_given_up_in_time() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = home();
    let repo = format!("s3://{BUCKET}/none?endpoint=http://127.0.0.1:{port}");
    let started = Instant::now();
    let ran = expect(home.path(), &["snapshots", "--repo", &repo], 1);
    println!("{:?} {}", started.elapsed(), ran.all());
    assert!(started.elapsed() < Duration::from_secs(75), "{:?}", started.elapsed());
    assert!(ran.err.contains("help: ") && ran.err.contains("endpoint"), "{}", ran.err);
}

#[test]
fn a_store_without_conditional_writes_is_called_that() {
    let server = rclone();
    let repo = place(server, server.port);
    let home = home();
    let at = home.path();
    let said = expect(at, &["protect", "app", "--repo", &repo], 0);
    assert!(said.err.contains("no create-if-absent") && said.err.contains("no compare-and-swap"), "{}", said.all());
    let said = run(at, &["check"]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert!(said.out.contains("WARNING  store: this store has no create-if-absent"), "{}", said.all());
    expect(at, &["backup"], 0);
    expect(at, &["verify", "--hashes"], 0);
}
