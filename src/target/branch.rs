//! Parts of a tree that lie in directories of their own, on other disks: what an index has at a path and below it goes there instead.
//!
//! Each is written into a staging directory of the same name *in* that directory, since a mount point cannot be renamed. What lies there moves up
//! just before the tree gets its final name: nothing refers to it until then.

use super::beneath::{self, is_below};
use super::metadata::On;
use super::{StagingTree, lock, make_private};
use crate::entry::Name;
use crate::error::{Failure, Kind};
use anyhow::{Context, Result, ensure};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What an index has at `at` and below comes to lie in `place`, an absolute path to a directory that is empty or does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    pub at: Name,
    pub place: PathBuf,
}

impl Branch {
    pub fn has(&self, path: &Name) -> bool {
        *path == self.at || is_below(path, &self.at)
    }
}

/// A branch that is this tree's alone.
pub(super) struct Claimed {
    branch: Branch,
    top: OwnedFd,
    pub staging: OwnedFd,
}

impl StagingTree {
    /// Claims the directory of each branch, before the first pass.
    pub fn branch_off(&mut self, branches: &[Branch]) -> Result<()> {
        for branch in branches {
            let claimed = self.claim(branch)?;
            self.branches.push(claimed);
        }
        Ok(())
    }

    fn claim(&self, branch: &Branch) -> Result<Claimed> {
        let place = &branch.place;
        let top = open_or_make(place)?;
        if self.has_claimed(&top)? {
            return Err(taken(place, "is to hold two parts of what is restored"));
        }
        let staging = place.join(&self.staging_name);
        if !self.resumed {
            // Of a try whose tree is gone.
            remove(&staging)?;
            nothing_but(place, None)?;
            rustix::fs::mkdirat(&top, &self.staging_name, Mode::RWXU)
                .with_context(|| format!("create the staging directory {}", staging.display()))?;
        }
        let opened = rustix::fs::openat(&top, &self.staging_name, DIRECTORY, Mode::empty())
            .with_context(|| format!("open the staging directory {}", staging.display()))?;
        // Another restore may have looked at the same moment.
        if let Err(e) = nothing_but(place, Some(&self.staging_name)) {
            if !self.resumed {
                remove(&staging)?;
            }
            return Err(e);
        }
        make_private(&opened).with_context(|| format!("make {} private", staging.display()))?;
        Ok(Claimed { branch: branch.clone(), top, staging: opened })
    }

    fn has_claimed(&self, directory: &OwnedFd) -> Result<bool> {
        let identity = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).context("look at a directory");
        let this = identity(directory)?;
        Ok(self.branches.iter().map(|claimed| identity(&claimed.top)).collect::<Result<Vec<_>>>()?.contains(&this))
    }

    /// Whether each of `branches` still has what an interrupted restore has written to it. If one has not, what counts as written would be missing.
    pub(super) fn still_has(&self, branches: &[Branch]) -> bool {
        let staged = |branch: &Branch| {
            let top = rustix::fs::open(&branch.place, DIRECTORY, Mode::empty()).ok()?;
            let staging = rustix::fs::openat(&top, &self.staging_name, DIRECTORY, Mode::empty()).ok()?;
            rustix::fs::fstat(&staging).ok()
        };
        let own = rustix::process::geteuid().as_raw();
        branches.iter().all(|branch| {
            staged(branch).is_some_and(|stat| stat.st_uid == own && stat.st_mode & 0o077 == 0)
                && nothing_but(&branch.place, Some(&self.staging_name)).is_ok()
        })
    }

    /// Opens a checked path below the root, or below that of the branch to which it belongs.
    pub(super) fn open_beneath(&self, path: &Name, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        match self.branches.iter().find(|claimed| claimed.branch.has(path)) {
            None => beneath::open(&self.root, path, flags, mode),
            Some(Claimed { branch, staging, .. }) => {
                let rest = &path.as_bytes()[branch.at.as_bytes().len()..];
                beneath::open(staging, &Name::new(rest.strip_prefix(b"/").unwrap_or(rest)), flags, mode)
            }
        }
    }

    /// Whether the directory `path` is the top of a branch.
    pub(super) fn is_branch(&self, path: &Name) -> bool {
        self.branches.iter().any(|claimed| claimed.branch.at == *path)
    }

    /// Moves what is written, and durable, to where it stays, and gives the directories their metadata.
    pub(super) fn publish_branches(&self) -> Result<()> {
        let tops = lock(&self.tops);
        for Claimed { branch, top, staging } in &self.branches {
            let publish = || -> Result<()> {
                for entry in fs::read_dir(branch.place.join(&self.staging_name))? {
                    let name = entry?.file_name();
                    rustix::fs::renameat_with(staging, &name, top, &name, RenameFlags::NOREPLACE)?;
                }
                rustix::fs::unlinkat(top, &self.staging_name, AtFlags::REMOVEDIR)?;
                tops.iter()
                    .filter(|entry| entry.path == branch.at)
                    .for_each(|entry| self.apply(On::Open(top.as_fd()), entry));
                Ok(rustix::fs::fsync(top)?)
            };
            publish().with_context(|| format!("move what is restored into {}", branch.place.display()))?;
        }
        Ok(())
    }

    /// Removes what is staged in the branches.
    pub(super) fn discard_branches(&self) -> Result<()> {
        self.branches.iter().try_for_each(|claimed| remove(&claimed.branch.place.join(&self.staging_name)))
    }
}

fn open_or_make(place: &Path) -> Result<OwnedFd> {
    ensure!(place.is_absolute(), "a branch needs an absolute path");
    let refused = |what: &str, e: &dyn std::fmt::Display| {
        let help = "Nothing was restored. Name a directory, and no link to one, that is empty or can be made: the one in which it is to lie must be there.";
        Failure::new(Kind::Usage, format!("cannot {what} {}: {e}", place.display()), help)
    };
    match fs::DirBuilder::new().mode(0o700).create(place) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(refused("make", &e)),
        _ => {}
    }
    rustix::fs::open(place, DIRECTORY, Mode::empty()).map_err(|e| refused("open", &e))
}

fn taken(place: &Path, why: &str) -> anyhow::Error {
    let help = "Nothing was restored: a restore never overwrites. Name a directory that is empty or does not exist; at the top of a disk, where \
                `lost+found` lies, one below it.";
    Failure::new(Kind::Usage, format!("{} {why}", place.display()), help)
}

fn nothing_but(place: &Path, staging: Option<&OsStr>) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| format!("list {}", place.display()))? {
        let name = entry.with_context(|| format!("list {}", place.display()))?.file_name();
        if Some(name.as_os_str()) != staging {
            return Err(taken(place, &format!("is not empty: there is {}", name.display())));
        }
    }
    Ok(())
}

fn remove(staging: &Path) -> Result<()> {
    match fs::remove_dir_all(staging) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove what an unfinished restore has left in {}", staging.display()))
        }
        _ => Ok(()),
    }
}
