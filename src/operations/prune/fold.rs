//! Prune records that a newer one stands for, so that a series does not grow by one object a day for ever (FORMAT.md §2.6, docs/decisions/022).

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::operations::{Open, locks};
use crate::repository::layout::{self, SourceName};
use crate::repository::log::Gone;
use crate::repository::series::Whole;
use crate::repository::snapshot::{Line, Removed};

/// Records that are there before a prune folds them. So many remain at most, beside those that are full.
pub const RECORDS: usize = 32;
/// Commits that one record lists before it is full, and left alone: some 2 MB.
pub const LISTED_MAX: usize = 20_000;

/// What a record says beside what its own prune removes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Folded {
    /// The records that go.
    pub records: Vec<Removed>,
    /// What they list.
    #[serde(skip)]
    pub removed: Vec<Removed>,
    #[serde(skip)]
    pub log: Vec<Gone>,
}

/// The oldest records, if there are so many that it is worth it. A record younger than the grace period stays: a writer that has stalled may be
/// about to look at it. So does one that a lock holds.
pub fn of(open: &Open, source: &SourceName, whole: &Whole, before: Timestamp) -> Result<Folded> {
    let records = whole.commits.iter().filter_map(|commit| match &commit.line {
        Line::Prune(record) if record.removed.len() < LISTED_MAX => Some((commit.hash, record)),
        _ => None,
    });
    let old = |seq: u64| whole.stored_at.get(&seq).is_some_and(|at| *at <= before);
    let records: Vec<_> = records.filter(|(_, record)| old(record.seq)).collect();
    if records.len() < RECORDS {
        return Ok(Folded::default());
    }
    let mut folded = Folded::default();
    for (hash, record) in records {
        if folded.removed.len() >= LISTED_MAX {
            break;
        }
        if locks::held_until(open, &layout::snapshot(source, record.seq))?.is_none() {
            folded.records.push(Removed { seq: record.seq, hash });
            folded.removed.extend(record.removed.iter().cloned());
            folded.log.extend(record.log.iter().cloned());
        }
    }
    Ok(folded)
}

impl Folded {
    /// What the record lists in which all this is folded: every commit that is gone, or goes, each once.
    pub fn with_removed(&self, own: &[Removed]) -> Vec<Removed> {
        let all = self.removed.iter().chain(&self.records).chain(own);
        let by_seq: BTreeMap<u64, &Removed> = all.map(|removed| (removed.seq, removed)).collect();
        by_seq.into_values().cloned().collect()
    }

    /// How far the log is gone: of each timeline of a stretch the furthest that any of them says.
    pub fn with_log(&self, own: &[Gone]) -> Vec<Gone> {
        let mut furthest = BTreeMap::new();
        for gone in self.log.iter().chain(own) {
            let below = furthest.entry((gone.stretch, gone.timeline)).or_insert(gone.below);
            *below = gone.below.max(*below);
        }
        furthest.into_iter().map(|((stretch, timeline), below)| Gone { stretch, timeline, below }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::layout::Hash;
    use crate::repository::log::Position;

    #[test]
    fn everything_is_listed_once_and_of_the_log_the_furthest() {
        let removed = |seq: u64| Removed { seq, hash: Hash::of(&seq.to_le_bytes()) };
        let gone = |stretch, timeline, below| Gone { stretch, timeline, below: Position(below) };
        let folded = Folded {
            records: vec![removed(3), removed(6)],
            removed: vec![removed(1), removed(2), removed(4)],
            log: vec![gone(1, 1, 50), gone(2, 1, 7)],
        };
        let seqs: Vec<u64> = folded.with_removed(&[removed(5), removed(4)]).iter().map(|r| r.seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
        assert_eq!(folded.with_log(&[gone(1, 1, 20), gone(1, 2, 9)]), [gone(1, 1, 50), gone(1, 2, 9), gone(2, 1, 7)]);
    }
}
