//! A point in time of a Redis or Valkey server: the snapshot before it, and the replication stream from there on as the append-only file that
//! the server loads by itself.
//!
//! The stream does not tell when something happened. What comes with it is when its bytes were received (marks, a tenth of a second apart): a
//! point in time is the state after the last whole command that had come by then, by the receiver's clock.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

use super::behind::{Stored, Way};
use super::recover::{self, Recoverable, holds};
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::operations::Open;
use crate::operations::restore::{Finish, LogAhead};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::log::{Log, Reader, Window};
use crate::repository::sealed::SealedPart;
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::redis::replication::aof::{Append, Written};

/// The only timeline there is.
pub const TIMELINE: u32 = 1;

/// A snapshot's time is that of the second in which the server forked.
pub const ROUGHLY: SignedDuration = SignedDuration::from_secs(2);

/// Where to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// With everything that is stored.
    Latest,
    /// With the snapshot alone.
    Immediate,
    /// What had come by this time.
    Time(Timestamp),
    /// After so many bytes of the replication stream (`master_repl_offset`).
    Offset(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    pub target: Target,
    /// Without the command that ends there; without what came at that very time.
    pub before: bool,
    /// On which history an offset counts (a replication ID, or how it begins): after a gap, two may have the same offsets.
    pub history: Option<String>,
}

/// The way from a snapshot to a target.
pub struct Route {
    log: Log,
    window: Option<Window>,
    start: u64,
    /// That the stream had selected at the start.
    database: u32,
}

impl Route {
    /// The stream on the way to `target`; `None`: the snapshot alone is.
    pub fn ahead(&self, target: Target) -> Option<LogAhead> {
        let end = self.window.as_ref()?.to.1.0;
        let to = match target {
            Target::Immediate => return None,
            Target::Offset(offset) => end.min(offset),
            Target::Latest | Target::Time(_) => end,
        };
        let (bytes, at_most) = (to.saturating_sub(self.start), matches!(target, Target::Time(_)));
        Some(LogAhead { from: self.start.to_string(), to: to.to_string(), bytes, at_most })
    }
}

/// What was prepared.
#[derive(Debug, Clone, Serialize)]
pub struct Replayed {
    pub written: Written,
    /// When the last of it had come; `None`: nothing follows the snapshot.
    pub time: Option<Timestamp>,
}

/// Finds the newest snapshot from which the target can be reached, and the way. Fails where something newer that is meant cannot be used.
pub fn route(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    aim: &Aim,
) -> Result<(Commit, Snapshot, Route)> {
    // A memory that cannot be read keeps nobody from his data.
    let seen = open.seen(source).unwrap_or_default();
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    let log = Log::list(&open.store, &open.trust, source)?;
    let survey = log.survey(&open.store, &open.trust)?;
    let (stored, windows) = (Stored { log: &log, windows: &survey.windows, lost: &survey.lost }, &survey.windows);
    let mut found: Option<(Timestamp, &Commit, &Snapshot)> = None;
    let complete = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete && s.log.is_some());
    for (commit, snapshot) in complete {
        let window = window_of(&log, windows, snapshot);
        let until = window.map_or(snapshot.data_time, |w| w.until);
        // A newer snapshot that no log follows is behind an older one only if that one's log goes on after it.
        let replaces = |f: &(Timestamp, &Commit, &Snapshot)| window.is_some() || f.0 <= snapshot.data_time + ROUGHLY;
        if found.as_ref().is_none_or(replaces) && leads_there(open, identities, &log, (snapshot, window), aim)? {
            found = Some((until, commit, snapshot));
        }
    }
    let Some((_, commit, snapshot)) = found else { return Err(unreachable(open, (source, aim), stored, &whole)) };
    let way = Way { snapshot, window: window_of(&log, windows, snapshot) };
    match aim.target {
        Target::Latest => stored.leads_to_newest(way, (&series, &whole), seen, None)?,
        Target::Time(time) => stored.leads_to(way, &whole, time)?,
        Target::Immediate | Target::Offset(_) => {}
    }
    let (commit, snapshot) = (commit.clone(), snapshot.clone());
    let route = from(identities, log, &survey.windows, &snapshot)?;
    Ok((commit, snapshot, route))
}

/// The way on from one snapshot to the end of the log; `None` where no log follows it.
pub fn route_on(open: &Open, identities: &[Identity], snapshot: &Snapshot) -> Result<Option<Route>> {
    if snapshot.log.is_none() {
        return Ok(None);
    }
    let log = Log::list(&open.store, &open.trust, &snapshot.source)?;
    let windows = log.windows(&open.store, &open.trust)?;
    let route = from(identities, log, &windows, snapshot)?;
    Ok(Some(route).filter(|route| route.window.is_some()))
}

/// Which database the stream had selected where the snapshot ends.
pub fn database(identities: &[Identity], snapshot: &Snapshot) -> Result<u32> {
    let facts = SealedPart::open(snapshot, identities)?.facts;
    let database = facts["rdb"]["replication_database"].as_u64().and_then(|n| u32::try_from(n).ok());
    database.context("the snapshot does not tell which database the stream had selected")
}

fn from(identities: &[Identity], log: Log, windows: &[Window], snapshot: &Snapshot) -> Result<Route> {
    let range = snapshot.log.clone().context("the snapshot has no place in a log")?;
    let database = database(identities, snapshot)?;
    let window = window_of(&log, windows, snapshot).cloned();
    Ok(Route { log, window, start: range.end.0, database })
}

/// The part of the log that goes on where the snapshot ends.
fn window_of<'a>(log: &Log, windows: &'a [Window], snapshot: &Snapshot) -> Option<&'a Window> {
    let range = snapshot.log.as_ref()?;
    windows.iter().find(|window| holds(log, window, range, snapshot.started))
}

/// Whether the target lies between the snapshot and the end of its log.
fn leads_there(
    open: &Open,
    identities: &[Identity],
    log: &Log,
    (snapshot, window): (&Snapshot, Option<&Window>),
    aim: &Aim,
) -> Result<bool> {
    let start = snapshot.log.as_ref().map_or(0, |range| range.end.0);
    Ok(match (aim.target, window) {
        (Target::Latest | Target::Immediate, _) => true,
        // A snapshot that ends there has the command in it that is to be left out.
        (Target::Offset(offset), window) => {
            let within = start + u64::from(aim.before) <= offset && offset <= window.map_or(start, |w| w.to.1.0);
            let named =
                |wanted: &String| history(log, snapshot, window, offset).is_some_and(|id| id.starts_with(wanted));
            within && aim.history.as_ref().is_none_or(named)
        }
        (Target::Time(_), None) => false,
        (Target::Time(time), Some(window)) => {
            let reaches = |from: Timestamp| from < time || from == time && !aim.before;
            let within = snapshot.data_time <= time && time <= window.until;
            // What a receiver was late with had come with the snapshot, once that was complete.
            within && (reaches(snapshot.finished) || reaches(came_by(open, identities, log, window, start)?))
        }
    })
}

/// On which history an offset counts that the log reaches from a snapshot.
pub fn history<'a>(log: &'a Log, snapshot: &'a Snapshot, window: Option<&Window>, offset: u64) -> Option<&'a str> {
    let range = snapshot.log.as_ref()?;
    let begun = window.filter(|_| offset > range.end.0).and_then(|w| log.locate(w, TIMELINE, offset - 1));
    begun.map_or(range.id.as_deref(), |(stretch, _)| log.stretches[stretch].line.id.as_deref())
}

/// When the bytes before `position` had all come.
fn came_by(open: &Open, identities: &[Identity], log: &Log, window: &Window, position: u64) -> Result<Timestamp> {
    let begun = &log.stretches[window.first].line;
    if position <= begun.start.0 {
        return Ok(begun.started);
    }
    let reader = Reader { store: &open.store, trust: &open.trust, identities };
    // Where prune has taken what comes before, a later time is good enough.
    let at = (position - 1).max(window.from.1.0);
    let shown = reader.next(log, window, TIMELINE, at)?.context("the log ends before it should")?;
    let mark = shown.marks.iter().find(|mark| mark.position >= position);
    Ok(mark.map_or(window.until, |mark| mark.time))
}

/// What a restore of the route's snapshot does to the staged copy. `done` hears what was prepared.
pub fn finish(
    open: &Open,
    identities: &[Identity],
    route: Arc<Route>,
    aim: Aim,
    done: Box<dyn Fn(Replayed) + Send + Sync>,
) -> Finish {
    let (open, identities) = (open.clone(), identities.to_vec());
    Arc::new(move |staged: &Path| {
        done(write(&open, &identities, &route, &aim, staged)?);
        Ok(())
    })
}

/// Makes the snapshot restored at `copy` an append-only file that ends at the target.
pub fn write(open: &Open, identities: &[Identity], route: &Route, aim: &Aim, copy: &Path) -> Result<Replayed> {
    let reader = Reader { store: &open.store, trust: &open.trust, identities };
    let mut append = Append::beside(copy, route.start, route.database)?;
    let (mut at, mut time) = (route.start, None);
    let window = route.window.as_ref().filter(|_| aim.target != Target::Immediate);
    while let Some(shown) = window.map_or(Ok(None), |window| reader.next(&route.log, window, TIMELINE, at))? {
        interrupt::check("Nothing is at the target yet. The same command again begins anew.")?;
        ensure!(!shown.bytes.is_empty(), "the log has an empty piece at {at}");
        let end = at + shown.bytes.len() as u64;
        let cut = match aim.target {
            Target::Latest | Target::Immediate => end,
            // A command that ends right there does not, without its last byte.
            Target::Offset(offset) => offset.saturating_sub(u64::from(aim.before)).min(end),
            Target::Time(limit) => {
                let within = |t: Timestamp| if aim.before { t < limit } else { t <= limit };
                let come = shown.marks.iter().take_while(|mark| within(mark.time));
                let cut = come.map(|mark| mark.position).max().unwrap_or(at);
                // What a mark in the middle tells, the rest does not undo.
                if shown.marks.iter().all(|mark| within(mark.time)) { end } else { cut }
            }
        };
        append.take(&shown.bytes[..usize::try_from(cut.saturating_sub(at))?])?;
        if cut > at {
            time = shown.marks.iter().find(|mark| mark.position >= cut).map(|mark| mark.time).or(time);
        }
        if cut < end {
            break;
        }
        at = end;
    }
    let written = append.finish()?;
    Ok(Replayed { written, time: time.filter(|_| written.position > route.start) })
}

fn unreachable(open: &Open, (source, aim): (&SourceName, &Aim), stored: Stored, whole: &Whole) -> anyhow::Error {
    let mut complete = whole.snapshots().map(|(_, s)| s).filter(|s| s.outcome == Outcome::Complete);
    if let Target::Time(time) = aim.target
        && let Some(snapshot) = complete.rfind(|s| s.log.is_some() && s.data_time <= time)
    {
        let way = Way { snapshot, window: window_of(stored.log, stored.windows, snapshot) };
        if let Err(lost) = stored.leads_on(way, None) {
            return lost;
        }
    }
    let what = match aim.target {
        Target::Latest | Target::Immediate => "a snapshot with a place in the replication stream".to_owned(),
        Target::Time(time) => format!("the time {time}"),
        Target::Offset(offset) => match &aim.history {
            Some(history) => format!("offset {offset} of history {history}"),
            None => format!("offset {offset}"),
        },
    };
    let windows = recover::recoverable(open, source).unwrap_or_default();
    let mut help = "Nothing was written.".to_owned();
    if windows.is_empty() {
        help.push_str(" No log is stored that follows a snapshot, so only the snapshots themselves can be reached: --snapshot. `wal-receive` stores the log.");
    }
    for Recoverable { from, snapshot, until, position, .. } in &windows {
        help.push_str(&format!(
            " Everything from {from:.0} (snapshot {snapshot}) to {until:.0} (offset {position}) can be reached."
        ));
    }
    if windows.last().is_some_and(|last| matches!(aim.target, Target::Time(time) if time > last.until)) {
        help.push_str(
            " If nothing was written since, the newest state is that of your time: leave --at out to restore it.",
        );
    }
    Failure::new(Kind::Usage, format!("{what} cannot be reached with what is stored of {source}"), help)
}
