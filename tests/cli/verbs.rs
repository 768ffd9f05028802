//! Verbs in the order of an operator's first week: init, check, backup, drill, status, prune, and a second host.

use crate::support::binary::{Ran, configure, expect, files_below, home, root_of, run};
use std::fs;
use std::path::Path;
use std::time::Duration;

const APP: &str = "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\n";

fn backup_new(at: &Path, text: &str) -> Ran {
    fs::write(at.join("app/etc/app.toml"), text).unwrap();
    expect(at, &["backup", "app", "--json"], 0)
}

#[test]
fn nothing_is_called_protected_before_its_time() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    expect(at, &["backup"], 6);
    let nothing = expect(at, &["prune"], 0);
    assert!(nothing.out.contains("note: no source has a [source.retention]"), "{}", nothing.out);
    expect(at, &["drill"], 6);
    assert!(expect(at, &["status"], 6).out.starts_with("ATTENTION: nothing is protected yet"));
    let untried = expect(at, &["check"], 4);
    assert!(untried.out.contains("FAILED   recovery key: it has not been tried"), "{}", untried.out);
    expect(at, &["check", "--identity", "blackstart/keys/recovery.key"], 0);
    expect(at, &["check"], 0);

    configure(at, APP);
    let empty = expect(at, &["status"], 4);
    assert!(empty.out.starts_with("ATTENTION: 1 of 1 source: app: has no complete snapshot"), "{}", empty.out);
    expect(at, &["check"], 4);
    expect(at, &["backup"], 0);
    let unproven = expect(at, &["status"], 4);
    assert!(unproven.out.starts_with("ATTENTION: 1 of 1 source: app: no drill has proven"), "{}", unproven.out);
    expect(at, &["drill"], 0);
    expect(at, &["status"], 0);
    configure(at, "rpo = \"1s\"\n");
    std::thread::sleep(Duration::from_millis(1200));
    let late = expect(at, &["status"], 5);
    assert!(late.out.starts_with("ATTENTION: 1 of 1 source: app: the newest snapshot is older"), "{}", late.out);
    expect(at, &["check"], 5);
    assert!(expect(at, &["drill"], 5).out.contains("MISSED  RPO"));
}

#[test]
fn a_key_of_another_repository_is_no_recovery_key() {
    let (home, other) = (home(), home());
    expect(home.path(), &["init", "--repo", "repo"], 0);
    expect(other.path(), &["init", "--repo", "repo"], 0);
    let key = other.path().join("blackstart/keys/recovery.key");
    let tried = expect(home.path(), &["check", "--identity", key.to_str().unwrap()], 4);
    assert!(tried.out.contains("FAILED   recovery key"), "{}", tried.out);
    expect(home.path(), &["check"], 4);
    let lost = expect(home.path(), &["check", "--identity", "nowhere"], 12);
    assert!(lost.err.contains("nowhere"), "{}", lost.err);
}

#[test]
fn prune_says_what_it_would_do_and_does_that() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, APP);
    let refused = expect(at, &["prune", "app"], 78);
    assert!(refused.err.contains("has no retention policy"), "{}", refused.err);
    configure(at, "retention = { last = 2 }\n");
    for n in 0..5 {
        backup_new(at, &format!("port = {n}\n"));
    }
    let objects = || files_below(&at.join("repo"), |name| !name.starts_with('.'));
    let before = objects();
    let planned = expect(at, &["prune", "--dry-run"], 0);
    assert!(planned.out.contains("app: would remove 3 snapshots [1, 2, 3]"), "{}", planned.out);
    assert_eq!(objects(), before);
    let done = expect(at, &["prune"], 0);
    assert!(done.out.contains("app: removed 3 snapshots"), "{}", done.out);
    assert!(done.out.contains("will go once older than the grace period"), "{}", done.out);
    let listed = expect(at, &["snapshots"], 0).out;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.lines().next().unwrap().contains("VERIFIED  KEPT AS"), "{listed}");
    let again = expect(at, &["prune"], 0);
    assert!(again.out.contains("app: removed 0 snapshots and 0 objects"), "{}", again.out);
    expect(at, &["verify", "--hashes"], 0);
    backup_new(at, "port = 9\n");
    expect(at, &["drill"], 0);
}

#[test]
fn a_second_host_is_let_in_and_does_not_write_what_is_not_its_own() {
    let (first, second) = (home(), home());
    let (one, two) = (first.path(), second.path());
    expect(one, &["init", "--repo", "repo"], 0);
    configure(one, APP);
    expect(one, &["backup"], 0);
    let repo = one.join("repo").display().to_string();
    let key = one.join("blackstart/keys/recovery.key").display().to_string();
    let taken = expect(two, &["init", "--repo", &repo], 64);
    assert!(taken.err.contains("--identity"), "{}", taken.err);
    let joined = expect(two, &["init", "--repo", &repo, "--identity", &key], 0);
    assert!(!joined.out.contains("Nothing is backed up yet"), "{}", joined.out);
    assert_eq!(root_of(two), root_of(one));
    assert!(!two.join("blackstart/keys/recovery.key").exists());

    configure(two, &APP.replace("\"app\"\nkind", "\"other\"\nkind"));
    expect(two, &["backup"], 0);
    configure(two, APP);
    let busy = expect(two, &["backup", "app"], 11);
    assert!(busy.err.contains("--adopt") && busy.err.contains("help: "), "{}", busy.err);
    // The other source goes on, and the run is partial.
    let both = expect(two, &["backup", "--json"], 3).json();
    assert_eq!(both["report"]["sources"][0]["outcome"], "complete", "{both}");
    assert_eq!(both["report"]["sources"][1]["error"]["kind"], "busy", "{both}");
    expect(two, &["backup", "app", "--adopt"], 0);
    expect(one, &["backup"], 11);
    expect(one, &["verify", "--hashes"], 0);
    let names = expect(one, &["status", "--json"], 4).json();
    assert_eq!(names["report"]["sources"].as_array().unwrap().len(), 2);
    expect(two, &["drill"], 12);
    expect(two, &["drill", "--identity", &key], 0);
}

#[test]
fn a_backup_of_which_some_is_done_is_partial_and_one_of_which_none_is_has_failed() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    for name in ["gone", "lost"] {
        configure(at, &format!("[[source]]\nname = \"{name}\"\nkind = \"files\"\npath = \"{name}\"\n"));
    }
    expect(at, &["backup"], 1);
    configure(at, APP);
    let some = expect(at, &["backup"], 3);
    assert!(some.out.contains("app: snapshot 1") && some.err.contains("gone failed"), "{}", some.all());
    assert!(expect(at, &["backup", "--help"], 0).out.contains("3 partial"));
}

#[test]
fn a_host_key_that_is_gone_is_replaced_as_the_words_say() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, APP);
    expect(at, &["backup"], 0);
    fs::remove_file(at.join("blackstart/keys/host.key")).unwrap();
    for (verb, code) in [("backup", 12), ("check", 4)] {
        let lost = expect(at, &[verb], code);
        assert!(lost.all().contains("init --repo LOCATION --identity RECOVERY_KEY_FILE"), "{}", lost.all());
    }
    let joined = expect(at, &["init", "--repo", "repo", "--identity", "blackstart/keys/recovery.key"], 0);
    assert!(
        joined.out.contains("Its configuration has 1 source") && !joined.out.contains("protects nothing"),
        "{}",
        joined.out
    );
    let listed = expect(at, &["snapshots"], 0);
    assert!(listed.out.contains("a size of ? is sealed"), "{}", listed.out);
    expect(at, &["backup"], 0);
}

#[test]
fn a_repository_that_is_gone_is_not_made_anew() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    fs::rename(at.join("repo"), at.join("unmounted")).unwrap();
    for verb in ["backup", "status", "protect"] {
        let gone = expect(at, &[verb], 10);
        assert!(gone.err.contains("is the disk mounted") && !gone.err.contains("creates one"), "{}", gone.err);
    }
    assert!(!at.join("repo").exists());
}

#[test]
fn a_ping_is_not_tried_and_not_said_to_have_come_through() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[notify]]\nname = \"hc\"\nping = { backup = \"http://127.0.0.1:1/x\" }\n");
    let said = expect(at, &["notify", "--test"], 0);
    assert!(said.out.contains("hc: NOT TRIED") && !said.out.contains("went through"), "{}", said.out);
}

#[test]
fn a_lease_of_a_living_process_is_respected() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, APP);
    expect(at, &["backup"], 0);
    let path = at.join("repo/leases/app");
    let mut lease: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // Of a version, or on a file system, that knows no locks.
    lease.as_object_mut().unwrap().remove("lock");
    lease["pid"] = std::process::id().into();
    lease["expires"] = "2999-01-01T00:00:00Z".into();
    fs::write(&path, lease.to_string()).unwrap();
    let busy = expect(at, &["backup"], 11);
    assert!(busy.err.contains("Nothing was lost") && busy.err.contains("2999"), "{}", busy.err);
    assert_eq!(run(at, &["backup", "--json"]).json()["error"]["kind"], "busy");
    // More than any process can have (PID_MAX_LIMIT of Linux).
    lease["pid"] = 4_194_305.into();
    fs::write(&path, lease.to_string()).unwrap();
    expect(at, &["backup"], 0);
}
