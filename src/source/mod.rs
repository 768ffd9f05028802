//! What can be protected. A source is read once, by one thread, in path order; the pipeline decides what must be read at all.

use crate::entry::{Entry, EntryKind, Name};
use crate::limits::{Grain, LEVEL};
use crate::report::Skip;
use anyhow::Result;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub mod barrier;
pub mod canary;
pub mod chroma;
pub mod command;
pub mod detect;
pub mod files;
pub mod postgres;
pub mod redis;
pub mod sqlite;

/// What the newest snapshot says of the source, for those that compare with it: a dump that shrank, a server that is another one.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// [`Finished::facts`] of that snapshot.
    pub facts: &'a serde_json::Value,
    pub seq: u64,
    /// The start of its run, where what has not changed since may be passed over (FORMAT.md §4-8).
    pub shortcuts: Option<Timestamp>,
    /// The operator has said that a great change is meant (`backup --accept-change`).
    pub accept_change: bool,
}

/// The order in which a source gives its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The order of [`Name`], the root's first.
    ByName,
    /// As the engine sends them. No path may come twice.
    AsTheyCome,
}

/// Calls back for each file of a basis, in no order.
pub type BasisFiles<'a> = dyn Fn(&mut dyn FnMut(&Entry) -> Result<()>) -> Result<()> + 'a;

/// One run's reading of one source.
pub trait Source: Send {
    /// `files`, `sqlite`, …: the `kind` of the commit.
    fn kind(&self) -> &'static str;

    /// The path or address that is read, for people. Never with a secret in it.
    fn root(&self) -> String;

    /// Called once, before the first `next`, where the newest snapshot of the source can be read. An `Err` ends the run.
    fn compare(&mut self, before: Before) -> Result<()> {
        let _nothing_to_compare = before;
        Ok(())
    }

    /// Called at most once, before the first `next`: the source is read as a member of a group, and fixes its point at the barrier. One that does not
    /// know how lets its place go, and the group has no common point.
    fn join(&mut self, member: barrier::Member) {
        drop(member);
    }

    /// Asked once, before the first `next`.
    fn order(&self) -> Order {
        Order::ByName
    }

    /// Called once, before the first `next`, on an incremental of a source that gives its entries as they come. `basis` lists the files of the
    /// basis that may be referred to as they are. A source whose engine tells what has changed since then may answer [`Piece::Same`] in these.
    fn lean_on(&mut self, basis: &BasisFiles) -> Result<()> {
        let _everything_is_read = basis;
        Ok(())
    }

    /// The next entry in [`Source::order`]; `None` once the source has been walked to its end.
    /// An entry that cannot be read at all is left out and goes to the skips of [`Source::finish`].
    /// `entry.stat` is set only where its equality proves that the contents are unchanged.
    fn next(&mut self) -> Result<Option<Entry>>;

    /// Reads on in the current regular file, in order. For a paged file, whole pages only. Not called for a file that the pipeline
    /// found unchanged. An `Err` ends the run; a file that alone cannot be read is [`Piece::Lost`].
    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece>;

    /// Whether something waits or piles up while this is read: a transaction, a lock, a buffer of a server. Then what the store does not take
    /// at once waits in the spool, so that the reading ends soon.
    fn holds_others_up(&self) -> bool {
        true
    }

    /// How streamed files are cut; always the same for one kind of source, since chunks of another length are not found again.
    fn grain(&self) -> Grain {
        Grain::COARSE
    }

    /// How hard zstd tries, unless the configuration says.
    fn level(&self) -> i32 {
        LEVEL
    }

    /// Called once, right after `next` has given `None`, while what was read may still be on its way to the store: the place to let go of
    /// transactions and locks. `Ok` means that the source is known to be complete but for the skips.
    fn finish(&mut self) -> Result<Finished>;
}

/// What one [`Source::read`] brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// This many bytes at the front of the buffer, at least 1.
    Data(usize),
    /// This many bytes of a hole (zeros that occupy no space), at least 1.
    Hole(u64),
    /// In a paged file that [`Source::lean_on`] listed, with the page size that it had there: this many bytes, whole pages, at least 1, are what the
    /// basis has at this place.
    Same(u64),
    /// The file has ended.
    End,
    /// A stream has ended: it is as long as what was read of it, whatever its entry promised. Not for paged files.
    StreamEnd,
    /// The file cannot be read on (I/O error, vanished). What was read of it is dropped; the source has noted the skip.
    Lost,
}

/// What is known once a source has been read to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The time to which the data is consistent: RPO is counted from here.
    pub data_time: Timestamp,
    /// What is missing or doubtful. Not empty: the run is partial.
    pub skipped: Vec<Skip>,
    /// What the engine said of itself, sealed into the commit: versions, page size, rows by table, …
    pub facts: serde_json::Value,
}

/// An entry for what a program or a server sends: a file of yet unknown length, or a directory of such; readable by its owner alone, who is whoever
/// runs the backup.
pub fn stream_entry(path: &str, kind: EntryKind, began: Timestamp) -> Entry {
    Entry {
        path: Name::new(path),
        kind,
        mode: if kind == EntryKind::Dir { 0o700 } else { 0o600 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        user: Name::default(),
        group: Name::default(),
        mtime: (began.as_second(), 0),
        size: 0,
        page: None,
        target: None,
        rdev: None,
        xattrs: BTreeMap::new(),
        stat: None,
    }
}

/// What the configuration says of a source beyond where it is: its proof and its loading need it, the restore of its files does not.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The directory that relative paths and secrets start from.
    pub base: PathBuf,
    pub chroma: Option<chroma::Options>,
    pub redis: Option<redis::Options>,
    pub postgres: Option<postgres::Options>,
    pub command: Option<command::Options>,
}

impl Skip {
    pub fn new(path: &Name, why: impl Into<String>) -> Skip {
        Skip { path: path.clone(), why: why.into() }
    }
}
