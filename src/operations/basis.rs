//! What a run compares with, and what it must not refer to: lost packs, and packs that forward compaction empties.

use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};

use super::{Open, shared};
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::pipeline::{Basis, BasisPack};
use crate::repository::agefile::Identity;
use crate::repository::history::{self, Cover, Written};
use crate::repository::index::{IndexStore, LayerReader, PackLine, read_pack_lines};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::sealed::SealedPart;
use crate::repository::series;
use crate::repository::snapshot::{Named, Snapshot};

/// Packs with less than this share of live bytes are worth emptying.
const LIVE_SHARE_MIN: f64 = 0.5;
/// Bytes fetched over bytes of an ideal full that a restore may cost.
const AMPLIFICATION_MAX: f64 = 1.5;
/// What forward compaction may store again at least, in bytes.
const COMPACTION_BUDGET: u64 = 64 << 20;
/// Above this share of lost packs a run stops and asks.
const LOST_SHARE_MAX: f64 = 0.01;

/// What is known of the packs of a basis.
pub struct Survey {
    pub basis: Basis,
    /// Packs that the store no longer has at the recorded size.
    pub lost: Vec<Hash>,
    /// Packs that somebody has deleted or covered. They are used all the same.
    pub covers: Vec<Cover>,
}

/// The index objects of `snapshot` that the store no longer has at the recorded size. A snapshot that names them again, from a local
/// copy, could not be restored.
pub fn lost_index(open: &Open, snapshot: &Snapshot) -> Result<Vec<Hash>> {
    let there = Existing::list(&open.store, "index", &snapshot.source)?;
    let lost = series::index_objects(snapshot).filter(|object| !there.has(object));
    Ok(lost.map(|(hash, _)| *hash).collect())
}

/// The packs or index objects of a source that exist, also those that somebody has deleted or covered in a store that keeps versions.
pub struct Existing(HashMap<Hash, Written>);

impl Existing {
    /// `area` is `packs` or `index`.
    pub fn list(store: &Store, area: &str, source: &SourceName) -> Result<Existing> {
        let listed = history::list(store, &layout::content_prefix(area, source));
        let listed = listed.with_context(|| format!("list {area}"))?;
        Ok(Existing(listed.into_iter().filter_map(|w| Some((layout::content_hash(&w.key)?, w))).collect()))
    }

    /// Whether an object is listed at its size.
    pub fn has(&self, (hash, size): &Named) -> bool {
        self.0.get(hash).is_some_and(|written| written.has_size(*size))
    }

    /// What was put over an object that is there.
    pub fn cover(&self, hash: &Hash) -> Option<Cover> {
        self.0.get(hash)?.cover()
    }
}

pub fn index_store(open: &Open, source: &SourceName, cached: bool) -> IndexStore {
    let cache = if cached { open.index_cache(source) } else { None };
    IndexStore { store: open.store.clone(), source: source.clone(), cache }
}

/// The pack table of a snapshot.
pub fn pack_table(
    index: &IndexStore,
    snapshot: &Snapshot,
    identities: &[Identity],
    each: impl FnMut(PackLine, u64) -> Result<()>,
) -> Result<()> {
    let identities = shared(identities);
    let open = || {
        snapshot
            .layers
            .iter()
            .map(|l| LayerReader::new(index.clone(), identities.clone(), &l.packs))
            .collect::<Vec<_>>()
    };
    read_pack_lines(open, each).context("read the pack table")
}

/// Reads the pack table of `snapshot` and compares it with what the store lists.
pub fn survey(
    open: &Open,
    snapshot: &Snapshot,
    sealed: &SealedPart,
    identities: &[Identity],
    cached: bool,
    heal: bool,
) -> Result<Survey> {
    let index = index_store(open, &snapshot.source, cached);
    let mut packs = HashMap::new();
    pack_table(&index, snapshot, identities, |line, live| {
        if let PackLine::Pack { pack, name, size, frames } = line {
            let raw = frames.iter().map(|(_, raw, _)| raw).sum();
            packs.insert(pack, BasisPack { name: (name, size), live, raw });
        }
        Ok(())
    })?;
    let there = Existing::list(&open.store, "packs", &snapshot.source)?;
    let covers = packs.values().filter_map(|pack| there.cover(&pack.name.0)).collect();
    let mut avoid = HashSet::new();
    let mut lost = Vec::new();
    for (number, pack) in &packs {
        if !there.has(&pack.name) {
            avoid.insert(*number);
            lost.push(pack.name.0);
        }
    }
    lost.sort();
    if lost.len() as f64 > (packs.len() as f64 * LOST_SHARE_MAX).max(1.0) && !heal {
        return Err(Failure::new(
            Kind::CheckFailed,
            format!(
                "{} of {} packs of {} are missing from the store or have another size",
                lost.len(),
                packs.len(),
                snapshot.source
            ),
            "Older snapshots that need them are damaged. Nothing was written. Find out who deleted them; `verify` lists the snapshots hurt. \
             `backup --heal` stores the missing data again from the source.",
        ));
    }
    // A file of which only the changes are read would be read whole for the sake of a few pages in a pack that is mostly dead: that must be worth it.
    let mut leave = avoid.clone();
    avoid.extend(worst_packs(&packs, &avoid, sealed.stats.bytes_new.max(COMPACTION_BUDGET)));
    if amplification(packs.values()) > AMPLIFICATION_MAX {
        leave.clone_from(&avoid);
    }
    let (layers, next_pack) = (snapshot.layers.clone(), sealed.next_pack);
    let basis = Basis { layers, packs, next_pack, avoid, leave, ..Basis::default() };
    Ok(Survey { basis, lost, covers })
}

/// Forward compaction: the packs to empty, worst first, within `budget` live bytes.
fn worst_packs(packs: &HashMap<u64, BasisPack>, lost: &HashSet<u64>, budget: u64) -> Vec<u64> {
    let share = |p: &BasisPack| p.live as f64 / p.raw.max(1) as f64;
    let mut order: Vec<(u64, BasisPack)> =
        packs.iter().filter(|(n, _)| !lost.contains(n)).map(|(n, p)| (*n, *p)).collect();
    order.sort_by(|a, b| share(&a.1).total_cmp(&share(&b.1)).then(a.0.cmp(&b.0)));
    let mut stored: f64 = order.iter().map(|(_, p)| p.name.1 as f64).sum();
    let mut ideal: f64 = order.iter().map(|(_, p)| p.name.1 as f64 * share(p)).sum();
    ideal = ideal.max(1.0);
    let mut left = budget;
    let mut chosen = Vec::new();
    for (number, pack) in order {
        let dead = share(&pack) < LIVE_SHARE_MIN;
        if !(dead || stored / ideal > AMPLIFICATION_MAX) || pack.live > left {
            break;
        }
        left -= pack.live;
        stored -= pack.name.1 as f64 * (1.0 - share(&pack));
        chosen.push(number);
    }
    chosen
}

/// Bytes that a restore fetches over the bytes of an ideal full: (stored, ideal) of the packs by share of live bytes.
pub fn amplification<'a>(packs: impl Iterator<Item = &'a BasisPack> + Clone) -> f64 {
    let stored: f64 = packs.clone().map(|p| p.name.1 as f64).sum();
    let ideal: f64 = packs.map(|p| p.name.1 as f64 * p.live as f64 / p.raw.max(1) as f64).sum();
    if ideal > 0.0 { stored / ideal } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn pack(live: u64, raw: u64) -> BasisPack {
        BasisPack { name: (Hash([0; 32]), raw / 2), live, raw }
    }

    #[test]
    fn the_deadest_packs_go_first_and_the_budget_holds() {
        let packs: HashMap<u64, BasisPack> =
            [(1, pack(90, 100)), (2, pack(10, 100)), (3, pack(30, 100)), (4, pack(100, 100))].into();
        assert_eq!(worst_packs(&packs, &HashSet::new(), 1000), [2, 3]);
        assert_eq!(worst_packs(&packs, &HashSet::new(), 10), [2]);
        assert_eq!(worst_packs(&packs, &HashSet::from([2]), 1000), [3]);
    }

    #[test]
    fn amplification_counts_dead_bytes() {
        let packs = BTreeMap::from([(1, pack(50, 100)), (2, pack(100, 100))]);
        assert!((amplification(packs.values()) - 100.0 / 75.0).abs() < 1e-9);
    }
}
