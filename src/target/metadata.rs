//! Owner, extended attributes, mode and time, in the order in which they do not undo each other.
//!
//! A change of owner clears setuid bits and capabilities, so it comes first; an ACL changes the mode's group bits, so the mode comes
//! after it; everything else moves the time, so that comes last. What the system refuses is a note, not an error: the contents are worth
//! more than their owner.

use crate::accounts::Accounts;
use crate::entry::{Entry, EntryKind};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

/// Whose files the restored ones become.
pub(super) struct Owners {
    accounts: Accounts,
    /// Names count before numbers only where we may give files away at all.
    by_name: bool,
}

/// The thing that gets its metadata: an open file or directory, or a name in a directory (symlinks, devices).
#[derive(Clone, Copy)]
pub(super) enum On<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a [u8]),
}

impl Owners {
    pub fn load() -> Owners {
        Owners { accounts: Accounts::load(), by_name: rustix::process::geteuid().is_root() }
    }

    /// By name where the name exists here, as `tar` does: numbers differ from machine to machine. Otherwise by number.
    fn of(&self, entry: &Entry) -> (u32, u32) {
        let named = |found: Option<u32>, number| found.filter(|_| self.by_name).unwrap_or(number);
        (named(self.accounts.uid(&entry.user), entry.uid), named(self.accounts.gid(&entry.group), entry.gid))
    }

    /// Sets everything; returns what could not be set, in words.
    pub fn apply(&self, on: On<'_>, entry: &Entry) -> Vec<String> {
        let mut refused = Vec::new();
        let mut mode = entry.mode & 0o7777;
        let (uid, gid) = self.of(entry);
        if let Err(e) = set_owner(on, uid, gid) {
            refused.push(format!("owner {uid}:{gid} not set: {e}"));
            if mode & 0o6000 != 0 {
                // Set-id of somebody else than the original owner would be a gift nobody meant to make.
                mode &= !0o6000;
                refused.push("setuid and setgid bits left out, since the owner is another".to_owned());
            }
        }
        for (name, value) in &entry.xattrs {
            if let Err(e) = set_xattr(on, name.as_bytes(), value) {
                refused.push(format!("extended attribute {name} not set: {e}"));
            }
        }
        if entry.kind != EntryKind::Symlink
            && let Err(e) = set_mode(on, mode)
        {
            refused.push(format!("mode {mode:o} not set: {e}"));
        }
        if let Err(e) = set_mtime(on, entry.mtime) {
            refused.push(format!("time not set: {e}"));
        }
        refused
    }
}

fn set_owner(on: On<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    // All ones means "leave it" to the system, and is nobody's number.
    let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
    let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
    let set = |uid, gid| match on {
        On::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        On::Named(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
    };
    let both = set(uid, gid);
    if both.is_err() {
        // The group alone may be allowed; whether or not, the owner is not what it was.
        set(None, gid).ok();
    }
    both
}

fn set_xattr(on: On<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match on {
        On::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        On::Named(dir, file) => {
            let mut place = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            place.extend_from_slice(file);
            rustix::fs::lsetxattr(place, name, value, XattrFlags::empty())
        }
    }
}

fn set_mode(on: On<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    match on {
        On::Open(fd) => rustix::fs::fchmod(fd, mode),
        // Never a symlink (see `apply`), in a directory that only we can write.
        On::Named(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty()),
    }
}

fn set_mtime(on: On<'_>, (seconds, nanoseconds): (i64, u32)) -> Result<(), Errno> {
    // Nanoseconds beyond a second are commands to the system ("now", "leave it").
    let nanoseconds = nanoseconds.min(999_999_999);
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    };
    match on {
        On::Open(fd) => rustix::fs::futimens(fd.as_fd(), &times),
        On::Named(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    }
}
