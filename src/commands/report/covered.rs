//! What a period shows of one source or plan: drills done, missed and failed, what followed, and the worst that was measured. Pure.

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::ops::Range;

use super::promised::{Kept, Promise, kept};
use crate::cli::Period;
use crate::operations::evidence::{Chain, DrillReport};
use crate::plan::{Ended, PlanReport};

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
    pub fn bad(&self) -> bool {
        let missed = !self.missed.is_empty() || self.promised.iter().any(|kept| !kept.missed.is_empty());
        // What failed before the source was given up has stood unanswered all the same.
        let counts = |failed: &Failed| self.retired.is_none_or(|retired| failed.at < retired);
        let open = self.failures.iter().any(|failed| failed.passed_again.is_none() && counts(failed));
        // Without a configuration nothing is promised; evidence that was tampered with is what it is.
        (self.configured && (missed || open)) || !self.faults.is_empty()
    }
}

/// What is known of one subject beside its reports.
pub struct Subject {
    pub name: String,
    pub configured: bool,
    /// When each snapshot was finished, and the time of its data.
    pub snapshots: Vec<(Timestamp, Timestamp)>,
    /// Of a plan: since when there is something to restore from each of its sources.
    pub since: Option<Timestamp>,
    pub retired: Option<Timestamp>,
    pub promises: Vec<Promise>,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    /// Its log keeps the RPO: snapshots do not.
    pub has_log: bool,
}

/// What became of `subject` in the period, by the reports on it.
pub fn cover(subject: &Subject, chain: &Chain, period: Period, now: Timestamp) -> Covered {
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
