//! What only a directory can do wrong: leftovers of a crash, a full disk, missing rights, foreign files.

use crate::cases::{create, key, noise};
use blackstart::bridge::Store;
use blackstart::storage::Kind;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

pub fn fresh() -> (Store, TempDir) {
    let root = tempfile::tempdir().unwrap();
    // A root that does not exist yet is the usual start.
    (crate::directory_store(&root.path().join("new/repository")), root)
}

/// Every file below `root`, hidden ones included.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

#[test]
fn litter_is_invisible() {
    let root = tempfile::tempdir().unwrap();
    let store = crate::directory_store(root.path());
    create(&store, "packs/a/b", "body").unwrap();
    for name in [".tmp-Ab12", "packs/a/.tmp-Cd34", "packs/a/.nfs0001", "packs/a/with space", "packs/a/b~"] {
        fs::write(root.path().join(name), "litter").unwrap();
    }
    fs::create_dir(root.path().join("lost+found")).unwrap();
    let found: Vec<_> = store.list("").unwrap().into_iter().map(|object| object.key.to_string()).collect();
    assert_eq!(found, ["packs/a/b"]);
}

#[test]
fn a_linked_directory_is_followed() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(elsewhere.path(), root.path().join("packs")).unwrap();
    let store = crate::directory_store(root.path());
    create(&store, "packs/a/b", "body").unwrap();
    assert!(elsewhere.path().join("a/b").is_file());
    assert_eq!(store.list("packs/").unwrap().len(), 1);
    // A link in a circle is an error, not an endless walk and not an empty listing.
    symlink(elsewhere.path(), elsewhere.path().join("circle")).unwrap();
    store.list("").unwrap_err();
}

struct Mounted(TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap().success());
    }
}

#[test]
fn a_full_disk_says_so_and_shows_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(disk.path()).output().unwrap();
    if !mount.status.success() {
        println!("skipped: a small disk needs the right to mount: {}", String::from_utf8_lossy(&mount.stderr));
        return;
    }
    let disk = Mounted(disk);
    let store = crate::directory_store(disk.0.path());
    create(&store, "packs/small", noise(5 << 20)).unwrap();
    let error = create(&store, "packs/large", noise(5 << 20)).unwrap_err();
    assert_eq!(error.kind, Kind::Full, "{error:?}");
    assert_eq!(files(disk.0.path()), ["small"]);
    assert_eq!(store.list("").unwrap().len(), 1);
    // What the failed attempt took is free again, and after a deletion the same object fits.
    create(&store, "packs/fits", noise(2 << 20)).unwrap();
    store.delete(&key("packs/small")).unwrap();
    create(&store, "packs/large", noise(5 << 20)).unwrap();
    assert_eq!(store.get(&key("packs/large")).unwrap(), noise(5 << 20));
}

#[test]
fn objects_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let store = crate::directory_store(root.path());
    create(&store, "snapshots/a/1", "body").unwrap();
    let mode = fs::metadata(root.path().join("snapshots/a/1")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn unfinished_files_are_swept_once_they_are_old() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path().to_str().unwrap()).unwrap();
    let key = key("packs/a/object");
    store.create(&key, "body".into(), &[0; 32]).unwrap();
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for name in ["packs/a/.tmp-old", "packs/.tmp-old", "packs/a/.tmp-young", "packs/a/.other"] {
        let file = fs::File::create(root.path().join(name)).unwrap();
        if !name.ends_with("young") {
            file.set_modified(hour_ago).unwrap();
        }
    }
    let before = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(30);
    assert_eq!(store.sweep_unfinished(before).unwrap(), 2);
    assert_eq!(store.sweep_unfinished(before).unwrap(), 0);
    let mut left: Vec<_> = fs::read_dir(root.path().join("packs/a")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".other", ".tmp-young", "object"]);
    assert_eq!(store.get(&key).unwrap(), "body");
}
