//! `report --period 2026-Q4`: for an auditor. Which sources are covered, which drills were done, missed or failed, and what followed.

use anyhow::Result;
use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::page::{Part, page};
use crate::cli::{Form, Place};
use crate::commands::output::{Ending, Exit, Shell, print_raw, span, time};
use crate::operations::evidence::{self, Chain, DrillReport};
use crate::plan::{Ended, PlanReport};
use crate::repository::layout::SourceName;
use crate::repository::series::{self, Series};

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

/// One source over the period.
#[derive(Debug, Serialize)]
struct Covered {
    source: String,
    /// Its snapshots are made by the configuration in force.
    configured: bool,
    snapshots: u64,
    drills: u64,
    passed: u64,
    restores: u64,
    /// Months in which no drill with the real engine passed.
    missed: Vec<String>,
    rpo_missed: u64,
    rto_missed: u64,
    longest_rto_seconds: Option<f64>,
    failures: Vec<Failed>,
    faults: Vec<String>,
}

/// A drill that failed, and what followed.
#[derive(Debug, Serialize)]
struct Failed {
    n: u64,
    at: Timestamp,
    why: Vec<String>,
    /// The next drill that answers it, in this period or later.
    passed_again: Option<Timestamp>,
}

pub fn run(shell: &Shell, place: &Place, period: Period, form: Form) -> Result<Ending> {
    let reader = shell.reader(place)?;
    let open = &reader.open;
    let now = open.now();
    let configured: BTreeSet<String> =
        reader.config.iter().flat_map(|c| c.source.iter().map(|s| s.name.to_string())).collect();
    let known = series::sources(&open.store)?.into_iter().map(|s| s.to_string());
    let drilled = evidence::subjects(open)?;
    let names: BTreeSet<String> = configured.iter().cloned().chain(known).chain(drilled).collect();
    let mut rows = Vec::new();
    for name in names {
        let chain = Chain::read(open, &name)?;
        let snapshots: Vec<Timestamp> = match SourceName::new(&name) {
            Ok(source) => {
                let whole = Series::list(&open.store, &open.trust, &source)?.whole();
                whole.snapshots().map(|(_, s)| s.finished).collect()
            }
            Err(_) => Vec::new(),
        };
        let is_configured = configured.contains(&name) || name.starts_with("plan.");
        rows.push(cover(name, is_configured, &chain, &snapshots, period, now));
    }
    let bad = rows.iter().any(|r| {
        r.configured
            && (!r.missed.is_empty() || !r.faults.is_empty() || r.failures.iter().any(|f| f.passed_again.is_none()))
    });
    if !shell.json {
        print_raw(&markdown(&rows, period, form), false);
    }
    Ending::new(
        if bad { Exit::CheckFailed } else { Exit::Done },
        json!({"period": period.to_string(), "subjects": rows}),
    )
}

fn cover(
    name: String,
    configured: bool,
    chain: &Chain,
    snapshots: &[Timestamp],
    period: Period,
    now: Timestamp,
) -> Covered {
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
    // Before there was anything to prove, nothing was missed.
    let seen = snapshots.iter().chain(chain.reports.iter().map(|s| &s.head.started)).min().copied();
    let unproven = |from: Timestamp, to: Timestamp| !proofs.iter().any(|at| *at >= from && *at < to);
    let missed =
        parts.iter().filter(|(_, from, to)| *from < now && seen.is_some_and(|seen| seen < *to) && unproven(*from, *to));
    let mut missed: Vec<String> = missed.map(|(month, ..)| month.strftime("%Y-%m").to_string()).collect();
    if seen.is_none() {
        missed.push("never backed up".into());
    }
    let failures = drills.iter().filter(real).filter(|r| inside(r.started) && !r.passed).map(|r| Failed {
        n: r.n,
        at: r.started,
        why: r.checks.iter().filter(|c| !c.passed).map(|c| format!("{}: {}", c.name, c.actual)).collect(),
        passed_again: drills.iter().find(|later| later.answers(r)).map(|later| later.started),
    });
    let failures = failures.chain(failed_plans(&plans, &real_plans).filter(|f| inside(f.at)));
    let of_plans = || plans.iter().filter(|p| inside(p.started));
    let done = || drills.iter().filter(real).filter(|r| inside(r.started));
    Covered {
        source: name,
        configured,
        snapshots: snapshots.iter().filter(|at| inside(**at)).count() as u64,
        drills: (done().count() + of_plans().count()) as u64,
        passed: (done().filter(|r| r.passed).count() + of_plans().filter(|p| p.passed).count()) as u64,
        restores: (drills.iter().filter(|r| r.r#type == "restore" && inside(r.started)).count()
            + real_plans.iter().filter(|p| inside(p.started)).count()) as u64,
        missed,
        rpo_missed: met(done().map(|r| r.rpo_met).chain(of_plans().map(|p| p.rpo_met))),
        rto_missed: met(done().map(|r| r.rto_met).chain(of_plans().map(|p| p.rto_met))),
        longest_rto_seconds: done()
            .filter(|r| r.rto_target_seconds.is_some() || r.entries > 0)
            .map(|r| r.achieved_rto_seconds)
            .chain(of_plans().chain(real_plans.iter().filter(|p| inside(p.started))).map(|p| p.achieved_rto_seconds))
            .reduce(f64::max),
        failures: failures.collect(),
        faults: chain.faults.iter().map(|(key, why)| format!("{key}: {why}")).collect(),
    }
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
fn failed_plans<'a>(plans: &'a [PlanReport], real: &'a [PlanReport]) -> impl Iterator<Item = Failed> + 'a {
    plans.iter().chain(real).filter(|p| !p.passed).map(move |p| Failed {
        n: p.n,
        at: p.started,
        why: p
            .stages
            .iter()
            .filter(|s| s.outcome == Ended::Failed)
            .map(|s| format!("{} plan, stage {}: {}", p.mode, s.name, s.detail))
            .collect(),
        passed_again: plans.iter().chain(real).filter(|l| l.n > p.n && l.passed).map(|l| l.started).min(),
    })
}

fn markdown(rows: &[Covered], period: Period, form: Form) -> String {
    if form == Form::Json {
        return json!({"period": period.to_string(), "subjects": rows}).to_string();
    }
    if form == Form::Html {
        return html(rows, period);
    }
    let mut out = format!(
        "# Restore evidence, {period}\n\n| subject | snapshots | drills | passed | real restores | months without a proof | RPO missed | RTO missed | longest |\n|{}\n",
        " --- |".repeat(9)
    );
    for r in rows {
        let missed = if r.missed.is_empty() { "none".to_owned() } else { r.missed.join(", ") };
        let name = if r.configured { r.source.clone() } else { format!("{} (not in the configuration)", r.source) };
        out.push_str(&format!(
            "| {name} | {} | {} | {} | {} | {missed} | {} | {} | {} |\n",
            r.snapshots,
            r.drills,
            r.passed,
            r.restores,
            r.rpo_missed,
            r.rto_missed,
            r.longest_rto_seconds.map_or("not measured".into(), span)
        ));
    }
    out.push_str("\n## Failures and what followed\n\n");
    followed(rows).iter().for_each(|line| out.push_str(&format!("* {line}\n")));
    out.trim_end().to_owned()
}

/// Each failure with what followed it, and each fault of a chain.
fn followed(rows: &[Covered]) -> Vec<String> {
    let mut lines = Vec::new();
    for (r, failed) in rows.iter().flat_map(|r| r.failures.iter().map(move |f| (r, f))) {
        let after =
            failed.passed_again.map_or("NOT PASSED SINCE".to_owned(), |at| format!("passed again {}", time(at)));
        let (source, n, at) = (&r.source, failed.n, time(failed.at));
        lines.push(format!("{source}, report {n}, {at}: FAILED: {}. {after}.", failed.why.join("; ")));
    }
    lines.extend(rows.iter().flat_map(|r| &r.faults).map(|fault| format!("TAMPERED EVIDENCE: {fault}")));
    if lines.is_empty() {
        lines.push("None.".into());
    }
    lines
}

fn html(rows: &[Covered], period: Period) -> String {
    let heading = vec![
        "subject",
        "snapshots",
        "drills",
        "passed",
        "real restores",
        "months without a proof",
        "RPO missed",
        "RTO missed",
        "longest",
    ];
    let row = |r: &Covered| {
        vec![
            if r.configured { r.source.clone() } else { format!("{} (not in the configuration)", r.source) },
            r.snapshots.to_string(),
            r.drills.to_string(),
            r.passed.to_string(),
            r.restores.to_string(),
            if r.missed.is_empty() { "none".to_owned() } else { r.missed.join(", ") },
            r.rpo_missed.to_string(),
            r.rto_missed.to_string(),
            r.longest_rto_seconds.map_or("not measured".into(), span),
        ]
    };
    let parts = [
        Part { title: "Subjects", heading, rows: rows.iter().map(row).collect() },
        Part {
            title: "Failures and what followed",
            heading: vec![""],
            rows: followed(rows).into_iter().map(|l| vec![l]).collect(),
        },
    ];
    page(&format!("Restore evidence, {period}"), &parts)
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
