//! What changes while the `files` source reads it is reported, and leads it nowhere.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod trees;

use blackstart::entry::{EntryKind, Name};
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::{Piece, Source};
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use trees::*;

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

#[test]
fn a_deep_directory_moved_away_ends_the_walk_loudly() {
    let (_dir, root) = scratch();
    let mut dir = root.clone();
    for _ in 0..100 {
        fs::write(dir.join("b"), "x").unwrap();
        dir.push("a");
        fs::create_dir(&dir).unwrap();
    }
    let mut source = open(&root, FilesOptions::default());
    // The first file is the deepest: by now the directories far above have no descriptor.
    assert_eq!(next_file(&mut source).path.as_bytes().len(), 2 * 100 - 1);
    fs::rename(root.join("a/a"), root.with_extension("away")).unwrap();
    let mut files = 1;
    while source.next().unwrap().is_some() {
        files += 1;
    }
    assert_eq!(files, 98, "all that lies in what was moved; it is held open");
    let skipped = source.finish().unwrap().skipped;
    assert_eq!(skipped.iter().map(|s| s.path.to_string()).collect::<Vec<_>>(), ["a", ""]);
    assert!(skipped.iter().all(|s| s.why.starts_with("moved while it was read")), "{skipped:?}");
}
