//! Trees for tests: made, copied by a loop that stands in for backup and restore, and looked at by independent means.
#![allow(dead_code, clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; no one of them uses all of it")]

use blackstart::clock::SystemClock;
use blackstart::entry::{Entry, EntryKind};
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::{Finished, Piece, Source};
use blackstart::target::{Notes, StagingTree};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// ---- the copy loop that stands in for backup and restore ----

pub struct Copied {
    pub entries: Vec<Entry>,
    pub finished: Finished,
    pub notes: Notes,
}

pub fn open(root: &Path, options: FilesOptions) -> Files {
    Files::open(root, options, &SystemClock).unwrap()
}

pub fn copy(from: &Path, to: &Path, options: FilesOptions) -> Copied {
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

pub fn copy_contents(source: &mut Files, file: &File) {
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
            Piece::Lost | Piece::StreamEnd | Piece::Same(_) => panic!("a file was lost, or no file"),
        }
    }
}

/// Copies `from` beside itself and compares everything that can be compared.
pub fn round_trip(from: &Path) -> Copied {
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
pub struct Look {
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

pub fn look(root: &Path) -> BTreeMap<PathBuf, Look> {
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

pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
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
pub struct Scratch(TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::process::Command::new("chmod").arg("-R").arg("u+rwX").arg(self.0.path()).output().unwrap();
    }
}

pub fn scratch() -> (Scratch, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    (Scratch(dir), root)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn named(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

pub fn next_file(source: &mut Files) -> Entry {
    loop {
        let entry = source.next().unwrap().expect("there is a file");
        if entry.kind == EntryKind::File {
            return entry;
        }
    }
}

pub fn drain(source: &mut Files) -> (usize, Piece) {
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
