//! What checks look at in the files of a copy.

use anyhow::{Context, Result};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::path::Path;

use crate::repository::layout::Hash;

/// All entries below a directory.
pub fn entries(directory: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        sum += 1;
        if entry.file_type()?.is_dir() {
            sum += entries(&entry.path())?;
        }
    }
    Ok(sum)
}

/// The SHA-256 of a file.
pub fn hash(file: &Path) -> Result<Hash> {
    use std::io::Read;
    let (mut file, mut hasher, mut part) = (std::fs::File::open(file)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(Hash(hasher.finalize().into())),
            n => hasher.update(&part[..n]),
        }
    }
}

/// When the newest file below a directory was written; `None` if there is no file.
pub fn newest(directory: &Path) -> Result<Option<Timestamp>> {
    let mut found = None;
    for entry in std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found = found.max(newest(&entry.path())?);
        } else if kind.is_file() {
            found = found.max(Some(Timestamp::try_from(entry.metadata()?.modified()?)?));
        }
    }
    Ok(found)
}

/// Copies a tree of files and directories; what is neither is left out.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).with_context(|| format!("make {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &to).with_context(|| format!("copy to {}", to.display()))?;
        }
    }
    Ok(())
}
