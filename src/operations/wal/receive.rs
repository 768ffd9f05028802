//! Streams a server's log into the repository until it is told to stop, and never tells the server more than is stored.
//!
//! A session connects, compares what the server shows with what is stored, and appends. Whatever breaks a session for a passing reason ends it;
//! the next one begins from the repository, which alone knows what is stored. Nothing is kept on disk here.

mod session;

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Kind, help_of, kind_of};
use crate::interrupt;
use crate::limits::LEVEL;
use crate::operations::Host;
pub use crate::operations::receiver::Event;
use crate::repository::layout::SourceName;
use crate::source::postgres::client::Address;

/// Pauses between sessions.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(500);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Options {
    pub slot: String,
    /// Bytes wait at most this long before they are sealed into a piece.
    pub seal_every: Duration,
    /// So many bytes are sealed at once.
    pub seal_bytes: usize,
    /// zstd's.
    pub level: i32,
    /// Stop once everything is stored that the server had at the start.
    pub once: bool,
    /// Begin a new stretch although the log has forked, the server is another, or another host's key wrote the newest stretch.
    pub anew: bool,
    /// Where a first stretch had best begin: the end of the newest snapshot, as (timeline, position).
    pub from: Option<(u32, u64)>,
}

impl Options {
    pub fn new(slot: String) -> Options {
        Options {
            slot,
            seal_every: Duration::from_secs(1),
            seal_bytes: crate::limits::MIB,
            level: LEVEL,
            once: false,
            anew: false,
            from: None,
        }
    }
}

/// What a receiver did until it stopped.
#[derive(Debug, Clone, Serialize)]
pub struct ReceiveReport {
    pub source: SourceName,
    pub timeline: u32,
    /// Where the log ends, as the engine writes it.
    pub position: String,
    pub time: Option<Timestamp>,
    pub pieces: u64,
    pub bytes: u64,
    pub gaps: Vec<String>,
    pub sessions: u64,
}

impl ReceiveReport {
    pub(super) fn new(source: &SourceName) -> ReceiveReport {
        ReceiveReport {
            source: source.clone(),
            timeline: 0,
            position: String::new(),
            time: None,
            pieces: 0,
            bytes: 0,
            gaps: Vec::new(),
            sessions: 0,
        }
    }
}

/// Whether the receiver is to end: it alone, or the whole process.
pub(super) fn is_to_end(stop: &AtomicBool) -> bool {
    stop.load(Ordering::SeqCst) || interrupt::is_wished()
}

/// Streams until `stop` or until the process is to end, or with [`Options::once`] until it has caught up. `Err`: something that does not pass by itself; the log stands as it is.
pub fn receive(
    host: &Host,
    source: &SourceName,
    address: &Address,
    options: &Options,
    stop: &AtomicBool,
    tell: &dyn Fn(&Event),
) -> Result<ReceiveReport> {
    let mut report = ReceiveReport::new(source);
    let mut options = options.clone();
    persist(options.once, (stop, tell), &mut report, &mut |report| {
        let task = session::Task { host, source, address, options: &options, stop, tell };
        let ended = session::run(&task, report);
        // Its purpose is fulfilled once a stretch has begun.
        options.anew = options.anew && report.timeline == 0;
        ended
    })?;
    Ok(report)
}

/// How a session ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    /// The log goes on in another way than it did, in a session of its own: another timeline, another history.
    Anew,
}

/// Runs sessions until one is done, `stop`, or something does not pass by itself; pauses between them.
pub(super) fn persist(
    once: bool,
    (stop, tell): (&AtomicBool, &dyn Fn(&Event)),
    report: &mut ReceiveReport,
    session: &mut dyn FnMut(&mut ReceiveReport) -> Result<End>,
) -> Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        report.sessions += 1;
        let stored_before = report.pieces;
        let error = match session(report) {
            Ok(End::Done) => return Ok(()),
            Ok(End::Anew) => continue,
            Err(error) => error,
        };
        if is_to_end(stop) {
            return Ok(());
        }
        let first = report.sessions == 1 && report.timeline == 0;
        // A server that is still starting will be there soon.
        let unlikely = help_of(&error).is_some() && !is_loading(&error);
        if lasting(&error) || once || first && unlikely {
            return Err(error);
        }
        if report.pieces > stored_before || begun.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tell(&Event::Waiting { why: format!("{error:#}"), seconds: pause.as_secs_f64() });
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if is_to_end(stop) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether a Redis server refused because it has not loaded its data yet.
fn is_loading(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("(LOADING ")
}

/// Whether trying again cannot help.
pub(super) fn lasting(error: &anyhow::Error) -> bool {
    match kind_of(error) {
        // A slot in use is most often our own connection that broke and has not timed out yet.
        Kind::Busy => !format!("{error:#}").contains("replication slot"),
        Kind::Failed | Kind::Environment => false,
        _ => true,
    }
}
