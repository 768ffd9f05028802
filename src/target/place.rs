//! Where a staging directory lies: beside the final path, so that one rename is enough.

use super::StagingTree;
use super::beneath::hostile;
use super::metadata::Owners;
use crate::entry::Name;
use crate::error::{Failure, Kind};
use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Names and parent of a staging directory that may not exist yet.
pub(super) struct Place {
    pub parent: OwnedFd,
    parent_path: PathBuf,
    final_name: OsString,
    pub staging_name: OsString,
}

fn open_parent(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
        let message = format!("cannot open {}, in which the restored tree is to lie: {e}", path.display());
        Failure::new(Kind::Usage, message, "Nothing was changed. Create that directory, or choose another place.")
    })
}

/// That the directory in which `final_path` is to lie is there.
pub fn must_have_parent(final_path: &Path) -> Result<()> {
    let parent = final_path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    open_parent(parent).map(drop)
}

impl Place {
    pub fn beside(final_path: &Path, id: &str) -> Result<Place> {
        let Some(name) = final_path.file_name() else {
            let message = format!("{} cannot be a restore target", final_path.display());
            return Err(Failure::new(
                Kind::Usage,
                message,
                "Nothing was changed. Name a directory to be made, by a path that ends in its name.",
            ));
        };
        if id.is_empty() || id.contains(['/', '\0']) {
            return Err(hostile(&Name::new(id), "is no name for a staging directory"));
        }
        let parent_path =
            final_path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let parent = open_parent(&parent_path)?;
        let mut staging_name = OsString::from(".");
        staging_name.push(name);
        staging_name.push(format!(".blackstart-{id}"));
        Ok(Place { parent, parent_path, final_name: name.to_owned(), staging_name })
    }

    pub fn staging(&self) -> PathBuf {
        self.parent_path.join(&self.staging_name)
    }

    /// Opens the staging directory and locks it, so that no second restore works in it.
    pub fn open(self, resumed: bool) -> Result<StagingTree> {
        let shown = self.staging();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.parent, &self.staging_name, flags, Mode::empty())
            .with_context(|| format!("open the staging directory {}", shown.display()))?;
        if rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            let message = format!("another restore is working in {}", shown.display());
            return Err(Failure::new(
                Kind::Busy,
                message,
                "Nothing was changed. Wait for it to end, or choose another place.",
            ));
        }
        Ok(StagingTree {
            parent: self.parent,
            parent_path: self.parent_path,
            final_name: self.final_name,
            staging_name: self.staging_name,
            root,
            branches: Vec::new(),
            resumed,
            owners: Owners::load(),
            notes: Mutex::default(),
            recent: Mutex::default(),
            entered: Mutex::default(),
            tops: Mutex::default(),
        })
    }
}
