//! Sealed objects that wait on local disk, so that a source is read at the speed of this machine although the store is slower.
//!
//! A directory for each run below the spool's place, locked by its run: one that nobody holds was left by a killed process and is removed
//! by the next that comes. What lies there is encrypted already. Nothing is synced: after a crash of the machine no run goes on from it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::durable;

const LOCK: &str = "lock";
const RUN: &str = "run-";

/// Where a spool may be made, and how large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolPlace {
    pub directory: PathBuf,
    /// Bytes of all files of one run together.
    pub limit: u64,
    /// Bytes of the file system that stay free, or a tenth of it where that is less: a backup must not fill the disk of the engine that
    /// it protects.
    pub left_free: u64,
}

/// The spool of one run. Its directory goes with it.
pub struct Spool {
    directory: PathBuf,
    limit: u64,
    left_free: u64,
    used: AtomicU64,
    /// Counts the files, for their names.
    next: AtomicU64,
    _lock: File,
}

impl Spool {
    /// Removes what killed runs have left in `place`, and makes a directory for this one.
    pub fn open(place: &SpoolPlace) -> io::Result<Spool> {
        durable::create_directories(&place.directory)?;
        // Held by whoever looks for dead runs or makes a new one: a directory must not be seen before it is locked.
        let gate = OpenOptions::new().write(true).create(true).truncate(false).open(place.directory.join(LOCK))?;
        gate.lock()?;
        remove_dead(&place.directory)?;
        let owner_only = Permissions::from_mode(0o700);
        let directory =
            tempfile::Builder::new().prefix(RUN).permissions(owner_only).tempdir_in(&place.directory)?.keep();
        let lock = File::open(&directory)?;
        lock.lock()?;
        let (limit, left_free) = (place.limit, place.left_free);
        Ok(Spool { directory, limit, left_free, used: AtomicU64::new(0), next: AtomicU64::new(0), _lock: lock })
    }

    /// Writes `bytes` to a file; `None` where they exceed the limit or the room that must stay free.
    pub fn keep(self: &Arc<Spool>, bytes: &[u8]) -> io::Result<Option<Kept>> {
        let len = bytes.len() as u64;
        let reserve = |used: u64| used.checked_add(len).filter(|sum| *sum <= self.limit);
        if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, reserve).is_err() {
            return Ok(None);
        }
        let name = self.next.fetch_add(1, Ordering::SeqCst).to_string();
        // From here on dropping it gives the room back and removes the file.
        let kept = Kept { path: self.directory.join(name), len, spool: Arc::clone(self) };
        let disk = rustix::fs::statvfs(&self.directory)?;
        if !has_room(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, len, self.left_free) {
            return Ok(None);
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept.path)?.write_all(bytes)?;
        Ok(Some(kept))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next run.
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// One file of the spool; removed when dropped.
pub struct Kept {
    path: PathBuf,
    len: u64,
    spool: Arc<Spool>,
}

impl Kept {
    /// Reads it into the emptied `buffer`.
    pub fn read(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(usize::try_from(self.len).unwrap_or(0));
        File::open(&self.path)?.take(self.len).read_to_end(buffer)?;
        if buffer.len() as u64 == self.len { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
        self.spool.used.fetch_sub(self.len, Ordering::SeqCst);
    }
}

/// Whether `len` more bytes leave enough of a file system of `total` bytes.
fn has_room(available: u64, total: u64, len: u64, left_free: u64) -> bool {
    available.checked_sub(len).is_some_and(|left| left >= left_free.min(total / 10))
}

fn remove_dead(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        let is_run = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(RUN));
        if is_run && File::open(&path).is_ok_and(|directory| directory.try_lock().is_ok()) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_kept_comes_back_and_goes_with_its_run() {
        let place = tempfile::tempdir().unwrap();
        let place = SpoolPlace { directory: place.path().join("spool"), limit: 100, left_free: 0 };
        let spool = Arc::new(Spool::open(&place).unwrap());
        let kept = spool.keep(&[7; 60]).unwrap().unwrap();
        assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&spool.directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(spool.keep(&[8; 41]).unwrap().is_none(), "beyond the limit");
        let mut read = b"old".to_vec();
        kept.read(&mut read).unwrap();
        assert_eq!(read, [7; 60]);
        drop(kept);
        let kept = spool.keep(&[8; 100]).unwrap().unwrap();
        // Another run leaves it alone.
        let other = Spool::open(&place).unwrap();
        kept.read(&mut read).unwrap();
        assert_eq!(names(&place.directory).len(), 3);
        drop((kept, spool, other));
        assert_eq!(names(&place.directory), [LOCK]);
    }

    #[test]
    fn what_a_killed_run_has_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("run-dead");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join("0")).unwrap();
        File::create(root.path().join("somebody's")).unwrap();
        let place = SpoolPlace { directory: root.path().to_owned(), limit: 1, left_free: 0 };
        drop(Spool::open(&place).unwrap());
        assert_eq!(names(root.path()), [LOCK, "somebody's"]);
    }

    #[test]
    fn what_must_stay_free_is_at_most_a_tenth() {
        const GIB: u64 = 1 << 30;
        assert!(has_room(9 * GIB, 252 * GIB, GIB, 4 * GIB), "a nearly full large disk");
        assert!(!has_room(4 * GIB, 252 * GIB, 1, 4 * GIB));
        assert!(has_room(3 * GIB, 20 * GIB, GIB, 4 * GIB), "a small disk");
        assert!(!has_room(3 * GIB, 20 * GIB, GIB + 1, 4 * GIB));
        assert!(!has_room(GIB, 20 * GIB, 2 * GIB, 0));
    }

    #[test]
    fn a_file_that_cannot_be_written_gives_its_room_back() {
        let root = tempfile::tempdir().unwrap();
        let place = SpoolPlace { directory: root.path().to_owned(), limit: 10, left_free: 0 };
        let spool = Arc::new(Spool::open(&place).unwrap());
        fs::remove_dir_all(&spool.directory).unwrap();
        for _ in 0..3 {
            assert!(spool.keep(&[0; 10]).is_err());
        }
        assert_eq!(spool.used.load(Ordering::SeqCst), 0);
    }
}
