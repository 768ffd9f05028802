//! The end of a restore: everything durable, then one rename.

use super::{Notes, StagingTree, lock};
use crate::error::{Failure, Kind};
use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

impl StagingTree {
    /// Makes everything durable and gives the tree its final name. Fails, with the tree still in staging, if something has
    /// taken that name meanwhile.
    pub fn publish(self) -> Result<Notes> {
        self.settle()?;
        self.rename(&self.staging_name, &self.final_name).map_err(|e| self.cannot_publish(e))?;
        self.persist_names()?;
        Ok(self.into_notes())
    }

    /// As [`StagingTree::publish`], but what bears the final name is kept beside it as `<name>.before-restore-<time>`.
    /// Returns that path; `None` if there was nothing. Should the machine stop between the two renames, the old copy is there
    /// under its new name and the restored tree complete in staging.
    pub fn publish_in_place(self, now: Timestamp) -> Result<(Notes, Option<PathBuf>)> {
        self.settle()?;
        let mut old_name = OsString::from(&self.final_name);
        old_name.push(now.strftime(".before-restore-%Y%m%dT%H%M%SZ").to_string());
        let kept = match self.rename(&self.final_name, &old_name) {
            Ok(()) => Some(self.parent_path.join(&old_name)),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(self.cannot_publish(e)),
        };
        if let Err(e) = self.rename(&self.staging_name, &self.final_name) {
            let error = self.cannot_publish(e);
            if kept.is_some() {
                self.rename(&old_name, &self.final_name).with_context(|| {
                    format!(
                        "{error}; and what was there before is now at {}",
                        self.parent_path.join(&old_name).display()
                    )
                })?;
            }
            return Err(error);
        }
        self.persist_names()?;
        Ok((self.into_notes(), kept))
    }

    /// Removes the staging directory and everything in it, those of the branches too.
    pub fn discard(self) -> Result<()> {
        self.discard_branches()?;
        let path = self.staging_path();
        std::fs::remove_dir_all(&path).with_context(|| format!("remove the staging directory {}", path.display()))
    }

    /// Seals the directories that are still open and waits until the disk has everything. The root comes last, when the long part is
    /// over: once others may enter it, an interrupted restore can no longer be taken up.
    fn settle(&self) -> Result<()> {
        let on_disk =
            || format!("write the restored tree to disk (it is incomplete, in {})", self.staging_path().display());
        let mut entered = lock(&self.entered);
        while let Some(dir) = entered.pop_if(|dir| !dir.path.is_empty()) {
            self.seal_left(&dir)?;
        }
        for root in std::iter::once(&self.root).chain(self.branches.iter().map(|claimed| &claimed.staging)) {
            rustix::fs::syncfs(root).with_context(on_disk)?;
        }
        self.publish_branches()?;
        if let Some(root) = entered.pop() {
            self.seal_left(&root)?;
            rustix::fs::fsync(&self.root).with_context(on_disk)?;
        }
        Ok(())
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match rustix::fs::renameat_with(&self.parent, from, &self.parent, to, RenameFlags::NOREPLACE) {
            // Some network file systems cannot promise it: then look first, which leaves a moment for others to come between.
            Err(Errno::INVAL | Errno::NOSYS) => rename_after_look(&self.parent, from, to),
            renamed => renamed,
        }
    }

    fn persist_names(&self) -> Result<()> {
        rustix::fs::fsync(&self.parent).with_context(|| {
            format!("make the new name in {} durable (the tree is in place)", self.parent_path.display())
        })
    }

    fn cannot_publish(&self, error: Errno) -> anyhow::Error {
        let message =
            format!("cannot put the restored tree at {}: {error}", self.parent_path.join(&self.final_name).display());
        let help = format!(
            "The restored tree is complete and durable in {}: move it where you want it. Nothing was overwritten.",
            self.staging_path().display()
        );
        Failure::new(Kind::Failed, message, help)
    }

    fn into_notes(self) -> Notes {
        std::mem::take(&mut *lock(&self.notes))
    }
}

fn rename_after_look(parent: &OwnedFd, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    match rustix::fs::statat(parent.as_fd(), to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(parent, from, parent, to),
        Err(e) => Err(e),
    }
}
