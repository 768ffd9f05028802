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

use crate::cli::{Form, Place};
use crate::commands::output::{Ending, Exit, Shell, print_raw, span};
use crate::operations::evidence::{self, Chain, DrillReport};
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
    /// The next drill of the same depth that passed, in this period or later.
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
    let plans: Vec<(Timestamp, bool)> = chain
        .reports
        .iter()
        .filter(|s| s.head.r#type == "plan")
        .filter_map(|s| Some((s.head.started, s.decode::<serde_json::Value>().ok()?["passed"] == true)))
        .collect();
    let real = |r: &&DrillReport| r.r#type == "drill";
    let proofs: Vec<Timestamp> = drills.iter().filter(|r| r.proves()).map(|r| r.started).collect();
    let proofs: Vec<Timestamp> = proofs.into_iter().chain(plans.iter().filter(|p| p.1).map(|p| p.0)).collect();
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
        passed_again: drills
            .iter()
            .filter(real)
            .find(|l| l.n > r.n && l.passed && l.level >= r.level)
            .map(|l| l.started),
    });
    let done = || drills.iter().filter(real).filter(|r| inside(r.started));
    Covered {
        source: name,
        configured,
        snapshots: snapshots.iter().filter(|at| inside(**at)).count() as u64,
        drills: (done().count() + plans.iter().filter(|p| inside(p.0)).count()) as u64,
        passed: (done().filter(|r| r.passed).count() + plans.iter().filter(|p| inside(p.0) && p.1).count()) as u64,
        restores: drills.iter().filter(|r| r.r#type == "restore" && inside(r.started)).count() as u64,
        missed,
        rpo_missed: done().filter(|r| r.rpo_met == Some(false)).count() as u64,
        rto_missed: done().filter(|r| r.rto_met == Some(false)).count() as u64,
        longest_rto_seconds: done()
            .filter(|r| r.rto_target_seconds.is_some() || r.entries > 0)
            .map(|r| r.achieved_rto_seconds)
            .reduce(f64::max),
        failures: failures.collect(),
        faults: chain.faults.iter().map(|(key, why)| format!("{key}: {why}")).collect(),
    }
}

fn markdown(rows: &[Covered], period: Period, form: Form) -> String {
    if form == Form::Json {
        return json!({"period": period.to_string(), "subjects": rows}).to_string();
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
    let mut none = true;
    for (r, failed) in rows.iter().flat_map(|r| r.failures.iter().map(move |f| (r, f))) {
        none = false;
        let after = failed.passed_again.map_or("NOT PASSED SINCE".to_owned(), |at| format!("passed again {at:.0}"));
        out.push_str(&format!(
            "* {}, report {}, {:.0}: {}. {after}.\n",
            r.source,
            failed.n,
            failed.at,
            failed.why.join("; ")
        ));
    }
    for fault in rows.iter().flat_map(|r| &r.faults) {
        none = false;
        out.push_str(&format!("* TAMPERED EVIDENCE: {fault}\n"));
    }
    if none {
        out.push_str("None.\n");
    }
    out.trim_end().to_owned()
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
