//! Scratch of drills: a directory of its own for each, locked while it is in use, so that what a killed drill left can be told and removed: first
//! the servers that run on it, by the notes of them, then the files.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

use crate::child::watch;

const PREFIX: &str = "blackstart-drill-";
/// A kept scratch has this file in it.
const KEPT: &str = "KEPT-FOR-INSPECTION";
/// Notes of what runs on it. Made once it is locked.
const NOTES: &str = ".children";
/// Between making a directory and locking it lies less.
const YOUNG: SignedDuration = SignedDuration::from_secs(60);

/// A locked directory. It goes when this is dropped, unless it is kept.
pub struct Scratch {
    directory: TempDir,
    _lock: rustix::fd::OwnedFd,
}

impl Scratch {
    pub fn make(base: &Path) -> Result<Scratch> {
        std::fs::create_dir_all(base).with_context(|| format!("create {}", base.display()))?;
        let base = std::path::absolute(base)?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&base)
            .with_context(|| format!("make a scratch directory in {}", base.display()))?;
        let lock = open(directory.path()).context("open the scratch directory")?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the scratch directory")?;
        std::fs::create_dir(directory.path().join(NOTES)).context("make a directory for notes")?;
        Ok(Scratch { directory, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where what is started is noted.
    pub fn notes(&self) -> PathBuf {
        self.directory.path().join(NOTES)
    }

    /// Leaves it for inspection, and gives its path.
    pub fn keep(self) -> PathBuf {
        let path = self.directory.keep();
        drop(std::fs::File::create(path.join(KEPT)));
        path
    }

    /// Whether everything is gone.
    pub fn remove(self) -> bool {
        self.directory.close().is_ok()
    }
}

fn open(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Ends what killed drills of this user left running in `base`, and removes their scratch; gives how many. Kept scratch stays, and what is still
/// in use.
pub fn sweep(base: &Path, now: Timestamp) -> u64 {
    let mine = rustix::process::getuid().as_raw();
    let mut removed = 0;
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = path.symlink_metadata() else { continue };
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX) && found.is_dir() && found.uid() == mine;
        let made = found.modified().ok().and_then(|m| Timestamp::try_from(m).ok());
        let young = made.is_none_or(|made| now.duration_since(made) < YOUNG);
        // What has notes was locked once: no lock is coming.
        let unlocked_yet = young && !path.join(NOTES).exists();
        if !ours || unlocked_yet || path.join(KEPT).exists() {
            continue;
        }
        let Ok(lock) = open(&path) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && watch::end_noted(&path.join(NOTES), &path)
            && std::fs::remove_dir_all(&path).is_ok()
        {
            removed += 1;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, FileTimes};
    use std::time::{Duration, SystemTime};

    fn old(path: &Path) {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::open(path).unwrap().set_times(FileTimes::new().set_modified(then)).unwrap();
    }

    #[test]
    fn leftovers_go_and_what_is_in_use_or_kept_stays() {
        let base = tempfile::tempdir().unwrap();
        let left = base.path().join("blackstart-drill-left");
        fs::create_dir_all(left.join("restored/a")).unwrap();
        let other = base.path().join("somebody-elses");
        fs::create_dir(&other).unwrap();
        let young = base.path().join("blackstart-drill-young");
        fs::create_dir(&young).unwrap();
        let used = Scratch::make(base.path()).unwrap();
        let kept = Scratch::make(base.path()).unwrap().keep();
        [&left, &other, &used.path().to_owned(), &kept].into_iter().for_each(|path| old(path));
        assert_eq!(sweep(base.path(), Timestamp::from_second(1_000_000_010).unwrap()), 0);
        let later = Timestamp::try_from(fs::metadata(&young).unwrap().modified().unwrap()).unwrap();
        assert_eq!(sweep(base.path(), later), 1);
        assert!(!left.exists() && other.exists() && young.exists() && used.path().exists() && kept.exists());
        assert!(used.remove());
    }
}
