//! The dead man's switches: one hears of backups, another of drills, each of its start and of how it ended.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

use super::daemon::{Daemon, ended};
use super::listener::Listener;
use super::support::binary::{configure, expect, files_below, home};

/// What a switch has heard, in the order in which it came: the suffix and the run.
fn heard(listener: &Listener, switch: &str) -> Vec<(String, String)> {
    let of_it = listener.got().into_iter().filter_map(|got| {
        let (suffix, run) =
            got.path.strip_prefix(switch)?.split_once("?rid=").map(|(s, r)| (s.to_owned(), r.to_owned()))?;
        Some((suffix, run))
    });
    of_it.collect()
}

/// Of which task each run is, by the agent's log.
fn tasks(daemon: &Daemon) -> BTreeMap<String, String> {
    let started = daemon.lines().into_iter().filter(|l| l["message"] == "run started");
    started
        .map(|l| {
            (
                l["run"].as_str().unwrap().to_owned(),
                format!("{} {}", l["source"].as_str().unwrap(), l["task"].as_str().unwrap()),
            )
        })
        .collect()
}

#[test]
fn backups_and_drills_have_switches_of_their_own() {
    let listener = Listener::start();
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    expect(at, &["protect", "app/orders.db"], 0);
    configure(
        at,
        &format!(
            "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\n[[notify]]\nname = \"hc\"\nping = {{ backup = {:?}, drill = {:?} }}\n",
            listener.url("of-backups"),
            listener.url("of-drills")
        ),
    );
    fs::create_dir(at.join("schedules")).unwrap();
    // One is backed up, and drilled cheaply; the other is only drilled: with nothing that stores anew what the test takes away.
    fs::write(
        at.join("schedules/etc.toml"),
        "source = \"etc\"\nevery = \"2s\"\n[[drill]]\nevery = \"2s\"\nlevel = \"hashes\"\n",
    )
    .unwrap();
    fs::write(at.join("schedules/orders.toml"), "source = \"orders\"\ndrill = { every = \"2s\" }\n").unwrap();
    let daemon = Daemon::start(at, &[]);
    daemon.wait("two backups", 2, |l| l["source"] == "etc" && ended("incremental")(l));
    let proven = daemon.wait("a drill", 1, |l| l["source"] == "orders" && ended("drill")(l));
    daemon.wait("a cheap drill", 1, |l| l["source"] == "etc" && l["result"] == "done" && l["task"] != "incremental");
    let run = proven["run"].as_str().unwrap();
    listener.wait("the start of the drill", |got| got.path == format!("/of-drills/start?rid={run}"));
    listener.wait("its success", |got| got.path == format!("/of-drills?rid={run}"));

    // The drill can no longer succeed; backups go on as before.
    for pack in files_below(&at.join("repo/packs/orders"), |_| true) {
        fs::remove_file(pack).unwrap();
    }
    let failed = daemon.wait("a drill that fails", 1, |l: &Value| {
        l["source"] == "orders" && l["task"] == "drill" && l["result"].is_string() && l["result"] != "done"
    });
    let run = failed["run"].as_str().unwrap();
    listener.wait("its start", |got| got.path == format!("/of-drills/start?rid={run}"));
    listener.wait("its failure", |got| got.path == format!("/of-drills/fail?rid={run}"));
    let later = daemon.count(|l| l["source"] == "etc" && ended("incremental")(l));
    daemon.wait("a backup after it", later + 1, |l| l["source"] == "etc" && ended("incremental")(l));
    let whole = daemon.count(|l| l["source"] == "etc" && ended("incremental")(l));
    listener.wait("the success of a backup after it", |_| {
        heard(&listener, "/of-backups").iter().filter(|(suffix, _)| suffix.is_empty()).count() >= whole
    });

    let (tasks, backups, drills) = (tasks(&daemon), heard(&listener, "/of-backups"), heard(&listener, "/of-drills"));
    assert_eq!(daemon.stop(), 0);
    for (_, run) in &backups {
        assert_eq!(tasks[run], "etc incremental", "the switch of backups hears of nothing else: {backups:?}");
    }
    assert!(backups.iter().all(|(suffix, _)| suffix != "/fail"), "no backup has failed: {backups:?}");
    for (_, run) in &drills {
        assert_eq!(
            tasks[run], "orders drill",
            "the switch of drills hears of those that start the engine alone: {drills:?}"
        );
    }
    for (at, (suffix, run)) in drills.iter().enumerate().filter(|(_, (suffix, _))| suffix != "/start") {
        assert!(
            drills[..at].contains(&("/start".to_owned(), run.clone())),
            "{run} ended with {suffix:?} before it began: {drills:?}"
        );
    }
}
