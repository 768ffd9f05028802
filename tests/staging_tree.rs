//! The staging tree alone: hostile indexes, interruptions, the swap in place.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod trees;

use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::source::Source;
use blackstart::source::files::FilesOptions;
use blackstart::target::{Branch, Notes, StagingTree};
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
    assert!(StagingTree::resume(&to, "t", &[]).is_err(), "it is locked");
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
    let again = resume(&to, "t", &[]).unwrap();
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

/// As the next run does. A child that another test starts has the lock of a tree that was let go, from its fork until its exec.
fn resume(to: &std::path::Path, id: &str, branches: &[Branch]) -> Option<StagingTree> {
    let begun = std::time::Instant::now();
    loop {
        match StagingTree::resume(to, id, branches) {
            Err(e)
                if blackstart::error::kind_of(&e) == blackstart::error::Kind::Busy
                    && begun.elapsed().as_secs() < 30 =>
            {
                std::thread::yield_now();
            }
            resumed => return resumed.unwrap(),
        }
    }
}

/// What the index has below `t/1`, put on another disk where there is one.
struct OtherDisk {
    _dir: tempfile::TempDir,
    branch: Branch,
}

impl OtherDisk {
    fn new() -> OtherDisk {
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let branch = Branch { at: Name::new("t/1"), place: dir.path().join("new") };
        OtherDisk { _dir: dir, branch }
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.branch.place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

/// The passes over a tree with a file in the branch and one beside.
fn branched(tree: &StagingTree) {
    let directory = |path: &str, mode| Entry { mode, ..entry(path, EntryKind::Dir) };
    let entries = [directory("", 0o750), directory("t", 0o700), directory("t/1", 0o711), directory("t/1/PG", 0o700)];
    let files = ["t/1/PG/f", "t/10"].map(|path| Entry { mode: 0o600, size: 1, ..entry(path, EntryKind::File) });
    entries.iter().for_each(|e| tree.add(e).unwrap());
    for file in &files {
        let open = tree.open_file(&file.path).unwrap();
        open.write_all_at(b"x", 0).unwrap();
        tree.set_metadata(&open, file).unwrap();
    }
    entries.iter().for_each(|e| tree.seal(e).unwrap());
}

#[test]
fn a_branch_comes_to_lie_elsewhere_and_is_nowhere_else() {
    let (_dir, root) = scratch();
    let (disk, to) = (OtherDisk::new(), root.join("to"));
    let branches = std::slice::from_ref(&disk.branch);
    let mut tree = StagingTree::create(&to, "x").unwrap();
    tree.branch_off(branches).unwrap();
    branched(&tree);
    assert_eq!(disk.names(), [".to.blackstart-x"], "nothing is there under its name before all is");
    tree.publish().unwrap();
    assert_eq!(fs::read(disk.branch.place.join("PG/f")).unwrap(), b"x");
    assert_eq!(disk.names(), ["PG"]);
    assert_eq!(fs::metadata(&disk.branch.place).unwrap().mode() & 0o7777, 0o711, "that of the entry");
    assert!(!to.join("t/1").exists(), "whoever asked for it makes the link");
    assert_eq!(fs::read(to.join("t/10")).unwrap(), b"x");
}

#[test]
fn a_branch_takes_no_place_that_is_not_free() {
    let (_dir, root) = scratch();
    let (disk, to) = (OtherDisk::new(), root.join("to"));
    let place = &disk.branch.place;
    let refused = |branches: &[Branch], why: &str| {
        let mut tree = StagingTree::create(&to, "x").unwrap();
        let error = format!("{:#}", tree.branch_off(branches).unwrap_err());
        assert!(error.contains(why), "{error}");
        tree.discard().unwrap();
        assert!(fs::read_dir(&root).unwrap().next().is_none());
    };
    let twice = Branch { at: Name::new("t/2"), place: place.join("../new") };
    refused(&[disk.branch.clone(), twice], "two parts");
    assert!(disk.names().is_empty(), "what was claimed is given back");
    fs::write(place.join("somebody's"), "x").unwrap();
    refused(std::slice::from_ref(&disk.branch), "is not empty: there is somebody's");
    assert_eq!(disk.names(), ["somebody's"]);
    let link = root.with_extension("link");
    symlink(place, &link).unwrap();
    refused(&[Branch { at: Name::new("t/1"), place: link }], "cannot open");
    refused(&[Branch { at: Name::new("t/1"), place: place.join("no/parent") }], "cannot make");
    // Another restore is on its way there.
    fs::remove_file(place.join("somebody's")).unwrap();
    let mut other = StagingTree::create(&root.with_extension("other"), "x").unwrap();
    other.branch_off(std::slice::from_ref(&disk.branch)).unwrap();
    refused(std::slice::from_ref(&disk.branch), "is not empty");
    other.discard().unwrap();
    assert!(disk.names().is_empty());
}

#[test]
fn a_branch_that_somebody_has_emptied_is_not_taken_up() {
    let (_dir, root) = scratch();
    let (disk, to) = (OtherDisk::new(), root.join("to"));
    let branches = std::slice::from_ref(&disk.branch);
    let interrupted = || {
        let mut tree = StagingTree::create(&to, "x").unwrap();
        tree.branch_off(branches).unwrap();
        branched(&tree);
    };
    interrupted();
    let mut again = resume(&to, "x", branches).expect("it is as it was left");
    again.branch_off(branches).unwrap();
    assert!(disk.branch.place.join(".to.blackstart-x/PG/f").exists(), "what is written is kept");
    branched(&again);
    drop(again);
    // What counts as written would be missing.
    fs::remove_dir_all(&disk.branch.place).unwrap();
    assert!(resume(&to, "x", branches).is_none());
    assert!(fs::read_dir(&root).unwrap().next().is_none(), "it is gone");
    interrupted();
    fs::write(disk.branch.place.join("somebody's"), "x").unwrap();
    assert!(resume(&to, "x", branches).is_none());
    // What the lost tree has left does not stand in the way, nor is it taken for this one's.
    fs::remove_file(disk.branch.place.join("somebody's")).unwrap();
    let mut anew = StagingTree::create(&to, "x").unwrap();
    anew.branch_off(branches).unwrap();
    assert!(!disk.branch.place.join(".to.blackstart-x/PG").exists());
}

#[test]
fn nothing_leads_out_of_a_branch() {
    let (_dir, root) = scratch();
    let (disk, to) = (OtherDisk::new(), root.join("to"));
    let mut tree = StagingTree::create(&to, "x").unwrap();
    tree.branch_off(std::slice::from_ref(&disk.branch)).unwrap();
    tree.add(&entry("t", EntryKind::Dir)).unwrap();
    tree.add(&entry("t/1", EntryKind::Dir)).unwrap();
    let way_out = Entry { target: Some(Name::new("..")), ..entry("t/1/out", EntryKind::Symlink) };
    tree.link(&way_out).unwrap();
    for path in ["t/1/out/f", "t/1/../f", "t/1/out", "t/1"] {
        assert!(tree.open_file(&Name::new(path)).is_err(), "{path}");
    }
    assert!(tree.add(&entry("t/1/out/d", EntryKind::Dir)).is_err());
    assert_eq!(disk.names(), [".to.blackstart-x"]);
}
