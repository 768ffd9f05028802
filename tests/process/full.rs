//! A full disk: under the repository, and under a restore.

use crate::support::binary::{configure, expect, noise};
use crate::support::small::Small;
use std::fs;
use std::path::Path;

fn source(at: &Path) {
    fs::create_dir(at.join("tree")).unwrap();
    fs::write(at.join("tree/first"), noise(1, 5 << 20)).unwrap();
}

#[test]
fn a_full_repository_keeps_what_it_has() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    let Some(_disk) = Small::mount(at.join("disk"), 24, "full::a_full_repository_keeps_what_it_has") else { return };
    source(at);
    expect(at, &["init", "--repo", "disk/repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
    expect(at, &["backup"], 0);
    fs::write(at.join("disk/other"), noise(2, 12 << 20)).unwrap();
    fs::write(at.join("tree/second"), noise(3, 30 << 20)).unwrap();
    let full = expect(at, &["backup"], 1);
    println!("{}", full.all());
    assert!(full.err.contains("no space left in the store") && full.err.contains("help: "), "{}", full.err);
    // Not even a byte for a lease or a report.
    let left = noise(4, 24 << 20);
    let _full = fs::write(at.join("disk/rest"), left);
    println!("{}", expect(at, &["backup"], 1).all());
    expect(at, &["verify", "--hashes"], 0);
    expect(at, &["restore", "tree", "--to", "back"], 0);
    assert!(fs::read(at.join("back/first")).unwrap() == noise(1, 5 << 20));
    fs::remove_file(at.join("disk/rest")).unwrap();
    fs::remove_file(at.join("disk/other")).unwrap();
    fs::write(at.join("tree/second"), noise(3, 3 << 20)).unwrap();
    expect(at, &["backup"], 0);
    expect(at, &["drill"], 0);
}

#[test]
fn a_restore_that_does_not_fit_is_refused_before_it_writes() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    let Some(_disk) = Small::mount(at.join("disk"), 2, "full::a_restore_that_does_not_fit_is_refused_before_it_writes")
    else {
        return;
    };
    source(at);
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
    expect(at, &["backup"], 0);
    let refused = expect(at, &["restore", "tree", "--to", "disk/back"], 1);
    println!("{}", refused.all());
    assert!(refused.err.contains("Nothing was written") && refused.err.contains("free"), "{}", refused.err);
    assert_eq!(fs::read_dir(at.join("disk")).unwrap().count(), 0);
    fs::write(at.join("tree/first"), noise(5, 1 << 20)).unwrap();
    expect(at, &["backup", "--accept-change"], 0);
    expect(at, &["restore", "tree", "--to", "disk/back"], 0);
}
