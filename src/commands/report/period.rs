//! `report --period 2026-Q4`: for an auditor. Which sources are covered, which drills were done, missed or failed, and what followed.
//!
//! What was due, the schedule says that is in force now: jobs and plans of the configuration. Where it promises no drill of a subject, or there is no
//! configuration here, a month without a proof is one that is missed.

use anyhow::Result;
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::auditor::Auditor;
use super::promised::{Kept, Promise, kept, promises, without_job};
use crate::cli::{Form, Place};
use crate::commands::output::{Ending, Exit, Shell, print_raw};
use crate::config::Config;
use crate::operations::Open;
use crate::operations::evidence::{self, Chain, DrillReport};
use crate::plan::{Ended, PlanReport};
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::series::{self, Series, Whole};

/// `2026`, `2026-Q4` or `2026-11`, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    first: Date,
    months: i32,
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Period, String> {
        let wrong = || format!("{text:?} is no period: write 2026, 2026-Q4 or 2026-11");
        let (year, rest) = text.split_once('-').unwrap_or((text, ""));
        let year: i16 = year.parse().ok().filter(|y| (1970..=9999).contains(y)).ok_or_else(wrong)?;
        let (month, months) = match rest.strip_prefix('Q') {
            _ if rest.is_empty() => (1, 12),
            Some(quarter) => (quarter.parse::<i8>().ok().filter(|q| (1..=4).contains(q)).ok_or_else(wrong)? * 3 - 2, 3),
            None => (rest.parse::<i8>().ok().filter(|m| (1..=12).contains(m)).ok_or_else(wrong)?, 1),
        };
        Ok(Period { first: date(year, month, 1), months })
    }
}

impl Period {
    /// The months in it, each from its begin to the begin of the next.
    fn parts(self) -> Vec<(Date, Timestamp, Timestamp)> {
        let at = |date: Date| date.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |z| z.timestamp());
        let month = |n: i32| self.first.checked_add(Span::new().months(n)).unwrap_or(Date::MAX);
        (0..self.months).map(|n| (month(n), at(month(n)), at(month(n + 1)))).collect()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let month =
            |n: i32| self.first.checked_add(Span::new().months(n)).unwrap_or(Date::MAX).strftime("%Y-%m").to_string();
        match self.months {
            1 => f.write_str(&month(0)),
            n => write!(f, "{} to {}", month(0), month(n - 1)),
        }
    }
}

/// One source, or plan, over the period.
#[derive(Debug, Serialize)]
pub struct Covered {
    pub source: String,
    /// Its snapshots are made by the configuration in force.
    pub configured: bool,
    /// Since when it is given up on purpose: nothing is expected of it since then.
    pub retired: Option<Timestamp>,
    pub snapshots: u64,
    pub drills: u64,
    pub passed: u64,
    pub restores: u64,
    /// What the schedule promises of drills, and what became of that. Empty: it is judged by the month.
    pub promised: Vec<Kept>,
    /// Judged by the month: those in which no drill with the real engine passed.
    pub missed: Vec<String>,
    /// Drills that missed their targets.
    pub rpo_missed: u64,
    pub rto_missed: u64,
    pub rpo: Reached,
    pub rto: Reached,
    pub longest_rto_seconds: Option<f64>,
    pub failures: Vec<Failed>,
    pub faults: Vec<String>,
}

/// A target, and the worst that was measured of it in the period.
#[derive(Debug, Default, Serialize)]
pub struct Reached {
    pub target_seconds: Option<f64>,
    /// The worst that a drill has measured.
    pub worst_seconds: Option<f64>,
    /// Of the RPO: the longest time for which the newest snapshot was the only one to go back to, as far as snapshots of that time are still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_between_snapshots_seconds: Option<f64>,
}

impl Reached {
    pub fn met(&self) -> Option<bool> {
        let worst = self.worst_seconds.into_iter().chain(self.longest_between_snapshots_seconds).reduce(f64::max);
        Some(worst? <= self.target_seconds?)
    }
}

/// A drill that failed, and what followed.
#[derive(Debug, Serialize)]
pub struct Failed {
    pub n: u64,
    pub at: Timestamp,
    pub why: Vec<String>,
    /// The next drill that answers it, in this period or later, and its number.
    pub passed_again: Option<Timestamp>,
    pub answered_by: Option<u64>,
    /// How long it stood, up to now where it stands.
    pub stood_seconds: f64,
}

impl Covered {
    /// Whether something in it is not as it was promised, or should be.
    fn bad(&self) -> bool {
        let missed = !self.missed.is_empty() || self.promised.iter().any(|kept| !kept.missed.is_empty());
        // What failed before the source was given up has stood unanswered all the same.
        let counts = |failed: &Failed| self.retired.is_none_or(|retired| failed.at < retired);
        let open = self.failures.iter().any(|failed| failed.passed_again.is_none() && counts(failed));
        self.configured && (missed || open || !self.faults.is_empty())
    }
}

/// What is known of one subject beside its reports.
struct Subject {
    name: String,
    configured: bool,
    /// When each snapshot was finished, and the time of its data.
    snapshots: Vec<(Timestamp, Timestamp)>,
    /// Of a plan: since when there is something to restore from each of its sources.
    since: Option<Timestamp>,
    retired: Option<Timestamp>,
    promises: Vec<Promise>,
    rpo: Option<SignedDuration>,
    rto: Option<SignedDuration>,
    /// Its log keeps the RPO: snapshots do not.
    has_log: bool,
}

pub fn run(shell: &Shell, place: &Place, period: Period, form: Form) -> Result<Ending> {
    let reader = shell.reader(place)?;
    let (open, config) = (&reader.open, reader.config.as_ref());
    let promises = config.map(promises).unwrap_or_default();
    let configured: BTreeSet<String> =
        config.iter().flat_map(|c| c.source.iter().map(|s| s.name.to_string())).collect();
    let known = series::sources(&open.store)?.into_iter().map(|s| s.to_string());
    let names: BTreeSet<String> = configured.iter().cloned().chain(known).chain(evidence::subjects(open)?).collect();
    let names: BTreeSet<String> = names.into_iter().chain(promises.keys().cloned()).collect();
    let mut rows = Vec::new();
    for name in names {
        let subject = subject(open, config, &promises, name)?;
        rows.push(cover(&subject, &Chain::read(open, &subject.name)?, period, open.now()));
    }
    let idle: Vec<String> = config.map(without_job).unwrap_or_default().iter().map(ToString::to_string).collect();
    let report = Auditor { period, rows, idle, by_schedule: !promises.is_empty(), configured: config.is_some() };
    let bad = report.rows.iter().any(Covered::bad);
    if !shell.json {
        print_raw(&report.text(form), false);
    }
    Ending::new(if bad { Exit::CheckFailed } else { Exit::Done }, report.value())
}

fn subject(
    open: &Open,
    config: Option<&Config>,
    promises: &BTreeMap<String, Vec<Promise>>,
    name: String,
) -> Result<Subject> {
    let whole = match SourceName::new(&name) {
        Ok(source) => Series::list(&open.store, &open.trust, &source)?.whole(),
        Err(_) => Whole::default(),
    };
    let source = config.and_then(|config| config.source.iter().find(|source| source.name.as_str() == name));
    let job = config.and_then(|config| config.jobs.iter().find(|job| job.enabled && job.source.as_str() == name));
    let good = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete);
    Ok(Subject {
        configured: source.is_some() || name.starts_with("plan.") && config.is_some(),
        snapshots: good.map(|(_, s)| (s.finished, s.data_time)).collect(),
        since: job.and_then(|job| job.plan.as_ref()).map(|plan| since(open, &plan.sources)).transpose()?.flatten(),
        retired: whole.retired().map(|record| record.started),
        promises: promises.get(&name).cloned().unwrap_or_default(),
        rpo: source.and_then(|source| source.rpo),
        rto: source.and_then(|source| source.rto).or(job.and_then(|job| job.rto)),
        has_log: source.is_some_and(|source| source.continuous),
        name,
    })
}

/// Since when all of `sources` have a snapshot.
fn since(open: &Open, sources: &[SourceName]) -> Result<Option<Timestamp>> {
    let mut since = None;
    for source in sources {
        let whole = Series::list(&open.store, &open.trust, source)?.whole();
        let Some(first) = whole.snapshots().map(|(_, s)| s.finished).min() else { return Ok(None) };
        since = since.max(Some(first));
    }
    Ok(since)
}

fn cover(subject: &Subject, chain: &Chain, period: Period, now: Timestamp) -> Covered {
    let parts = period.parts();
    let begin = parts.first().map_or(Timestamp::MIN, |p| p.1);
    let end = parts.last().map_or(Timestamp::MAX, |p| p.2);
    let inside = |at: Timestamp| at >= begin && at < end;
    let drills: Vec<DrillReport> = chain.drills();
    // A plan's reports have another shape; what counts here is the same.
    let (plans, real_plans): (Vec<PlanReport>, Vec<PlanReport>) =
        chain.reports.iter().filter(|s| s.head.r#type == "plan").filter_map(|s| s.decode().ok()).partition(rehearsed);
    let real = |r: &&DrillReport| r.r#type == "drill";
    let proofs: Vec<Timestamp> = drills.iter().filter(|r| r.proves()).map(|r| r.started).collect();
    let proofs: Vec<Timestamp> =
        proofs.into_iter().chain(plans.iter().filter(|p| p.passed).map(|p| p.started)).collect();
    // Before there was anything to prove, nothing was missed; nor is it once the source is given up.
    let first = subject.snapshots.iter().map(|(finished, _)| finished).chain(&subject.since);
    let seen = first.chain(chain.reports.iter().map(|s| &s.head.started)).min().copied();
    let until = subject.retired.unwrap_or(now);
    let promised = promised(subject, (&drills, &plans), &(begin..end), &(seen.unwrap_or(until).min(until)..until));
    let mut missed = Vec::new();
    if promised.is_empty() {
        missed = months_without(&parts, &proofs, seen, until);
    }
    if seen.is_none() && subject.configured && !subject.name.starts_with("plan.") {
        missed.push("never backed up".into());
    }
    let failures = drills.iter().filter(real).filter(|r| inside(r.started) && !r.passed).map(|r| Failed {
        n: r.n,
        at: r.started,
        why: r.checks.iter().filter(|c| !c.passed).map(|c| format!("{}: {}", c.name, c.actual)).collect(),
        ..Failed::answered(r.started, now, drills.iter().find(|later| later.answers(r)).map(|l| (l.n, l.started)))
    });
    let failures = failures.chain(failed_plans(&plans, &real_plans, now).filter(|f| inside(f.at)));
    let of_plans = || plans.iter().filter(|p| inside(p.started));
    let done = || drills.iter().filter(real).filter(|r| inside(r.started));
    let exposures = done().map(|r| r.rpo_exposure_seconds).chain(of_plans().map(|p| p.rpo_exposure_seconds));
    let longest_rto_seconds = done()
        .filter(|r| r.rto_target_seconds.is_some() || r.entries > 0)
        .map(|r| r.achieved_rto_seconds)
        .chain(of_plans().chain(real_plans.iter().filter(|p| inside(p.started))).map(|p| p.achieved_rto_seconds))
        .reduce(f64::max);
    let targets = |of: fn(&PlanReport) -> Option<f64>| plans.last().and_then(of);
    Covered {
        source: subject.name.clone(),
        configured: subject.configured,
        retired: subject.retired,
        snapshots: subject.snapshots.iter().filter(|(at, _)| inside(*at)).count() as u64,
        drills: (done().count() + of_plans().count()) as u64,
        passed: (done().filter(|r| r.passed).count() + of_plans().filter(|p| p.passed).count()) as u64,
        restores: (drills.iter().filter(|r| r.r#type == "restore" && inside(r.started)).count()
            + real_plans.iter().filter(|p| inside(p.started)).count()) as u64,
        promised,
        missed,
        rpo_missed: met(done().map(|r| r.rpo_met).chain(of_plans().map(|p| p.rpo_met))),
        rto_missed: met(done().map(|r| r.rto_met).chain(of_plans().map(|p| p.rto_met))),
        rpo: Reached {
            target_seconds: subject.rpo.map(|d| d.as_secs_f64()).or(targets(|p| p.rpo_target_seconds)),
            worst_seconds: exposures.reduce(f64::max),
            longest_between_snapshots_seconds: longest_between(subject, begin..end, until),
        },
        rto: Reached {
            target_seconds: subject.rto.map(|d| d.as_secs_f64()).or(targets(|p| p.rto_target_seconds)),
            worst_seconds: longest_rto_seconds,
            longest_between_snapshots_seconds: None,
        },
        longest_rto_seconds,
        failures: failures.collect(),
        faults: chain.faults.iter().map(|(key, why)| format!("{key}: {why}")).collect(),
    }
}

/// What became of each promise, by the drills of its sources and of plans.
fn promised(
    subject: &Subject,
    (drills, plans): (&[DrillReport], &[PlanReport]),
    period: &Range<Timestamp>,
    holds: &Range<Timestamp>,
) -> Vec<Kept> {
    let one = |promise: &Promise| {
        let of_source = drills.iter().filter(|r| r.r#type == "drill" && r.level.covers(promise.level));
        let mut done: Vec<Timestamp> = of_source.map(|r| r.started).chain(plans.iter().map(|p| p.started)).collect();
        done.sort();
        kept(promise, &done, period, holds)
    };
    subject.promises.iter().map(one).collect()
}

/// The months in which nothing was proven although there was something to prove.
fn months_without(
    parts: &[(Date, Timestamp, Timestamp)],
    proofs: &[Timestamp],
    seen: Option<Timestamp>,
    until: Timestamp,
) -> Vec<String> {
    let unproven = |from: Timestamp, to: Timestamp| !proofs.iter().any(|at| *at >= from && *at < to);
    let missed = parts
        .iter()
        .filter(|(_, from, to)| *from < until && seen.is_some_and(|seen| seen < *to) && unproven(*from, *to));
    missed.map(|(month, ..)| month.strftime("%Y-%m").to_string()).collect()
}

/// The longest time in the period for which a disaster would have cost what came after a snapshot: from its data to the end of the next one. Of a source
/// whose log is kept snapshots do not say it.
fn longest_between(subject: &Subject, period: Range<Timestamp>, until: Timestamp) -> Option<f64> {
    if subject.has_log {
        return None;
    }
    let ends = subject.snapshots.iter().skip(1).map(|(finished, _)| *finished).chain([until]);
    let spans = subject.snapshots.iter().zip(ends).map(|((_, data_time), next)| (*data_time, next));
    let within = spans.filter_map(|(from, to)| {
        // What of it lies in the period was as old as it became there.
        let end = to.min(period.end);
        (end > period.start && from < period.end).then(|| end.duration_since(from).as_secs_f64())
    });
    within.reduce(f64::max)
}

/// How many targets were missed.
fn met(targets: impl Iterator<Item = Option<bool>>) -> u64 {
    targets.filter(|met| *met == Some(false)).count() as u64
}

/// A run of a plan that changed nothing; a real one proves no more than a restore does.
fn rehearsed(plan: &PlanReport) -> bool {
    plan.mode == "drill"
}

/// Runs of a plan that did not pass, and the next run that did.
fn failed_plans<'a>(
    plans: &'a [PlanReport],
    real: &'a [PlanReport],
    now: Timestamp,
) -> impl Iterator<Item = Failed> + 'a {
    plans.iter().chain(real).filter(|p| !p.passed).map(move |p| {
        let later = plans.iter().chain(real).filter(|l| l.n > p.n && l.passed).map(|l| (l.n, l.started)).min();
        Failed {
            n: p.n,
            why: p
                .stages
                .iter()
                .filter(|s| s.outcome == Ended::Failed)
                .map(|s| format!("{} plan, stage {}: {}", p.mode, s.name, s.detail))
                .collect(),
            ..Failed::answered(p.started, now, later)
        }
    })
}

impl Failed {
    /// One that happened at `at`, and what answered it: number and time.
    fn answered(at: Timestamp, now: Timestamp, later: Option<(u64, Timestamp)>) -> Failed {
        let until = later.map_or(now, |(_, at)| at);
        Failed {
            n: 0,
            at,
            why: Vec::new(),
            passed_again: later.map(|(_, at)| at),
            answered_by: later.map(|(n, _)| n),
            stood_seconds: until.duration_since(at).as_secs_f64().max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read() {
        let read = |text: &str| text.parse::<Period>();
        assert_eq!(read("2026-Q4").unwrap().to_string(), "2026-10 to 2026-12");
        assert_eq!(read("2026-02").unwrap().to_string(), "2026-02");
        let months = read("2026").unwrap().parts();
        assert_eq!((months.len(), months[11].2.to_string().as_str()), (12, "2027-01-01T00:00:00Z"));
        for wrong in ["", "Q4", "2026-Q5", "2026-13", "26-1", "2026-1x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
