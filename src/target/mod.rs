//! Where a restore writes: a staging tree beside the final path, which becomes the final path by one rename.
//!
//! A restore goes over the entries three times, always in path order, and keeps none of them in memory:
//!
//! 1. [`StagingTree::add`] for every entry: makes the directories. After it, from any thread and in any order,
//!    [`StagingTree::open_file`] and [`StagingTree::set_metadata`] for each regular file, the empty ones too.
//! 2. [`StagingTree::link`] for every entry, once all contents are written: makes symlinks, hard links, fifos and devices. None of them
//!    exists before, so nothing can be written through them.
//! 3. [`StagingTree::seal`] for every entry: gives each directory its metadata once the walk has left it. Then
//!    [`StagingTree::publish`] or [`StagingTree::publish_in_place`].
//!
//! [`StagingTree::branch_off`], before all of it, puts parts of the tree elsewhere.
//!
//! Each call ignores the entries that are not its business, so all three passes may be fed the whole index. The target is always a
//! directory that receives the entries: a source that is a single file `app.db`, restored to `DIR`, becomes `DIR/app.db`, and `DIR` is
//! private to its owner (mode 0700), since the index has no entry for it. So is a directory that the index does not mention but has entries
//! below.
//!
//! Whoever drops a staging tree leaves it on disk, for [`StagingTree::resume`]; [`StagingTree::discard`] removes it.

mod beneath;
mod branch;
mod metadata;
mod place;
mod publish;

pub use beneath::check_path;
pub use branch::Branch;
pub use place::must_have_parent;

use crate::entry::{Entry, EntryKind, Name};
use crate::error::{Failure, Kind};
use crate::report::Skip;
use anyhow::{Context, Result};
use beneath::{hostile, is_below, split};
use branch::Claimed;
use metadata::{On, Owners};
use place::Place;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Notes kept in full; beyond, they are counted only.
const NOTES_KEPT: usize = 100;

/// What could not be restored as it was, though the contents were: owners, attributes, devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    pub count: u64,
    /// The first of them, at most 100.
    pub first: Vec<Skip>,
}

impl Notes {
    fn add(&mut self, path: &Name, why: String) {
        self.count += 1;
        if self.first.len() < NOTES_KEPT {
            self.first.push(Skip::new(path, why));
        }
    }
}

/// Refuses a place where something is already.
pub fn must_be_free(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let message = format!("{} exists already", path.display());
    let help =
        "Nothing was changed: a restore never overwrites. Choose a new place, or replace the old one with --in-place.";
    Err(Failure::new(Kind::Usage, message, help))
}

/// A tree under construction. Only its owner can enter it (mode 0700) until it is published.
pub struct StagingTree {
    /// The directory in which both the staging directory and the final path lie.
    parent: OwnedFd,
    parent_path: PathBuf,
    final_name: OsString,
    staging_name: OsString,
    root: OwnedFd,
    branches: Vec<Claimed>,
    resumed: bool,
    owners: Owners,
    notes: Mutex<Notes>,
    /// The directory that was used last, since entries come in path order.
    recent: Mutex<Option<(Name, Arc<OwnedFd>)>>,
    /// The directories that `seal` has entered and not left.
    entered: Mutex<Vec<Entry>>,
    /// The tops of branches that `seal` has left. As with the root: once others may enter one, it is no longer known for this restore's.
    tops: Mutex<Vec<Entry>>,
}

impl StagingTree {
    /// A new staging directory `.<name>.blackstart-<id>` beside `final_path`, which must not exist.
    pub fn create(final_path: &Path, id: &str) -> Result<StagingTree> {
        must_be_free(final_path)?;
        StagingTree::create_in_place(final_path, id)
    }

    /// As [`StagingTree::create`], for [`StagingTree::publish_in_place`]: `final_path` may exist.
    pub fn create_in_place(final_path: &Path, id: &str) -> Result<StagingTree> {
        let place = Place::beside(final_path, id)?;
        rustix::fs::mkdirat(&place.parent, &place.staging_name, Mode::RWXU)
            .with_context(|| format!("create the staging directory {}", place.staging().display()))?;
        let tree = place.open(false)?;
        make_private(&tree.root).context("make the staging directory private")?;
        Ok(tree)
    }

    /// The staging directory that an interrupted restore left under the same id. All passes are repeated in full; files that are there
    /// already may be read through [`StagingTree::open_file`] to see what they still lack. `None`: the directory was open to others, because
    /// that restore was nearly finished or because another user has made it; or one of the `branches` is not as it was left. It is gone now: begin anew.
    pub fn resume(final_path: &Path, id: &str, branches: &[Branch]) -> Result<Option<StagingTree>> {
        let place = Place::beside(final_path, id)?;
        let tree = place.open(true)?;
        let stat = rustix::fs::fstat(&tree.root).context("look at the staging directory")?;
        let own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
        if !own || !tree.still_has(branches) {
            tree.discard()?;
            return Ok(None);
        }
        Ok(Some(tree))
    }

    /// Where the tree lies until it is published.
    pub fn staging_path(&self) -> PathBuf {
        self.parent_path.join(&self.staging_name)
    }

    /// First pass. Makes a directory, private until [`StagingTree::seal`]; checks the path of every entry.
    pub fn add(&self, entry: &Entry) -> Result<()> {
        check_path(&entry.path)?;
        if entry.kind != EntryKind::Dir {
            return if entry.path.is_empty() {
                Err(hostile(&entry.path, "is the root and no directory"))
            } else {
                Ok(())
            };
        }
        if !entry.path.is_empty() {
            let dir = self.make_dir(&entry.path).with_context(|| format!("create the directory \"{}\"", entry.path))?;
            *lock(&self.recent) = Some((entry.path.clone(), Arc::new(dir)));
        }
        Ok(())
    }

    /// Opens a regular file for writing and reading, and makes it if it is not there. From any thread.
    /// Its size is set by [`StagingTree::set_metadata`]: what was not written is a hole.
    pub fn open_file(&self, path: &Name) -> Result<File> {
        check_path(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        let open = || self.open_beneath(path, flags, Mode::RUSR | Mode::WUSR);
        let opened = match open() {
            Err(Errno::NOENT) => self.make_parent(path).and_then(|_| open()),
            Err(Errno::ACCESS) if self.resumed => self.make_writable(path).and_then(|()| open()),
            opened => opened,
        };
        let file = opened.with_context(|| format!("open \"{path}\" for writing"))?;
        Ok(File::from(file))
    }

    /// Brings a regular file to its size, then sets owner, attributes, mode and time; call it after the last write.
    pub fn set_metadata(&self, file: &File, entry: &Entry) -> Result<()> {
        let stat = rustix::fs::fstat(file).with_context(|| format!("look at \"{}\"", entry.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(hostile(&entry.path, "is not a regular file"));
        }
        if u64::try_from(stat.st_size) != Ok(entry.size) {
            rustix::fs::ftruncate(file, entry.size)
                .with_context(|| format!("set the size of \"{}\" to {} bytes", entry.path, entry.size))?;
        }
        self.apply(On::Open(file.as_fd()), entry);
        Ok(())
    }

    /// Second pass, after all contents: makes symlinks, hard links, fifos and devices.
    pub fn link(&self, entry: &Entry) -> Result<()> {
        if matches!(entry.kind, EntryKind::File | EntryKind::Dir) {
            return Ok(());
        }
        check_path(&entry.path)?;
        let parent =
            self.make_parent(&entry.path).with_context(|| format!("open the directory of \"{}\"", entry.path))?;
        let name = split(&entry.path).1;
        if self.resumed {
            match rustix::fs::unlinkat(&*parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).with_context(|| format!("replace \"{}\"", entry.path)),
            }
        }
        if entry.kind == EntryKind::Hardlink {
            return self.hard_link(entry, &parent, name);
        }
        let made = match entry.kind {
            EntryKind::Symlink => rustix::fs::symlinkat(target_of(entry)?.as_bytes(), &*parent, name),
            _ => make_node(entry, &parent, name),
        };
        match made {
            Ok(()) => self.apply(On::Named(parent.as_fd(), name), entry),
            Err(e @ (Errno::PERM | Errno::ACCESS)) if entry.rdev.is_some() => {
                lock(&self.notes).add(&entry.path, format!("device not made (only root may): {e}"));
            }
            Err(e) => return Err(e).with_context(|| format!("create \"{}\"", entry.path)),
        }
        Ok(())
    }

    /// Third pass, after all links: sets the metadata of each directory once the walk has left it.
    pub fn seal(&self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Dir {
            return Ok(());
        }
        check_path(&entry.path)?;
        let mut entered = lock(&self.entered);
        while let Some(last) = entered.pop_if(|last| !is_below(&entry.path, &last.path)) {
            self.seal_left(&last)?;
        }
        entered.push(entry.clone());
        Ok(())
    }

    fn seal_left(&self, entry: &Entry) -> Result<()> {
        if self.is_branch(&entry.path) {
            lock(&self.tops).push(entry.clone());
            return Ok(());
        }
        let dir = self
            .open_beneath(&entry.path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .with_context(|| format!("open the directory \"{}\" to set its metadata", entry.path))?;
        self.apply(On::Open(dir.as_fd()), entry);
        Ok(())
    }

    fn apply(&self, on: On<'_>, entry: &Entry) {
        for why in self.owners.apply(on, entry) {
            lock(&self.notes).add(&entry.path, why);
        }
    }

    fn hard_link(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let target = target_of(entry)?;
        check_path(target)?;
        let (dir, file) = split(target);
        let cannot = || format!("link \"{}\" to \"{target}\"", entry.path);
        let dir = self.open_beneath(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).with_context(cannot)?;
        let stat = rustix::fs::statat(&dir, file, AtFlags::SYMLINK_NOFOLLOW).with_context(cannot)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(hostile(&entry.path, "is a hard link to something that is no regular file"));
        }
        rustix::fs::linkat(&dir, file, parent, name, AtFlags::empty()).with_context(cannot)
    }

    /// The directory that holds `path`; made, where the index has not mentioned it.
    fn make_parent(&self, path: &Name) -> Result<Arc<OwnedFd>, Errno> {
        let (parent, _) = split(path);
        if let Some((_, dir)) = lock(&self.recent).as_ref().filter(|(recent, _)| *recent == parent) {
            return Ok(Arc::clone(dir));
        }
        let opened = self.open_beneath(&parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let dir = Arc::new(match opened {
            Err(Errno::NOENT) => self.make_dir(&parent)?,
            opened => opened?,
        });
        *lock(&self.recent) = Some((parent, Arc::clone(&dir)));
        Ok(dir)
    }

    fn make_dir(&self, path: &Name) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.is_branch(path) {
            return self.open_beneath(path, flags, Mode::empty());
        }
        let parent = self.make_parent(path)?;
        let name = split(path).1;
        match rustix::fs::mkdirat(&*parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.resumed => self.make_writable(path)?,
            // Another thread has needed it as a parent.
            Err(Errno::EXIST) => {}
            made => made?,
        }
        rustix::fs::openat(&*parent, name, flags, Mode::empty())
    }

    /// Takes back the mode that an interrupted restore has already set.
    fn make_writable(&self, path: &Name) -> Result<(), Errno> {
        let found = self.open_beneath(path, OFlags::PATH, Mode::empty())?;
        rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RWXU)
    }
}

/// Only its owner may enter it, whatever its parent prescribes.
fn make_private(directory: &OwnedFd) -> Result<()> {
    // What a default ACL of the parent has left here would be inherited by everything restored.
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(directory, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e).context("free it of inherited access rules"),
        }
    }
    // Those rules, or a strict umask, have shaped its mode too.
    rustix::fs::fchmod(directory, Mode::RWXU).context("change its mode")
}

fn target_of(entry: &Entry) -> Result<&Name> {
    entry
        .target
        .as_ref()
        .filter(|target| !target.is_empty() && !target.as_bytes().contains(&0))
        .ok_or_else(|| hostile(&entry.path, "is a link without a target"))
}

fn make_node(entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let kind = match entry.kind {
        EntryKind::Char => FileType::CharacterDevice,
        EntryKind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let (major, minor) = entry.rdev.unwrap_or_default();
    rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
}

/// A panic elsewhere does not make notes or directories wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
