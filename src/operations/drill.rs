//! A drill: a restore into scratch, the engine's own checks, a stopwatch, a signed report. It is the same restore as at 3 a.m.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Open;
use super::proof::{self, Case};
use super::restore::{self, Phases, Request};
use crate::error::{Kind, kind_of};
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series::{self, Series};
use crate::repository::signed::{SignedLine, SigningKey};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::repository::trust::Role;
use crate::repository::{FORMAT, check_format};
use crate::source::Settings;

#[derive(Debug, Clone)]
pub struct Options {
    /// A directory for scratch; a new directory in it is made and removed.
    pub scratch: PathBuf,
    pub workers: usize,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    /// Leave the restored copy for inspection.
    pub keep: bool,
    /// For the proof.
    pub settings: Settings,
}

/// Evidence: signed into the repository, and shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillReport {
    pub r#type: String,
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    pub commit: Hash,
    pub data_time: Timestamp,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub passed: bool,
    pub checks: Vec<Check>,
    /// Bytes restored, and stored bytes fetched for them.
    pub bytes: u64,
    pub bytes_fetched: u64,
    /// Age of the data when the drill began.
    pub rpo_exposure_seconds: f64,
    pub rpo_target_seconds: Option<f64>,
    pub rpo_met: Option<bool>,
    /// From the first read of the repository until the last check.
    pub achieved_rto_seconds: f64,
    pub rto_target_seconds: Option<f64>,
    pub rto_met: Option<bool>,
    pub phases: Phases,
    pub check_seconds: f64,
    pub agent: String,
    /// Whether the scratch copy is gone again.
    pub scratch_removed: bool,
}

/// Restores `snapshot` into scratch, checks it, and signs what was found. `Err`: the drill itself could not be carried out; a
/// snapshot that does not come back is a report that did not pass.
pub fn drill(
    open: &Open,
    identities: &[Identity],
    signer: &SigningKey,
    commit: &Commit,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<DrillReport> {
    // Without local state: a cached index object would prove nothing about the repository's.
    let open = &Open { state: None, ..open.clone() };
    let started = open.now();
    let clock = Instant::now();
    std::fs::create_dir_all(&options.scratch).with_context(|| format!("create {}", options.scratch.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix("blackstart-drill-")
        .tempdir_in(&options.scratch)
        .with_context(|| format!("make a scratch directory in {}", options.scratch.display()))?;
    let scratch_path = std::path::absolute(scratch.path())?;
    let request = Request {
        to: scratch_path.join("restored"),
        in_place: false,
        paths: Vec::new(),
        workers: options.workers,
        finish: None,
    };
    let trial = try_out(open, identities, (commit, snapshot), &request, &options.settings, clock)?;
    let Trial { checks, bytes, bytes_fetched, phases, restored_at } = trial;
    let total = clock.elapsed();
    let scratch_removed = if options.keep {
        drop(scratch.keep());
        false
    } else {
        scratch.close().is_ok()
    };
    let rpo_exposure_seconds = started.duration_since(snapshot.data_time).as_secs_f64();
    let achieved_rto_seconds = total.as_secs_f64();
    let target = |t: Option<SignedDuration>| t.map(|t| t.as_secs_f64());
    let report = DrillReport {
        r#type: "drill".into(),
        format: FORMAT,
        repository: open.trust.id.clone(),
        source: snapshot.source.clone(),
        kind: snapshot.kind.clone(),
        seq: snapshot.seq,
        commit: commit.hash,
        data_time: snapshot.data_time,
        started,
        finished: open.now(),
        passed: checks.iter().all(|c| c.passed),
        checks,
        bytes,
        bytes_fetched,
        rpo_exposure_seconds,
        rpo_target_seconds: target(options.rpo),
        rpo_met: target(options.rpo).map(|t| rpo_exposure_seconds <= t),
        achieved_rto_seconds,
        rto_target_seconds: target(options.rto),
        rto_met: target(options.rto).map(|t| achieved_rto_seconds <= t),
        phases,
        check_seconds: (total - restored_at).as_secs_f64(),
        agent: concat!("blackstart ", env!("CARGO_PKG_VERSION")).into(),
        scratch_removed,
    };
    let body = signer.sign_line(&report)?;
    let time = report.finished.strftime("%Y%m%dT%H%M%S%3fZ").to_string();
    let key = layout::drill(&snapshot.source, &time, snapshot.seq);
    let hash = Hash::of(&body);
    open.store.create(&key, body.into(), &hash.0).context("store the drill report")?;
    Ok(report)
}

/// What a restore into scratch brought, and what its checks found.
struct Trial {
    checks: Vec<Check>,
    bytes: u64,
    bytes_fetched: u64,
    phases: Phases,
    /// Since the start of the drill.
    restored_at: Duration,
}

fn try_out(
    open: &Open,
    identities: &[Identity],
    (commit, snapshot): (&Commit, &Snapshot),
    request: &Request,
    settings: &Settings,
    clock: Instant,
) -> Result<Trial> {
    let restored = restore::restore(open, identities, commit, snapshot, request);
    let restored_at = clock.elapsed();
    let mut trial = Trial { checks: Vec::new(), bytes: 0, bytes_fetched: 0, phases: Phases::default(), restored_at };
    match restored {
        Ok(report) => {
            (trial.bytes, trial.bytes_fetched, trial.phases) = (report.bytes, report.bytes_fetched, report.phases);
            trial.checks.push(Check::compare("restore", "done", "done"));
            let scratch = request.to.parent().context("a drill needs a directory for scratch")?;
            match proof::prove(&Case { open, identities, snapshot, copy: &request.to, scratch, settings }) {
                Ok(found) => trial.checks.extend(found),
                Err(e) if kind_of(&e) == Kind::Environment => {
                    return Err(e.context("the copy was restored, but could not be proven here"));
                }
                Err(e) => trial.checks.push(Check::compare("checks", "carried out", format!("{e:#}"))),
            }
        }
        Err(e) => trial.checks.push(Check::compare("restore", "done", format!("{e:#}"))),
    }
    Ok(trial)
}

/// A drill that passed.
#[derive(Debug, Clone, Serialize)]
pub struct Proof {
    pub seq: u64,
    pub commit: Hash,
    pub finished: Timestamp,
    pub bytes: u64,
    /// Achieved RTO.
    pub seconds: f64,
}

/// Reads and verifies the stored bytes of a drill report of `source`.
pub fn read_report(open: &Open, source: &SourceName, object: &[u8]) -> Result<DrillReport> {
    let signed = SignedLine::parse(object)?;
    check_format(signed.format()?, "the drill report")?;
    let report: DrillReport = signed.decode()?;
    let ours = report.r#type == "drill" && report.repository == open.trust.id && report.source == *source;
    ensure!(ours, "the drill report belongs elsewhere");
    let trusted =
        signed.key == open.trust.root || open.trust.may_sign(&signed.key, Role::Drill, source, report.started);
    ensure!(trusted, "signed by {}, which may not sign drill reports of this source", signed.key.id());
    Ok(report)
}

/// The drills of `source` that passed, the oldest first.
pub fn verified(open: &Open, source: &SourceName) -> Result<Vec<Proof>> {
    proofs(open, source, &reports(open, source)?)
}

/// What `reports` of `source` prove.
pub fn proofs(open: &Open, source: &SourceName, reports: &[DrillReport]) -> Result<Vec<Proof>> {
    let proof = |report: &DrillReport| Proof {
        seq: report.seq,
        commit: report.commit,
        finished: report.finished,
        bytes: report.bytes,
        seconds: report.achieved_rto_seconds,
    };
    let mut proofs = reports.iter().filter(|r| r.passed).map(proof).collect();
    unproven_by_loss(open, source, &mut proofs)?;
    Ok(proofs)
}

/// The drills of `source`, passed or failed, the oldest first. A report counts if the root or a certified drill key signed it.
pub fn reports(open: &Open, source: &SourceName) -> Result<Vec<DrillReport>> {
    let mut reports = Vec::new();
    for object in open.store.list(&layout::drills(source)).context("list drill reports")? {
        let body = open.store.get(&object.key).context("read a drill report")?;
        if let Ok(report) = read_report(open, source, &body) {
            reports.push(report);
        }
    }
    Ok(reports)
}

/// A later backup that found packs missing takes back the proof of every snapshot that needs one of them (FORMAT.md §4-7).
fn unproven_by_loss(open: &Open, source: &SourceName, proofs: &mut Vec<Proof>) -> Result<()> {
    if proofs.is_empty() {
        return Ok(());
    }
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let lost: BTreeSet<Hash> = whole.snapshots().flat_map(|(_, s)| s.lost.iter().copied()).collect();
    if lost.is_empty() {
        return Ok(());
    }
    for (commit, snapshot) in whole.snapshots() {
        let packs = series::packs_of(&open.store, snapshot)?;
        if lost.iter().any(|hash| packs.contains_key(hash)) {
            proofs.retain(|proof| proof.commit != commit.hash);
        }
    }
    Ok(())
}
