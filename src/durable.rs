//! The only way a local file becomes visible: whole, synced, and under its final name in one step.
//!
//! The bytes go to a temporary file `.tmp-…` in the same directory, which is synced and then renamed; then the directory
//! is synced, and so is the parent of every directory made on the way. After `Ok` the file survives a power cut. After an
//! error nothing is left behind, except where the last step, the sync of the directory, is what failed.

use rustix::fs::Advice;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::{Builder, NamedTempFile};

/// Files that begin with this are unfinished: readers skip them, and whoever finds an old one may delete it.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Files of this many bytes and more are packs, which nobody may read for months. They do not stay in memory, where they would take
/// the place of what the application works with.
const SELDOM_READ: usize = 1024 * 1024;

/// Publishes `bytes` at `path` with permissions `mode` (such as `0o600`, whatever the umask). Fails with `AlreadyExists`,
/// the old file untouched, if `path` exists; of many callers at once exactly one succeeds.
pub fn publish_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = make_parent(path)?;
    match written(directory, bytes, mode)?.persist_noclobber(path) {
        Ok(_) => sync_directory(directory),
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => {
            // The other file may be visible but not yet durable, and callers take "exists already" for "stored".
            sync_directory(directory)?;
            Err(e.error)
        }
        Err(e) => Err(e.error),
    }
}

/// Publishes `bytes` at `path` with permissions `mode`, in place of what is there. Readers see the old file or the new one.
pub fn publish_over(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = make_parent(path)?;
    written(directory, bytes, mode)?.persist(path).map_err(|e| e.error)?;
    sync_directory(directory)
}

/// Removes the file at `path`, durably. A missing file is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes `path` and what is missing above it, each durable in its parent.
pub fn create_directories(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let above = parent(path)?;
    create_directories(above)?;
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        // Made by someone else a moment ago: it may not be durable yet.
        _ => sync_directory(above),
    }
}

/// Makes the entries of `path` durable: names created, renamed and removed.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// The temporary file removes itself when it is dropped unpublished: on a full disk nothing stays.
fn written(directory: &Path, bytes: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut file = Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    if bytes.len() >= SELDOM_READ {
        // Only advice: where the system cannot follow it, nothing is lost.
        rustix::fs::fadvise(file.as_file(), 0, None, Advice::DontNeed).ok();
    }
    Ok(file)
}

fn make_parent(path: &Path) -> io::Result<&Path> {
    let directory = parent(path)?;
    create_directories(directory)?;
    Ok(directory)
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a path without a parent directory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_never_replaces_an_old_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        publish_new(&path, b"first", 0o640).unwrap();
        assert_eq!(publish_new(&path, b"second", 0o640).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        publish_over(&path, b"third", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(path.parent().unwrap()), ["c"]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(names(path.parent().unwrap()).is_empty());
    }

    #[test]
    fn of_many_publishers_one_wins() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/key");
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..16_u8 {
                let (path, won) = (&path, &won);
                scope.spawn(move || match publish_new(path, &[n; 4096], 0o600) {
                    Ok(()) => won.fetch_add(1, Ordering::Relaxed),
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => 0,
                    Err(e) => panic!("{e}"),
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
        assert_eq!(names(path.parent().unwrap()), ["key"]);
    }

    #[test]
    fn a_failed_publication_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("taken")).unwrap();
        publish_over(&root.path().join("taken"), b"bytes", 0o600).unwrap_err();
        assert_eq!(names(root.path()), ["taken"]);
    }
}
