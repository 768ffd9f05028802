//! Which recovery points are verified: what the drills so far prove, read from the repository.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use super::Open;
use super::evidence::{Chain, DrillReport};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series::{self, Series, Whole};
use crate::repository::snapshot::{Commit, Line, Snapshot};
use crate::storage::{self, Key};

/// A drill that passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proof {
    pub seq: u64,
    pub commit: Hash,
    pub finished: Timestamp,
    pub bytes: u64,
    /// Achieved RTO.
    pub seconds: f64,
}

impl Proof {
    /// What `report` proves, if it does, and unless that is taken back.
    pub fn of(report: &DrillReport) -> Option<Proof> {
        report.proves().then_some(Proof {
            seq: report.seq,
            commit: report.commit,
            finished: report.finished,
            bytes: report.bytes,
            seconds: report.achieved_rto_seconds,
        })
    }
}

/// A report that is missing or does not verify: what it said, a failure or a proof, is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub object: Key,
    pub why: String,
    /// When the drill of the next report ended that verifies: this one was there by then.
    before: Option<Timestamp>,
}

impl Broken {
    /// Whether it may have proven `snapshot`: it was there by then.
    pub fn may_prove(&self, snapshot: &Snapshot) -> bool {
        self.before.is_none_or(|before| snapshot.finished <= before)
    }
}

/// The reports on a source, passed or failed, drills and real restores, the oldest first. A report counts if the root or a certified drill key signed it.
#[derive(Debug, Default)]
pub struct Reports {
    pub drills: Vec<DrillReport>,
    pub broken: Vec<Broken>,
}

impl Reports {
    fn of(chain: &Chain) -> Reports {
        let drills = chain.drills();
        let broken = |(object, why): &(Key, String)| {
            // What is not named as a report is was none.
            let n = layout::parse_drill(object)?;
            let before = drills.iter().find(|later| later.n >= n).map(|later| later.finished);
            Some(Broken { object: object.clone(), why: why.clone(), before })
        };
        let broken = chain.faults.iter().filter_map(broken).collect();
        Reports { drills, broken }
    }

    /// The newest broken report, unless a drill has come back well since: it may have told of a failure that nothing has answered.
    pub fn unanswered(&self) -> Option<&Broken> {
        let well = self.drills.iter().filter(|report| report.proves()).map(|report| report.n).max();
        self.broken.last().filter(|broken| layout::parse_drill(&broken.object) > well)
    }
}

/// What drills have proven of a source, and the reports that may have proven more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proven {
    /// The oldest first.
    pub proofs: Vec<Proof>,
    pub broken: Vec<Broken>,
}

impl Proven {
    /// Whether a drill has proven the snapshot with this commit.
    pub fn has(&self, commit: &Hash) -> bool {
        self.proofs.iter().any(|proof| proof.commit == *commit)
    }

    /// The report that may have proven `snapshot`, and does not say so any more.
    pub fn doubt(&self, snapshot: &Snapshot) -> Option<&Broken> {
        self.broken.iter().rev().find(|broken| broken.may_prove(snapshot))
    }
}

/// The drills of `source` that prove their recovery point, the oldest first.
pub fn of(open: &Open, source: &SourceName) -> Result<Vec<Proof>> {
    Ok(proven(open, source)?.proofs)
}

/// What drills have proven of `source`, and what they may have proven.
pub fn proven(open: &Open, source: &SourceName) -> Result<Proven> {
    let reports = reports(open, source)?;
    Ok(Proven { proofs: by(open, source, &reports.drills)?, broken: reports.broken })
}

/// What `reports` of `source` prove.
pub fn by(open: &Open, source: &SourceName, reports: &[DrillReport]) -> Result<Vec<Proof>> {
    let mut proofs = reports.iter().filter_map(Proof::of).collect();
    unproven_by_loss(open, source, &mut proofs)?;
    Ok(proofs)
}

/// The reports on `source`.
pub fn reports(open: &Open, source: &SourceName) -> Result<Reports> {
    Ok(Reports::of(&Chain::read(open, source.as_str())?))
}

/// A later backup that found packs missing takes back the proof of every snapshot that needs one of them (FORMAT.md §4-7).
fn unproven_by_loss(open: &Open, source: &SourceName, proofs: &mut Vec<Proof>) -> Result<()> {
    if proofs.is_empty() {
        return Ok(());
    }
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let aftermath = Aftermath::of(&whole);
    for (commit, snapshot) in whole.snapshots() {
        if aftermath.hurts(open, snapshot)? {
            proofs.retain(|proof| proof.commit != commit.hash);
        }
    }
    Ok(())
}

/// Commits that are held at once while the past of a series is read.
const COMMITS_AT_ONCE: u64 = 128;

/// What the commits of a series say of snapshots before them. It can be kept, and go on where it ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aftermath {
    /// Commits above the first number, up to the second, have been looked at.
    read: Option<(u64, u64)>,
    /// Snapshots that prune has listed as removed.
    removed: BTreeSet<u64>,
    /// Packs that a backup needed and the store no longer had.
    lost: BTreeSet<Hash>,
}

/// What drills have proven of a source, as it stands now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// The data time of the newest snapshot that is proven.
    pub newest: Option<Timestamp>,
    /// A newer snapshot that was proven, before packs that it needs were found missing.
    pub taken_back: Option<u64>,
}

impl Aftermath {
    /// What a series says that has been read from end to end.
    pub fn of(whole: &Whole) -> Aftermath {
        let mut all = Aftermath::default();
        whole.commits.iter().for_each(|commit| all.take(commit));
        all
    }

    fn take(&mut self, commit: &Commit) {
        match &commit.line {
            Line::Prune(prune) => self.removed.extend(prune.removed.iter().map(|gone| gone.seq)),
            Line::Snapshot(snapshot) => self.lost.extend(snapshot.lost.iter().copied()),
            Line::Retire(_) => {}
        }
    }

    /// Reads what came since, and what is above commit `seq`. After an error nothing has changed.
    fn reach(&mut self, series: &Series, seq: u64) -> Result<()> {
        let head = series.head();
        // An older head than before: the store shows another past.
        let mut now = if self.read.is_some_and(|(_, to)| to > head) { Aftermath::default() } else { self.clone() };
        let (from, to) = now.read.unwrap_or((head, head));
        now.read_all(series, to, head)?;
        now.read_all(series, seq.min(from), from)?;
        now.read = Some((seq.min(from), head));
        *self = now;
        Ok(())
    }

    /// The commits above `from`, up to `to`. What does not verify says nothing, and is for `verify` to tell of.
    fn read_all(&mut self, series: &Series, mut from: u64, to: u64) -> Result<()> {
        while from < to {
            let until = to.min(from + COMMITS_AT_ONCE);
            for read in series.read_range(from + 1..=until).into_values() {
                match read {
                    Ok(commit) => self.take(&commit),
                    Err(error) if storage::is_silence(&error) => return Err(error),
                    Err(_) => {}
                }
            }
            from = until;
        }
        Ok(())
    }

    /// Whether `snapshot` needs a pack that was found missing (FORMAT.md §4-7), or does not say any more which it needs.
    pub fn hurts(&self, open: &Open, snapshot: &Snapshot) -> Result<bool> {
        if self.lost.is_empty() {
            return Ok(false);
        }
        let packs = match series::packs_of(&open.store, snapshot) {
            Ok(packs) => packs,
            Err(error) if storage::is_silence(&error) => return Err(error),
            // Without the list of its packs it does not come back either.
            Err(_) => return Ok(true),
        };
        Ok(self.lost.iter().any(|hash| packs.contains_key(hash)))
    }

    /// What `proofs` are worth by now. It costs a request for each commit since the newest one that holds, where that has not been read yet.
    pub fn verified(&mut self, open: &Open, series: &Series, proofs: &[Proof]) -> Result<Verified> {
        let by_snapshot: BTreeMap<u64, &Proof> = proofs.iter().map(|proof| (proof.seq, proof)).collect();
        let mut verified = Verified::default();
        for (seq, proof) in by_snapshot.into_iter().rev() {
            self.reach(series, seq)?;
            if self.removed.contains(&seq) {
                continue;
            }
            let commit = match series.read(seq) {
                Ok(commit) => commit,
                Err(error) if storage::is_silence(&error) => return Err(error),
                Err(_) => continue,
            };
            let Some(snapshot) = commit.snapshot().filter(|_| commit.hash == proof.commit) else { continue };
            if self.hurts(open, snapshot)? {
                verified.taken_back = verified.taken_back.or(Some(seq));
                continue;
            }
            verified.newest = Some(snapshot.data_time);
            break;
        }
        Ok(verified)
    }
}
