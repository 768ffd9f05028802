//! `report --period 2026-Q4`: for an auditor. Which sources are covered, which drills were done, missed or failed, and what followed.
//!
//! What was due, the schedule says that is in force now: jobs and plans of the configuration. Where it promises no drill of a subject, or there is no
//! configuration here, a month without a proof is one that is missed.

use anyhow::Result;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

use super::auditor::Auditor;
use super::covered::{Covered, Subject, cover};
use super::promised::{Promise, promises, without_job};
use crate::cli::{Form, Period, Place};
use crate::commands::output::{Ending, Exit, Shell, print_raw};
use crate::config::Config;
use crate::operations::Open;
use crate::operations::evidence::{self, Chain};
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::series::{self, Series, Whole};

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
