//! Going on from an interrupted run: what it has stored, and no commit names yet, is taken over as far as it is still there and young
//! enough that no prune can take it away meanwhile (FORMAT.md §3-16).

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::PathBuf;

use super::run::Run;
use crate::repository::checkpoint::{self, Checkpoint, Circumstances};
use crate::repository::history;
use crate::repository::index::PackLine;
use crate::repository::layout::{self, Hash};
use crate::repository::snapshot::Named;
use crate::storage::Key;

impl Run<'_> {
    /// Takes over what an interrupted run of the same kind has left. Returns where this run's own checkpoint goes.
    pub(super) fn resume(&mut self, kind: &str) -> Result<(PathBuf, Circumstances)> {
        let open = &self.host.open;
        let state = open.state.as_ref().context("a host that writes needs a state directory")?;
        let path = checkpoint::path(&state.join(&open.trust.id), self.name);
        let circumstances = Circumstances {
            repository: open.trust.id.clone(),
            source: self.name.clone(),
            kind: kind.to_owned(),
            key: self.host.keys.signing.public().id(),
            epoch: open.trust.epoch,
            baseline: self.basis_of.is_none(),
            after: self.newest,
        };
        // Who asks for a baseline wants nothing from before.
        if !self.options.baseline
            && let Some(found) = Checkpoint::read(&path, &circumstances, std::slice::from_ref(&self.host.keys.identity))
        {
            self.take_over(found)?;
        }
        Ok((path, circumstances))
    }

    fn take_over(&mut self, found: Checkpoint) -> Result<()> {
        let index = self.young("index")?;
        let packs = self.young("packs")?;
        let there = |young: &HashMap<Hash, u64>, object: &Named| young.get(&object.0) == Some(&object.1);
        // Each list as far as it is there without a gap.
        let whole = |list: Vec<Named>| -> Vec<Named> { list.into_iter().take_while(|o| there(&index, o)).collect() };
        let mut unfinished: Vec<Vec<Named>> = found.unfinished.into_iter().map(whole).collect();
        unfinished.retain(|list| !list.is_empty());
        if unfinished.is_empty() {
            return Ok(());
        }
        let basis = &mut self.basis;
        basis.unfinished = unfinished;
        basis.next_pack = basis.next_pack.max(found.next_pack);
        basis.taken_over = found.packs;
        basis.taken_over.retain(|_, line| match line {
            PackLine::Pack { name, size, .. } => there(&packs, &(*name, *size)),
            PackLine::Live { .. } => false,
        });
        self.secrets = found.secrets;
        Ok(())
    }

    /// The objects that no prune may take before half the grace period is over, with their sizes.
    pub(super) fn young(&self, area: &str) -> Result<HashMap<Hash, u64>> {
        let open = &self.host.open;
        let since = open.now() - self.options.grace / 2;
        let listed = history::list(&open.store, &layout::content_prefix(area, self.name));
        let listed = listed.with_context(|| format!("list {area}"))?;
        let young = listed.iter().filter(|written| written.since() > since);
        Ok(young.filter_map(|written| Some((layout::content_hash(&written.key)?, written.size()?))).collect())
    }

    /// Whether an object was written by an interrupted run.
    pub(super) fn is_taken_over(&self, key: &Key) -> bool {
        let Some(hash) = layout::content_hash(key) else { return false };
        let is = |line: &PackLine| matches!(line, PackLine::Pack { name, .. } if *name == hash);
        self.basis.unfinished.iter().flatten().any(|(name, _)| *name == hash) || self.basis.taken_over.values().any(is)
    }

    /// Stored bytes of the packs taken over.
    pub(super) fn taken_over(&self) -> u64 {
        let size = |line: &PackLine| if let PackLine::Pack { size, .. } = line { *size } else { 0 };
        self.basis.taken_over.values().map(size).sum()
    }
}
