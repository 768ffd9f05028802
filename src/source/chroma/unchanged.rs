//! A directory that provably did not change since the newest snapshot need not be copied, verified or read again.
//!
//! The snapshot's facts have a digest of what the directory looked like: of each file device, inode, size, mtime and ctime. A run that may take
//! shortcuts takes the write lock, looks again, and lets go: with the lock held, nobody is in the middle of a transaction, and where the same
//! digest comes out and no file is younger than FORMAT.md §4-8 allows, the files are those that were verified then. The pipeline makes sure of
//! each by its own rule; what it wants to read all the same is read where it lies, and the run fails if it changes meanwhile.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::copy::{self, Seen};
use super::layout::{self, DATABASE};
use crate::source::sqlite;

/// Both times of a file must be older than the start of the basis's run by this, and by the second that they may be rounded to.
const GRAIN: SignedDuration = SignedDuration::from_secs(3);

/// What the newest snapshot has to say, where shortcuts may be taken.
pub struct Known {
    pub facts: super::Facts,
    /// The start of its run.
    pub started: Timestamp,
}

/// What a directory looked like, as 64 hex digits. `None` where the files do not tell everything: a WAL beside the database has the newest pages.
pub fn digest(from: &Path, seen: &Seen) -> Option<String> {
    if std::fs::metadata(from.join(format!("{DATABASE}-wal"))).is_ok_and(|wal| wal.len() > 0) {
        return None;
    }
    let mut hash = Sha256::new();
    for (path, m) in seen {
        hash.update(path);
        hash.update([0]);
        for number in [m.dev(), m.ino(), m.size()] {
            hash.update(number.to_le_bytes());
        }
        for number in [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()] {
            hash.update(number.to_le_bytes());
        }
    }
    Some(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// A directory that is as it was.
pub struct Same {
    pub seen: Seen,
    /// Bytes of a page of the database.
    pub page: u32,
    /// What lies in the directory and belongs to no collection.
    pub left_out: Vec<String>,
}

/// Looks whether a directory is as it was `known`.
pub fn look(from: &Path, known: &Known) -> Result<Option<Same>> {
    let database = from.join(DATABASE);
    let connection = copy::open(&database)?;
    layout::refuse_unknown(&connection, from)?;
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| sqlite::open::explain(&database, e))?;
    let found = seen(from, &connection);
    let page = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).context("read the page size")?;
    connection.execute_batch("ROLLBACK").map_err(|e| sqlite::open::explain(&database, e))?;
    let (seen, left_out) = found?;
    let same = known.facts.state.is_some() && digest(from, &seen) == known.facts.state;
    Ok((same && seen.values().all(|m| is_older(m, known.started))).then_some(Same { seen, page, left_out }))
}

fn seen(from: &Path, connection: &Connection) -> Result<(Seen, Vec<String>)> {
    let mut seen = Seen::new();
    let segments = copy::segments(connection)?;
    seen.insert(DATABASE.to_owned(), std::fs::metadata(from.join(DATABASE)).context("look at the database")?);
    for segment in &segments {
        let files = copy::files(&from.join(segment))?;
        seen.extend(files.into_iter().map(|(name, metadata)| (format!("{segment}/{name}"), metadata)));
    }
    let left_out = copy::others(from, &segments)?;
    Ok((seen, left_out))
}

fn is_older(m: &Metadata, started: Timestamp) -> bool {
    [m.mtime(), m.ctime()].into_iter().all(|at| Timestamp::from_second(at).is_ok_and(|at| at + GRAIN < started))
}
