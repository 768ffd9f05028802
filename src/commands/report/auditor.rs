//! The page for an auditor, of what [`super::period`] has found.

use serde_json::{Value, json};

use super::covered::{Covered, Reached};
use super::page::{Part, markdown, page};
use super::promised::Kept;
use crate::cli::{Form, Period};
use crate::commands::output::{span, time};

/// Moments that are named one by one; more are counted.
const NAMED: usize = 12;

pub struct Auditor {
    pub period: Period,
    pub rows: Vec<Covered>,
    /// Sources of the configuration that no job backs up.
    pub idle: Vec<String>,
    /// There is a schedule that promises drills.
    pub by_schedule: bool,
    /// There is a configuration at all.
    pub configured: bool,
}

impl Auditor {
    pub fn value(&self) -> Value {
        json!({
            "period": self.period.to_string(),
            "judged_by": self.judged_by(),
            "without_job": self.idle,
            "subjects": self.rows,
        })
    }

    pub fn text(&self, form: Form) -> String {
        match form {
            Form::Json => self.value().to_string(),
            Form::Html => page(&self.title(), &self.parts()),
            Form::Md => markdown(&self.title(), &self.parts()),
        }
    }

    fn title(&self) -> String {
        format!("Restore evidence, {}", self.period)
    }

    /// By what the drills that were due are known.
    fn judged_by(&self) -> &'static str {
        match (self.by_schedule, self.configured) {
            (true, _) => {
                "what the jobs and restore plans of the configuration promise, as they are now; a subject of which they promise no drill: at least one proof a month"
            }
            (false, true) => {
                "at least one proof a month: no job and no restore plan of the configuration promises a drill"
            }
            (false, false) => "at least one proof a month: there is no configuration here that would promise drills",
        }
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            Part { title: "Judged by", heading: vec![""], rows: vec![vec![self.judged_by().to_owned()]] },
            Part {
                title: "Coverage",
                heading: vec!["subject", "snapshots", "drills", "passed", "real restores", "drills due", "missed"],
                rows: self.rows.iter().map(coverage).collect(),
            },
            Part {
                title: "Targets",
                heading: vec![
                    "subject",
                    "RPO",
                    "worst in a drill",
                    "longest between snapshots",
                    "RTO",
                    "longest restore",
                    "missed in drills",
                ],
                rows: self.rows.iter().map(targets).collect(),
            },
            Part { title: "Not backed up by any job", heading: vec![""], rows: lines(self.idle.clone()) },
            Part {
                title: "Drills that were due and not done",
                heading: vec![""],
                rows: lines(self.rows.iter().flat_map(missed).collect()),
            },
            Part { title: "Failures and what followed", heading: vec![""], rows: lines(followed(&self.rows)) },
        ]
    }
}

/// One line in each row; a word where there is none.
fn lines(all: Vec<String>) -> Vec<Vec<String>> {
    let all = if all.is_empty() { vec!["None.".to_owned()] } else { all };
    all.into_iter().map(|line| vec![line]).collect()
}

fn named(row: &Covered) -> String {
    match (row.configured, row.retired) {
        (_, Some(at)) => format!("{} (retired {})", row.source, time(at)),
        (false, None) => format!("{} (not in the configuration)", row.source),
        (true, None) => row.source.clone(),
    }
}

fn coverage(row: &Covered) -> Vec<String> {
    let due: u64 = row.promised.iter().map(|kept| kept.due).sum();
    let late: usize = row.promised.iter().map(|kept| kept.missed.len()).sum();
    let (due, missed) = if row.promised.is_empty() {
        let months = if row.missed.is_empty() { "none".to_owned() } else { row.missed.join(", ") };
        ("one a month".to_owned(), months)
    } else {
        (due.to_string(), if late == 0 { "none".into() } else { late.to_string() })
    };
    vec![
        named(row),
        row.snapshots.to_string(),
        row.drills.to_string(),
        row.passed.to_string(),
        row.restores.to_string(),
        due,
        missed,
    ]
}

fn targets(row: &Covered) -> Vec<String> {
    let seconds = |value: Option<f64>| value.map_or("not measured".into(), span);
    let target = |reached: &Reached| {
        let verdict = match reached.met() {
            Some(true) => " (met)",
            Some(false) => " (MISSED)",
            None => "",
        };
        reached.target_seconds.map_or("none".into(), |target| format!("{}{verdict}", span(target)))
    };
    vec![
        named(row),
        target(&row.rpo),
        seconds(row.rpo.worst_seconds),
        seconds(row.rpo.longest_between_snapshots_seconds),
        target(&row.rto),
        seconds(row.rto.worst_seconds),
        format!("RPO {}, RTO {}", row.rpo_missed, row.rto_missed),
    ]
}

/// The drills of a subject that were due and not done.
fn missed(row: &Covered) -> Vec<String> {
    let of_schedule = |kept: &Kept| {
        let times: Vec<String> = kept.missed.iter().take(NAMED).map(|at| time(*at)).collect();
        let more = kept.missed.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        format!(
            "{}, level {}, {} ({}): {} of {} MISSED: {}{more}",
            row.source,
            kept.level,
            kept.rhythm,
            kept.by,
            kept.missed.len(),
            kept.due,
            times.join(", ")
        )
    };
    let of_months = (!row.missed.is_empty()).then(|| format!("{}: no proof: {}", row.source, row.missed.join(", ")));
    row.promised.iter().filter(|kept| !kept.missed.is_empty()).map(of_schedule).chain(of_months).collect()
}

/// Each failure with what followed it, and each fault of a chain.
fn followed(rows: &[Covered]) -> Vec<String> {
    let mut lines = Vec::new();
    for (row, failed) in rows.iter().flat_map(|row| row.failures.iter().map(move |failed| (row, failed))) {
        let stood = span(failed.stood_seconds);
        let after = match (failed.answered_by, failed.passed_again) {
            (Some(n), Some(at)) => format!("report {n} passed again {}; it stood for {stood}", time(at)),
            _ => format!("NOT PASSED SINCE, for {stood}"),
        };
        let (source, n, at) = (&row.source, failed.n, time(failed.at));
        lines.push(format!("{source}, report {n}, {at}: FAILED: {}. {after}.", failed.why.join("; ")));
    }
    lines.extend(rows.iter().flat_map(|row| &row.faults).map(|fault| format!("TAMPERED EVIDENCE: {fault}")));
    lines
}
