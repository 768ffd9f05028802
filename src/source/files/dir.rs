//! One directory on the path of the walk: its descriptor and the names in it that are still to be visited.

use super::seen::Seen;
use crate::entry::Name;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// Bytes of directory entries asked of the kernel at once.
const LISTING_BYTES: usize = 64 << 10;

pub(super) struct OpenDir {
    /// `None` while the walk is far below (see [`OpenDir::shelve`]).
    fd: Option<OwnedFd>,
    /// As it was when it was opened, to recognise it again.
    seen: Seen,
    pub path: Name,
    names: Names,
}

impl OpenDir {
    /// Opens and lists `name` of `parent`, which must still be the directory that was `seen` there.
    pub fn open(parent: impl AsFd, name: &CStr, path: Name, seen: Seen) -> Result<OpenDir, Errno> {
        let fd = open_quietly(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if !Seen::of(&fd)?.is_same_file(&seen) {
            return Err(Errno::STALE);
        }
        let names = Names::list(&fd)?;
        Ok(OpenDir { fd: Some(fd), seen, path, names })
    }

    /// A directory of which only one name is of interest; it need not be readable.
    pub fn of_one(fd: OwnedFd, name: CString) -> Result<OpenDir, Errno> {
        let seen = Seen::of(&fd)?;
        let bytes = name.into_bytes_with_nul();
        Ok(OpenDir { fd: Some(fd), seen, path: Name::default(), names: Names { bytes, starts: vec![0] } })
    }

    pub fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or(Errno::STALE)
    }

    /// The next name in bytewise order.
    pub fn pop(&mut self) -> Option<CString> {
        self.names.pop()
    }

    /// Visits nothing more in it.
    pub fn abandon(&mut self) {
        self.names.starts.clear();
    }

    /// Gives the descriptor back, so that a tree of any depth needs few of them.
    pub fn shelve(&mut self) {
        self.fd = None;
    }

    /// Opens a shelved directory again as the parent of `child`. Fails if that was moved elsewhere meanwhile.
    pub fn reopen_above(&mut self, child: &OpenDir) -> Result<(), Errno> {
        if self.fd.is_none() {
            let fd = open_quietly(child.fd()?, c"..", OFlags::RDONLY | OFlags::DIRECTORY)?;
            if !Seen::of(&fd)?.is_same_file(&self.seen) {
                return Err(Errno::STALE);
            }
            self.fd = Some(fd);
        }
        Ok(())
    }
}

/// Opens for reading without following a symlink, and without leaving a trace in the access time where that is allowed.
pub(super) fn open_quietly(dir: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner of a file may ask for NOATIME.
        Err(Errno::PERM) => rustix::fs::openat(&dir, name, flags, Mode::empty()),
        opened => opened,
    }
}

/// The names of a directory in one block of memory, each ended by NUL: a name costs its length and nine bytes.
struct Names {
    bytes: Vec<u8>,
    /// Where the names left begin, the last name first.
    starts: Vec<usize>,
}

impl Names {
    fn list(dir: &OwnedFd) -> Result<Names, Errno> {
        let mut names = Names { bytes: Vec::new(), starts: Vec::new() };
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if name != b".\0" && name != b"..\0" {
                names.starts.push(names.bytes.len());
                names.bytes.extend_from_slice(name);
            }
        }
        let Names { bytes, starts } = &mut names;
        let at = |start: usize| CStr::from_bytes_until_nul(&bytes[start..]).unwrap_or_default();
        starts.sort_unstable_by(|a, b| at(*b).cmp(at(*a)));
        Ok(names)
    }

    fn pop(&mut self) -> Option<CString> {
        let start = self.starts.pop()?;
        CStr::from_bytes_until_nul(&self.bytes[start..]).ok().map(CStr::to_owned)
    }
}
