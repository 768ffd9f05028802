//! One run: what it knows before it reads the source, and the way from there to the commit.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;

use super::options::Options;
use super::report::BackupReport;
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::fingerprint::Fingerprint;
use crate::operations::basis::index_store;
use crate::operations::tiers::{self, Tiering};
use crate::operations::{Host, retained, shared, verified};
use crate::pipeline::{self, Basis, Target};
use crate::repository::checkpoint;
use crate::repository::index::IndexStore;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::memory::Memory;
use crate::repository::sealed::{SealedPart, Secrets};
use crate::repository::series::Series;
use crate::repository::snapshot::{Line, Mode, Snapshot};
use crate::repository::trust::parse_recipient;
use crate::source::{Before, Source};
use crate::storage::Terms;

pub(super) enum Committed {
    Done(Box<BackupReport>),
    /// Another commit took the number, and what this run refers to may be going.
    Overtaken(u64),
}

/// What a run knows before it reads the source.
pub(super) struct Run<'a> {
    pub(super) host: &'a Host,
    pub(super) name: &'a SourceName,
    pub(super) options: Options,
    pub(super) memory: Memory,
    pub(super) started: Timestamp,
    pub(super) clock: Instant,
    pub(super) head: u64,
    pub(super) previous: Option<Hash>,
    /// The newest snapshot of the series.
    pub(super) newest: Option<Hash>,
    pub(super) lineage: String,
    pub(super) mode: Mode,
    pub(super) why: String,
    pub(super) basis_of: Option<(Snapshot, SealedPart)>,
    /// Number, kind and facts of the newest snapshot, if this host can read them.
    pub(super) before: Option<(u64, String, serde_json::Value)>,
    /// Of the last good snapshots, the oldest first.
    pub(super) fingerprints: Vec<Fingerprint>,
    pub(super) basis: Basis,
    pub(super) lost: Vec<Hash>,
    pub(super) secrets: Secrets,
    /// The class of the packs and the lock of everything that this run writes.
    pub(super) terms: Terms,
    /// A store that makes objects on these terms.
    pub(super) store: Store,
    /// The repository no longer has a commit that this host has seen in it.
    pub(super) rolled_back: bool,
    /// Somebody has deleted or written over what is never changed, in a store that keeps versions.
    pub(super) covered: bool,
    pub(super) notices: Vec<String>,
}

impl<'a> Run<'a> {
    pub(super) fn prepare(
        host: &'a Host,
        name: &'a SourceName,
        options: Options,
        tiering: Option<Tiering>,
    ) -> Result<Run<'a>> {
        let open = &host.open;
        let memory = open.memory().context("a host that writes needs a state directory")?;
        let memory = Memory::open(&memory, name)?;
        let series = Series::list(&open.store, &open.trust, name)?;
        let mut run = Run {
            host,
            name,
            options,
            memory,
            started: open.now(),
            clock: Instant::now(),
            head: series.head(),
            previous: None,
            newest: None,
            lineage: String::new(),
            mode: Mode::Incremental,
            why: String::new(),
            basis_of: None,
            before: None,
            fingerprints: Vec::new(),
            basis: Basis::default(),
            lost: Vec::new(),
            secrets: Secrets::generate()?,
            terms: Terms::default(),
            store: open.store.clone(),
            rolled_back: false,
            covered: false,
            notices: Vec::new(),
        };
        let mut newest = None;
        for commit in series.newest_first() {
            let commit = commit.map_err(|e| {
                e.context("nothing was written: `verify` tells more. `restore` still reads the other snapshots")
            })?;
            run.previous.get_or_insert(commit.hash);
            if let Line::Retire(record) = &commit.line {
                run.take_up_again(record)?;
            } else if commit.snapshot().is_some() {
                newest = Some(commit);
                break;
            }
        }
        run.newest = newest.as_ref().map(|commit| commit.hash);
        run.note_covers(&series.covers(), &[]);
        if let Some(tiering) = tiering {
            let points = retained::points(&series.whole(), &verified::of(open, name)?);
            run.terms = tiers::need_of_next(&points, run.head + 1, tiering, run.started);
            run.store = open.store.on_terms(run.terms);
        }
        run.look_back(&series)?;
        run.choose(newest)?;
        Ok(run)
    }

    /// Reads the source, stores what is new, and commits.
    pub(super) fn go(&mut self, source: &mut dyn Source) -> Result<Committed> {
        let kind = source.kind();
        if let Some((basis, _)) = &self.basis_of
            && basis.kind != kind
        {
            return Err(Failure::new(
                Kind::Config,
                format!("{} holds snapshots of kind {}, and the source is of kind {kind}", self.name, basis.kind),
                "Nothing was written. Give the new source a name of its own.",
            ));
        }
        if let Some((seq, _, facts)) = self.before.as_ref().filter(|(_, of, _)| of == kind) {
            // What lies in packs that must not be referred to is read in any case.
            let shortcuts = self.basis.shortcuts.filter(|_| self.basis.avoid.is_empty());
            source.compare(Before { facts, seq: *seq, shortcuts, accept_change: self.options.accept_change })?;
        }
        let open = &self.host.open;
        let data: Arc<[_]> = open.trust.recovery_recipients()?.into();
        let index_key = parse_recipient(&self.host.keys.identity.to_public().to_string())?;
        let target = Target {
            index: IndexStore {
                store: self.store.clone(),
                ..index_store(open, self.name, self.mode == Mode::Incremental)
            },
            index_to: data.iter().cloned().chain([index_key]).collect(),
            data,
            identities: shared(std::slice::from_ref(&self.host.keys.identity)),
        };
        let (path, circumstances) = self.resume(kind)?;
        // What the source holds now, as far as one can tell before it has been read.
        self.options.progress.expect(self.basis_of.as_ref().map_or(0, |(_, sealed)| sealed.stats.bytes));
        let level = self.options.level.unwrap_or_else(|| source.level());
        let options = pipeline::Options {
            packs: self.options.packs,
            spool: self.options.spool.clone(),
            checkpoint: Some((path.clone(), circumstances)),
            checkpoint_every: self.options.checkpoint_every,
            progress: self.options.progress.clone(),
            ..pipeline::Options::new(level, self.options.workers)
        };
        let root = source.root();
        let stored = pipeline::store(source, &self.basis, &self.secrets, &target, &options)?;
        if let (_, Some(why)) = &stored.spooled {
            let slow = "the source was read no faster than the store took it";
            self.notices.push(format!("{}: the spool could not be used, so that {slow}: {why}", self.name));
        }
        let committed = self.commit(kind, root, stored, &target)?;
        if matches!(committed, Committed::Done(_)) {
            // One that stays is not believed, since the newest snapshot is another one now.
            checkpoint::forget(&path).ok();
        }
        Ok(committed)
    }
}
