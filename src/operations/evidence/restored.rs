//! The record of a real restore. It proves nothing, since nobody asked the engine, but it is measured, and an auditor finds it in the chain.

use anyhow::Result;
use jiff::Timestamp;

use super::{DrillReport, Environment, Keys, Level, Objects, append};
use crate::operations::Open;
use crate::operations::drill::{keys, note_phases};
use crate::operations::measures::{PARTIAL_RESTORE, RESUMED, implausible};
use crate::operations::restore::RestoreReport;
use crate::report::{Check, Outcome, Stopwatch};
use crate::repository::FORMAT;
use crate::repository::layout::Hash;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};

/// What the restore itself does not know.
pub struct Circumstances {
    pub started: Timestamp,
    /// Why this recovery point was taken.
    pub point: String,
    pub trigger: String,
    pub plan: Option<String>,
    /// Only some paths were asked for.
    pub partial: bool,
    pub configuration: Option<Hash>,
}

/// Signs and stores the record of a restore that was done.
pub fn record(
    open: &Open,
    signer: &SigningKey,
    (commit, snapshot): (&Commit, &Snapshot),
    report: &RestoreReport,
    how: &Circumstances,
) -> Result<DrillReport> {
    let finished = open.now();
    let times = Stopwatch::default();
    note_phases(&times, &report.phases);
    let mut deviations: Vec<String> =
        report.notes.iter().map(|n| format!("restored with a note: {}: {}", n.path, n.why)).collect();
    let wall = finished.duration_since(how.started).as_secs_f64();
    deviations.extend(implausible(report.phases.total, report.bytes, wall));
    if how.partial {
        deviations.push(PARTIAL_RESTORE.into());
    }
    if report.resumed {
        deviations.push(format!("{RESUMED}: the time is that of its last part"));
    }
    if report.outcome == Outcome::Partial {
        deviations.push("the snapshot is partial: something could not be read when it was made".into());
    }
    let objects = Objects::of(open, snapshot)?;
    let place = report.to.parent().unwrap_or(&report.to);
    let environment = Environment::here(place, "none: this was a real restore");
    let key_ids: Keys = keys(open, commit, signer);
    let make = |n, previous| DrillReport {
        r#type: "restore".into(),
        format: FORMAT,
        repository: open.trust.id.clone(),
        subject: snapshot.source.to_string(),
        n,
        previous,
        source: snapshot.source.clone(),
        kind: snapshot.kind.clone(),
        level: Level::Decode,
        plan: how.plan.clone(),
        trigger: how.trigger.clone(),
        seq: snapshot.seq,
        commit: commit.hash,
        data_time: snapshot.data_time,
        outcome: snapshot.outcome,
        point: how.point.clone(),
        started: how.started,
        finished,
        passed: true,
        checks: vec![Check::compare("every byte restored matched its SHA-256", "yes", "yes")],
        canary: None,
        tested: vec!["every byte restored".into()],
        not_tested: vec!["the engine and the application on the restored copy".into()],
        entries: report.entries,
        bytes: report.bytes,
        bytes_fetched: report.bytes_fetched,
        objects: objects.clone(),
        keys: key_ids.clone(),
        environment: environment.clone(),
        configuration: how.configuration,
        log_until: None,
        rpo_exposure_seconds: how.started.duration_since(snapshot.data_time).as_secs_f64(),
        rpo_target_seconds: None,
        rpo_met: None,
        achieved_rto_seconds: report.phases.total,
        rto_target_seconds: None,
        rto_met: None,
        timeline: times.phases(),
        deviations: deviations.clone(),
        scratch_removed: true,
        leftovers_removed: 0,
        agent: concat!("blackstart ", env!("CARGO_PKG_VERSION")).into(),
    };
    Ok(append(open, signer, snapshot.source.as_str(), make)?.0)
}
