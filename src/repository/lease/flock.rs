//! The file that the holder of a lease keeps locked while it lives (FORMAT.md §2.7).
//!
//! The kernel lets go of a lock (flock(2)) when its holder ends, however that is and in whichever container it ran. So whoever has the lock of the
//! very file that a lease names knows that the lease's holder is dead. *The very file* is one inode of one running kernel: the same boot, device
//! and inode. A copy of the state directory, on this machine or another, is another file, and says nothing; nor does the same file after a
//! restart of the machine, which may be another machine that has been given the disk.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::durable;
use crate::repository::layout::SourceName;

/// Which file that is, for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    device: u64,
    inode: u64,
}

/// Locked until dropped.
pub struct Lock {
    pub name: Name,
    _file: File,
}

/// The lock of `source` in `directory`, which is that of one host and repository. `None` where another has it, or where the file system knows
/// no locks: then nobody can be judged by it.
pub fn take(directory: &Path, source: &SourceName) -> Option<Lock> {
    durable::create_directories(directory).ok()?;
    let file = open(&directory.join(source.as_str())).ok()?;
    file.try_lock().ok()?;
    let metadata = file.metadata().ok()?;
    Some(Lock { name: Name { device: metadata.dev(), inode: metadata.ino() }, _file: file })
}

/// It stays when the lock is given up: who removes a file may remove the one that another has just locked.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_a_copy_is_another_file() {
        let root = tempfile::tempdir().unwrap();
        let (here, copied) = (root.path().join("here"), root.path().join("copied"));
        let source = SourceName::new("orders").unwrap();
        let held = take(&here, &source).unwrap();
        assert!(take(&here, &source).is_none(), "it is held");
        let other = take(&here, &SourceName::new("etc").unwrap()).unwrap();
        assert_ne!(other.name, held.name, "each source has a file of its own");
        std::fs::create_dir(&copied).unwrap();
        std::fs::copy(here.join("orders"), copied.join("orders")).unwrap();
        let copy = take(&copied, &source).expect("nobody holds the copy");
        assert_ne!(copy.name, held.name, "whoever holds a copy must not take himself for the holder");
        let name = held.name;
        drop(held);
        assert_eq!(take(&here, &source).unwrap().name, name, "the same file, free again");
    }
}
