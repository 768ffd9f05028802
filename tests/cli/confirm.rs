//! A snapshot whose times the store's clock contradicts: it stays, until the holder of the recovery key says that its times are right.

use super::support::binary::{expect, home, root_of};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What `prune` would remove.
fn removable(at: &Path) -> String {
    let said = expect(at, &["prune", "etc", "--dry-run"], 0).out;
    let numbers = said.split_once('[').and_then(|(_, rest)| rest.split_once(']')).unwrap_or_else(|| panic!("{said}"));
    numbers.0.to_owned()
}

#[test]
fn a_wrong_clock_keeps_a_snapshot_until_the_recovery_key_confirms_it() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let config = std::fs::read_to_string(at.join("blackstart.toml")).unwrap();
    std::fs::write(
        at.join("blackstart.toml"),
        config.replace("name = \"etc\"", "name = \"etc\"\nretention = { last = 1 }"),
    )
    .unwrap();
    for n in 0..2 {
        std::fs::write(at.join("app/etc/app.toml"), format!("port = {n}\n")).unwrap();
        expect(at, &["backup"], 0);
    }
    // The drilled one stays in any case.
    assert_eq!(removable(at), "2");
    expect(at, &["confirm", "etc"], 6);
    let commit = File::options().write(true).open(at.join("repo/snapshots/etc/0000000002")).unwrap();
    commit.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    assert_eq!(removable(at), "");
    let listed = expect(at, &["snapshots"], 0);
    assert!(listed.out.contains("SUSPECT TIME") && listed.err.contains("confirm etc"), "{}", listed.all());
    let which = expect(at, &["confirm", "etc", "--json"], 4).json();
    assert_eq!(which["report"]["mistimed"][0]["seq"], 2);
    // By its own time nobody can go: before it there is one whose time is known.
    let taken = which["report"]["mistimed"][0]["data_time"].as_str().unwrap().to_owned();
    let key = "blackstart/keys/recovery.key";
    let restore = ["restore", "etc", "--at", &taken, "--to", "then", "--identity", key, "--dry-run"];
    let passed_over = expect(at, &restore, 0).all();
    assert!(passed_over.contains("LOOK WRONG") && passed_over.contains("restores 1,"), "{passed_over}");
    // Neither one that is well, nor with a key that is not the root's.
    expect(at, &["confirm", "etc", "--snapshot", "3"], 64);
    expect(at, &["init", "--repo", "other", "--keys", "others", "--config", "other.toml"], 0);
    expect(at, &["confirm", "etc", "--snapshot", "2", "--identity", "others/recovery.key"], 12);
    assert_eq!(removable(at), "");
    // From any machine with the key, without a configuration.
    let root = root_of(at);
    expect(at, &["confirm", "etc", "--snapshot", "2", "--repo", "repo", "--root", &root, "--identity", key], 0);
    expect(at, &["confirm", "etc"], 6);
    assert_eq!(removable(at), "2");
    assert!(!expect(at, &restore, 0).all().contains("LOOK WRONG"));
    assert!(!expect(at, &["snapshots"], 0).out.contains("SUSPECT"));
    // The record is one more in the trust chain, and everybody reads on.
    expect(at, &["backup"], 0);
    expect(at, &["verify", "--hashes"], 0);
    expect(at, &["drill", "--level", "cold-start"], 0);
    expect(at, &["prune", "etc"], 0);
}
