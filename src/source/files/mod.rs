//! A directory tree, or a single file, read as it lies there.
//!
//! * Nothing is followed: symlinks are entries, and every open goes through the descriptor of the directory above, so that a tree
//!   that is changed during the walk cannot lead it elsewhere. The root alone may be given through a symlink.
//! * What changes while it is read is reported, never hidden: see [`Files::read`].
//! * Sockets are left out without a word: they mean nothing without the process that made them.
//! * Only regular files are recognised as hard links of each other.
//! * A mount point is walked like a directory. With `one_file_system` the directory itself is stored and its contents are not;
//!   a btrfs subvolume counts as a file system of its own.
//! * Not stored: access and birth times, and the flags of `chattr`.
//! * `facts`: `files` (hard links too), `dirs`, `symlinks`, `special`, `bytes`; and `live_sqlite`, the paths of at most 100 SQLite databases
//!   with a journal beside them: copied as files they may not open, and belong in a `sqlite` source.
//!   `elsewhere`: what lies in the tree and is left out because it is a source of its own, paths by source.
//! * Memory: the names of the directories on the current path, and one path for each file with further links still to come.

mod attributes;
pub mod canary;
mod content;
mod dir;
mod metadata;
mod seen;
mod walk;

use crate::clock::Clock;
use crate::entry::{Entry, Name};
use crate::error::{Failure, Kind};
use crate::report::Skip;
use crate::source::barrier::{Member, Moment};
use crate::source::{Finished, Piece, Source};
use anyhow::{Context, Result, bail};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use walk::Walk;

/// What to leave out and what to tolerate. Globs are those of `.gitignore`, relative to the root; `!` takes back an earlier one.
#[derive(Debug, Clone, Default)]
pub struct FilesOptions {
    /// Left out, with everything below. Nothing below a directory that is left out can be taken back.
    pub exclude: Vec<String>,
    /// Stay on the root's file system.
    pub one_file_system: bool,
    /// Files that may change while they are read (logs, say) without making the run partial.
    pub tolerate_changing: Vec<String>,
    /// Sources of their own in this tree: their names, and paths relative to the root.
    pub within: BTreeMap<String, PathBuf>,
}

/// The `files` source. Reads as much as the process may: run it as root, or with `CAP_DAC_READ_SEARCH`.
pub struct Files {
    shown: String,
    started: Timestamp,
    root_entry: Option<Entry>,
    walk: Walk,
    member: Member,
    elsewhere: BTreeMap<String, PathBuf>,
}

impl Files {
    /// Opens the root: a directory or a regular file. A single file's entry is its name alone, with no entry for a root.
    /// An `Err` means that nothing can be read, or that a glob is malformed.
    pub fn open(root: &Path, options: FilesOptions, clock: &dyn Clock) -> Result<Files> {
        let started = clock.now();
        let exclude = globs("exclude", &options.exclude)?;
        let tolerate = globs("tolerate_changing", &options.tolerate_changing)?;
        // One that is not left out is in the tree, too.
        let mut elsewhere = options.within;
        elsewhere.retain(|_, path| exclude.matched_path_or_any_parents(path, false).is_ignore());
        let (walk, root_entry) =
            Walk::begin(root, exclude, tolerate, options.one_file_system).map_err(|e| cannot_open(root, &e))?;
        Ok(Files { shown: root.display().to_string(), started, root_entry, walk, elsewhere, member: Member::default() })
    }
}

/// What a person who has restored a tree needs to know.
pub fn advice(facts: &serde_json::Value) -> Vec<String> {
    let Some(elsewhere) = facts["elsewhere"].as_object().filter(|elsewhere| !elsewhere.is_empty()) else {
        return Vec::new();
    };
    let named = |(name, path): (&String, &serde_json::Value)| format!("{name} ({})", path.as_str().unwrap_or_default());
    let all: Vec<String> = elsewhere.iter().map(named).collect();
    vec![format!("Not in it, because they are sources of their own: {}. Restore each by its name.", all.join(", "))]
}

impl Source for Files {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn holds_others_up(&self) -> bool {
        false
    }

    fn root(&self) -> String {
        self.shown.clone()
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if let Some(entry) = self.root_entry.take() {
            // Nothing but the root was looked at before.
            self.member.fix(Moment::Chosen, || Ok(()))?;
            return Ok(Some(entry));
        }
        Ok(self.walk.next())
    }

    /// Delivers exactly the entry's size, as far as the file has it. Before the file ends it is looked at again: if its size or
    /// times are not those of the entry, it goes to the skips as "changed while it was read", unless a glob of
    /// `tolerate_changing` matches. A file that has become shorter is always reported.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        if buffer.is_empty() {
            bail!("the buffer to read into is empty (this is a bug)");
        }
        Ok(self.walk.read(buffer))
    }

    fn finish(&mut self) -> Result<Finished> {
        if self.root_entry.is_some() {
            bail!("the walk of {} has not begun (this is a bug)", self.shown);
        }
        self.member.throughout();
        let (skipped, mut facts) = self.walk.end()?;
        if !self.elsewhere.is_empty() {
            facts["elsewhere"] = serde_json::to_value(&self.elsewhere).context("note the sources in the tree")?;
        }
        Ok(Finished { data_time: self.member.fixed_at().unwrap_or(self.started), skipped, facts })
    }
}

/// Whether `exclude` leaves out what lies at `path` below the root.
pub fn leaves_out(exclude: &[String], path: &str) -> Result<bool> {
    Ok(globs("exclude", exclude)?.matched_path_or_any_parents(path, false).is_ignore())
}

fn globs(option: &str, lines: &[String]) -> Result<Gitignore> {
    let mut builder = GitignoreBuilder::new(".");
    // git takes `a[b` literally; whoever writes it here has more likely made a mistake.
    builder.allow_unclosed_class(false);
    for line in lines {
        builder.add_line(None, line).map_err(|e| malformed(option, line, &e))?;
    }
    builder.build().map_err(|e| malformed(option, &lines.join(" "), &e))
}

fn malformed(option: &str, glob: &str, error: &ignore::Error) -> anyhow::Error {
    let message = format!("`{option}` has a malformed glob, {glob:?}: {error}");
    Failure::new(Kind::Config, message, "Nothing was read. Globs are written as in .gitignore, relative to the root.")
}

fn cannot_open(root: &Path, error: &std::io::Error) -> anyhow::Error {
    let message = format!("cannot read {}: {error}", root.display());
    let help = "Nothing of this source was backed up. Check that the path exists, is a directory or a regular file, \
                and that this user may read it.";
    Failure::new(Kind::Failed, message, help)
}

/// A skip, in the words of the person who must act on it.
fn skip(path: &Name, error: rustix::io::Errno) -> Skip {
    use rustix::io::Errno;
    let why = match error {
        Errno::NOENT => "vanished while it was read".to_owned(),
        // A symlink or something else now bears the name.
        Errno::STALE | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => "replaced while it was read".to_owned(),
        Errno::ACCESS | Errno::PERM => "permission denied: run as a user who may read it, or exclude it".to_owned(),
        error => format!("cannot be read: {error}"),
    };
    Skip::new(path, why)
}
