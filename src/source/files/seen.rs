//! What one `statx` said of a file.

use crate::entry::{EntryKind, Stat};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::CStr;

/// Metadata at one moment. Times are seconds and nanoseconds, `blocks` are 512 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub dev: u64,
    pub ino: u64,
    pub kind: FileType,
    /// Permission bits, 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub size: u64,
    pub blocks: u64,
    pub rdev: (u32, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

impl Seen {
    /// Of a name in a directory; symlinks are not followed.
    pub fn at(dir: impl AsFd, name: &CStr) -> Result<Seen, Errno> {
        rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).map(Seen::from)
    }

    /// Of an open file.
    pub fn of(file: impl AsFd) -> Result<Seen, Errno> {
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(Seen::from)
    }

    /// How the entry is stored; `None` for sockets, which never are.
    pub fn entry_kind(&self) -> Option<EntryKind> {
        match self.kind {
            FileType::RegularFile => Some(EntryKind::File),
            FileType::Directory => Some(EntryKind::Dir),
            FileType::Symlink => Some(EntryKind::Symlink),
            FileType::Fifo => Some(EntryKind::Fifo),
            FileType::CharacterDevice => Some(EntryKind::Char),
            FileType::BlockDevice => Some(EntryKind::Block),
            FileType::Socket | FileType::Unknown => None,
        }
    }

    /// Whether both are the same inode of the same type, whatever happened to its contents.
    pub fn is_same_file(&self, other: &Seen) -> bool {
        (self.dev, self.ino, self.kind) == (other.dev, other.ino, other.kind)
    }

    /// Whether neither contents nor metadata changed from `other` to `self`.
    pub fn is_unchanged(&self, other: &Seen) -> bool {
        self.is_same_file(other) && (self.size, self.mtime, self.ctime) == (other.size, other.mtime, other.ctime)
    }

    /// What the shortcut of FORMAT.md §4-8 compares.
    pub fn stat(&self) -> Stat {
        Stat(self.dev, self.ino, self.ctime.0, self.ctime.1)
    }
}

impl From<Statx> for Seen {
    fn from(x: Statx) -> Seen {
        let mode = u32::from(x.stx_mode);
        Seen {
            dev: rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor),
            ino: x.stx_ino,
            kind: FileType::from_raw_mode(mode),
            mode: mode & 0o7777,
            uid: x.stx_uid,
            gid: x.stx_gid,
            links: x.stx_nlink,
            size: x.stx_size,
            blocks: x.stx_blocks,
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            mtime: (x.stx_mtime.tv_sec, x.stx_mtime.tv_nsec),
            ctime: (x.stx_ctime.tv_sec, x.stx_ctime.tv_nsec),
        }
    }
}
