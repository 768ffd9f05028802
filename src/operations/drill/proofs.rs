//! What the drills so far prove, read from the repository.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;

use super::DrillReport;
use crate::operations::Open;
use crate::operations::evidence::Chain;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::series::{self, Series};

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

/// The drills of `source` that prove their recovery point, the oldest first.
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
    let mut proofs = reports.iter().filter(|r| r.proves()).map(proof).collect();
    unproven_by_loss(open, source, &mut proofs)?;
    Ok(proofs)
}

/// The reports on `source`, passed or failed, drills and real restores, the oldest first. A report counts if the root or a certified drill key
/// signed it.
pub fn reports(open: &Open, source: &SourceName) -> Result<Vec<DrillReport>> {
    Ok(Chain::read(open, source.as_str())?.drills())
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
