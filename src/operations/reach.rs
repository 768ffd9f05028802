//! How far a source can be brought back: to the data of its newest snapshot, and on from there to the end of the stored log, as far as there is no gap.
//!
//! No key is needed: commits and the heads of the log's objects are signed plain text. What only a key can show, whether the bytes of the log
//! decrypt, drills show by replaying it.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::Open;
use super::wal::behind::Stored;
use super::wal::lies_in_the_newest_part;
use super::wal::recover::holds;
use crate::repository::layout::SourceName;
use crate::repository::log::{Log, Lost, Position};
use crate::repository::snapshot::{LogRange, Snapshot};

/// Where the log ends that follows upon a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEnd {
    /// Number of the stretch with which it ends.
    pub stretch: u64,
    pub timeline: u32,
    pub position: Position,
    /// The engine's clock when it had written the last byte; the store's own time of that object where it is earlier, since a clock that is ahead
    /// must not make data look fresh. An engine that has written nothing since has lost nothing since either.
    pub until: Timestamp,
}

/// Where the log ends that goes on from `snapshot`; `None`: no log does.
pub fn log_after(open: &Open, snapshot: &Snapshot) -> Result<Option<LogEnd>> {
    Ok(way_after(open, snapshot)?.log)
}

/// How the log goes on from `snapshot`.
pub fn way_after(open: &Open, snapshot: &Snapshot) -> Result<WayOn> {
    match &snapshot.log {
        Some(range) => way_on(open, &snapshot.source, range, snapshot.started),
        None => Ok(WayOn::default()),
    }
}

/// How the log goes on from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WayOn {
    pub log: Option<LogEnd>,
    /// The stretch that is being written, if the snapshot leads into it: also while nothing of it is stored.
    pub into: Option<u64>,
    /// What may follow upon the snapshot and cannot be used.
    pub lost: Option<String>,
}

/// The same for a snapshot of `source` with this range of the log, begun at `started`.
pub fn way_on(open: &Open, source: &SourceName, range: &LogRange, started: Timestamp) -> Result<WayOn> {
    let read = || {
        let log = Log::list(&open.store, &open.trust, source)?;
        if let Some(key) = &log.unread {
            let why = log.faults.iter().find(|(at, _)| at == key).map_or("", |(_, why)| why);
            anyhow::bail!("the store does not give {key}: {why}");
        }
        let survey = log.survey(&open.store, &open.trust)?;
        let found = survey.windows.iter().rev().find(|window| holds(&log, window, range, started));
        let stored = Stored { log: &log, windows: &survey.windows, lost: &survey.lost };
        let lost = stored.lost_behind((range, started), found, None).map(Lost::told);
        let end = found.map(|window| LogEnd {
            stretch: log.stretches[window.last].line.n,
            timeline: window.to.0,
            position: window.to.1,
            until: window.until.min(window.stored_at),
        });
        let newest = log.stretches.last().filter(|_| lies_in_the_newest_part(&log, range));
        let into = newest.map(|stretch| stretch.line.n).or(end.as_ref().map(|end| end.stretch));
        anyhow::Ok(WayOn { log: end, into, lost })
    };
    read().with_context(|| format!("look at the log of {source}"))
}

/// The time up to which nothing is lost, with the log that follows upon the snapshot.
pub fn point(snapshot: &Snapshot, log: Option<&LogEnd>) -> Timestamp {
    log.map_or(snapshot.data_time, |log| log.until.max(snapshot.data_time))
}
