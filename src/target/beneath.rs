//! Paths of an index, opened so that they cannot lead out of the tree: an index may be hostile (FORMAT.md §6).

use crate::entry::Name;
use crate::error::{Failure, Kind};
use anyhow::Result;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Refuses every path that is not a plain relative one: no empty component, no `.` or `..`, no NUL. The root's empty path passes.
pub fn check_path(path: &Name) -> Result<()> {
    let bytes = path.as_bytes();
    let is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    if path.is_empty() || (!bytes.contains(&0) && bytes.split(|&b| b == b'/').all(is_plain)) {
        return Ok(());
    }
    Err(hostile(path, "is not a plain relative path"))
}

/// The error for an entry that no source of blackstart would have stored.
pub(super) fn hostile(path: &Name, what: &str) -> anyhow::Error {
    let help = "Nothing was written outside the staging directory, and the target was not touched. The index is hostile or damaged: \
                find out whose key signed the snapshot, and restore an older one.";
    Failure::new(Kind::CheckFailed, format!("entry \"{path}\" {what}"), help)
}

/// The directory part and the last component.
pub(super) fn split(path: &Name) -> (Name, &[u8]) {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|&b| b == b'/') {
        Some(slash) => (Name::new(&bytes[..slash]), &bytes[slash + 1..]),
        None => (Name::default(), bytes),
    }
}

/// Whether `path` lies below `dir`.
pub(super) fn is_below(path: &Name, dir: &Name) -> bool {
    let (path, dir) = (path.as_bytes(), dir.as_bytes());
    dir.is_empty() && !path.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Opens a checked path below `root`. No symlink is followed, in no component.
pub(super) fn open(root: impl AsFd, path: &Name, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let root = root.as_fd();
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if path.is_empty() {
        return rustix::fs::openat(root, ".", flags, mode);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path.as_bytes(), flags, mode, resolve) {
        // An old kernel, a sandbox that does not know the call, or a path too long for one call.
        Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG) => open_stepwise(root, path, flags, mode),
        opened => opened,
    }
}

fn open_stepwise(root: BorrowedFd<'_>, path: &Name, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (parent, last) = split(path);
    let mut at: Option<OwnedFd> = None;
    for part in parent.as_bytes().split(|&b| b == b'/').filter(|part| !part.is_empty()) {
        let here = at.as_ref().map_or(root, |fd| fd.as_fd());
        at = Some(rustix::fs::openat(here, part, step, Mode::empty())?);
    }
    rustix::fs::openat(at.as_ref().map_or(root, |fd| fd.as_fd()), last, flags, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_paths_pass() {
        for good in ["", "a", "a/b", "..a/b..", "...", "a\nb"] {
            assert!(check_path(&Name::new(good)).is_ok(), "{good:?}");
        }
        for bad in ["/", "/etc/x", "../x", "a/../../b", "a//b", "a/", "./a", "a/.", "a\0b", ".."] {
            assert!(check_path(&Name::new(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn below_is_by_component() {
        let below = |path: &str, dir: &str| is_below(&Name::new(path), &Name::new(dir));
        assert!(below("a/b", "a") && below("a", "") && below("a/b/c", "a"));
        assert!(!below("ab", "a") && !below("a", "a") && !below("", "") && !below("b/a", "a"));
    }

    #[test]
    fn symlinks_are_not_followed_either_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::create_dir(dir.path().join("real/in")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        symlink("nowhere", dir.path().join("real/last")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW;
        for (path, opens) in [("real/new", true), ("real/in/new", true), ("link/new", false), ("real/last", false)] {
            let path = Name::new(path);
            assert_eq!(open(&root, &path, flags, Mode::RUSR).is_ok(), opens, "{path}");
            if !opens {
                assert!(open_stepwise(root.as_fd(), &path, flags, Mode::RUSR).is_err(), "{path}");
            }
        }
        assert!(open_stepwise(root.as_fd(), &Name::new("real/in/new"), flags, Mode::RUSR).is_ok());
        assert!(!dir.path().join("nowhere").exists());
    }
}
