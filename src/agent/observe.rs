//! What the repository shows: who wrote last, from when the data is, what has been proven. The catalog may be lost; this may not.
//!
//! What the store does not give is not known, and never taken for absent: what was seen before stays, with the moment since when it is old.

mod group;

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::operations::Open;
use crate::operations::evidence::{DrillReport, Level, Stored};
use crate::operations::reach::{self, LogEnd, WayOn};
use crate::plan::PlanReport;
use crate::report::Outcome;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series::Series;
use crate::repository::snapshot::{Line, LogRange, Mode};
use crate::storage::{self, Key};

/// Commits that are read at most to find the newest of each sort.
const COMMITS_READ_MAX: usize = 200;
/// Drill reports that are read in any case, and at most while one of a level is looked for that a job promises.
const DRILLS_READ: usize = 10;
const DRILLS_READ_MAX: usize = 200;
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
    /// By level the last drill that tells as much, and the newest data that one has proven. A plan has them at [`Level::Engine`].
    pub drills: BTreeMap<Level, Drilled>,
    pub verified: Option<Timestamp>,
    /// Of a plan: the text that was drilled last.
    pub plan: Option<Hash>,
    /// When all of it was last read. What happened since may have been missed.
    pub looked: Option<Timestamp>,
    /// What could not be read since.
    pub unread: Option<Unread>,
    /// The longest of the last backups.
    pub usual: Duration,
    last_report: Option<String>,
    /// The levels that reports were searched for.
    levels: BTreeSet<Level>,
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
        return plan(open, source, seen);
    }
    if let Some(name) = source.group() {
        return group::look(open, &name, seen);
    }
    commits(open, source, seen)?;
    // The log grows all the time, whether there are new commits or not.
    let way = match seen.newest.as_ref().and_then(|newest| newest.log.as_ref()) {
        Some((range, started)) => reach::way_on(open, source, range, *started)?,
        None => WayOn::default(),
    };
    (seen.log, seen.into) = (way.log, way.into);
    drills(open, source, levels, seen)
}

/// What the store gave; `None` where that is not what it should be, which is for `verify` to tell of.
fn given<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if storage::is_silence(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The newest drill of each level. Where there is a new report, and nothing is missing of what is known, only that is read.
fn drills(open: &Open, source: &SourceName, levels: &BTreeSet<Level>, seen: &mut Seen) -> Result<()> {
    let mut reports = open.store.list(&layout::drills(source.as_str())).context("list drill reports")?;
    reports.sort_by(|a, b| b.key.as_str().cmp(a.key.as_str()));
    let last = reports.first().map(|r| r.key.as_str().to_owned());
    let known = levels.iter().all(|level| seen.drills.contains_key(level)).then(|| seen.last_report.clone()).flatten();
    if last == seen.last_report && (known.is_some() || seen.levels == *levels) {
        return Ok(());
    }
    let (mut drills, mut verified) = (BTreeMap::<Level, Drilled>::new(), None);
    let mut left_off = false;
    for (n, object) in reports.iter().take(DRILLS_READ_MAX).enumerate() {
        left_off = known.as_deref() == Some(object.key.as_str());
        let enough = n >= DRILLS_READ && levels.iter().all(|level| drills.contains_key(level));
        if left_off || enough {
            break;
        }
        let read = match read(open, source, &object.key) {
            // An old one that a lifecycle rule has moved away will not come back by itself, and the newest is none of those.
            Err(error) if n > 0 && storage::kind_of(&error) == Some(storage::Kind::Archived) => continue,
            read => read,
        };
        let Some(report) = given(read)?.flatten() else { continue };
        if report.proves() {
            verified = verified.max(Some(report.data_time)).max(report.log_until);
        }
        // A cheap level that passed takes back no failure of a dearer one, and is not what a job promises of that.
        for level in Level::ALL.into_iter().filter(|level| report.level.covers(*level)) {
            drills.entry(level).or_insert_with(|| drilled(&report));
        }
    }
    if left_off {
        verified = verified.max(seen.verified);
        for (level, old) in std::mem::take(&mut seen.drills) {
            drills.entry(level).or_insert(old);
        }
    }
    (seen.drills, seen.verified, seen.last_report, seen.levels) = (drills, verified, last, levels.clone());
    Ok(())
}

/// The newest drill of a plan.
fn plan(open: &Open, subject: &SourceName, seen: &mut Seen) -> Result<()> {
    let mut reports = open.store.list(&layout::drills(subject.as_str())).context("list drill reports")?;
    reports.sort_by(|a, b| b.key.as_str().cmp(a.key.as_str()));
    let last = reports.first().map(|r| r.key.as_str().to_owned());
    if last == seen.last_report {
        return Ok(());
    }
    let read = |key: &Key| -> Result<Option<PlanReport>> {
        let Some(stored) = stored(open, key, "plan")? else { return Ok(None) };
        let report: PlanReport = stored.decode()?;
        Ok((report.mode == "drill" && report.subject == subject.as_str()).then_some(report))
    };
    let mut newest = None;
    for object in reports.iter().take(DRILLS_READ) {
        newest = given(read(&object.key))?.flatten();
        if newest.is_some() {
            break;
        }
    }
    seen.plan = newest.as_ref().map(|report| report.hash);
    let drilled = newest.map(|report| Drilled {
        span: Span { started: report.started, finished: report.finished },
        seq: 0,
        passed: report.passed,
        seconds: report.achieved_rto_seconds,
        phases: report.timeline.iter().map(|phase| (phase.name.clone(), phase.seconds)).collect(),
        canary_age: None,
    });
    seen.drills = drilled.into_iter().map(|drilled| (Level::Engine, drilled)).collect();
    seen.last_report = last;
    Ok(())
}

/// A report of that type that somebody signed who may.
fn stored(open: &Open, key: &Key, r#type: &str) -> Result<Option<Stored>> {
    let stored = Stored::parse(&open.store.get(key).with_context(|| format!("read {key}"))?)?;
    stored.trusted(open)?;
    Ok((stored.head.r#type == r#type).then_some(stored))
}

/// A drill report. Real restores and plans have reports as well, which are not asked for here.
fn read(open: &Open, source: &SourceName, key: &Key) -> Result<Option<DrillReport>> {
    let Some(stored) = stored(open, key, "drill")? else { return Ok(None) };
    let report: DrillReport = stored.decode()?;
    Ok((report.source == *source).then_some(report))
}

fn drilled(report: &DrillReport) -> Drilled {
    let phases = report.timeline.iter().map(|phase| (phase.name.clone(), phase.seconds)).collect();
    let span = Span { started: report.started, finished: report.finished };
    let canary_age = report.canary.map(|canary| canary.age_seconds);
    Drilled { span, seq: report.seq, passed: report.passed, seconds: report.achieved_rto_seconds, phases, canary_age }
}

/// What the commits say, if there are others than before.
fn commits(open: &Open, source: &SourceName, seen: &mut Seen) -> Result<()> {
    let series = Series::list(&open.store, &open.trust, source)?;
    if seen.head.as_ref().map_or(0, |(seq, _)| *seq) == series.head() {
        return Ok(());
    }
    let mut found = Seen {
        head: None,
        newest: None,
        full: None,
        incremental: None,
        prune: None,
        retired: None,
        usual: Duration::ZERO,
        ..seen.clone()
    };
    let mut durations = Vec::new();
    let mut sound = true;
    for commit in series.newest_first().take(COMMITS_READ_MAX) {
        // One that does not verify is for `verify` to tell of; it is no point to go back to.
        let Some(commit) = given(commit)? else {
            sound = false;
            continue;
        };
        found.head.get_or_insert_with(|| (commit.seq(), commit.hash.to_string()));
        match &commit.line {
            Line::Prune(prune) => {
                found.prune.get_or_insert(prune.started);
            }
            // Unless a snapshot came after it, or what may have been one.
            Line::Retire(record) if durations.is_empty() && sound => {
                found.retired = found.retired.or(Some(record.started))
            }
            Line::Retire(_) => {}
            Line::Snapshot(s) => {
                let span = Span { started: s.started, finished: s.finished };
                match s.mode {
                    Mode::Full => found.full.get_or_insert(span),
                    Mode::Incremental => found.incremental.get_or_insert(span),
                };
                if s.outcome == Outcome::Complete {
                    found.newest.get_or_insert_with(|| Newest {
                        seq: s.seq,
                        commit: commit.hash.to_string(),
                        data_time: s.data_time,
                        begun: series.stored_at(s.seq).map_or(s.started, |at| at.min(s.started)),
                        suspect: s.suspect && !s.accepted,
                        log: s.log.clone().map(|range| (range, s.started)),
                    });
                }
                durations.push(Duration::try_from(s.finished.duration_since(s.started)).unwrap_or_default());
            }
        }
        if found.newest.is_some() && found.full.is_some() && durations.len() >= USUAL_OF && found.prune.is_some() {
            break;
        }
    }
    // The first, a full, is not what runs usually take.
    durations.truncate(USUAL_OF);
    found.usual = durations.into_iter().max().unwrap_or_default();
    *seen = found;
    Ok(())
}
