//! The `files` source and the staging tree, back to back and without a repository: what comes back is what was there.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod trees;

use blackstart::clock::SystemClock;
use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::{Piece, Source};
use blackstart::target::Notes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use trees::*;

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
