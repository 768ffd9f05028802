//! Stand-in, replaced at the merge: restores into scratch and checks; signs and stores nothing.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::path::PathBuf;

use super::Open;
use super::restore::{self, Phases, Request};
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::sealed::SealedPart;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};

pub struct Options {
    pub scratch: PathBuf,
    pub workers: usize,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    pub keep: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    pub source: SourceName,
    pub seq: u64,
    pub commit: Hash,
    pub kind: String,
    pub data_time: Timestamp,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub passed: bool,
    pub checks: Vec<Check>,
    pub rpo_exposure_seconds: f64,
    pub achieved_rto_seconds: f64,
    pub phases: Phases,
    pub bytes: u64,
    pub rpo_met: Option<bool>,
    pub rto_met: Option<bool>,
}

pub struct Proof {
    pub seq: u64,
    pub commit: Hash,
    pub finished: Timestamp,
    pub bytes: u64,
    pub seconds: f64,
}

pub fn drill(
    open: &Open,
    identities: &[Identity],
    _signer: &SigningKey,
    commit: &Commit,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<DrillReport> {
    let started = open.now();
    let to = options.scratch.join("restored");
    let request = Request { to: to.clone(), in_place: false, paths: Vec::new(), workers: options.workers };
    let report = restore::restore(open, identities, commit, snapshot, &request)?;
    let sealed = SealedPart::open(snapshot, identities)?;
    let mut checks = vec![Check::compare("bytes", sealed.stats.bytes, report.bytes)];
    if snapshot.kind == "sqlite" {
        for entry in std::fs::read_dir(&to)? {
            checks.extend(crate::source::sqlite::check::check(&entry?.path(), &sealed.facts)?);
        }
    }
    let finished = open.now();
    let exposure = finished.duration_since(snapshot.data_time);
    Ok(DrillReport {
        source: snapshot.source.clone(),
        seq: snapshot.seq,
        commit: commit.hash,
        kind: snapshot.kind.clone(),
        data_time: snapshot.data_time,
        started,
        finished,
        passed: checks.iter().all(|c| c.passed),
        checks,
        rpo_exposure_seconds: exposure.as_secs_f64(),
        achieved_rto_seconds: report.phases.total,
        phases: report.phases,
        bytes: report.bytes,
        rpo_met: options.rpo.map(|rpo| exposure <= rpo),
        rto_met: options.rto.map(|rto| report.phases.total <= rto.as_secs_f64()),
    })
}

pub fn verified(_open: &Open, _source: &SourceName) -> Result<Vec<Proof>> {
    Ok(Vec::new())
}
