//! The `files` source and the staging tree, back to back and without a repository: what comes back is what was there.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use blackstart::clock::SystemClock;
use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::{Finished, Piece, Source};
use blackstart::target::{Notes, StagingTree};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// ---- the copy loop that stands in for backup and restore ----

struct Copied {
    entries: Vec<Entry>,
    finished: Finished,
    notes: Notes,
}

fn open(root: &Path, options: FilesOptions) -> Files {
    Files::open(root, options, &SystemClock).unwrap()
}

fn copy(from: &Path, to: &Path, options: FilesOptions) -> Copied {
    let mut source = open(from, options);
    let tree = StagingTree::create(to, "test").unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = source.next().unwrap() {
        tree.add(&entry).unwrap();
        if entry.kind == EntryKind::File {
            let file = tree.open_file(&entry.path).unwrap();
            copy_contents(&mut source, &file);
            tree.set_metadata(&file, &entry).unwrap();
        }
        entries.push(entry);
    }
    entries.iter().for_each(|entry| tree.link(entry).unwrap());
    entries.iter().for_each(|entry| tree.seal(entry).unwrap());
    let notes = tree.publish().unwrap();
    assert!(entries.is_sorted_by(|a, b| a.path < b.path), "entries come in the order of Name");
    Copied { entries, finished: source.finish().unwrap(), notes }
}

fn copy_contents(source: &mut Files, file: &File) {
    let mut buffer = vec![0; 10_000];
    let mut at = 0;
    loop {
        match source.read(&mut buffer).unwrap() {
            Piece::Data(n) => {
                file.write_all_at(&buffer[..n], at).unwrap();
                at += n as u64;
            }
            Piece::Hole(n) => at += n,
            Piece::End => return,
            Piece::Lost => panic!("a file was lost"),
        }
    }
}

/// Copies `from` beside itself and compares everything that can be compared.
fn round_trip(from: &Path) -> Copied {
    let to = from.with_extension("restored");
    let copied = copy(from, &to, FilesOptions::default());
    assert_eq!(copied.finished.skipped, []);
    assert_eq!(copied.notes, Notes::default());
    let (before, after) = (look(from), look(&to));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, was) in &before {
        assert_eq!(&after[path], was, "{path:?}");
    }
    copied
}

// ---- an independent look at a tree ----

#[derive(Debug, PartialEq, Eq)]
struct Look {
    raw_mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    rdev: u64,
    links: u64,
    /// The first path of the same inode.
    same_as: PathBuf,
    contents: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Look> {
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while at < paths.len() {
        let path = root.join(&paths[at]);
        if path.symlink_metadata().unwrap().is_dir() {
            let below =
                fs::read_dir(&path).unwrap().map(|e| paths[at].join(e.unwrap().file_name())).collect::<Vec<_>>();
            paths.extend(below);
        }
        at += 1;
    }
    paths.sort();
    let mut first: HashMap<u64, PathBuf> = HashMap::new();
    let mut found = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let contents = if meta.is_symlink() {
            fs::read_link(&full).unwrap().into_os_string().into_vec()
        } else if meta.is_file() {
            fs::read(&full).unwrap()
        } else {
            Vec::new()
        };
        let look = Look {
            raw_mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if meta.is_file() { meta.size() } else { 0 },
            rdev: meta.rdev(),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            same_as: first.entry(meta.ino()).or_insert_with(|| path.clone()).clone(),
            contents,
            xattrs: xattrs(&full),
        };
        found.insert(path, look);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 4096];
    let n = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..n].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 4096];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect()
}

// ---- makers ----

/// Removed in the end, even with directories in it that may not be written.
struct Scratch(TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::process::Command::new("chmod").arg("-R").arg("u+rwX").arg(self.0.path()).output().unwrap();
    }
}

fn scratch() -> (Scratch, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    (Scratch(dir), root)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn named(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn next_file(source: &mut Files) -> Entry {
    loop {
        let entry = source.next().unwrap().expect("there is a file");
        if entry.kind == EntryKind::File {
            return entry;
        }
    }
}

fn drain(source: &mut Files) -> (usize, Piece) {
    let mut buffer = [0; 4096];
    let mut read = 0;
    loop {
        match source.read(&mut buffer).unwrap() {
            Piece::Data(n) => read += n,
            Piece::Hole(n) => read += usize::try_from(n).unwrap(),
            end => return (read, end),
        }
    }
}

/// Opens a tree with the one file `f`, lets `change` happen between its entry and its reading, and returns the skips.
fn skips_when(options: FilesOptions, change: impl FnOnce(&Path, &mut Files)) -> Vec<(String, String)> {
    let (_dir, root) = scratch();
    fs::write(root.join("f"), vec![7; 100_000]).unwrap();
    let mut source = open(&root, options);
    next_file(&mut source);
    change(&root.join("f"), &mut source);
    while source.next().unwrap().is_some() {}
    source.finish().unwrap().skipped.into_iter().map(|s| (s.path.to_string(), s.why)).collect()
}

// ---- round trips ----

#[test]
fn modes_times_and_names_come_back() {
    let (_dir, root) = scratch();
    for (name, mode) in [("plain", 0o644), ("setuid", 0o4755), ("setgid", 0o2711), ("none", 0o400), ("empty", 0o600)] {
        fs::write(root.join(name), if name == "empty" { "" } else { name }).unwrap();
        chmod(&root.join(name), mode);
    }
    for name in [&b"\xff\xfe not utf-8"[..], b"new\nline", b"100%41", b"-rf *", b"a", b"a.txt", b"a-b"] {
        fs::write(root.join(named(name)), name).unwrap();
        set_mtime(&root.join(named(name)), 1_700_000_000, 123_456_789);
    }
    for (name, mode) in [("sticky", 0o1777), ("empty dir", 0o755), ("setgid dir", 0o2750), ("read only", 0o555)] {
        fs::create_dir(root.join(name)).unwrap();
        if name == "read only" {
            fs::write(root.join(name).join("inside"), "x").unwrap();
        }
        chmod(&root.join(name), mode);
        set_mtime(&root.join(name), -5, 999_999_999);
    }
    if is_root() {
        rustix::fs::chown(
            root.join("plain"),
            Some(rustix::fs::Uid::from_raw(12345)),
            Some(rustix::fs::Gid::from_raw(1)),
        )
        .unwrap();
        rustix::fs::chown(root.join("setuid"), Some(rustix::fs::Uid::from_raw(1)), None).unwrap();
        chmod(&root.join("setuid"), 0o4755);
    }
    chmod(&root, 0o711);
    set_mtime(&root, 1_000_000_000, 1);
    let copied = round_trip(&root);
    assert_eq!(copied.entries[0].path, Name::default());
    assert!(copied.entries.iter().all(|e| (e.kind == EntryKind::File) == e.stat.is_some()));
    assert_eq!(copied.finished.facts["files"], 13);
    assert_eq!(copied.finished.facts["dirs"], 5);
}

#[test]
fn links_come_back_as_links() {
    let (_dir, root) = scratch();
    fs::create_dir_all(root.join("b/c")).unwrap();
    fs::write(root.join("b/c/file"), "shared").unwrap();
    fs::hard_link(root.join("b/c/file"), root.join("a")).unwrap();
    fs::hard_link(root.join("b/c/file"), root.join("z")).unwrap();
    for (name, target) in
        [("dangling", "nowhere"), ("absolute", "/etc/passwd"), ("up", "../.."), ("self", "self"), ("dir", "b/c")]
    {
        symlink(target, root.join(name)).unwrap();
        set_mtime(&root.join(name), 1_500_000_000, 42);
    }
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    if is_root() {
        let someone = Some(rustix::fs::Uid::from_raw(777));
        rustix::fs::chownat(CWD, root.join("dangling"), someone, None, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    set_mtime(&root.join("b"), 1_400_000_000, 7);
    let copied = round_trip(&root);
    let links: Vec<_> = copied.entries.iter().filter(|e| e.kind == EntryKind::Hardlink).collect();
    assert_eq!(links.len(), 2);
    assert!(links.iter().all(|e| e.target == Some(Name::new("a")) && e.stat.is_none()));
}

#[test]
fn sockets_are_left_out() {
    let (_dir, root) = scratch();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let copied = copy(&root, &root.with_extension("restored"), FilesOptions::default());
    assert_eq!(copied.entries.len(), 1);
    assert_eq!(copied.finished.skipped, []);
}

#[test]
fn devices_come_back() {
    if !is_root() {
        return;
    }
    let (_dir, root) = scratch();
    for (name, kind, minor) in [("null", FileType::CharacterDevice, 3), ("loop", FileType::BlockDevice, 5)] {
        // Some containers may not make devices, root or not.
        if rustix::fs::mknodat(CWD, root.join(name), kind, Mode::RUSR, rustix::fs::makedev(1, minor)).is_err() {
            return;
        }
    }
    chmod(&root.join("null"), 0o666);
    assert_eq!(round_trip(&root).entries[2].rdev, Some((1, 3)));
}

#[test]
fn attributes_and_access_lists_come_back() {
    let (_dir, root) = scratch();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "x").unwrap();
    let set =
        |path: &str, name: &str, value: &[u8]| rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty());
    if set("d/f", "user.empty", b"").is_err() {
        return;
    }
    set("d/f", "user.bytes", &[0, 255, 10, 13]).unwrap();
    set("d", "user.on a dir", b"v").unwrap();
    // More than is asked for at first, in names and in bytes.
    set("d/f", "user.long", &[b'v'; 2000]).unwrap();
    for n in 0..4 {
        set("d", &format!("user.{}{n}", "n".repeat(200)), b"").unwrap();
    }
    // Version 2; user::rw-, user:1:r--, group::r--, mask::rw-, other::---
    let entries: [(u16, u16, u32); 5] = [(1, 6, !0), (2, 4, 1), (4, 4, !0), (16, 6, !0), (32, 0, !0)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    if set("d/f", "system.posix_acl_access", &acl).is_ok() {
        set("d", "system.posix_acl_default", &acl).unwrap();
        // The scratch directory's default would be inherited by the restored tree, were it not for the staging directory.
        rustix::fs::setxattr(root.parent().unwrap(), "system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
    }
    chmod(&root.join("d"), 0o555);
    if is_root() {
        symlink("x", root.join("link")).unwrap();
        set("link", "trusted.t", b"on a symlink").unwrap();
        // Lost, were the owner changed after it.
        let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
        set("d/f", "security.capability", &capability).unwrap();
    }
    round_trip(&root);
}

#[test]
fn holes_come_back_as_holes() {
    let (_dir, root) = scratch();
    let holes: [(&str, &[u64], u64); 4] = [
        ("middle", &[0, 40 << 20], 60 << 20),
        ("only", &[], 5 << 20),
        ("front", &[8 << 20], (8 << 20) + 5),
        ("odd", &[4097], 3 << 20),
    ];
    for (name, data, size) in holes {
        let file = File::create(root.join(name)).unwrap();
        data.iter().for_each(|&at| file.write_all_at(b"data!", at).unwrap());
        file.set_len(size).unwrap();
    }
    if root.join("only").metadata().unwrap().blocks() > 0 {
        return;
    }
    round_trip(&root);
    for (name, ..) in holes {
        let blocks = |root: &Path| root.join(name).metadata().unwrap().blocks();
        assert_eq!(blocks(&root.with_extension("restored")), blocks(&root), "{name}");
    }
}

#[test]
fn a_path_may_be_longer_than_the_system_takes_at_once() {
    let (_dir, root) = scratch();
    let mut dir = rustix::fs::open(&root, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    for level in 0..300 {
        let name = format!("a directory at level {level:03}");
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        // A name after it: the walk must find its way back up.
        rustix::fs::symlinkat("x", &dir, "b").unwrap();
        dir = rustix::fs::openat(&dir, &name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&dir, "file", OFlags::CREATE | OFlags::RDWR, Mode::RUSR).unwrap();
    File::from(file).write_all(b"deep").unwrap();
    let to = root.with_extension("restored");
    let there = copy(&root, &to, FilesOptions::default());
    assert_eq!(there.finished.skipped, []);
    assert_eq!(there.notes, Notes::default());
    assert_eq!(there.entries.len(), 602);
    assert!(there.entries.iter().any(|e| e.path.as_bytes().len() > 7000));
    let mut back = copy(&to, &root.with_extension("again"), FilesOptions::default());
    back.entries.iter_mut().for_each(|e| e.stat = None);
    let unread = |e: &Entry| Entry { stat: None, ..e.clone() };
    assert_eq!(back.entries, there.entries.iter().map(unread).collect::<Vec<_>>());
}

#[test]
fn a_single_file_comes_back_in_a_directory() {
    let (_dir, root) = scratch();
    fs::write(root.join("app-v3.db"), "rows").unwrap();
    symlink("app-v3.db", root.join("app.db")).unwrap();
    for name in ["app-v3.db", "app.db"] {
        let to = root.join(name).with_extension("restored");
        let copied = copy(&root.join(name), &to, FilesOptions::default());
        assert_eq!(copied.entries.len(), 1);
        assert_eq!(copied.entries[0].path, Name::new(name));
        assert_eq!(fs::read(to.join(name)).unwrap(), b"rows");
        assert_eq!(to.metadata().unwrap().mode() & 0o777, 0o700);
    }
}

#[derive(Debug, Clone)]
enum Made {
    File { size: usize, hole: bool },
    Dir,
    Symlink(Vec<u8>),
    Link(usize),
    Fifo,
}

fn any_made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => (0usize..40_000, any::<bool>()).prop_map(|(size, hole)| Made::File { size, hole }),
        4 => Just(Made::Dir),
        1 => proptest::collection::vec(1u8.., 1..40).prop_map(Made::Symlink),
        1 => any::<usize>().prop_map(Made::Link),
        1 => Just(Made::Fifo),
    ]
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => b'a'..b'c', 1 => Just(b'.'), 1 => Just(b'-'), 1 => any::<u8>()];
    proptest::collection::vec(byte.prop_filter("no name has them", |b| !matches!(b, 0 | b'/')), 1..6)
}

type Plan = Vec<(usize, Vec<u8>, Made, u32, i64, i64)>;

fn build(root: &Path, plan: &Plan) {
    let (mut dirs, mut files, mut last_touches) = (vec![root.to_owned()], Vec::<PathBuf>::new(), Vec::new());
    for (parent, name, made, mode, seconds, nanoseconds) in plan {
        let path = dirs[parent % dirs.len()].join(named(name));
        if name == b"." || name == b".." || path.symlink_metadata().is_ok() {
            continue;
        }
        match made {
            Made::File { size, hole } => {
                let bytes: Vec<u8> = (0..*size).map(|i| (i * 7 + i / 251) as u8).collect();
                let file = File::create(&path).unwrap();
                file.write_all_at(&bytes, if *hole { 1 << 20 } else { 0 }).unwrap();
                files.push(path.clone());
            }
            Made::Dir => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
            }
            Made::Symlink(target) => symlink(named(target), &path).unwrap(),
            Made::Link(to) if !files.is_empty() => fs::hard_link(&files[to % files.len()], &path).unwrap(),
            Made::Link(_) | Made::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        }
        last_touches.push((path, mode, seconds, nanoseconds));
    }
    for (path, mode, seconds, nanoseconds) in last_touches.into_iter().rev() {
        if !path.is_symlink() {
            // Readable, so that the test passes for anyone.
            chmod(&path, mode | if path.is_dir() { 0o700 } else { 0o400 });
        }
        set_mtime(&path, *seconds, *nanoseconds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_comes_back(plan in proptest::collection::vec(
        (any::<usize>(), any_name(), any_made(), 0u32..0o10000, 0i64..4_000_000_000, 0i64..1_000_000_000), 0..40))
    {
        let (_dir, root) = scratch();
        build(&root, &plan);
        round_trip(&root);
    }
}

// ---- what is left out ----

fn paths(root: &Path, options: FilesOptions) -> Vec<String> {
    let mut source = open(root, options);
    let mut found = Vec::new();
    while let Some(entry) = source.next().unwrap() {
        found.push(entry.path.to_string());
    }
    assert_eq!(source.finish().unwrap().skipped, []);
    found
}

#[test]
fn globs_leave_out_and_take_back() {
    let (_dir, root) = scratch();
    for path in ["cache/x", "keep/a.log", "keep/b.log", "keep/c", "sub/cache/y", "top.log"] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), path).unwrap();
    }
    let exclude = |globs: &[&str]| FilesOptions {
        exclude: globs.iter().map(|g| (*g).to_owned()).collect(),
        ..Default::default()
    };
    assert_eq!(
        paths(&root, exclude(&["/cache", "*.log", "!b.log"])),
        ["", "keep", "keep/b.log", "keep/c", "sub", "sub/cache", "sub/cache/y"]
    );
    assert_eq!(paths(&root, exclude(&["cache/", "keep", "sub"])), ["", "top.log"]);
    let error = Files::open(&root, exclude(&["a[b"]), &SystemClock).err().expect("a malformed glob");
    assert!(format!("{error:#}").contains("a[b"), "{error:#}");
    assert!(Files::open(&root.join("top.log"), exclude(&["*.log"]), &SystemClock).is_err(), "nothing would be left");
}

#[test]
fn one_file_system_stops_at_mount_points() {
    if !is_root() {
        return;
    }
    let (_dir, root) = scratch();
    fs::create_dir(root.join("mnt")).unwrap();
    let run = |program: &str, args: &[&OsStr]| {
        std::process::Command::new(program).args(args).status().is_ok_and(|s| s.success())
    };
    let mnt = root.join("mnt");
    if !run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), mnt.as_os_str()]) {
        return;
    }
    fs::write(root.join("mnt/inside"), "x").unwrap();
    let all = paths(&root, FilesOptions::default());
    let one = paths(&root, FilesOptions { one_file_system: true, ..Default::default() });
    assert!(run("umount", &[mnt.as_os_str()]));
    assert_eq!(all, ["", "mnt", "mnt/inside"]);
    assert_eq!(one, ["", "mnt"]);
}

#[test]
fn unreadable_things_are_skipped_with_a_reason() {
    if is_root() {
        return;
    }
    let (_dir, root) = scratch();
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("closed/in"), "x").unwrap();
    fs::write(root.join("secret"), "x").unwrap();
    chmod(&root.join("closed"), 0);
    chmod(&root.join("secret"), 0);
    let mut source = open(&root, FilesOptions::default());
    next_file(&mut source);
    assert_eq!(drain(&mut source).1, Piece::Lost);
    assert!(source.next().unwrap().is_none());
    let skipped = source.finish().unwrap().skipped;
    chmod(&root.join("closed"), 0o700);
    assert_eq!(skipped.iter().map(|s| s.path.to_string()).collect::<Vec<_>>(), ["closed", "secret"]);
    assert!(skipped.iter().all(|s| s.why.contains("permission denied")), "{skipped:?}");
}

#[test]
fn a_root_that_is_not_there_is_an_error_with_help() {
    let (_dir, root) = scratch();
    let error = Files::open(&root.join("nothing"), FilesOptions::default(), &SystemClock).err().expect("an error");
    assert!(blackstart::error::help_of(&error).unwrap().contains("Nothing of this source was backed up"));
}

#[test]
fn a_live_database_is_named() {
    let (_dir, root) = scratch();
    for (name, contents) in [
        ("a.db", "SQLite format 3\0…"),
        ("a.db-wal", "x"),
        ("b.db", "SQLite format 3\0…"),
        ("b.db-wal", ""),
        ("c", "text"),
        ("c-journal", "x"),
    ] {
        fs::write(root.join(name), contents).unwrap();
    }
    let facts = copy(&root, &root.with_extension("restored"), FilesOptions::default()).finished.facts;
    assert_eq!(facts["live_sqlite"], serde_json::json!(["a.db"]));
    let facts = copy(&root.join("a.db"), &root.with_extension("single"), FilesOptions::default()).finished.facts;
    assert_eq!(facts["live_sqlite"], serde_json::json!(["a.db"]));
}

// ---- what changes while it is read ----

fn said(why: &str) -> Vec<(String, String)> {
    vec![("f".to_owned(), why.to_owned())]
}

#[test]
fn a_growing_file_is_read_to_its_promised_size_and_reported() {
    let grow = |path: &Path, source: &mut Files| {
        OpenOptions::new().append(true).open(path).unwrap().write_all(&[8; 50_000]).unwrap();
        assert_eq!(drain(source), (100_000, Piece::End));
    };
    assert_eq!(skips_when(FilesOptions::default(), grow), said("changed while it was read"));
    let tolerant = FilesOptions { tolerate_changing: vec!["f".to_owned()], ..Default::default() };
    assert_eq!(skips_when(tolerant, grow), []);
}

#[test]
fn a_file_written_in_the_middle_is_reported() {
    let skips = skips_when(FilesOptions::default(), |path, source| {
        assert!(matches!(source.read(&mut [0; 4096]).unwrap(), Piece::Data(4096)));
        // The kernel's clock for files ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"!", 10).unwrap();
        drain(source);
    });
    assert_eq!(skips, said("changed while it was read"));
}

#[test]
fn a_shrinking_file_is_reported_even_if_it_may_change() {
    let tolerant = FilesOptions { tolerate_changing: vec!["f".to_owned()], ..Default::default() };
    let skips = skips_when(tolerant, |path, source| {
        assert!(matches!(source.read(&mut [0; 4096]).unwrap(), Piece::Data(4096)));
        OpenOptions::new().write(true).open(path).unwrap().set_len(5000).unwrap();
        assert_eq!(drain(source), (904, Piece::End));
    });
    assert_eq!(skips.len(), 1);
    assert!(skips[0].1.starts_with("shrank while it was read"), "{skips:?}");
}

#[test]
fn a_vanished_file_is_reported() {
    let skips = skips_when(FilesOptions::default(), |path, source| {
        fs::remove_file(path).unwrap();
        assert_eq!(drain(source), (0, Piece::Lost));
    });
    assert_eq!(skips, said("vanished while it was read"));
}

#[test]
fn a_replaced_file_is_reported_and_not_followed() {
    let by_symlink = |path: &Path, source: &mut Files| {
        fs::remove_file(path).unwrap();
        symlink("/etc/passwd", path).unwrap();
        assert_eq!(drain(source), (0, Piece::Lost));
    };
    let by_fifo = |path: &Path, source: &mut Files| {
        fs::rename(path, path.with_extension("old")).unwrap();
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(drain(source), (0, Piece::Lost));
    };
    let by_file = |path: &Path, source: &mut Files| {
        fs::write(path.with_extension("new"), vec![9; 100_000]).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
        assert_eq!(drain(source), (0, Piece::Lost));
    };
    assert_eq!(skips_when(FilesOptions::default(), by_symlink), said("replaced while it was read"));
    assert_eq!(skips_when(FilesOptions::default(), by_fifo), said("replaced while it was read"));
    assert_eq!(skips_when(FilesOptions::default(), by_file), said("replaced while it was read"));
}

#[test]
fn names_that_vanish_before_their_turn_are_reported() {
    let (_dir, root) = scratch();
    for name in ["a", "b", "c"] {
        fs::write(root.join(name), name).unwrap();
    }
    let mut source = open(&root, FilesOptions::default());
    assert_eq!(next_file(&mut source).path, Name::new("a"));
    fs::remove_file(root.join("b")).unwrap();
    assert_eq!(next_file(&mut source).path, Name::new("c"));
    assert!(source.next().unwrap().is_none());
    let skipped = source.finish().unwrap().skipped;
    assert_eq!((skipped[0].path.to_string().as_str(), skipped[0].why.as_str()), ("b", "vanished while it was read"));
}

#[test]
fn the_second_name_of_a_lost_file_is_stored_as_a_file() {
    let (_dir, root) = scratch();
    fs::write(root.join("a"), "x").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    fs::hard_link(root.join("a"), root.join("c")).unwrap();
    let mut source = open(&root, FilesOptions::default());
    next_file(&mut source);
    fs::remove_file(root.join("a")).unwrap();
    assert_eq!(drain(&mut source).1, Piece::Lost);
    assert_eq!(next_file(&mut source).path, Name::new("b"));
    let third = source.next().unwrap().unwrap();
    assert_eq!((third.kind, third.target), (EntryKind::Hardlink, Some(Name::new("b"))));
}

#[test]
fn a_directory_swapped_for_a_symlink_does_not_lead_the_walk_away() {
    let (_dir, root) = scratch();
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "mine").unwrap();
    fs::create_dir(root.with_extension("other")).unwrap();
    fs::write(root.with_extension("other").join("f"), "not mine").unwrap();
    let mut source = open(&root, FilesOptions::default());
    next_file(&mut source);
    fs::rename(root.join("d"), root.join("e")).unwrap();
    symlink(root.with_extension("other"), root.join("d")).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(source.read(&mut buffer).unwrap(), Piece::Data(4));
    assert_eq!(&buffer[..4], b"mine");
}

// ---- the staging tree ----

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
    let again = StagingTree::resume(&to, "t").unwrap();
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
