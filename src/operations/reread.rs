//! Packs to read again and prove sound: those first that were read longest ago, within a budget, so that many short runs of
//! `verify --read-data` add up to a whole one. When each was read is remembered in the state directory; where that is lost, all count as
//! never read, and the report says so.

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Open;
use super::restore::PackWork;
use crate::clock::Clock;
use crate::durable;
use crate::interrupt;
use crate::progress::Progress;
use crate::repository::index::PackLine;
use crate::repository::layout::{Hash, SourceName};
use crate::storage;

/// How much a run may read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    pub bytes: Option<Amount>,
    pub until: Option<Instant>,
}

impl Budget {
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.until.is_none()
    }
}

/// Stored bytes, or a share of all that a source has, from 0 to 1. At least one pack is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    Bytes(u64),
    Share(f64),
}

/// How far the reading of a source's packs has come, in this run and in those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    pub packs: u64,
    /// In this run.
    pub packs_read: u64,
    pub bytes_read: u64,
    /// Packs that could not be read in this run because they lie in an archive class.
    pub archived: u64,
    /// Packs that the store refused to give in this run: nothing is known of them.
    pub denied: u64,
    /// Packs of which nobody knows that they were ever read.
    pub never_read: u64,
    /// Every other pack has been read since.
    pub all_read_since: Option<Timestamp>,
}

/// The packs of one source, in a temporary table, and the memory of when each was read.
pub struct Queue {
    db: Mutex<Connection>,
    clock: Arc<dyn Clock>,
    memory: Option<Memory>,
}

/// A line for each pack read: its hash, and the second at which it was found sound.
struct Memory {
    path: PathBuf,
    file: Mutex<File>,
}

/// How far the threads of one run have come.
#[derive(Default)]
struct Run {
    /// Stored bytes of the packs that are read or being read.
    taken: u64,
    coverage: Coverage,
    faults: Faults,
}

/// What is wrong with which pack.
pub type Faults = Vec<(Hash, String)>;

impl Queue {
    /// An empty queue, with what is remembered of `source`.
    pub fn open(open: &Open, source: &SourceName) -> Result<Queue> {
        let db = Connection::open("").context("open a temporary table")?;
        db.execute_batch(
            "PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA cache_size=-16384;
             CREATE TABLE read(name BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID;
             CREATE TABLE pack(name BLOB PRIMARY KEY, size INTEGER, frames BLOB, at INTEGER, rank INTEGER, taken INTEGER) WITHOUT ROWID;
             CREATE INDEX by_rank ON pack(taken, rank, name);
             BEGIN",
        )
        .context("open a temporary table")?;
        let directory = open.state.as_ref().map(|state| state.join(&open.trust.id).join("verified"));
        let memory = directory.map(|d| Memory::recall(&db, &d, source)).transpose()?;
        Ok(Queue { db: Mutex::new(db), clock: Arc::clone(&open.clock), memory })
    }

    /// A pack that snapshots need. Without a memory the order is a random one, so that short runs add up nonetheless, sooner or later.
    pub fn add(&self, line: &PackLine) -> Result<()> {
        let PackLine::Pack { name, size, frames, .. } = line else { return Ok(()) };
        let db = self.db();
        let mut add = db.prepare_cached(
            "INSERT OR IGNORE INTO pack SELECT ?1, ?2, ?3, at, coalesce(at, CASE WHEN ?4 THEN -1 ELSE abs(random() / 2) END), 0
             FROM (SELECT (SELECT at FROM read WHERE name=?1) AS at)",
        )?;
        add.execute(params![&name.0[..], size, serde_json::to_vec(frames)?, self.memory.is_some()])?;
        Ok(())
    }

    /// Reads packs with `check` on `workers` threads until the budget is used up or all are read.
    pub fn read(
        &self,
        budget: &Budget,
        workers: usize,
        progress: &Progress,
        check: impl Fn(&PackWork) -> Result<()> + Sync,
    ) -> Result<(Coverage, Faults)> {
        let total: u64 = self.db().query_row("SELECT coalesce(sum(size), 0) FROM pack", [], |row| row.get(0))?;
        let limit = match budget.bytes {
            None => total,
            Some(Amount::Bytes(bytes)) => bytes.min(total),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u64")]
            Some(Amount::Share(share)) => (total as f64 * share).ceil() as u64,
        };
        progress.expect(progress.done() + limit);
        let run = Mutex::new(Run::default());
        let work = || -> Result<()> {
            loop {
                interrupt::check("What was read counts: the same command again goes on with the rest.")?;
                let mut so_far = run.lock().unwrap_or_else(PoisonError::into_inner);
                if so_far.taken >= limit || budget.until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(());
                }
                let Some(pack) = self.next()? else { return Ok(()) };
                so_far.taken += pack.size;
                drop(so_far);
                let found = check(&pack);
                progress.add(pack.size);
                let mut so_far = run.lock().unwrap_or_else(PoisonError::into_inner);
                so_far.coverage.packs_read += 1;
                so_far.coverage.bytes_read += pack.size;
                match found {
                    Ok(()) => self.note(&pack.name)?,
                    Err(e) if storage::is_archived(&e) => so_far.coverage.archived += 1,
                    // The others may be given. Of a store that gives nothing any more, nothing is to be learnt.
                    Err(e) if storage::kind_of(&e) == Some(storage::Kind::Denied) => {
                        so_far.coverage.denied += 1;
                        so_far.faults.push((pack.name, format!("{e:#}")));
                    }
                    Err(e) if storage::is_silence(&e) => return Err(e),
                    Err(e) => so_far.faults.push((pack.name, format!("{e:#}"))),
                }
            }
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            handles
                .into_iter()
                .map(|h| h.join().map_err(|_| anyhow!("a reader panicked; this is a bug, please report it")).flatten())
                .collect::<Result<Vec<()>>>()
        })?;
        let Run { mut coverage, faults, .. } = run.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.sum_up(&mut coverage)?;
        Ok((coverage, faults))
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Result<Option<PackWork>> {
        let db = self.db();
        let mut first =
            db.prepare_cached("SELECT name, size, frames FROM pack WHERE taken=0 ORDER BY rank, name LIMIT 1")?;
        let row =
            first.query_row([], |r| Ok((r.get::<_, Vec<u8>>(0)?, r.get(1)?, r.get::<_, Vec<u8>>(2)?))).optional()?;
        let Some((name, size, frames)) = row else { return Ok(None) };
        db.prepare_cached("UPDATE pack SET taken=1 WHERE name=?1")?.execute([&name])?;
        let name = Hash(name.try_into().map_err(|_| anyhow!("a hash has 32 bytes"))?);
        Ok(Some(PackWork { name, size, frames: serde_json::from_slice(&frames)?, writes: Vec::new() }))
    }

    /// A pack was read and is sound.
    fn note(&self, name: &Hash) -> Result<()> {
        let now = self.clock.now().as_second();
        self.db().prepare_cached("UPDATE pack SET at=?2 WHERE name=?1")?.execute(params![&name.0[..], now])?;
        if let Some(memory) = &self.memory {
            let mut file = memory.file.lock().unwrap_or_else(PoisonError::into_inner);
            // What is not remembered is read again.
            drop(file.write_all(line(name, now).as_bytes()));
        }
        Ok(())
    }

    fn sum_up(&self, coverage: &mut Coverage) -> Result<()> {
        let db = self.db();
        let row = db.query_row("SELECT count(*), count(*) - count(at), min(at) FROM pack", [], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get::<_, Option<i64>>(2)?))
        })?;
        coverage.packs = row.0;
        coverage.never_read = row.1;
        coverage.all_read_since = row.2.map(Timestamp::from_second).transpose().context("read when packs were read")?;
        let Some(memory) = &self.memory else { return Ok(()) };
        // Without the packs that no snapshot needs any more, and one line for each.
        let mut rows = db.prepare("SELECT name, at FROM pack WHERE at IS NOT NULL")?;
        let lines = rows.query_map([], |r| Ok((r.get::<_, Vec<u8>>(0)?, r.get(1)?)))?;
        let mut text = String::new();
        for row in lines {
            let (name, at) = row?;
            text.push_str(&line(&Hash(name.try_into().map_err(|_| anyhow!("a hash has 32 bytes"))?), at));
        }
        let path = &memory.path;
        durable::publish_over(path, text.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))
    }
}

impl Memory {
    /// Loads what is remembered into the table `read`. Lines that make no sense count for nothing.
    fn recall(db: &Connection, directory: &Path, source: &SourceName) -> Result<Memory> {
        durable::create_directories(directory).with_context(|| format!("make {}", directory.display()))?;
        let path = directory.join(source.as_str());
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut add = db.prepare("INSERT OR REPLACE INTO read VALUES(?1, ?2)")?;
        for line in text.lines() {
            let Some((name, at)) = line.split_once(' ') else { continue };
            if let (Ok(name), Ok(at)) = (Hash::parse(name), at.parse::<i64>()) {
                add.execute(params![&name.0[..], at])?;
            }
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = Mutex::new(file.with_context(|| format!("open {}", path.display()))?);
        Ok(Memory { path, file })
    }
}

fn line(name: &Hash, at: i64) -> String {
    format!("{name} {at}\n")
}
