//! The commits of one source: listing, reading, verifying the chain.

mod tail;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::history::{self, Cover, Written};
use super::layout::{self, Hash, SourceName};
use super::snapshot::{Commit, Line, Named, PackChange, Retirement, Snapshot, read_pack_list};
use super::trust::Trust;
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::storage::{self, Key};

pub use tail::Tail;

/// Commits fetched at once.
const READERS: usize = 8;

/// The listing of a series, newest last. Reading it is the first thing a writer does; `head + 1` is what it will try to commit.
pub struct Series<'a> {
    store: &'a Store,
    trust: &'a Trust,
    pub source: SourceName,
    listed: BTreeMap<u64, Written>,
}

/// All commits of a series, as far as they verify.
#[derive(Default)]
pub struct Whole {
    pub commits: Vec<Commit>,
    /// What does not verify, or breaks the chain: (seq, why).
    pub faults: Vec<(u64, String)>,
    /// Those of `faults` that the store did not give: nothing is known of them.
    pub unread: BTreeSet<u64>,
    /// Commits that a prune record lists as removed and that are still there: that prune was interrupted. They count no more.
    pub leftover: Vec<u64>,
    /// The store's own time of each commit.
    pub stored_at: BTreeMap<u64, Timestamp>,
    /// Those whose times the root's holder has confirmed.
    pub confirmed: BTreeSet<u64>,
    /// Commits that somebody has deleted or written over in a store that keeps versions. They count all the same.
    pub covers: Vec<Cover>,
}

/// The sources that have commits in the repository.
pub fn sources(store: &Store) -> Result<Vec<SourceName>> {
    let listed = history::list(store, layout::SNAPSHOTS).context("list snapshots")?;
    let names: BTreeSet<_> = listed.iter().filter_map(|w| Some(layout::parse_snapshot(&w.key)?.0)).collect();
    Ok(names.into_iter().collect())
}

/// For a name that nothing in the repository has: most likely it is misspelt.
pub fn unknown(store: &Store, source: &SourceName) -> anyhow::Error {
    let known = sources(store).unwrap_or_default();
    let known: Vec<&str> = known.iter().map(SourceName::as_str).collect();
    let help = if known.is_empty() {
        "The repository has no snapshots.".into()
    } else {
        format!("There are: {}.", known.join(", "))
    };
    Failure::new(Kind::Usage, format!("there is no source {source} here"), help)
}

impl<'a> Series<'a> {
    pub fn list(store: &'a Store, trust: &'a Trust, source: &SourceName) -> Result<Series<'a>> {
        let listed = history::list(store, &layout::snapshots(source))
            .with_context(|| format!("list the snapshots of {source}"))?;
        // Where only delete markers are left, somebody who may has deleted the commit itself.
        let listed = listed.into_iter().filter(|w| !w.versions.is_empty());
        let listed = listed.filter_map(|w| Some((layout::parse_snapshot(&w.key)?.1, w))).collect();
        Ok(Series { store, trust, source: source.clone(), listed })
    }

    /// The highest number taken; 0 where there is none.
    pub fn head(&self) -> u64 {
        self.listed.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    /// What the store has of each commit.
    pub fn written(&self) -> impl Iterator<Item = &Written> {
        self.listed.values()
    }

    /// The store's own time of commit `seq`.
    pub fn stored_at(&self, seq: u64) -> Option<Timestamp> {
        self.listed.get(&seq).map(Written::since)
    }

    /// Commits that somebody has deleted or written over in a store that keeps versions.
    pub fn covers(&self) -> Vec<Cover> {
        self.listed.values().filter_map(Written::cover).collect()
    }

    pub fn read(&self, seq: u64) -> Result<Commit> {
        let read = || match self.listed.get(&seq) {
            Some(written) => written.read(self.store, |object| Commit::verify(self.trust, &self.source, seq, object)),
            None => {
                Err(storage::Error::new(storage::Kind::NotFound, "get", layout::snapshot(&self.source, seq)).into())
            }
        };
        read().with_context(|| format!("verify commit {seq} of {}", self.source))
    }

    /// Whether the commit `hash` is, or was, number `seq` of this series as it now stands: it is there, or a prune record names it.
    pub fn has(&self, seq: u64, hash: Hash) -> Result<bool> {
        if self.listed.contains_key(&seq) {
            return Ok(self.read(seq)?.hash == hash);
        }
        for commit in self.newest_first() {
            if let Line::Prune(prune) = &commit?.line
                && let Some(removed) = prune.removed.iter().find(|r| r.seq == seq)
            {
                return Ok(removed.hash == hash);
            }
        }
        Ok(false)
    }

    /// The number of a commit that was seen in this series and is neither there nor removed by a prune: somebody has deleted it, or the store shows an
    /// older state. What is there and cannot be read is no such thing.
    pub fn lacks(&self, seen: Option<(u64, Hash)>) -> Option<u64> {
        seen.filter(|(seq, hash)| matches!(self.has(*seq, *hash), Ok(false))).map(|(seq, _)| seq)
    }

    /// From the newest to the oldest, those left out that prune has listed as removed, and what has gone since the series was listed.
    pub fn newest_first(&self) -> impl Iterator<Item = Result<Commit>> {
        let mut removed = BTreeSet::new();
        self.listed.keys().rev().filter_map(move |seq| {
            if removed.contains(seq) {
                return None;
            }
            let commit = self.read(*seq);
            if commit.as_ref().is_err_and(storage::is_not_found)
                && self.again().is_ok_and(|now| !now.listed.contains_key(seq))
            {
                return None;
            }
            if let Ok(Commit { line: Line::Prune(p), .. }) = &commit {
                removed.extend(p.removed.iter().map(|r| r.seq));
            }
            Some(commit)
        })
    }

    /// The record by which the source was given up, unless a snapshot came after it.
    pub fn retired(&self) -> Result<Option<Retirement>> {
        for commit in self.newest_first() {
            match commit?.line {
                Line::Prune(_) => {}
                Line::Retire(record) => return Ok(Some(*record)),
                Line::Snapshot(_) => break,
            }
        }
        Ok(None)
    }

    /// The commits of `range`, oldest first; several are fetched at once, since each costs a round trip.
    pub fn read_range(&self, range: impl RangeBounds<u64>) -> BTreeMap<u64, Result<Commit>> {
        let seqs: Vec<u64> = self.listed.range(range).map(|(seq, _)| *seq).collect();
        let (next, all) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            while let Some(seq) = seqs.get(next.fetch_add(1, Ordering::SeqCst)) {
                let read = self.read(*seq);
                all.lock().unwrap_or_else(PoisonError::into_inner).insert(*seq, read);
            }
        };
        std::thread::scope(|scope| (0..READERS.min(seqs.len())).for_each(|_| drop(scope.spawn(work))));
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every commit and checks the chain.
    pub fn whole(&self) -> Whole {
        let commits = self.read_range(..);
        if commits.values().any(|read| read.as_ref().is_err_and(storage::is_not_found))
            && let Ok(now) = self.again()
        {
            let commits = now.read_range(..);
            return now.judge(commits);
        }
        self.judge(commits)
    }

    /// The series as it is now: what was listed and is not there most likely a prune has removed in between, and its record was not listed yet.
    fn again(&self) -> Result<Series<'a>> {
        Series::list(self.store, self.trust, &self.source)
    }

    fn judge(&self, commits: BTreeMap<u64, Result<Commit>>) -> Whole {
        let mut whole = Whole::default();
        let mut hashes: BTreeMap<u64, Hash> = BTreeMap::new();
        whole.covers = self.covers();
        whole.stored_at.extend(self.listed.iter().map(|(seq, written)| (*seq, written.since())));
        for (seq, read) in commits {
            match read {
                Ok(commit) => {
                    hashes.insert(seq, commit.hash);
                    if self.trust.confirms(&self.source, seq, commit.hash) {
                        whole.confirmed.insert(seq);
                    }
                    whole.commits.push(commit);
                }
                // The outermost context only names the commit.
                Err(e) => {
                    if storage::is_silence(&e) {
                        whole.unread.insert(seq);
                    }
                    let why: Vec<String> = e.chain().skip(1).map(ToString::to_string).collect();
                    whole.faults.push((seq, why.join(": ")));
                }
            }
        }
        let mut removed = BTreeSet::new();
        for commit in &whole.commits {
            if let Line::Prune(prune) = &commit.line {
                for gone in &prune.removed {
                    removed.insert(gone.seq);
                    // What was removed is known by the hash in the record; where the object is still there, both must agree.
                    if *hashes.entry(gone.seq).or_insert(gone.hash) != gone.hash {
                        whole.faults.push((gone.seq, "is not the commit that prune removed".into()));
                    }
                }
            }
        }
        for commit in &whole.commits {
            let seq = commit.seq();
            let before = hashes.get(&(seq - 1));
            if seq == 1 && commit.previous().is_some() {
                whole.faults.push((seq, "is the first, but names one before it".into()));
            } else if seq > 1 && before.is_none() && self.listed.contains_key(&(seq - 1)) {
                // It is there and does not verify, which was said above.
            } else if seq > 1 && before.is_none() {
                // One that is there and does not verify has been named already.
                if !self.listed.contains_key(&(seq - 1)) {
                    whole.faults.push((seq - 1, "is missing, and no prune record removed it".into()));
                }
            } else if seq > 1 && commit.previous() != before.copied() {
                whole.faults.push((seq, "does not follow the commit before it: the chain is broken".into()));
            }
        }
        whole.commits.retain(|c| !removed.contains(&c.seq()));
        whole.leftover = removed.into_iter().filter(|seq| self.listed.contains_key(seq)).collect();
        whole
    }
}

/// A commit whose own time differs from the store's by more is suspect (FORMAT.md §4-10).
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_hours(1);

impl Whole {
    /// Whether the store's clock contradicts the times of `snapshot`, the store says nothing of it, or it looks wrong and nobody accepted that.
    pub fn is_suspect(&self, snapshot: &Snapshot) -> bool {
        self.is_mistimed(snapshot) || self.looks_wrong(snapshot)
    }

    /// Whether the store's clock contradicts the times of `snapshot`, or the store says nothing of it, and nobody confirmed them.
    pub fn is_mistimed(&self, snapshot: &Snapshot) -> bool {
        let stored = self.stored_at.get(&snapshot.seq);
        let contradicted = stored.is_none_or(|at| at.duration_since(snapshot.finished).abs() > CLOCK_SLACK);
        contradicted && !self.confirmed.contains(&snapshot.seq)
    }

    /// FORMAT.md §4-11.
    pub fn looks_wrong(&self, snapshot: &Snapshot) -> bool {
        snapshot.suspect && !self.snapshots().any(|(_, later)| later.accepted && later.seq >= snapshot.seq)
    }

    /// The record by which the source was given up, unless a snapshot came after it.
    pub fn retired(&self) -> Option<&Retirement> {
        let newest = self.commits.iter().rev().find(|commit| !matches!(commit.line, Line::Prune(_)))?;
        // What does not verify may have been a snapshot.
        let doubted = self.faults.iter().any(|(seq, _)| *seq > newest.seq());
        match &newest.line {
            Line::Retire(record) if !doubted => Some(record),
            _ => None,
        }
    }

    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = (&Commit, &Snapshot)> {
        self.commits.iter().filter_map(|c| Some((c, c.snapshot()?)))
    }

    /// Refuses a series of which anything could not be read, verified or understood.
    pub fn require_sound(&self, source: &SourceName) -> Result<()> {
        if let Some((seq, why)) = self.faults.first() {
            bail!("commit {seq} of {source}: {why} ({} such in all)", self.faults.len());
        }
        Ok(())
    }
}

/// The packs that a snapshot needs: its lists folded in order, then its own change.
pub fn packs_of(store: &Store, snapshot: &Snapshot) -> Result<BTreeMap<Hash, u64>> {
    let mut packs = BTreeMap::new();
    for (hash, size) in &snapshot.pack_lists {
        let list = read_list(store, &snapshot.source, &(*hash, *size))?;
        apply(&mut packs, &list);
    }
    apply(&mut packs, &snapshot.packs);
    Ok(packs)
}

pub fn read_list(store: &Store, source: &SourceName, object: &Named) -> Result<PackChange> {
    let bytes = history::fetch(store, &layout::index(source, &object.0), &object.0)
        .with_context(|| format!("fetch pack list {}", object.0))?;
    read_pack_list(std::str::from_utf8(&bytes).context("read a pack list")?)
}

fn apply(packs: &mut BTreeMap<Hash, u64>, change: &PackChange) {
    packs.extend(change.add.iter().copied());
    for hash in &change.drop {
        packs.remove(hash);
    }
}

/// Everything that a snapshot names: its packs and index objects.
pub fn objects_of(store: &Store, snapshot: &Snapshot) -> Result<BTreeMap<Key, Named>> {
    let source = &snapshot.source;
    let packs = packs_of(store, snapshot)?.into_iter().map(|named| (layout::pack(source, &named.0), named));
    let index = index_objects(snapshot).map(|named| (layout::index(source, &named.0), *named));
    Ok(packs.chain(index).collect())
}

/// Every index object that a snapshot names.
pub fn index_objects(snapshot: &Snapshot) -> impl Iterator<Item = &Named> {
    snapshot.layers.iter().flat_map(|l| l.packs.iter().chain(&l.entries)).chain(&snapshot.pack_lists)
}
