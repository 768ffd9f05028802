//! The walk: directories opened on the way down, entries in path order, the file that is being read.

use super::content::Content;
use super::dir::{OpenDir, open_quietly};
use super::metadata::{Metadata, Place};
use super::seen::Seen;
use super::skip;
use crate::entry::{Entry, EntryKind, Name};
use crate::report::Skip;
use crate::source::Piece;
use anyhow::{Result, bail};
use ignore::gitignore::Gitignore;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Directories that keep their descriptor; those further above are opened again on the way back.
const OPEN_DIRS: usize = 64;
/// Live databases named in the facts; more would only bury the warning.
const LIVE_NAMED: usize = 100;

pub(super) struct Walk {
    stack: Vec<OpenDir>,
    /// For a single file given through a symlink: the name to store it under.
    alias: Option<Name>,
    /// The device to stay on.
    only_device: Option<u64>,
    exclude: Gitignore,
    tolerate: Gitignore,
    metadata: Metadata,
    current: Option<Current>,
    skipped: Vec<Skip>,
    counts: Counts,
}

/// The regular file that `next` returned last.
struct Current {
    path: Name,
    name: CString,
    seen: Seen,
    content: Option<Content>,
}

#[derive(Default)]
struct Counts {
    files: u64,
    dirs: u64,
    symlinks: u64,
    special: u64,
    bytes: u64,
    live_sqlite: Vec<Name>,
}

impl Walk {
    /// Opens the root; with it the entry of the root, where that is a directory.
    pub fn begin(
        root: &Path,
        exclude: Gitignore,
        tolerate: Gitignore,
        one_file_system: bool,
    ) -> io::Result<(Walk, Option<Entry>)> {
        let real = root.canonicalize()?;
        let is_dir = real.metadata()?.is_dir();
        let base = if is_dir { real.as_path() } else { real.parent().unwrap_or(Path::new("/")) };
        let place = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let seen = Seen::of(&place)?;
        let mut walk = Walk {
            stack: Vec::new(),
            alias: None,
            only_device: one_file_system.then_some(seen.dev),
            exclude,
            tolerate,
            metadata: Metadata::new(base.to_owned()),
            current: None,
            skipped: Vec::new(),
            counts: Counts::default(),
        };
        if is_dir {
            walk.stack.push(OpenDir::open(&place, c".", Name::default(), seen)?);
            let at = Place { dir: place.as_fd(), dir_path: &Name::default(), name: c"." };
            let (entry, doubt) = walk.metadata.entry(&at, Name::default(), EntryKind::Dir, &seen)?;
            if let Some(e) = doubt {
                return Err(io::Error::other(format!("its extended attributes cannot be read: {e}")));
            }
            walk.count(&entry);
            return Ok((walk, Some(entry)));
        }
        let name = CString::new(real.file_name().unwrap_or_default().to_owned().into_vec())?;
        let seen = Seen::at(&place, &name)?;
        if seen.entry_kind() != Some(EntryKind::File) {
            return Err(io::Error::other("it is neither a directory nor a regular file"));
        }
        // Unreadable now is an error; unreadable later is a skip.
        Content::open(&place, &name, &seen)?;
        let alias = Name::new(root.file_name().map_or(name.to_bytes(), OsStrExt::as_bytes));
        if walk.is_excluded(&alias, false) {
            return Err(io::Error::other("it is a single file, and `exclude` leaves it out"));
        }
        walk.alias = Some(alias);
        walk.stack.push(OpenDir::of_one(place, name.clone())?);
        for suffix in ["-wal", "-journal"] {
            let name = CString::new([name.to_bytes(), suffix.as_bytes()].concat())?;
            if walk.lstat(&name).is_ok_and(|journal| walk.is_live_journal(&name, &journal)) {
                walk.counts.live_sqlite.extend(walk.alias.clone());
            }
        }
        Ok((walk, None))
    }

    pub fn next(&mut self) -> Option<Entry> {
        if let Some(current) = self.current.take() {
            self.check_unchanged(&current);
        }
        loop {
            let Some(name) = self.stack.last_mut()?.pop() else {
                self.leave();
                continue;
            };
            if let Some(entry) = self.visit(&name) {
                return Some(entry);
            }
        }
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Piece {
        let Some(mut current) = self.current.take() else { return Piece::End };
        match self.read_current(&mut current, buffer) {
            Ok(Piece::End) => {
                self.check_unchanged(&current);
                Piece::End
            }
            Ok(piece) => {
                self.current = Some(current);
                piece
            }
            Err(e) => {
                self.skipped.push(skip(&current.path, e));
                // The next name of the same inode must not point at a file that is not in the snapshot.
                self.metadata.forget(&current.seen);
                Piece::Lost
            }
        }
    }

    /// The skips and the facts; an error if the walk has not come to its end.
    pub fn end(&mut self) -> Result<(Vec<Skip>, Value)> {
        if !self.stack.is_empty() {
            bail!("the walk of the source has not ended (this is a bug)");
        }
        let c = &self.counts;
        let mut facts = json!({
            "files": c.files, "dirs": c.dirs, "symlinks": c.symlinks, "special": c.special, "bytes": c.bytes,
        });
        if !c.live_sqlite.is_empty() {
            facts["live_sqlite"] = json!(c.live_sqlite);
        }
        Ok((std::mem::take(&mut self.skipped), facts))
    }

    fn lstat(&self, name: &CStr) -> Result<Seen, Errno> {
        Seen::at(self.stack.last().ok_or(Errno::STALE)?.fd()?, name)
    }

    /// The entry of a name in the current directory, if it is to be stored. A directory becomes the current one.
    fn visit(&mut self, name: &CStr) -> Option<Entry> {
        let path = match &self.alias {
            Some(alias) => alias.clone(),
            None => self.stack.last()?.path.join(name.to_bytes()),
        };
        let seen = match self.lstat(name) {
            Ok(seen) => seen,
            Err(e) => {
                if !self.is_excluded(&path, false) && !self.is_excluded(&path, true) {
                    self.skipped.push(skip(&path, e));
                }
                return None;
            }
        };
        self.notice_live_sqlite(&path, name, &seen);
        let kind = seen.entry_kind()?;
        if self.is_excluded(&path, kind == EntryKind::Dir) {
            return None;
        }
        let dir = self.stack.last()?;
        let place = Place { dir: dir.fd().ok()?, dir_path: &dir.path, name };
        let (entry, doubt) = match self.metadata.entry(&place, path.clone(), kind, &seen) {
            Ok(described) => described,
            Err(e) => {
                self.skipped.push(skip(&path, e));
                return None;
            }
        };
        if let Some(e) = doubt {
            self.skipped.push(Skip::new(&path, format!("its extended attributes cannot be read: {e}")));
        }
        self.count(&entry);
        match entry.kind {
            EntryKind::Dir => self.enter(name, &entry.path, seen),
            EntryKind::File => {
                self.current = Some(Current { path: entry.path.clone(), name: name.to_owned(), seen, content: None });
            }
            _ => {}
        }
        Some(entry)
    }

    fn enter(&mut self, name: &CStr, path: &Name, seen: Seen) {
        if self.only_device.is_some_and(|device| device != seen.dev) {
            return;
        }
        let Some(parent) = self.stack.last() else { return };
        match parent.fd().and_then(|parent| OpenDir::open(parent, name, path.clone(), seen)) {
            Ok(dir) => self.stack.push(dir),
            Err(e) => self.skipped.push(skip(path, e)),
        }
        if let Some(far_above) = self.stack.len().checked_sub(OPEN_DIRS + 1) {
            self.stack[far_above].shelve();
        }
    }

    fn leave(&mut self) {
        let Some(child) = self.stack.pop() else { return };
        let Some(parent) = self.stack.last_mut() else { return };
        if parent.reopen_above(&child).is_err() {
            self.skipped.push(Skip::new(&parent.path, "moved while it was read: its entries from here on are missing"));
            parent.abandon();
        }
    }

    fn count(&mut self, entry: &Entry) {
        let counts = &mut self.counts;
        match entry.kind {
            EntryKind::File | EntryKind::Hardlink => counts.files += 1,
            EntryKind::Dir => counts.dirs += 1,
            EntryKind::Symlink => counts.symlinks += 1,
            EntryKind::Fifo | EntryKind::Char | EntryKind::Block => counts.special += 1,
        }
        counts.bytes += entry.size;
    }

    fn is_excluded(&self, path: &Name, is_dir: bool) -> bool {
        self.exclude.matched(as_path(path), is_dir).is_ignore()
    }

    fn read_current(&mut self, current: &mut Current, buffer: &mut [u8]) -> Result<Piece, Errno> {
        if current.content.is_none() {
            let dir = self.stack.last().ok_or(Errno::STALE)?.fd()?;
            current.content = Some(Content::open(dir, &current.name, &current.seen)?);
        }
        current.content.as_mut().ok_or(Errno::STALE)?.read(buffer)
    }

    /// Looks again at a file that has been read.
    fn check_unchanged(&mut self, current: &Current) {
        let Some(content) = &current.content else { return };
        let Ok(now) = content.seen() else {
            self.skipped.push(Skip::new(&current.path, "cannot be looked at again after it was read"));
            return;
        };
        if content.is_short || now.size < current.seen.size {
            let why = format!(
                "shrank while it was read: it comes back with {} bytes, zeros in the place of those that were gone",
                current.seen.size
            );
            self.skipped.push(Skip::new(&current.path, why));
        } else if !now.is_unchanged(&current.seen) && !self.is_tolerated(&current.path) {
            self.skipped.push(Skip::new(&current.path, "changed while it was read"));
        }
    }

    fn is_tolerated(&self, path: &Name) -> bool {
        self.tolerate.matched_path_or_any_parents(as_path(path), false).is_ignore()
    }

    /// A journal beside an SQLite file: the file alone is not consistent, and this source cannot make it so.
    fn notice_live_sqlite(&mut self, path: &Name, name: &CStr, seen: &Seen) {
        if self.counts.live_sqlite.len() < LIVE_NAMED && self.is_live_journal(name, seen) {
            let database = without_suffix(path.as_bytes()).unwrap_or_default();
            self.counts.live_sqlite.push(Name::new(database));
        }
    }

    /// Whether `name` is a journal that is not empty, and what it belongs to by its name is an SQLite file.
    fn is_live_journal(&self, name: &CStr, seen: &Seen) -> bool {
        let Some(database) = without_suffix(name.to_bytes()) else { return false };
        let Ok(database) = CString::new(database) else { return false };
        if seen.size == 0 || seen.entry_kind() != Some(EntryKind::File) {
            return false;
        }
        let mut magic = [0; 16];
        let read = self.stack.last().ok_or(Errno::STALE).and_then(|dir| {
            let file = open_quietly(dir.fd()?, &database, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
            rustix::io::pread(&file, &mut magic, 0)
        });
        read == Ok(16) && &magic == b"SQLite format 3\0"
    }
}

fn as_path(path: &Name) -> &Path {
    Path::new(OsStr::from_bytes(path.as_bytes()))
}

/// The database that a journal belongs to.
fn without_suffix(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(b"-wal").or_else(|| name.strip_suffix(b"-journal"))
}
