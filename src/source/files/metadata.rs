//! From what `statx` saw to an entry: owners' names, link targets, hard links, extended attributes.

use super::attributes::Attributes;
use super::seen::Seen;
use crate::accounts::Accounts;
use crate::entry::{Entry, EntryKind, Name};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::path::PathBuf;

pub(super) struct Metadata {
    accounts: Accounts,
    attributes: Attributes,
    /// By device and inode: files with further names that may still come.
    links: HashMap<(u64, u64), Linked>,
}

struct Linked {
    path: Name,
    seen: Seen,
    names_left: u32,
}

/// Where a name lies: in the open directory `dir`, which is the directory `dir_path` of the source.
pub(super) struct Place<'a> {
    pub dir: BorrowedFd<'a>,
    pub dir_path: &'a Name,
    pub name: &'a CStr,
}

impl Metadata {
    pub fn new(root: PathBuf) -> Metadata {
        Metadata { accounts: Accounts::load(), attributes: Attributes::new(root), links: HashMap::new() }
    }

    /// The entry, and why its extended attributes could not be read, if so. `Err`: there is nothing to store.
    pub fn entry(
        &mut self,
        place: &Place<'_>,
        path: Name,
        kind: EntryKind,
        seen: &Seen,
    ) -> Result<(Entry, Option<Errno>), Errno> {
        let first = if kind == EntryKind::File { self.first_name(&path, seen) } else { None };
        let (kind, target) = match (kind, first) {
            (EntryKind::File, Some(first)) => (EntryKind::Hardlink, Some(first)),
            (EntryKind::Symlink, _) => {
                let target = rustix::fs::readlinkat(place.dir, place.name, Vec::new())?;
                (kind, Some(Name(target.into_bytes())))
            }
            (kind, _) => (kind, None),
        };
        let is_file = kind == EntryKind::File;
        let is_device = matches!(kind, EntryKind::Char | EntryKind::Block);
        // A hard link has its attributes from the file that it is another name of.
        let (xattrs, doubt) = if kind == EntryKind::Hardlink {
            (BTreeMap::new(), None)
        } else {
            match self.attributes.read(place.dir, place.dir_path, place.name.to_bytes()) {
                Err(Errno::NOENT) => return Err(Errno::NOENT),
                Err(e) => (BTreeMap::new(), Some(e)),
                Ok(xattrs) => (xattrs, None),
            }
        };
        let entry = Entry {
            path,
            kind,
            mode: seen.mode,
            uid: seen.uid,
            gid: seen.gid,
            user: self.accounts.user(seen.uid),
            group: self.accounts.group(seen.gid),
            mtime: seen.mtime,
            size: if is_file { seen.size } else { 0 },
            page: None,
            target,
            rdev: is_device.then_some(seen.rdev),
            xattrs,
            stat: is_file.then(|| seen.stat()),
        };
        Ok((entry, doubt))
    }

    /// The file is not in the snapshot after all, so that its next name must be stored as a file.
    pub fn forget(&mut self, seen: &Seen) {
        self.links.remove(&(seen.dev, seen.ino));
    }

    /// The path under which the walk has met this file before. An inode number that was given to another file meanwhile
    /// does not count: size or mtime tell them apart.
    fn first_name(&mut self, path: &Name, seen: &Seen) -> Option<Name> {
        if seen.links < 2 {
            return None;
        }
        let id = (seen.dev, seen.ino);
        if let Some(first) = self.links.get_mut(&id)
            && (first.seen.size, first.seen.mtime) == (seen.size, seen.mtime)
        {
            first.names_left -= 1;
            if first.names_left == 0 {
                return self.links.remove(&id).map(|first| first.path);
            }
            return Some(first.path.clone());
        }
        self.links.insert(id, Linked { path: path.clone(), seen: *seen, names_left: seen.links - 1 });
        None
    }
}
