//! The commits of one source: listing, reading, verifying the chain.

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

use super::layout::{self, Hash, SourceName};
use super::snapshot::{Commit, Line, Named, PackChange, Snapshot, read_pack_list};
use super::trust::Trust;
use crate::bridge::Store;
use crate::storage::Object;

/// The listing of a series, newest last. Reading it is the first thing a writer does; `head + 1` is what it will try to commit.
pub struct Series<'a> {
    store: &'a Store,
    trust: &'a Trust,
    pub source: SourceName,
    listed: BTreeMap<u64, Object>,
}

/// All commits of a series, as far as they verify.
pub struct Whole {
    pub commits: Vec<Commit>,
    /// What does not verify, or breaks the chain: (seq, why).
    pub faults: Vec<(u64, String)>,
    /// Commits that a prune record lists as removed and that are still there: that prune was interrupted. They count no more.
    pub leftover: Vec<u64>,
    /// The store's own time of each commit.
    pub stored_at: BTreeMap<u64, Timestamp>,
}

/// The sources that have commits in the repository.
pub fn sources(store: &Store) -> Result<Vec<SourceName>> {
    let listed = store.list(layout::SNAPSHOTS).context("list snapshots")?;
    let names: BTreeSet<_> = listed.iter().filter_map(|o| Some(layout::parse_snapshot(&o.key)?.0)).collect();
    Ok(names.into_iter().collect())
}

impl<'a> Series<'a> {
    pub fn list(store: &'a Store, trust: &'a Trust, source: &SourceName) -> Result<Series<'a>> {
        let listed =
            store.list(&layout::snapshots(source)).with_context(|| format!("list the snapshots of {source}"))?;
        let listed = listed.into_iter().filter_map(|o| Some((layout::parse_snapshot(&o.key)?.1, o))).collect();
        Ok(Series { store, trust, source: source.clone(), listed })
    }

    /// The highest number taken; 0 where there is none.
    pub fn head(&self) -> u64 {
        self.listed.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    pub fn read(&self, seq: u64) -> Result<Commit> {
        let read = || {
            let object = self.store.get(&layout::snapshot(&self.source, seq))?;
            Commit::verify(self.trust, &self.source, seq, &object)
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

    /// From the newest to the oldest, those that prune has listed as removed left out.
    pub fn newest_first(&self) -> impl Iterator<Item = Result<Commit>> {
        let mut removed = BTreeSet::new();
        self.listed.keys().rev().filter_map(move |seq| {
            if removed.contains(seq) {
                return None;
            }
            let commit = self.read(*seq);
            if let Ok(Commit { line: Line::Prune(p), .. }) = &commit {
                removed.extend(p.removed.iter().map(|r| r.seq));
            }
            Some(commit)
        })
    }

    /// Reads every commit and checks the chain.
    pub fn whole(&self) -> Whole {
        let mut whole =
            Whole { commits: Vec::new(), faults: Vec::new(), leftover: Vec::new(), stored_at: BTreeMap::new() };
        let mut hashes: BTreeMap<u64, Hash> = BTreeMap::new();
        for (seq, object) in &self.listed {
            whole.stored_at.insert(*seq, object.modified);
            match self.read(*seq) {
                Ok(commit) => {
                    hashes.insert(*seq, commit.hash);
                    whole.commits.push(commit);
                }
                // The outermost context only names the commit.
                Err(e) => {
                    let why: Vec<String> = e.chain().skip(1).map(ToString::to_string).collect();
                    whole.faults.push((*seq, why.join(": ")));
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

impl Whole {
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
    let bytes =
        store.get(&layout::index(source, &object.0)).with_context(|| format!("fetch pack list {}", object.0))?;
    ensure!(Hash::of(&bytes) == object.0, "pack list {} is damaged in the store", object.0);
    read_pack_list(std::str::from_utf8(&bytes).context("read a pack list")?)
}

fn apply(packs: &mut BTreeMap<Hash, u64>, change: &PackChange) {
    packs.extend(change.add.iter().copied());
    for hash in &change.drop {
        packs.remove(hash);
    }
}

/// Every index object that a snapshot names.
pub fn index_objects(snapshot: &Snapshot) -> impl Iterator<Item = &Named> {
    snapshot.layers.iter().flat_map(|l| l.packs.iter().chain(&l.entries)).chain(&snapshot.pack_lists)
}
