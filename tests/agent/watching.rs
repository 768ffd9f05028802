//! `watch --notify`: silence reaches somebody, once, also where it is run by cron and forgets everything in between.

use serde_json::Value;
use std::fs;
use std::path::Path;

use super::listener::Listener;
use super::support::binary::{Ran, expect, home, root_of, run};

/// The phases and keys told so far.
fn told(server: &Listener) -> Vec<String> {
    let all = server.got().into_iter().filter(|got| got.path == "/hook");
    let word = |body: &Value, key: &str| body[key].as_str().unwrap_or("?").to_owned();
    all.map(|got| format!("{} {}", word(&got.body, "phase"), word(&got.body, "key"))).collect()
}

fn pings(server: &Listener) -> (usize, usize) {
    let count = |start: &str| server.got().iter().filter(|got| got.path.starts_with(start)).count();
    (count("/ping?"), count("/ping/fail?"))
}

/// A place of its own for the watcher: no key, only the address, the root and whom to tell.
fn watcher(at: &Path, server: &Listener) {
    fs::create_dir(at.join("watcher")).unwrap();
    let text = format!(
        "repository = \"../repo\"\nroot = \"{}\"\n[[notify]]\nname = \"hook\"\nwebhook = {{ url = {:?} }}\n\
         [[notify]]\nname = \"pulse\"\nping = {{ watch = {:?} }}\n",
        root_of(at),
        server.url("hook"),
        server.url("ping")
    );
    fs::write(at.join("watcher/watch.toml"), text).unwrap();
}

fn look(at: &Path, more: &[&str]) -> Ran {
    run(at, &[&["watch", "--config", "watcher/watch.toml", "--notify", "--older-than", "1h"][..], more].concat())
}

#[test]
fn silence_reaches_somebody_once_and_so_does_its_end() {
    let server = Listener::start();
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    watcher(at, &server);
    assert_eq!(look(at, &[]).code, 0);
    assert_eq!((told(&server), pings(&server)), (vec![], (1, 0)));
    // The agent falls silent. Cron looks again and again; it is told once.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let silent = ["--bound", "etc=1s"];
    for _ in 0..3 {
        assert_eq!(look(at, &silent).code, 5);
    }
    assert_eq!(told(&server), ["begun watch/etc/stale"]);
    let begun = server.got().into_iter().find(|got| got.path == "/hook").unwrap().body;
    assert!(begun["head"]["seq"].as_u64() > Some(0) && begun["severity"] == "critical", "{begun}");
    // The repository goes away: that is told, and nothing else is taken for over.
    fs::rename(at.join("repo"), at.join("gone")).unwrap();
    assert_eq!(look(at, &silent).code, 10);
    assert_eq!(told(&server)[1..], ["begun watch/repository"]);
    assert_eq!(pings(&server).1, 1);
    fs::rename(at.join("gone"), at.join("repo")).unwrap();
    // Nobody answers: it is tried again at the next look, and said aloud.
    server.failures.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    let deaf = look(at, &[]);
    assert_eq!(deaf.code, 3, "{}", deaf.all());
    assert!(deaf.err.contains("hook could NOT be told"), "{}", deaf.err);
    server.failures.store(0, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(look(at, &[]).code, 0);
    let mut over = told(&server)[2..].to_vec();
    over.sort();
    assert_eq!(over, ["recovered watch/etc/stale", "recovered watch/repository"]);
    assert_eq!(look(at, &[]).code, 0);
    assert_eq!(told(&server).len(), 4);
    // A long-running watcher tells the same way, and a configuration without anybody to tell is refused.
    assert_eq!(look(at, &["--every", "1s", "--rounds", "2", "--bound", "etc=1s"]).code, 5);
    assert_eq!(told(&server)[4..], ["begun watch/etc/stale"]);
    assert_eq!(run(at, &["watch", "--notify"]).code, 78);
}
