//! What the agent lives through: a bucket that goes away and comes back, a disk that is full, many agents in one bucket.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::daemon::{Daemon, ended, told};
use super::support::binary::{configure, expect, home, noise, root_of};
use super::support::gate::Gate;
use super::support::servers::{BUCKET, seaweedfs};
use super::support::small::Small;

const AGENT: &str = "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\nstop_within = \"20s\"\n";

/// One job that runs every two seconds.
fn every_two_seconds(at: &Path, config: &str) {
    configure(at, &format!("{AGENT}{config}"));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"2s\"\n").unwrap();
}

#[test]
fn a_bucket_that_goes_away_is_ridden_out_or_told_and_all_goes_on() {
    let server = seaweedfs();
    let gate = Gate::before(server.port);
    let home = home();
    let at = home.path();
    let repo = format!("s3://{BUCKET}/{}?endpoint=http://127.0.0.1:{}", server.options().prefix, gate.port);
    expect(at, &["protect", "app/etc", "--repo", &repo], 0);
    every_two_seconds(at, "");
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a backup", 1, ended("incremental"));
    // A few seconds are ridden out: what is under way waits, and nobody is told.
    gate.shut();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let before = daemon.count(ended("incremental"));
    gate.open();
    daemon.wait("the next backup", before + 1, ended("incremental"));
    assert_eq!(daemon.count(|l| l["result"] == "failed"), 0);
    assert_eq!(daemon.count(told("repository", "begun")), 0);
    // Longer is told, once, and so is its end.
    gate.shut();
    daemon.wait("the notice", 1, told("repository", "begun"));
    assert_eq!(daemon.metric("blackstart_repository_up{}"), 0.0);
    assert_eq!(daemon.get("/health/live").0, 200);
    gate.open();
    daemon.wait("the recovery", 1, told("repository", "recovered"));
    let before = daemon.count(ended("incremental"));
    daemon.wait("backups again", before + 1, ended("incremental"));
    assert_eq!(daemon.count(told("repository", "begun")), 1);
    assert_eq!(daemon.stop(), 0);
    expect(at, &["verify", "--hashes"], 0);
}

#[test]
fn a_full_disk_is_told_and_the_agent_goes_on_when_there_is_room() {
    let home = home();
    let at = home.path();
    let test = "outage::a_full_disk_is_told_and_the_agent_goes_on_when_there_is_room";
    let Some(_disk) = Small::mount(at.join("disk"), 24, test) else { return };
    expect(at, &["protect", "app/etc", "--repo", "disk/repo"], 0);
    // The state, with catalog and audit log, lies on the same disk.
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let state = at.join("disk/state");
    fs::rename(at.join("blackstart/state"), &state).unwrap_or_else(|_| {
        assert!(
            std::process::Command::new("cp")
                .args(["-a", "blackstart/state", "disk/state"])
                .current_dir(at)
                .status()
                .unwrap()
                .success()
        );
    });
    let moved = config.lines().map(|l| if l.starts_with("state = ") { "state = \"disk/state\"" } else { l });
    fs::write(at.join("blackstart.toml"), moved.collect::<Vec<_>>().join("\n")).unwrap();
    every_two_seconds(at, "");
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a backup", 1, ended("incremental"));
    let _full = fs::write(at.join("disk/rest"), noise(4, 24 << 20));
    daemon.wait("the notice", 1, told("etc/incremental", "begun"));
    let failed = daemon.wait("a failure", 1, |l| l["result"] == "failed");
    assert!(failed["message"].as_str().unwrap().to_lowercase().contains("no space"), "{failed}");
    assert_eq!(daemon.get("/health/live").0, 200);
    fs::remove_file(at.join("disk/rest")).unwrap();
    daemon.wait("the recovery", 1, told("etc/incremental", "recovered"));
    let before = daemon.count(ended("incremental"));
    daemon.wait("backups again", before + 1, ended("incremental"));
    assert_eq!(daemon.stop(), 0);
    expect(at, &["verify", "--hashes"], 0);
    expect(at, &["drill"], 0);
}

#[test]
fn many_agents_share_a_bucket_and_anyone_sees_them_all() {
    const AGENTS: usize = 4;
    let server = seaweedfs();
    let repo = format!("s3://{BUCKET}/{}?endpoint=http://127.0.0.1:{}", server.options().prefix, server.port);
    let homes: Vec<tempfile::TempDir> = (0..AGENTS).map(|_| home()).collect();
    let first = homes[0].path();
    expect(first, &["init", "--repo", &repo], 0);
    let key = first.join("blackstart/keys/recovery.key");
    for (n, home) in homes.iter().enumerate() {
        let at = home.path();
        if n > 0 {
            expect(at, &["init", "--repo", &repo, "--identity", key.to_str().unwrap()], 0);
        }
        let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
        fs::write(at.join("blackstart.toml"), format!("host = \"host{n}\"\n{config}")).unwrap();
        configure(at, &format!("{AGENT}[[source]]\nname = \"etc{n}\"\nkind = \"files\"\npath = \"app/etc\"\n"));
        fs::create_dir(at.join("schedules")).unwrap();
        fs::write(at.join("schedules/etc.toml"), format!("source = \"etc{n}\"\nevery = \"1s\"\n")).unwrap();
    }
    let daemons: Vec<Daemon> = homes.iter().map(|home| Daemon::start(home.path(), &[])).collect();
    for daemon in &daemons {
        daemon.wait("three backups", 3, ended("incremental"));
        assert_eq!(daemon.count(|l| l["result"] == "failed"), 0);
    }
    daemons.into_iter().for_each(|daemon| assert_eq!(daemon.stop(), 0));
    // From a machine that has nothing but the address.
    let outside = tempfile::tempdir().unwrap();
    let root = root_of(first);
    let place = ["--json", "--repo", &repo, "--root", &root];
    let watched = expect(outside.path(), &[&["watch"][..], &place].concat(), 0).json();
    let sights: Vec<Value> = watched["report"]["sources"].as_array().unwrap().clone();
    let hosts: BTreeSet<String> = sights.iter().map(|s| format!("{} {}", s["source"], s["host"])).collect();
    assert_eq!(hosts, (0..AGENTS).map(|n| format!("\"etc{n}\" \"host{n}\"")).collect());
    let status = expect(outside.path(), &[&["status"][..], &place].concat(), 4).json();
    assert_eq!(status["report"]["sources"].as_array().unwrap().len(), AGENTS);
    expect(outside.path(), &["verify", "--repo", &repo, "--root", &root], 0);
}
