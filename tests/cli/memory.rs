//! What this host knows of the repository beyond the repository itself: a store that was set back, and a memory that cannot be read.

use crate::support::binary::{expect, files_below, home};
use std::fs;
use std::path::{Path, PathBuf};

/// A host with two snapshots of `app`, the second of which has another file.
fn protected() -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    fs::write(at.join("app/etc/second"), "2").unwrap();
    expect(at, &["backup", "app"], 0);
    home
}

/// The file of the host's state that is called `app.json` in a directory of that name.
fn state(home: &Path, directory: &str) -> PathBuf {
    let file = |path: &PathBuf| path.parent().is_some_and(|parent| parent.ends_with(directory));
    let found = files_below(home, |name| name == "app.json");
    found.into_iter().find(file).unwrap_or_else(|| panic!("no app.json in {directory}"))
}

#[test]
fn a_snapshot_that_was_taken_away_is_missed_by_whoever_would_take_an_older_one() {
    let home = protected();
    let at = home.path();
    let newest = files_below(&at.join("repo/snapshots/app"), |_| true).into_iter().max().unwrap();
    let aside = at.join("aside");
    fs::rename(&newest, &aside).unwrap();
    for (verb, more) in [("status", &[][..]), ("drill", &["app"])] {
        let said = expect(at, &[&[verb], more].concat(), 4).all();
        assert!(said.contains("commit 2") && said.contains("gone"), "{verb}: {said}");
    }
    let said = expect(at, &["check"], 4).all();
    assert!(said.contains("commit 2 of app is newer than the newest snapshot there is, and gone"), "{said}");
    let said = expect(at, &["restore", "app", "--to", "back"], 4).err;
    assert!(said.contains("Nothing was changed") && said.contains("--snapshot 1"), "{said}");
    assert!(!at.join("back").exists());
    expect(at, &["restore", "app", "--snapshot", "1", "--to", "first"], 0);
    assert!(!at.join("first/etc/second").exists());
    // A machine that has never seen it cannot miss it.
    let bare = tempfile::tempdir().unwrap();
    let root = crate::support::binary::root_of(at);
    let (repo, key) = (at.join("repo"), at.join("blackstart/keys/recovery.key"));
    let place = ["--repo", repo.to_str().unwrap(), "--root", &root, "--identity", key.to_str().unwrap()];
    expect(bare.path(), &[&["restore", "app", "--to", "back"], &place[..]].concat(), 0);
    fs::rename(&aside, &newest).unwrap();
    expect(at, &["restore", "app", "--to", "back"], 0);
    assert!(at.join("back/etc/second").exists());
}

#[test]
fn a_memory_that_cannot_be_read_is_not_taken_for_none() {
    let home = protected();
    let at = home.path();
    expect(at, &["drill", "app"], 0);
    let memory = state(at, "sources");
    let kept = at.join("kept");
    fs::rename(&memory, &kept).unwrap();
    let unread = |why: &str| {
        for verb in ["verify", "watch"] {
            let said = expect(at, &[verb], 1).err;
            assert!(said.contains("what this host has seen in the repository cannot be read"), "{why}, {verb}: {said}");
            assert!(said.contains("Run this as the user who makes the backups"), "{why}, {verb}: {said}");
        }
        let said = expect(at, &["status"], 4).out;
        assert!(said.contains("app: what this host has seen in the repository cannot be read"), "{why}: {said}");
        // It keeps nobody from his data.
        let back = at.join(format!("back from {why}"));
        expect(at, &["restore", "app", "--to", back.to_str().unwrap()], 0);
    };
    fs::create_dir(&memory).unwrap();
    unread("what is no file");
    let said = expect(at, &["backup", "app"], 1).all();
    assert!(said.contains("cannot be read"), "{said}");
    fs::remove_dir(&memory).unwrap();
    fs::write(&memory, "{\"linea").unwrap();
    unread("a torn file");
    // Without a memory all is read and a new lineage begun; that heals it.
    let said = expect(at, &["backup", "app"], 0).all();
    assert!(said.contains("new lineage") || said.contains("does not remember"), "{said}");
    expect(at, &["verify"], 0);
    fs::rename(&kept, &memory).unwrap();
    expect(at, &["verify"], 0);
}

#[test]
fn findings_that_cannot_be_read_are_not_taken_for_none() {
    let home = protected();
    let at = home.path();
    expect(at, &["drill", "app"], 0);
    expect(at, &["verify"], 0);
    let findings = state(at, "findings");
    fs::write(&findings, "{").unwrap();
    let said = expect(at, &["status"], 4).out;
    assert!(said.contains("what `verify` and `prune` have found here cannot be read"), "{said}");
    expect(at, &["verify"], 0);
    assert_eq!(fs::read_to_string(&findings).unwrap(), "{", "it may have told of damage: nothing is written over it");
    fs::remove_file(&findings).unwrap();
    expect(at, &["verify", "app"], 0);
    let said = expect(at, &["status"], 0).out;
    assert!(!said.contains("cannot be read"), "{said}");
}
