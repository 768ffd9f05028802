//! The end of a run: everything is durable, then one create-only object makes it a snapshot (FORMAT.md §3-1, §3-3, §3-5).

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::report::BackupReport;
use super::retired::given_up;
use super::run::{Committed, Run};
use crate::fingerprint::{Fingerprint, REMEMBERED};
use crate::operations::basis::Existing;
use crate::operations::{locks, tiers};
use crate::pipeline::{Stored, Target};
use crate::report::{Outcome, Stats};
use crate::repository::layout::{self, Hash};
use crate::repository::sealed::{SKIPS_LISTED, SealedPart};
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Commit, Line, LogRange, Named, PackChange, Retirement, Snapshot, write_pack_list};
use crate::repository::{FORMAT, PROGRAM};
use crate::storage;

/// Pack changes kept in the commit itself; more go to a pack list.
const INLINE_PACKS: usize = 512;
/// Pack lists of one snapshot; more are folded into one.
const PACK_LISTS_MAX: usize = 8;
/// New objects whose lock is looked at before the commit.
const LOCKS_CHECKED: usize = 4;

impl Run<'_> {
    pub(super) fn commit(&mut self, kind: &str, root: String, stored: Stored, target: &Target) -> Result<Committed> {
        let stats = self.stats(&stored);
        let outcome = if stored.finished.skipped.is_empty() { Outcome::Complete } else { Outcome::Partial };
        let sealed = self.sealed(root, &stats, &stored);
        let (pack_lists, packs) = self.pack_lists(&stored.packs, target)?;
        let seq = self.head + 1;
        let snapshot = Snapshot {
            format: FORMAT,
            repository: self.host.open.trust.id.clone(),
            source: self.name.clone(),
            kind: kind.into(),
            seq,
            previous: self.previous,
            lineage: self.lineage.clone(),
            epoch: self.host.open.trust.epoch,
            host: self.host.name.clone(),
            key: self.host.keys.signing.public().id(),
            agent: PROGRAM.into(),
            data_time: stored.finished.data_time,
            started: self.started,
            finished: self.host.open.now(),
            outcome,
            mode: self.mode,
            basis: self.basis_of.as_ref().map(|(b, _)| b.seq),
            baseline: self.basis_of.as_ref().map_or(seq, |(b, _)| b.baseline),
            baseline_started: self.basis_of.as_ref().map_or(self.started, |(b, _)| b.baseline_started),
            layers: stored.layers,
            pack_lists,
            packs,
            lost: self.lost.clone(),
            log: place_in_log(&stored.finished.facts)?,
            suspect: !sealed.suspicions.is_empty(),
            accepted: self.options.accept_change,
            lock: self.terms.lock,
            sealed: sealed.seal(&target.index_to)?,
        };
        self.lock(&snapshot)?;
        let Some((snapshot, commit)) = self.create(snapshot)? else { return Ok(Committed::Overtaken(seq)) };
        if let Err(e) = self.memory.see(snapshot.seq, commit) {
            // The snapshot exists; what is lost is the memory of having seen it there.
            self.notices.push(format!("{}: {e:#}", self.name));
        }
        let hurt = self.hurt();
        Ok(Committed::Done(Box::new(BackupReport {
            source: self.name.clone(),
            kind: kind.into(),
            seq: snapshot.seq,
            commit,
            outcome,
            mode: self.mode,
            why: self.why.clone(),
            data_time: snapshot.data_time,
            started: self.started,
            finished: snapshot.finished,
            seconds: self.clock.elapsed().as_secs_f64(),
            stats,
            taken_over: self.taken_over(),
            spooled: stored.spooled.0,
            skipped: sealed.skipped,
            skipped_count: sealed.skipped_count,
            lost_packs: self.lost.clone(),
            hurt,
            alarm: self.rolled_back || self.covered,
            suspicions: sealed.suspicions,
            notices: self.notices.clone(),
            facts: sealed.facts,
        })))
    }

    /// Locks what the snapshot names and others wrote, and makes sure that the store has locked what this run wrote. Must come before the
    /// commit, which promises it.
    fn lock(&self, snapshot: &Snapshot) -> Result<()> {
        let Some(lock) = self.terms.lock else { return Ok(()) };
        let named = locks::named_by(&self.store, snapshot)?;
        let basis = self.basis_of.as_ref().map(|(basis, _)| basis);
        let of_basis = match basis {
            Some(basis) => locks::named_by(&self.store, basis)?,
            None => BTreeMap::new(),
        };
        let (old, new): (Vec<_>, Vec<_>) = named.into_iter().partition(|(key, _)| of_basis.contains_key(key));
        if !tiers::holds(basis.and_then(|basis| basis.lock), lock) {
            locks::extend(&self.store, &old, lock)?;
        }
        // An interrupted run may have had other terms.
        let (taken_over, new): (Vec<_>, Vec<_>) = new.into_iter().partition(|(key, _)| self.is_taken_over(key));
        locks::extend(&self.store, &taken_over, lock)?;
        // A store that says yes to a lock and forgets it would be noticed by nobody else.
        new.iter().take(LOCKS_CHECKED).try_for_each(|(key, id)| locks::require(&self.store, key, id, lock))
    }

    /// Sends the commit. `None`: the number was taken by a commit that may take away what this one names.
    fn create(&mut self, mut snapshot: Snapshot) -> Result<Option<(Snapshot, Hash)>> {
        let open = &self.host.open;
        for _ in 0..3 {
            // That its number is free is not enough: what had it may have been removed by prune, and is the past.
            let series = Series::list(&open.store, &open.trust, self.name)?;
            if series.head() >= snapshot.seq && !self.follow(&series, &mut snapshot)? {
                return Ok(None);
            }
            let body = self.host.keys.signing.sign_line(&Line::Snapshot(Box::new(snapshot.clone())))?;
            let hash = Hash::of(&body);
            self.memory.record(&self.lineage, hash)?;
            match self.store.create(&layout::snapshot(self.name, snapshot.seq), body.into(), &hash.0) {
                Ok(_) => return Ok(Some((snapshot, hash))),
                Err(e) if e.kind == storage::Kind::AlreadyExists => {}
                Err(e) => {
                    return Err(anyhow!(e).context(
                        "commit the snapshot: everything else of it is stored, but it does not exist yet; run again",
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Puts the snapshot behind the commits that came first, if they may be followed at once: only a prune that left the basis alone may, since
    /// then every object of the basis is still named. Whether the run's own objects, and those that it took over, are still there is looked up.
    fn follow(&self, series: &Series, snapshot: &mut Snapshot) -> Result<bool> {
        // What was there and is gone by now cannot be looked at.
        if !(snapshot.seq..=series.head()).all(|seq| series.stored_at(seq).is_some()) {
            return Ok(false);
        }
        let others: Vec<Commit> = (snapshot.seq..=series.head()).map(|seq| series.read(seq)).collect::<Result<_>>()?;
        // Whoever gave the source up did not know of this run, and this run did not know of that.
        if let Some(record) = others.iter().find_map(retirement) {
            return Err(given_up(self.name, record, "This run's data is not in a snapshot."));
        }
        for commit in others {
            let Line::Prune(prune) = &commit.line else { return Ok(false) };
            if prune.removed.iter().any(|r| Some(r.seq) == snapshot.basis) {
                return Ok(false);
            }
            snapshot.previous = Some(commit.hash);
        }
        if snapshot.baseline == snapshot.seq {
            snapshot.baseline = series.head() + 1;
        }
        snapshot.seq = series.head() + 1;
        self.all_there(snapshot)
    }

    /// Whether everything that the snapshot names is there, and will be when the prune that came first has ended: it commits before it
    /// deletes. It spares what the basis names and what is younger than the grace period; half of that leaves it time.
    fn all_there(&self, snapshot: &Snapshot) -> Result<bool> {
        let store = &self.host.open.store;
        let named = |snapshot: &Snapshot| -> Result<[BTreeSet<Named>; 2]> {
            let packs = series::packs_of(store, snapshot)?.into_iter().collect();
            Ok([packs, series::index_objects(snapshot).copied().collect()])
        };
        let kept = self.basis_of.as_ref().map(|(basis, _)| named(basis)).transpose()?.unwrap_or_default();
        for ((area, needed), kept) in ["packs", "index"].iter().zip(named(snapshot)?).zip(kept) {
            let (there, young) = (Existing::list(store, area, self.name)?, self.young(area)?);
            if !needed.iter().all(|o| there.has(o) && (kept.contains(o) || young.contains_key(&o.0))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the host and the holder of the recovery key may read of this run.
    fn sealed(&self, root: String, stats: &Stats, stored: &Stored) -> SealedPart {
        let skipped = &stored.finished.skipped;
        let mut facts = stored.finished.facts.clone();
        if let Some(canary) = &self.options.canary {
            facts["canary"] = serde_json::json!(canary);
        }
        let (fingerprints, suspicions) = self.fingerprints(Fingerprint::of(stats, &facts));
        SealedPart {
            secrets: self.secrets.clone(),
            root,
            next_pack: stored.next_pack,
            stats: stats.clone(),
            skipped: skipped.iter().take(SKIPS_LISTED).cloned().collect(),
            skipped_count: skipped.len() as u64,
            facts,
            fingerprints,
            suspicions,
        }
    }

    /// The good fingerprints so far, and why this run's does not fit them. An accepted run begins anew.
    fn fingerprints(&self, own: Fingerprint) -> (Vec<Fingerprint>, Vec<String>) {
        let suspicions = own.suspicions(&self.fingerprints);
        let mut good = self.fingerprints.clone();
        if suspicions.is_empty() {
            good.push(own);
            let excess = good.len().saturating_sub(REMEMBERED);
            good.drain(..excess);
        }
        (good, suspicions)
    }

    /// The change since the basis's last pack list, kept small by moving it into a list of its own.
    fn pack_lists(&self, change: &PackChange, target: &Target) -> Result<(Vec<Named>, PackChange)> {
        let Some((basis, _)) = &self.basis_of else { return self.spill(Vec::new(), change.clone(), target) };
        let mut lists = basis.pack_lists.clone();
        let mut inline = basis.packs.clone();
        let dropped = |hash: &Hash| change.drop.contains(hash);
        let here: Vec<Hash> = inline.add.iter().map(|(h, _)| *h).filter(|h| dropped(h)).collect();
        inline.add.retain(|(hash, _)| !here.contains(hash));
        inline.drop.extend(change.drop.iter().filter(|h| !here.contains(h)));
        inline.add.extend(change.add.iter().copied());
        if lists.len() >= PACK_LISTS_MAX {
            let mut snapshot = basis.clone();
            snapshot.packs = inline;
            let all = series::packs_of(&self.host.open.store, &snapshot)?;
            inline = PackChange { add: all.into_iter().collect(), drop: Vec::new() };
            lists.clear();
        }
        self.spill(lists, inline, target)
    }

    fn spill(&self, mut lists: Vec<Named>, inline: PackChange, target: &Target) -> Result<(Vec<Named>, PackChange)> {
        if inline.add.len() + inline.drop.len() <= INLINE_PACKS {
            return Ok((lists, inline));
        }
        lists.push(target.index.put(write_pack_list(&inline).into_bytes())?);
        Ok((lists, PackChange::default()))
    }

    fn stats(&self, stored: &Stored) -> Stats {
        let mut packs: BTreeMap<Hash, u64> = self.basis.packs.values().map(|p| p.name).collect();
        for hash in &stored.packs.drop {
            packs.remove(hash);
        }
        packs.extend(stored.packs.add.iter().copied());
        Stats {
            entries: stored.entries,
            bytes: stored.bytes,
            bytes_read: stored.bytes_read,
            bytes_new: stored.bytes_new,
            bytes_stored: stored.bytes_stored,
            packs: packs.len() as u64,
            pack_bytes: packs.values().sum(),
        }
    }

    /// Snapshots that need a lost pack. The run is committed: that they cannot be found out now does not undo it.
    fn hurt(&mut self) -> Vec<u64> {
        if self.lost.is_empty() {
            return Vec::new();
        }
        self.find_hurt().unwrap_or_else(|e| {
            let what = "which snapshots the lost packs hurt could not be found out, `verify` tells";
            self.notices.push(format!("{}: {what}: {e:#}", self.name));
            Vec::new()
        })
    }

    fn find_hurt(&self) -> Result<Vec<u64>> {
        let open = &self.host.open;
        let whole = Series::list(&open.store, &open.trust, self.name)?.whole();
        let mut hurt = Vec::new();
        for (_, snapshot) in whole.snapshots() {
            let packs = series::packs_of(&open.store, snapshot)?;
            if self.lost.iter().any(|l| packs.contains_key(l)) {
                hurt.push(snapshot.seq);
            }
        }
        Ok(hurt)
    }
}

/// Where the snapshot lies in its source's log, as the source says that has one. Without it no point in time could be reached from the snapshot.
fn place_in_log(facts: &Value) -> Result<Option<LogRange>> {
    match &facts["log"] {
        Value::Null => Ok(None),
        range => serde_json::from_value(range.clone()).map(Some).context("read where the snapshot lies in the log"),
    }
}

fn retirement(commit: &Commit) -> Option<&Retirement> {
    if let Line::Retire(record) = &commit.line { Some(record) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_place_in_the_log_that_cannot_be_read_is_not_left_out_in_silence() {
        assert_eq!(place_in_log(&Value::Null).unwrap(), None, "most sources have no log");
        let range = json!({"timeline": 1, "start": "000000000a000028", "end": "000000000a0012c8"});
        assert!(place_in_log(&json!({"log": range})).unwrap().is_some());
        place_in_log(&json!({"log": {"timeline": 1}})).expect_err("a range without its end is no range");
    }
}
