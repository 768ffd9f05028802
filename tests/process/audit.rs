//! The audit log: who restored, pruned and changed what, through the real binary.

use crate::support::binary::{command, configure, expect, finish, home, run};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn entries(at: &Path) -> Vec<Value> {
    expect(at, &["audit", "--json"], 0).json()["report"]["entries"].as_array().unwrap().clone()
}

/// What came in since `before` entries: (verb, phase, outcome).
fn since(at: &Path, before: usize) -> Vec<(String, String, String)> {
    let text = |e: &Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    entries(at)[before..].iter().map(|e| (text(e, "verb"), text(e, "phase"), text(e, "outcome"))).collect()
}

#[test]
fn who_did_what_and_how_it_ended() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    // The configuration was made on the way, so that only the end could be written down.
    assert_eq!(since(at, 0), [("protect".into(), "ended".into(), "done".into())]);
    let log = at.join("blackstart/state/audit.jsonl");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let both = |verb: &str, outcome: &str| {
        [
            (verb.to_owned(), "begun".to_owned(), String::new()),
            (verb.to_owned(), "ended".to_owned(), outcome.to_owned()),
        ]
    };
    expect(at, &["restore", "app", "--to", "back"], 0);
    assert_eq!(since(at, 1), both("restore", "done"));
    let last = &entries(at)[2];
    assert_eq!(last["arguments"], serde_json::json!(["app", "--to", "back"]));
    assert_eq!(last["by"]["uid"], rustix::process::getuid().as_raw());
    assert_eq!(last["exit"], 0);
    assert!(last["by"]["user"].as_str().is_some_and(|user| !user.is_empty()), "{last}");
    // What fails is there, too; what changes nothing is not.
    expect(at, &["restore", "app", "--to", "back"], 64);
    assert_eq!(since(at, 3), both("restore", "usage"));
    for reads in [
        &["status"][..],
        &["snapshots"],
        &["verify"],
        &["restore", "app", "--to", "b", "--dry-run"],
        &["prune", "--dry-run"],
    ] {
        run(at, reads);
    }
    assert_eq!(entries(at).len(), 5);
    configure(
        at,
        "\n[[source]]\nname = \"more\"\nkind = \"files\"\npath = \"app/etc\"\n[source.retention]\nlast = 1\n",
    );
    expect(at, &["backup", "more", "--adopt"], 0);
    expect(at, &["prune", "more"], 0);
    assert_eq!(since(at, 5), [both("backup", "done"), both("prune", "done")].concat());
    // A secret that somebody puts into an argument stays out.
    let secret = "postgres://u:hunter2@127.0.0.1:1/new";
    finish(&command(at, &["restore", "app", "--into", secret]).output().unwrap());
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hunter2") && text.contains("postgres://u:***@127.0.0.1:1/new"), "{text}");
    // A line that somebody altered shows.
    fs::write(&log, text.replace("--adopt", "--heal")).unwrap();
    let said = expect(at, &["audit"], 4);
    assert!(said.err.contains("was altered or taken out"), "{}", said.err);
}

#[test]
fn an_audit_log_that_cannot_be_written_hinders_no_restore() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let log = at.join("blackstart/state/audit.jsonl");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let restored = expect(at, &["restore", "etc", "--to", "back"], 0);
    assert!(restored.err.contains("write the audit log"), "{}", restored.err);
    assert!(at.join("back/app.toml").exists());
}
