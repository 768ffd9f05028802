//! The staging tree alone: hostile indexes, interruptions, the swap in place.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod trees;

use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::source::Source;
use blackstart::source::files::FilesOptions;
use blackstart::target::{Notes, StagingTree};
use std::fs::{self};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use trees::*;

fn entry(path: &str, kind: EntryKind) -> Entry {
    let (_dir, root) = scratch();
    let mut entry = open(&root, FilesOptions::default()).next().unwrap().unwrap();
    entry.path = Name::new(path);
    entry.kind = kind;
    entry
}

#[test]
fn hostile_entries_are_refused() {
    let (_dir, root) = scratch();
    let tree = StagingTree::create(&root.join("to"), "t").unwrap();
    for path in ["../x", "/etc/x", "a/../../b", "a//b", "a/", ".", "a\0b"] {
        for kind in [EntryKind::File, EntryKind::Dir, EntryKind::Symlink] {
            let error = tree.add(&entry(path, kind)).unwrap_err();
            assert!(blackstart::error::help_of(&error).unwrap().contains("hostile or damaged"), "{path:?}");
        }
        assert!(tree.open_file(&Name::new(path)).is_err(), "{path:?}");
        let link = Entry { target: Some(Name::new("x")), ..entry(path, EntryKind::Symlink) };
        assert!(tree.link(&link).is_err(), "{path:?}");
        assert!(tree.seal(&entry(path, EntryKind::Dir)).is_err(), "{path:?}");
    }
    let outside = Entry { target: Some(Name::new("../../../etc/passwd")), ..entry("h", EntryKind::Hardlink) };
    assert!(tree.link(&outside).is_err());
    let way_out = Entry { target: Some(Name::new("/tmp")), ..entry("out", EntryKind::Symlink) };
    tree.link(&way_out).unwrap();
    assert!(tree.open_file(&Name::new("out")).is_err());
    assert!(tree.open_file(&Name::new("out/x")).is_err());
    assert!(tree.add(&entry("out/d", EntryKind::Dir)).is_err());
    assert!(tree.seal(&entry("out", EntryKind::Dir)).and_then(|()| tree.seal(&entry("p", EntryKind::Dir))).is_err());
    let through = Entry { target: Some(Name::new("x")), ..entry("out/l", EntryKind::Symlink) };
    assert!(tree.link(&through).is_err());
    let to_link = Entry { target: Some(Name::new("out")), ..entry("h", EntryKind::Hardlink) };
    assert!(tree.link(&to_link).is_err());
    tree.discard().unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn nothing_is_overwritten_and_two_restores_do_not_mix() {
    let (_dir, root) = scratch();
    let to = root.join("to");
    let tree = StagingTree::create(&to, "t").unwrap();
    assert!(StagingTree::create(&to, "t").is_err());
    assert!(StagingTree::resume(&to, "t").is_err(), "it is locked");
    fs::create_dir(&to).unwrap();
    assert!(StagingTree::create(&to, "u").is_err());
    let staging = tree.staging_path();
    assert!(tree.publish().is_err());
    assert!(staging.is_dir());
    let missing = StagingTree::create(&root.join("no/parent"), "t").err().expect("an error");
    assert!(blackstart::error::help_of(&missing).unwrap().contains("Create that directory"));
}

#[test]
fn in_place_keeps_the_old_copy() {
    let (_dir, root) = scratch();
    let to = root.join("data");
    let write = |text: &str, id: &str| {
        let tree = StagingTree::create_in_place(&to, id).unwrap();
        tree.open_file(&Name::new("f")).unwrap().write_all(text.as_bytes()).unwrap();
        tree
    };
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    assert_eq!(write("old", "1").publish_in_place(now).unwrap().1, None);
    let kept = write("new", "2").publish_in_place(now).unwrap().1.unwrap();
    assert_eq!(kept, root.join("data.before-restore-20260102T030405Z"));
    assert_eq!(fs::read(kept.join("f")).unwrap(), b"old");
    assert_eq!(fs::read(to.join("f")).unwrap(), b"new");
    // The same name again: refused, and the target stays what it is.
    assert!(write("newer", "3").publish_in_place(now).is_err());
    assert_eq!(fs::read(to.join("f")).unwrap(), b"new");
}

#[test]
fn an_interrupted_restore_is_taken_up() {
    let (_dir, root) = scratch();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "contents").unwrap();
    symlink("f", root.join("d/link")).unwrap();
    fs::hard_link(root.join("d/f"), root.join("z")).unwrap();
    chmod(&root.join("d/f"), 0o444);
    chmod(&root.join("d"), 0o555);
    let to = root.with_extension("to");
    let mut entries = Vec::new();
    let mut source = open(&root, FilesOptions::default());
    while let Some(entry) = source.next().unwrap() {
        entries.push(entry);
    }
    let passes = |tree: &StagingTree| {
        entries.iter().for_each(|e| tree.add(e).unwrap());
        for entry in entries.iter().filter(|e| e.kind == EntryKind::File) {
            let file = tree.open_file(&entry.path).unwrap();
            file.write_all_at(b"contents", 0).unwrap();
            tree.set_metadata(&file, entry).unwrap();
        }
        entries.iter().for_each(|e| tree.link(e).unwrap());
        entries.iter().for_each(|e| tree.seal(e).unwrap());
    };
    passes(&StagingTree::create(&to, "t").unwrap());
    let again = StagingTree::resume(&to, "t").unwrap().unwrap();
    passes(&again);
    assert_eq!(again.publish().unwrap(), Notes::default());
    assert_eq!(look(&to), look(&root));
}

#[test]
fn files_may_be_written_from_several_threads_at_once() {
    let (_dir, root) = scratch();
    let tree = StagingTree::create(&root.join("to"), "t").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let tree = &tree;
            scope.spawn(move || {
                for n in 0..50u64 {
                    // The directories are made by whoever comes first; each file by four threads, a quarter each.
                    let file = tree.open_file(&Name::new(format!("{}/{}/f", n % 5, n % 10))).unwrap();
                    file.write_all_at(&[b'0' + thread as u8], thread).unwrap();
                }
            });
        }
    });
    tree.publish().unwrap();
    for n in 0..10 {
        assert_eq!(fs::read(root.join(format!("to/{}/{n}/f", n % 5))).unwrap(), b"0123");
    }
}

#[test]
fn what_is_not_allowed_is_a_note_and_sets_no_ids() {
    if is_root() {
        return;
    }
    let (_dir, root) = scratch();
    let tree = StagingTree::create(&root.join("to"), "t").unwrap();
    let foreign = Entry { uid: 0, gid: 0, mode: 0o4755, ..entry("f", EntryKind::File) };
    tree.set_metadata(&tree.open_file(&foreign.path).unwrap(), &foreign).unwrap();
    tree.link(&Entry { rdev: Some((1, 3)), ..entry("null", EntryKind::Char) }).unwrap();
    let notes = tree.publish().unwrap();
    assert_eq!(notes.count, 3, "{notes:?}");
    assert_eq!(root.join("to/f").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn sizes_shrink_and_grow_to_what_the_entry_says() {
    let (_dir, root) = scratch();
    let tree = StagingTree::create(&root.join("to"), "t").unwrap();
    for (name, size) in [("short", 2), ("long", 1 << 30)] {
        let file = tree.open_file(&Name::new(format!("new/dir/{name}"))).unwrap();
        file.write_all_at(b"12345", 0).unwrap();
        tree.set_metadata(&file, &Entry { size, ..entry(&format!("new/dir/{name}"), EntryKind::File) }).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
    }
    tree.publish().unwrap();
    assert!(root.join("to/new/dir/long").metadata().unwrap().blocks() <= 16);
}
