//! All members of a common point, below one directory.
//!
//! Members are restored one after the other into a staging directory beside the target, each as a restore of its own: staged, made durable, and
//! renamed into its place there. So what is in its place is whole, and an interrupted restore goes on behind it. When all are there, one rename
//! makes the staging directory the target: nothing of it is visible before all of it is.

use anyhow::{Context, Result};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::find::Found;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::restore::{self as single, RestoreReport};
use crate::progress::Progress;
use crate::repository::agefile::Identity;
use crate::repository::group::Group;
use crate::repository::layout::SourceName;
use crate::repository::snapshot::Snapshot;
use crate::target;

/// Others may pass through to the members, which have the modes of their sources: a database server has another user.
const MODE: u32 = 0o755;

#[derive(Clone)]
pub struct Request {
    /// A directory that does not exist yet: each member comes to lie below it, under the name of its source.
    pub to: PathBuf,
    pub workers: usize,
    pub progress: Progress,
}

#[derive(Debug, Serialize)]
pub struct GroupRestored {
    #[serde(flatten)]
    pub group: Group,
    pub to: PathBuf,
    /// Of those that were restored now.
    pub members: Vec<RestoreReport>,
    /// Those that an interrupted restore of the same point had restored already.
    pub there: Vec<SourceName>,
    pub seconds: f64,
}

/// Restores all members of `found`.
pub fn restore(open: &Open, identities: &[Identity], found: &Found, request: &Request) -> Result<GroupRestored> {
    let begun = Instant::now();
    let staging = Staging::open(&request.to, found)?;
    let (mut members, mut there) = (Vec::new(), Vec::new());
    for (commit, snapshot) in &found.members {
        let place = staging.path.join(snapshot.source.as_str());
        if place.symlink_metadata().is_ok() {
            there.push(snapshot.source.clone());
            continue;
        }
        let to = request.to.join(snapshot.source.as_str());
        let wanted = single::Request {
            finish: single::finish_of(snapshot, identities, &to, &[])?,
            progress: request.progress.clone(),
            ..single::Request::new(place, request.workers)
        };
        let report = single::restore(open, identities, commit, snapshot, &wanted)
            .map_err(|e| unfinished(e, snapshot, request, &staging))?;
        members.push(RestoreReport { to, ..report });
    }
    staging.publish(&request.to)?;
    let (group, to) = (found.point.group.clone(), request.to.clone());
    Ok(GroupRestored { group, to, members, there, seconds: begun.elapsed().as_secs_f64() })
}

fn unfinished(error: anyhow::Error, snapshot: &Snapshot, request: &Request, staging: &Staging) -> anyhow::Error {
    error.context(format!(
        "restore {}: nothing is at {} yet. The members that are restored wait in {}; the same command again goes on from there",
        snapshot.source,
        request.to.display(),
        staging.path.display()
    ))
}

/// The directory beside the target that becomes it. Its name says of which point it is.
struct Staging {
    path: PathBuf,
    /// Locked, so that no second restore works in it.
    directory: File,
}

impl Staging {
    fn open(to: &Path, found: &Found) -> Result<Staging> {
        target::must_be_free(to)?;
        let (Some(name), Some(parent)) = (to.file_name(), to.parent()) else {
            let help = "Nothing was changed. Name a directory to be made, by a path that ends in its name.";
            return Err(Failure::new(Kind::Usage, format!("{} cannot be a restore target", to.display()), help));
        };
        if !parent.is_dir() {
            let help = "Nothing was changed. Create that directory, or choose another place.";
            return Err(Failure::new(Kind::Usage, format!("there is no directory {}", parent.display()), help));
        }
        let (group, hash) = (&found.point.group, found.point.hash.to_string());
        let path =
            parent.join(format!(".{}.blackstart-group-{}-{}-{}", name.display(), group.group, group.n, &hash[..8]));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => ours(&path)?,
            made => made.with_context(|| format!("make {}", path.display()))?,
        }
        let directory = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            let help = "Nothing was changed. Wait for it to end, or choose another place.";
            return Err(Failure::new(Kind::Busy, format!("another restore is working in {}", path.display()), help));
        }
        Ok(Staging { path, directory })
    }

    fn publish(self, to: &Path) -> Result<()> {
        let help = format!(
            "All members are whole and durable in {}: move that directory where you want it. Nothing was overwritten.",
            self.path.display()
        );
        let failed = |what: String| {
            Failure::new(Kind::Failed, format!("cannot put the group at {}: {what}", to.display()), help.clone())
        };
        fs::set_permissions(&self.path, fs::Permissions::from_mode(MODE)).map_err(|e| failed(e.to_string()))?;
        self.directory.sync_all().map_err(|e| failed(e.to_string()))?;
        match rustix::fs::renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // Some network file systems cannot promise it: then look first, which leaves a moment for others to come between.
            Err(Errno::INVAL | Errno::NOSYS) => {
                target::must_be_free(to)?;
                rustix::fs::rename(&self.path, to).map_err(|e| failed(e.to_string()))?;
            }
            renamed => renamed.map_err(|e| failed(e.to_string()))?,
        }
        let parent = to.parent().context("a restore needs a directory to write to")?;
        durable::sync_directory(parent).context("make the new name durable (all members are in place)")
    }
}

/// That what is there is a directory of this user that nobody else could have filled.
fn ours(path: &Path) -> Result<()> {
    let metadata = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
    let me = rustix::process::geteuid().as_raw();
    // Its mode is the final one where only the rename is left to do.
    if metadata.is_dir() && metadata.uid() == me && [0o700, MODE].contains(&(metadata.mode() & 0o7777)) {
        return Ok(());
    }
    let message =
        format!("{} is in the way: it is not what an interrupted restore of this user leaves", path.display());
    Err(Failure::new(Kind::Usage, message, "Nothing was changed. See what it is; remove it, or choose another place."))
}
