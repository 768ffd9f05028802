//! Stores the replication stream of a Redis or Valkey server until it is told to stop, and acknowledges no more than is stored.
//!
//! The stream is to the data set what PostgreSQL's log is to its files, with two differences. The server keeps only what its backlog holds: what
//! has been received is stored whatever becomes of the connection, and a connection that breaks is taken up where the bytes received end. And its
//! log is of no use without a snapshot: until there is one in it, nothing is acknowledged, and one is made (`base`).

mod flow;
mod open;
mod pending;

use anyhow::Result;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::receive::{End, Event, ReceiveReport, persist};
use crate::limits::{LEVEL, MIB};
use crate::operations::Host;
use crate::repository::layout::SourceName;
use crate::repository::log::{Author, Log};
use crate::source::redis::replication::Place;

/// Bytes of the log that one run stands for at most.
const UNIT: u64 = 4 * MIB as u64;

#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes wait at most this long before they are sealed into a piece.
    pub seal_every: Duration,
    /// Signs of life alone wait this long: they tell only that nothing was written until then.
    pub seal_idle: Duration,
    /// So many bytes are sealed at once.
    pub seal_bytes: usize,
    /// zstd's.
    pub level: i32,
    /// Stop once everything is stored that the server had at the start.
    pub once: bool,
    /// Begin a new stretch although another host's key wrote the newest one.
    pub anew: bool,
    /// Where a first stretch had best begin: the end of the newest snapshot, as (replication ID, offset).
    pub from: Option<(String, u64)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seal_every: Duration::from_secs(1),
            seal_idle: Duration::from_secs(60),
            seal_bytes: MIB,
            level: LEVEL,
            once: false,
            anew: false,
            from: None,
        }
    }
}

/// What to receive, and with what.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    pub host: &'a Host,
    pub source: &'a SourceName,
    pub place: &'a Place,
    pub options: &'a Options,
    pub stop: &'a AtomicBool,
    pub tell: &'a dyn Fn(&Event),
    /// Makes a snapshot of the source: called on a thread of its own where the log has none to go on from.
    pub base: Option<&'a (dyn Fn() -> Result<()> + Sync)>,
}

impl<'a> Task<'a> {
    fn author(&self) -> Author<'a> {
        let open = &self.host.open;
        let (keys, host) = (&self.host.keys, self.host.name.as_str());
        Author { store: &open.store, trust: &open.trust, keys, host, clock: &*open.clock, level: self.options.level }
    }

    fn log(&self) -> Result<Log> {
        Log::list(&self.host.open.store, &self.host.open.trust, self.source)
    }
}

/// Receives until `stop`, or with [`Options::once`] until it has caught up. `Err`: something that does not pass by itself; the log stands as it is.
pub fn replicate(task: &Task) -> Result<ReceiveReport> {
    let mut report = ReceiveReport::new(task.source);
    let mut options = task.options.clone();
    persist(options.once, (task.stop, task.tell), &mut report, &mut |report| {
        let task = Task { options: &options, ..*task };
        let ended = session(&task, report);
        // Its purpose is fulfilled once a stretch has begun.
        options.anew = options.anew && report.timeline == 0;
        ended
    })?;
    Ok(report)
}

/// From what is stored to the server, and on until the server's history is another.
fn session(task: &Task, report: &mut ReceiveReport) -> Result<End> {
    let opened = open::open(task, report)?;
    let (stretch, position) = (opened.writer.stretch.n, opened.writer.head().end);
    (report.timeline, report.position) = (1, position.to_string());
    (task.tell)(&Event::Streaming { stretch, timeline: 1, position: position.to_string() });
    std::thread::scope(|scope| flow::Flow::new(task, report, opened).run(scope))
}
