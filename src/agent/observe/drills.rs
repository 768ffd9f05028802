//! What the reports on a source show, or on a plan: the newest drill of each level, and which data is proven.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

use super::{Drilled, Seen, Span, given};
use crate::error::{Kind, kind_of};
use crate::operations::Open;
use crate::operations::evidence::{DrillReport, Level, Stored};
use crate::operations::verified::{Aftermath, Proof};
use crate::plan::PlanReport;
use crate::repository::layout::{self, SourceName};
use crate::repository::series::Series;
use crate::storage::{self, Key, Object};

/// Reports that are read in any case, and at most while one of a level is looked for that a job promises.
const DRILLS_READ: usize = 10;
const DRILLS_READ_MAX: usize = 200;

/// What need not be read again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// The newest report.
    last: Option<String>,
    /// The levels that reports were searched for.
    levels: BTreeSet<Level>,
    /// What the reports prove that were read, the newest first.
    proofs: Vec<Proof>,
    aftermath: Aftermath,
    /// With which head and which newest report the proofs were judged.
    judged: Option<(u64, Option<String>)>,
}

/// The newest drill of each level, and what drills have proven.
pub fn look(open: &Open, series: &Series, levels: &BTreeSet<Level>, seen: &mut Seen) -> Result<()> {
    reports(open, &series.source, levels, seen)?;
    let known = &mut seen.known;
    let judged = Some((series.head(), known.last.clone()));
    if known.judged != judged {
        seen.verified = known.aftermath.verified(open, series, &known.proofs)?;
        known.judged = judged;
    }
    Ok(())
}

/// The newest drill of each level. Where there is a new report, and nothing is missing of what is known, only that is read.
fn reports(open: &Open, source: &SourceName, levels: &BTreeSet<Level>, seen: &mut Seen) -> Result<()> {
    let reports = newest_first(open, source)?;
    let last = reports.first().map(|r| r.key.as_str().to_owned());
    let known = levels.iter().all(|level| seen.drills.contains_key(level)).then(|| seen.known.last.clone()).flatten();
    if last == seen.known.last && (known.is_some() || seen.known.levels == *levels) {
        return Ok(());
    }
    let (mut drills, mut proofs) = (BTreeMap::<Level, Drilled>::new(), Vec::new());
    let (mut left_off, mut broken) = (false, None);
    for (n, object) in reports.iter().take(DRILLS_READ_MAX).enumerate() {
        left_off = known.as_deref() == Some(object.key.as_str());
        let enough = n >= DRILLS_READ && levels.iter().all(|level| drills.contains_key(level));
        if left_off || enough {
            break;
        }
        let read = match read(open, source, &object.key) {
            // An old one that a lifecycle rule has moved away will not come back by itself, and the newest is none of those.
            Err(error) if n > 0 && storage::kind_of(&error) == Some(storage::Kind::Archived) => continue,
            // By a key that may not sign here: it counts for nothing, and hides nothing.
            Err(error) if kind_of(&error) == Kind::WrongKey => continue,
            read => given(read)?,
        };
        if read.is_none() && proofs.is_empty() {
            broken.get_or_insert_with(|| object.key.to_string());
        }
        let Some(report) = read.flatten() else { continue };
        proofs.extend(Proof::of(&report));
        // A cheap level that passed takes back no failure of a dearer one, and is not what a job promises of that.
        for level in Level::ALL.into_iter().filter(|level| report.level.covers(*level)) {
            drills.entry(level).or_insert_with(|| drilled(&report));
        }
    }
    if left_off {
        broken = broken.or(seen.broken.take().filter(|_| proofs.is_empty()));
        proofs.append(&mut seen.known.proofs);
        proofs.truncate(DRILLS_READ_MAX);
        for (level, old) in std::mem::take(&mut seen.drills) {
            drills.entry(level).or_insert(old);
        }
    }
    (seen.drills, seen.broken) = (drills, broken);
    // What was proven is judged anew, also where only the levels are others.
    let aftermath = std::mem::take(&mut seen.known.aftermath);
    seen.known = Known { last, levels: levels.clone(), proofs, aftermath, judged: None };
    Ok(())
}

/// The newest drill of a plan.
pub fn of_plan(open: &Open, subject: &SourceName, seen: &mut Seen) -> Result<()> {
    let reports = newest_first(open, subject)?;
    let last = reports.first().map(|r| r.key.as_str().to_owned());
    if last == seen.known.last {
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
    seen.known.last = last;
    Ok(())
}

fn newest_first(open: &Open, subject: &SourceName) -> Result<Vec<Object>> {
    let mut reports = open.store.list(&layout::drills(subject.as_str())).context("list drill reports")?;
    reports.sort_by(|a, b| b.key.as_str().cmp(a.key.as_str()));
    Ok(reports)
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
