//! A repository that someone or something has damaged: which verb says what.

use crate::support::binary::{configure, expect, files_below, flip, home, noise, root_of, run};
use std::fs;
use std::path::{Path, PathBuf};

/// Two snapshots of a tree; gives its packs.
fn repository(at: &Path) -> Vec<PathBuf> {
    fs::write(at.join("app/big"), noise(1, 3 << 20)).unwrap();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\nretention = { last = 1 }\n");
    expect(at, &["backup"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect(at, &["backup"], 0);
    expect(at, &["verify", "--hashes"], 0);
    files_below(&at.join("repo/packs"), |_| true)
}

#[test]
fn a_flipped_bit_in_a_pack() {
    let home = home();
    let at = home.path();
    let packs = repository(at);
    let big = packs.iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    expect(at, &["drill"], 0);
    expect(at, &["status"], 0);
    flip(big);
    expect(at, &["verify"], 0);
    let found = expect(at, &["verify", "--hashes"], 4);
    assert!(found.out.contains("app: DAMAGED"), "{}", found.all());
    assert!(found.err.contains("hurts snapshots 1, 2"), "{}", found.all());
    let failed = expect(at, &["drill"], 4);
    assert!(failed.out.contains("FAILED: snapshot 2"), "{}", failed.all());
    let refused = expect(at, &["restore", "app", "--to", "back"], 1);
    assert!(!at.join("back").exists() && refused.err.contains("help: "), "{}", refused.all());
    expect(at, &["restore", "app", "--to", "some", "--path", "etc"], 0);
    let status = expect(at, &["status"], 4);
    // A proof of yesterday does not outweigh the failure of today.
    assert!(status.out.contains("a drill FAILED, of snapshot 2 (level engine)"), "{}", status.all());
}

#[test]
fn a_pack_is_gone_and_the_next_backup_heals() {
    let home = home();
    let at = home.path();
    let packs = repository(at);
    let big = packs.iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    fs::remove_file(big).unwrap();
    let found = expect(at, &["verify"], 4);
    assert!(found.err.contains("hurts snapshots 1, 2"), "{}", found.all());
    let refused = expect(at, &["restore", "app", "--to", "back"], 1);
    assert!(!at.join("back").exists() && refused.err.contains("help: "), "{}", refused.all());
    let healed = expect(at, &["backup"], 3);
    assert!(healed.err.contains("older snapshots are damaged: 1, 2"), "{}", healed.all());
    expect(at, &["restore", "app", "--to", "back"], 0);
    assert!(fs::read(at.join("back/big")).unwrap() == noise(1, 3 << 20));
    expect(at, &["drill"], 0);
    expect(at, &["backup"], 0);
}

#[test]
fn a_commit_that_does_not_verify() {
    let home = home();
    let at = home.path();
    repository(at);
    let first = at.join("repo/snapshots/app/0000000001");
    flip(&first);
    expect(at, &["verify"], 4);
    let listed = expect(at, &["snapshots"], 4);
    assert!(listed.err.contains("commit 1 of app"), "{}", listed.all());
    let refused = expect(at, &["prune"], 4);
    assert!(refused.err.contains("Nothing was deleted"), "{}", refused.all());
    // What is whole still restores, and a backup goes on from it.
    expect(at, &["restore", "app", "--to", "back"], 0);
    expect(at, &["backup"], 0);
    // A broken commit that a time may mean is not passed over, one from beyond that time counts for nothing.
    let seconds = |n: u32| {
        let all = expect(at, &["snapshots", "--json"], 4).json();
        let rows = all["report"]["snapshots"].as_array().unwrap().clone();
        let row = rows.iter().find(|row| row["seq"] == n).unwrap();
        row["data_time"].as_str().unwrap().to_owned()
    };
    let second = seconds(2);
    fs::write(at.join("app/etc/app.toml"), "port = 9\n").unwrap();
    expect(at, &["backup"], 0);
    let newest = at.join("repo/snapshots/app").join("0000000004");
    flip(&newest);
    let refused = expect(at, &["restore", "app", "--at", "2099-01-01 00:00", "--to", "late"], 4);
    assert!(refused.err.contains("does not verify") && !at.join("late").exists(), "{}", refused.all());
    expect(at, &["restore", "app", "--at", &second, "--to", "early"], 0);
    let status = expect(at, &["status"], 4);
    assert!(status.out.contains("commits do not verify"), "{}", status.all());
    let checked = run(at, &["check"]).out;
    let newest = checked.lines().find(|line| line.contains("newest snapshot of app")).unwrap();
    assert!(
        newest.contains("FAILED") && newest.contains("does not verify"),
        "not to be told as `there is none`: {checked}"
    );
}

#[test]
fn a_source_that_is_gone_is_not_whole_and_a_misspelt_one_is_no_source() {
    let home = home();
    let at = home.path();
    repository(at);
    for arguments in [&["verify", "ap"][..], &["snapshots", "ap"]] {
        let wrong = expect(at, arguments, 64);
        assert!(wrong.err.contains("no source ap") && wrong.err.contains("There are: app"), "{}", wrong.all());
    }
    let (repo, root) = (at.join("repo").display().to_string(), root_of(at));
    let outside = ["watch", "--older-than", "1d", "--repo", &repo, "--root", &root];
    expect(at, &outside, 0);
    // The newest commit alone: only who has seen it can know.
    let newest = at.join("repo/snapshots/app/0000000002");
    let commit = fs::read(&newest).unwrap();
    fs::remove_file(&newest).unwrap();
    assert!(expect(at, &["verify"], 4).err.contains("snapshots/app/0000000002: is gone"));
    fs::write(&newest, commit).unwrap();
    expect(at, &["verify"], 0);
    for area in ["snapshots", "packs", "index"] {
        fs::remove_dir_all(at.join("repo").join(area).join("app")).unwrap();
    }
    for arguments in [&["verify"][..], &["verify", "app"]] {
        let gone = expect(at, arguments, 4);
        assert!(gone.out.contains("app: MISSING"), "{}", gone.all());
    }
    // Without its memory, the configuration tells it; without both, the lease.
    fs::remove_dir_all(at.join("blackstart/state")).unwrap();
    expect(at, &["verify"], 4);
    expect(at, &["watch"], 4);
    assert!(expect(at, &outside, 4).err.contains("there is no complete snapshot"));
    fs::remove_dir_all(at.join("repo/leases")).unwrap();
    assert!(expect(at, &outside, 4).err.contains("holds no source"));
}
