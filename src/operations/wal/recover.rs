//! A point in time: the snapshot before it, the log from there on, and the settings with which the server stops at it.
//!
//! What the server needs is put into its own `pg_wal`, so that it starts without this program, without a key, and without the repository.

mod prepare;
mod unreachable;

pub use prepare::{fill, prepare};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

use super::behind::{self, Stored, Way};
use super::get::Files;
use super::goes_on_from;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::restore::{Finish, LogAhead};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::history;
use crate::repository::layout::{self, SourceName};
use crate::repository::log::{Log, Window};
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, LogRange, Snapshot};
use crate::source::postgres::wal::events::{Follower, Happened, What};
use crate::source::postgres::wal::records::{Record, Records};
use crate::source::postgres::{self, wal::Lsn};
use crate::source::redis;
use crate::target::Branch;

/// Where to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// With everything that is stored.
    Latest,
    /// As soon as the snapshot is consistent.
    Immediate,
    /// After the last transaction that committed at this time or before, by the server's clock.
    Time(Timestamp),
    Lsn(u64),
    Xid(u32),
    /// A restore point (`pg_create_restore_point`).
    Name(String),
}

/// What the server does when it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Then {
    /// Opens for writing, on a timeline of its own.
    #[default]
    Promote,
    /// Opens for reading; `select pg_wal_replay_resume()` lets it go on.
    Pause,
}

#[derive(Debug, Clone)]
pub struct Recovery {
    pub target: Target,
    /// Stop just before the target, where that can be said: position, transaction, time.
    pub before: bool,
    pub then: Then,
    /// The newest that can be reached unless given.
    pub timeline: Option<u32>,
}

/// The way from the end of a snapshot to a target.
pub struct Route {
    source: SourceName,
    /// When the snapshot was complete: what it took to be consistent lies before.
    finished: Timestamp,
    start: LogRange,
    window: Option<Window>,
    timeline: u32,
}

impl Route {
    /// The log on the way to `target`; `None`: the snapshot alone is.
    pub fn ahead(&self, target: &Target) -> Option<LogAhead> {
        let (from, end) = (self.start.end.0, self.window.as_ref()?.to.1.0);
        let to = match target {
            Target::Immediate => return None,
            Target::Lsn(lsn) => end.min(*lsn),
            Target::Latest | Target::Time(_) | Target::Xid(_) | Target::Name(_) => end,
        };
        let at_most = matches!(target, Target::Time(_) | Target::Xid(_) | Target::Name(_));
        let (bytes, from, to) = (to.saturating_sub(from), Lsn(from).to_string(), Lsn(to).to_string());
        Some(LogAhead { from, to, bytes, at_most })
    }
}

/// What was prepared.
#[derive(Debug, Clone, Serialize)]
pub struct Prepared {
    /// Segments written, and bytes of the log in them.
    pub segments: u64,
    pub bytes: u64,
    /// The last transaction's end that will be replayed, as far as it is known.
    pub last: Option<Happened>,
    pub timeline: u32,
    pub notes: Vec<String>,
}

/// A stretch of time to which a source can be brought back.
#[derive(Debug, Clone, Serialize)]
pub struct Recoverable {
    pub source: SourceName,
    pub kind: String,
    /// The first snapshot, and when it was complete.
    pub snapshot: u64,
    pub from: Timestamp,
    /// The server's clock at the end of the log.
    pub until: Timestamp,
    pub timeline: u32,
    pub position: String,
}

impl Recoverable {
    /// Where the log ends, for people.
    pub fn place(&self) -> String {
        match self.kind.as_str() {
            redis::KIND => format!("offset {}", self.position),
            _ => format!("{}, timeline {}", self.position, self.timeline),
        }
    }
}

/// The windows of time that snapshots and log give together, the oldest first.
pub fn recoverable(open: &Open, source: &SourceName) -> Result<Vec<Recoverable>> {
    let log = Log::list(&open.store, &open.trust, source)?;
    let windows = log.windows(&open.store, &open.trust)?;
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let mut found = Vec::new();
    for window in &windows {
        let begins = |s: &&Snapshot| {
            s.log.as_ref().is_some_and(|range| holds(&log, window, range, s.started)) && s.outcome == Outcome::Complete
        };
        let Some(first) = whole.snapshots().map(|(_, s)| s).find(begins) else { continue };
        // Of what is being caught up on nobody knows how far it reaches.
        if window.until == Timestamp::UNIX_EPOCH {
            continue;
        }
        found.push(Recoverable {
            source: source.clone(),
            kind: first.kind.clone(),
            snapshot: first.seq,
            from: first.finished,
            until: window.until,
            timeline: window.to.0,
            position: shown(&first.kind, window.to.1.0),
        });
    }
    Ok(found)
}

/// A position as the engine of this kind writes it.
pub fn shown(kind: &str, position: u64) -> String {
    if kind == redis::KIND { position.to_string() } else { Lsn(position).to_string() }
}

/// Whether the log goes on in the window where a snapshot ends. Positions alone do not tell: a server that was set back writes the same ones again,
/// so a snapshot belongs to the window that was the newest when it was taken.
pub fn holds(log: &Log, window: &Window, range: &LogRange, started: Timestamp) -> bool {
    if range.id.is_some() {
        return goes_on_from(log, &window.into(), range);
    }
    let before = window.first > 0 && started < log.stretches[window.first].line.started;
    let after = log.stretches.get(window.last + 1).is_some_and(|next| started >= next.line.started);
    !before && !after && goes_on_from(log, &window.into(), range)
}

/// Finds the newest snapshot from which `recovery`'s target can be reached, and the way. Fails where something newer that is meant cannot be used.
pub fn route(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    recovery: &Recovery,
) -> Result<(Commit, Snapshot, Route)> {
    // A memory that cannot be read keeps nobody from his data.
    let seen = open.seen(source).unwrap_or_default();
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    let all: Vec<(&Commit, &Snapshot)> = whole.snapshots().collect();
    let files = Files::open(open, identities, source).or_else(|error| {
        // Where nothing of a log can be used, it is best told of the snapshot that it followed.
        let newest = all.iter().rfind(|(_, s)| s.outcome == Outcome::Complete && s.log.is_some());
        newest.map_or(Ok(()), |(_, snapshot)| behind::whole(open, snapshot))?;
        Err(error)
    })?;
    for (commit, snapshot) in all.iter().rev().filter(|(_, s)| s.outcome == Outcome::Complete) {
        let Some(route) = from(files.as_ref(), snapshot, recovery.timeline) else { continue };
        if leads_there(&route, files.as_ref(), recovery)? {
            let way = Way { snapshot, window: route.window.as_ref() };
            let none = Log::none(source);
            let stored = files.as_ref().map_or(Stored { log: &none, windows: &[], lost: &[] }, Files::stored);
            match recovery.target {
                Target::Latest => stored.leads_to_newest(way, (&series, &whole), seen, recovery.timeline)?,
                Target::Time(time) => stored.leads_to(way, &whole, time)?,
                Target::Immediate | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {}
            }
            return Ok(((*commit).clone(), (*snapshot).clone(), route));
        }
    }
    Err(unreachable::error(open, files.as_ref(), (source, recovery), &all))
}

/// The way on from one snapshot along its own timeline, to the end of the log; `None` where no log follows it.
pub fn route_on(open: &Open, identities: &[Identity], snapshot: &Snapshot) -> Result<Option<Route>> {
    let files = Files::open(open, identities, &snapshot.source)?;
    let timeline = snapshot.log.as_ref().map(|range| range.timeline);
    Ok(from(files.as_ref(), snapshot, timeline).filter(|route| route.window.is_some()))
}

/// `None`: the snapshot has no place in a log, or lies on a branch that does not lead to the timeline.
fn from(files: Option<&Files>, snapshot: &Snapshot, timeline: Option<u32>) -> Option<Route> {
    let range = snapshot.log.clone()?;
    let holding = |files: &Files| {
        let holds = |w: &&Window| holds(&files.log, w, &range, snapshot.started);
        files.windows.iter().rev().find(holds).cloned()
    };
    let window = files.and_then(holding);
    let timeline = timeline.unwrap_or(window.as_ref().map_or(range.timeline, |w| w.to.0));
    if let (Some(files), Some(window)) = (files, &window)
        && files.log.locate(window, timeline, range.end.0).is_none_or(|(_, on)| on != range.timeline)
    {
        return None;
    }
    let source = snapshot.source.clone();
    Some(Route { source, finished: snapshot.finished, start: range, window, timeline })
}

/// Whether a log is stored of `source`, and a snapshot that has a place in it.
pub fn has_log(open: &Open, source: &SourceName) -> Result<bool> {
    let any = |prefix: &str| {
        let listed = history::list(&open.store, prefix).context("list the log")?;
        anyhow::Ok(listed.iter().any(|written| !written.versions.is_empty()))
    };
    // Without its records too: what is left of it must not be passed over.
    if !any(&layout::log_stretches(source))? && !any(&layout::log(source))? {
        return Ok(false);
    }
    Ok(newest_end(open, source)?.is_some())
}

/// Of what kind the newest complete snapshot is.
pub fn kind(open: &Open, source: &SourceName) -> Result<Option<String>> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let mut kinds = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete).map(|(_, s)| s.kind.clone());
    Ok(kinds.next_back())
}

/// Where the newest complete snapshot that has a place in the log ends in it.
pub fn newest_end(open: &Open, source: &SourceName) -> Result<Option<LogRange>> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let mut ends = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete).filter_map(|(_, s)| s.log.clone());
    Ok(ends.next_back())
}

/// What a restore of the route's snapshot, which has `facts`, does to the staged copy: tablespaces, log, settings. `done` hears what was prepared.
pub fn finish(
    open: &Open,
    identities: &[Identity],
    route: Arc<Route>,
    recovery: Recovery,
    (facts, to, branches): (postgres::Facts, &Path, &[Branch]),
    done: Box<dyn Fn(Prepared) + Send + Sync>,
) -> Finish {
    let (open, identities) = (open.clone(), identities.to_vec());
    let (finally, branches) = (to.to_owned(), branches.to_vec());
    Arc::new(move |staged: &Path| {
        postgres::restored::settle(staged, &finally, &branches)?;
        postgres::restored::configure(staged, &facts)?;
        done(prepare(&open, &identities, &route, &recovery, staged)?);
        Ok(())
    })
}

/// Whether the target lies between the end of the route's snapshot and the end of the log.
fn leads_there(route: &Route, files: Option<&Files>, recovery: &Recovery) -> Result<bool> {
    let end = route.start.end.0;
    let until = route.window.as_ref().map_or(route.finished, |w| w.until);
    Ok(match &recovery.target {
        Target::Latest | Target::Immediate => true,
        Target::Time(time) => route.finished <= *time && *time <= until,
        Target::Lsn(lsn) => {
            let last = route.window.as_ref().map_or(end, |w| w.to.1.0);
            end <= *lsn && *lsn <= last
        }
        Target::Xid(_) | Target::Name(_) => match (files, &route.window) {
            (Some(files), Some(window)) => scan(files, window, route, &recovery.target)?.is_some(),
            _ => false,
        },
    })
}

/// Where the target is, between the end of the route's snapshot and the end of the log.
fn scan(files: &Files, window: &Window, route: &Route, target: &Target) -> Result<Option<Happened>> {
    let mut found = None;
    let from = route.start.end.0;
    let broken = each(files, window, route.timeline, from, &mut |happened| {
        found = is_target(&happened, target).then_some(happened);
        found.is_none()
    })?;
    broken.map_or(Ok(found), |at| Err(makes_no_sense(&route.source, at)))
}

fn is_target(happened: &Happened, target: &Target) -> bool {
    match (target, &happened.what) {
        (Target::Xid(xid), What::Commit { .. }) => happened.xid == *xid,
        (Target::Name(wanted), What::RestorePoint { name }) => name == wanted,
        // The first that is later: there the server knows that it has gone far enough.
        (Target::Time(time), What::Commit { .. }) => happened.time.is_some_and(|at| at > *time),
        _ => false,
    }
}

/// What is stored is what the server wrote, and makes no sense at `at`, although more of it follows: a server stops replaying there without a word,
/// as at the end of the log.
pub(super) fn makes_no_sense(source: &SourceName, at: u64) -> anyhow::Error {
    let at = Lsn(at);
    Failure::new(
        Kind::CheckFailed,
        format!(
            "the log of {source} makes no sense at {at}: it was damaged before it was stored, and no server replays it beyond that"
        ),
        format!(
            "What comes before can be reached: `blackstart restore {source} --lsn {at} --to DIR`; what comes after only with a snapshot that was made \
             later. Make one now: `blackstart backup {source}`. Look at the disk of the server's pg_wal."
        ),
    )
}

/// Gives what happened from `from` on, until `more` is false or the log ends; or makes no sense, and where.
pub fn each(
    files: &Files,
    window: &Window,
    timeline: u32,
    from: u64,
    more: &mut dyn FnMut(Happened) -> bool,
) -> Result<Option<u64>> {
    // A record may begin on the page before.
    let mut at = from / 8192 * 8192;
    at = at.max(window.from.1.0);
    let mut records = Records::new(files.segment_size, at);
    let mut follower = Follower::default();
    let mut go_on = true;
    while go_on && records.ended().is_none() {
        let shown = files.reader().next(&files.log, window, timeline, at);
        let mut sink = |record: Record| {
            if let Some(happened) = follower.take(&record).filter(|_| record.start >= from && go_on) {
                go_on = more(happened);
            }
        };
        let shown = match shown {
            Ok(Some(shown)) => shown,
            ended => {
                records.finish(&mut sink);
                return if go_on { ended.map(|_| None) } else { Ok(None) };
            }
        };
        records.feed(&shown.bytes, &mut sink);
        at += shown.bytes.len() as u64;
    }
    Ok(records.ended().filter(|_| go_on))
}
