//! The newest commits of a series, read only as far back as somebody asks.

use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

use super::Series;
use crate::repository::snapshot::{Commit, Line, Snapshot};
use crate::storage;

/// Grows towards the past. What it says of a commit is what [`super::Whole`] would say, but for the chain between commits.
pub struct Tail<'a> {
    series: Series<'a>,
    /// The lowest number that has been read so far.
    down_to: u64,
    snapshots: BTreeMap<u64, (Commit, Snapshot)>,
    faults: BTreeMap<u64, String>,
    /// What prune records list.
    removed: BTreeSet<u64>,
    /// The newest snapshot that was accepted: those up to it are not suspect any more.
    accepted: u64,
}

impl<'a> Tail<'a> {
    pub fn of(series: Series<'a>) -> Tail<'a> {
        let down_to = series.head().saturating_add(1);
        let (snapshots, faults) = (BTreeMap::new(), BTreeMap::new());
        Tail { series, down_to, snapshots, faults, removed: BTreeSet::new(), accepted: 0 }
    }

    /// Snapshot `seq`: whether it looks wrong (FORMAT.md §4-11), and itself. `Ok(Err)`: why it is none that counts. `Err`: the store could not be
    /// read.
    pub fn snapshot(&mut self, seq: u64) -> Result<Result<(&Commit, &Snapshot, bool), String>> {
        self.read_down_to(seq)?;
        if let Some(why) = self.faults.get(&seq) {
            return Ok(Err(why.clone()));
        }
        let found = self.snapshots.get(&seq).filter(|_| !self.removed.contains(&seq));
        let accepted = self.accepted;
        Ok(found.map_or(Err("is gone".into()), |(commit, snapshot)| {
            Ok((commit, snapshot, snapshot.suspect && accepted < seq))
        }))
    }

    fn read_down_to(&mut self, seq: u64) -> Result<()> {
        if seq >= self.down_to {
            return Ok(());
        }
        for (n, read) in self.series.read_range(seq..self.down_to) {
            let commit = match read {
                Ok(commit) => commit,
                // Not to know whether it is there is not the same as that it is gone.
                Err(e) if storage::is_silence(&e) => return Err(e),
                Err(e) => {
                    // The outermost context only names the commit.
                    let why: Vec<String> = e.chain().skip(1).map(ToString::to_string).collect();
                    self.faults.insert(n, why.join(": "));
                    continue;
                }
            };
            match &commit.line {
                Line::Prune(prune) => self.removed.extend(prune.removed.iter().map(|gone| gone.seq)),
                Line::Retire(_) => {}
                Line::Snapshot(snapshot) => {
                    if snapshot.accepted {
                        self.accepted = self.accepted.max(n);
                    }
                    let snapshot = Snapshot::clone(snapshot);
                    self.snapshots.insert(n, (commit, snapshot));
                }
            }
        }
        self.down_to = seq;
        Ok(())
    }
}
