//! What the repository shows: who wrote last, from when the data is, what has been proven. The catalog may be lost; this may not.
//!
//! What the store does not give is not known, and never taken for absent: what was seen before stays, with the moment since when it is old.

mod commits;
mod drills;
mod group;

use anyhow::Result;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::operations::Open;
use crate::operations::evidence::Level;
use crate::operations::findings::Findings;
use crate::operations::reach::{self, LogEnd, WayOn};
use crate::operations::verified::Verified;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::series::Series;
use crate::repository::snapshot::LogRange;
use crate::storage;

/// What a backup usually takes is the longest of so many.
const USUAL_OF: usize = 5;

/// Start and end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub started: Timestamp,
    pub finished: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    pub seq: u64,
    pub commit: String,
    pub data_time: Timestamp,
    /// When its run began; the store's own time of the commit where that is earlier.
    pub begun: Timestamp,
    /// It looks wrong, and nobody has accepted that (FORMAT.md §4-11).
    pub suspect: bool,
    /// Of a source with a log: what the snapshot itself has of it, and when it was begun.
    log: Option<(LogRange, Timestamp)>,
}

#[cfg(test)]
impl Newest {
    pub fn of_test(data_time: Timestamp) -> Newest {
        Newest { seq: 1, commit: String::new(), data_time, begun: data_time, suspect: false, log: None }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Drilled {
    pub span: Span,
    /// The snapshot; 0 of a plan, which has several.
    pub seq: u64,
    pub passed: bool,
    pub seconds: f64,
    /// Seconds by phase.
    pub phases: Vec<(String, f64)>,
    /// By how many seconds the canary of the copy was older than its data was said to be.
    pub canary_age: Option<f64>,
}

/// The store does not give what a source has in it: nothing newer is known of that source.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    pub since: Timestamp,
    pub tried: Timestamp,
    pub why: String,
}

/// What the series of one source shows, or the common points of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Number and hash of the newest commit, of any sort.
    pub head: Option<(u64, String)>,
    /// The newest complete snapshot; of a group the newest common point that is whole and good.
    pub newest: Option<Newest>,
    /// Since when it is given up on purpose.
    pub retired: Option<Timestamp>,
    /// Of a group: what is wrong with its points.
    pub faults: Vec<String>,
    listed: Option<group::Listed>,
    /// Where the stored log ends that goes on from it.
    pub log: Option<LogEnd>,
    /// The stretch of the log into which it leads.
    pub into: Option<u64>,
    pub full: Option<Span>,
    pub incremental: Option<Span>,
    pub prune: Option<Timestamp>,
    /// By level the last drill that tells as much. A plan has them at [`Level::Engine`].
    pub drills: BTreeMap<Level, Drilled>,
    /// What drills have proven, and no later backup has taken back.
    pub verified: Verified,
    /// A drill report that does not verify, unless a drill has come back well since: it may have told of a failure.
    pub broken: Option<String>,
    /// What `verify` and `prune` have found on this machine, by hand or on schedule.
    pub findings: Findings,
    /// Of a plan: the text that was drilled last.
    pub plan: Option<Hash>,
    /// When all of it was last read. What happened since may have been missed.
    pub looked: Option<Timestamp>,
    /// What could not be read since.
    pub unread: Option<Unread>,
    /// The longest of the last backups.
    pub usual: Duration,
    known: drills::Known,
}

impl Seen {
    /// Up to when data can be brought back.
    pub fn reaches(&self) -> Option<Timestamp> {
        let newest = self.newest.as_ref()?.data_time;
        Some(self.log.as_ref().map_or(newest, |log| log.until.max(newest)))
    }
}

#[cfg(test)]
impl Seen {
    pub fn of_test(newest: Option<Newest>, log: Option<LogEnd>, looked: Timestamp) -> Seen {
        Seen { newest, into: log.as_ref().map(|log| log.stretch), log, looked: Some(looked), ..Seen::default() }
    }
}

/// Looks at `sources`, each with the levels of drill that are promised of it; what has not changed since `before` is not read again. A source that
/// cannot be read keeps what is known of it, and the others are looked at all the same. Fails where the store answers for none of them.
pub fn observe(
    open: &Open,
    sources: &BTreeMap<SourceName, BTreeSet<Level>>,
    before: &BTreeMap<SourceName, Seen>,
) -> Result<BTreeMap<SourceName, Seen>> {
    let mut seen = BTreeMap::new();
    let (mut answered, mut silent) = (sources.is_empty(), None);
    for (source, levels) in sources {
        let mut one = before.get(source).cloned().unwrap_or_default();
        let begun = open.now();
        match look(open, source, levels, &mut one) {
            Ok(()) => {
                // What happened meanwhile may have been missed.
                (one.looked, one.unread) = (Some(begun), None);
                answered = true;
            }
            Err(error) => {
                let error = error.context(format!("look at {source} in the repository"));
                let since = one.unread.as_ref().map_or(begun, |unread| unread.since);
                one.unread = Some(Unread { since, tried: begun, why: format!("{error:#}") });
                if !storage::is_outage(&error) {
                    answered = true;
                } else if let Some(first) = silent.replace(error)
                    && !answered
                {
                    // Each of them is waited for at length: of a store that is gone, two say enough.
                    return Err(first);
                }
            }
        }
        seen.insert(source.clone(), one);
    }
    match silent {
        Some(error) if !answered => Err(error),
        _ => Ok(seen),
    }
}

/// What was read before a failure counts.
fn look(open: &Open, source: &SourceName, levels: &BTreeSet<Level>, seen: &mut Seen) -> Result<()> {
    if source.plan().is_some() {
        return drills::of_plan(open, source, seen);
    }
    if let Some(name) = source.group() {
        return group::look(open, &name, seen);
    }
    match Findings::recall(open, source) {
        Ok(findings) => seen.findings = findings,
        // What was known stands.
        Err(error) => tracing::warn!(source = %source, "{error:#}"),
    }
    let series = Series::list(&open.store, &open.trust, source)?;
    commits::look(&series, seen)?;
    // The log grows all the time, whether there are new commits or not.
    let way = match seen.newest.as_ref().and_then(|newest| newest.log.as_ref()) {
        Some((range, started)) => reach::way_on(open, source, range, *started)?,
        None => WayOn::default(),
    };
    (seen.log, seen.into) = (way.log, way.into);
    drills::look(open, &series, levels, seen)
}

/// What the store gave; `None` where that is not what it should be, which is for `verify` to tell of.
fn given<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if storage::is_silence(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
