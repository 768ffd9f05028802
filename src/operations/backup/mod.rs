//! One backup, top to bottom: lease, basis, read and store, commit.

mod commit;
mod options;
mod resume;
mod retired;

pub use options::Options;

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

use super::basis::{index_store, lost_index, survey};
use super::tiers::{self, Tiering};
use super::{Host, drill, prune, shared};
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::fingerprint::Fingerprint;
use crate::pipeline::{self, Basis, Target};
use crate::report::{Outcome, Skip, Stats};
use crate::repository::checkpoint;
use crate::repository::history::Cover;
use crate::repository::index::IndexStore;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::lease::Lease;
use crate::repository::memory::Memory;
use crate::repository::sealed::{SealedPart, Secrets};
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, Line, Mode, Snapshot};
use crate::repository::trust::{Role, parse_recipient};
use crate::source::{Before, Source};
use crate::storage::{self, Terms};

#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    pub commit: Hash,
    pub outcome: Outcome,
    pub mode: Mode,
    /// Why this was a full or a baseline; empty for an incremental.
    pub why: String,
    pub data_time: Timestamp,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub seconds: f64,
    pub stats: Stats,
    /// Stored bytes that were there already from an interrupted run.
    pub taken_over: u64,
    /// Stored bytes that waited in the spool.
    pub spooled: u64,
    pub skipped: Vec<Skip>,
    pub skipped_count: u64,
    /// Packs that were missing and the snapshots that they hurt.
    pub lost_packs: Vec<Hash>,
    pub hurt: Vec<u64>,
    /// The repository no longer shows what this host has seen in it, or somebody has changed what is never changed.
    pub alarm: bool,
    /// Why the snapshot is suspect; empty if it is not.
    pub suspicions: Vec<String>,
    pub notices: Vec<String>,
    pub facts: serde_json::Value,
}

/// [`backup_tiered`] without tiers.
pub fn backup(
    host: &Host,
    name: &SourceName,
    open_source: &dyn Fn() -> Result<Box<dyn Source>>,
    options: Options,
) -> Result<BackupReport> {
    backup_tiered(host, name, open_source, options, None)
}

/// Backs up one source, into the storage class and with the lock that its tiers ask for. `open_source` is called once for each try (at
/// most twice).
pub fn backup_tiered(
    host: &Host,
    name: &SourceName,
    open_source: &dyn Fn() -> Result<Box<dyn Source>>,
    options: Options,
    tiering: Option<Tiering>,
) -> Result<BackupReport> {
    let key = host.keys.signing.public();
    let certified = host.open.trust.may_sign(&key, Role::Host, name, host.open.now());
    if !certified {
        return Err(Failure::new(
            Kind::WrongKey,
            format!("this host's key {} is not certified to write {name} in this repository", key.id()),
            "Nothing was written. Certify it with the recovery key file: `init --host-key FILE --identity RECOVERY_KEY`.",
        ));
    }
    let open = &host.open;
    let _lease = Lease::acquire(&open.store, name, &key.id(), &host.name, Arc::clone(&open.clock))?;
    let mut lost_once = None;
    for _ in 0..2 {
        let mut run = Run::prepare(host, name, options.clone(), tiering)?;
        match run.go(&mut *open_source()?)? {
            Committed::Done(report) => return Ok(*report),
            Committed::Overtaken(by) => lost_once = Some(by),
        }
    }
    Err(Failure::new(
        Kind::Busy,
        format!("another writer committed {} of {name} meanwhile, twice", lost_once.unwrap_or_default()),
        "Nothing was lost; this run's data is not in a snapshot. Make sure that one host alone writes this source.",
    ))
}

enum Committed {
    Done(Box<BackupReport>),
    /// Another commit took the number, and what this run refers to may be going.
    Overtaken(u64),
}

/// What a run knows before it reads the source.
struct Run<'a> {
    host: &'a Host,
    name: &'a SourceName,
    options: Options,
    memory: Memory,
    started: Timestamp,
    clock: Instant,
    head: u64,
    previous: Option<Hash>,
    /// The newest snapshot of the series.
    newest: Option<Hash>,
    lineage: String,
    mode: Mode,
    why: String,
    basis_of: Option<(Snapshot, SealedPart)>,
    /// Number, kind and facts of the newest snapshot, if this host can read them.
    before: Option<(u64, String, serde_json::Value)>,
    /// Of the last good snapshots, the oldest first.
    fingerprints: Vec<Fingerprint>,
    basis: Basis,
    lost: Vec<Hash>,
    secrets: Secrets,
    /// The class of the packs and the lock of everything that this run writes.
    terms: Terms,
    /// A store that makes objects on these terms.
    store: Store,
    /// The repository no longer has a commit that this host has seen in it.
    rolled_back: bool,
    /// Somebody has deleted or written over what is never changed, in a store that keeps versions.
    covered: bool,
    notices: Vec<String>,
}

impl<'a> Run<'a> {
    fn prepare(host: &'a Host, name: &'a SourceName, options: Options, tiering: Option<Tiering>) -> Result<Run<'a>> {
        let open = &host.open;
        let state = open.state.as_ref().context("a host that writes needs a state directory")?;
        let memory = Memory::open(&state.join(&open.trust.id).join("sources"), name)?;
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
            let points = prune::points(&series.whole(), &drill::verified(open, name)?);
            run.terms = tiers::need_of_next(&points, run.head + 1, tiering, run.started);
            run.store = open.store.on_terms(run.terms);
        }
        run.look_back(&series)?;
        run.choose(newest)?;
        Ok(run)
    }

    /// Compares the series with what this host has seen of it: a store that shows an older state is an alarm (FORMAT.md §6).
    fn look_back(&mut self, series: &Series) -> Result<()> {
        if let Some((seq, hash)) = self.memory.seen()
            && !still_there(series, seq, hash)?
        {
            self.rolled_back = true;
            self.notices.push(format!(
                "{}: ALARM: this host has seen commit {seq} ({hash}) in the repository, and it is not there any more; the head is now {}. \
                 Somebody deleted it, or the store shows an older state. This run is a full. Find out before you trust the repository",
                self.name, self.head
            ));
        } else if let Some(head) = self.previous {
            self.memory.see(self.head, head)?;
        }
        Ok(())
    }

    /// Objects that were deleted or written over in a store that keeps versions: they are used as they were, but somebody is at work there.
    fn note_covers(&mut self, commits: &[Cover], packs: &[Cover]) {
        let Some(first) = commits.first().or(packs.first()) else { return };
        self.covered = true;
        self.notices.push(format!(
            "{}: ALARM: {} commits and {} packs have been deleted or written over in the store, the first of them {} at {}. The store keeps versions, so \
             nothing is lost as long as it does. Somebody has rights that he should not have: `verify` names the objects, `prune --uncover` brings them back",
            self.name,
            commits.len(),
            packs.len(),
            first.object,
            first.at
        ));
    }

    /// Decides between incremental, full and baseline, and surveys the basis.
    fn choose(&mut self, newest: Option<Commit>) -> Result<()> {
        self.lineage = new_lineage()?;
        let Some((commit, snapshot)) = newest.as_ref().and_then(|c| Some((c, c.snapshot()?))) else {
            self.begin_baseline("first run");
            return Ok(());
        };
        let remembered = self.memory.has_sent(&commit.hash);
        let continues = remembered && !self.rolled_back;
        if !remembered && commit.signer != self.host.keys.signing.public() && !self.options.adopt {
            return Err(Failure::new(
                Kind::Busy,
                format!("{} was last written by another key ({} on {})", self.name, commit.signer.id(), snapshot.host),
                "Nothing was written. If this host takes over from that one, say so once with --adopt; if both run, give one of them another source name.",
            ));
        }
        let epoch = self.host.open.trust.epoch;
        if snapshot.epoch > epoch {
            return Err(Failure::new(
                Kind::CheckFailed,
                format!(
                    "the last snapshot of {} is of epoch {}, and the trust records end with epoch {epoch}",
                    self.name, snapshot.epoch
                ),
                "Nothing was written: it would be encrypted to recipients that are no longer in force. A trust record is missing from the repository; put it back, or have the owner of the root key issue it again.",
            ));
        }
        match self.memory.lineage() {
            Some(lineage) if continues => self.lineage = lineage.to_owned(),
            _ if self.rolled_back => self.why = "the repository is not what this host has seen: a new lineage".into(),
            _ => {
                self.why = "this host does not remember writing the last snapshot: a new lineage".into();
                self.notices.push(format!("{}: {}", self.name, self.why));
            }
        }
        let identities = [self.host.keys.identity.clone()];
        let sealed = SealedPart::open(snapshot, &identities);
        self.before = sealed.as_ref().ok().map(|s| (snapshot.seq, snapshot.kind.clone(), s.facts.clone()));
        if !self.options.accept_change {
            self.fingerprints = sealed.as_ref().map(|s| s.fingerprints.clone()).unwrap_or_default();
        }
        let since = self.started.duration_since(snapshot.baseline_started);
        let index_lost = self.index_lost(snapshot)?;
        let baseline = match &sealed {
            _ if snapshot.epoch != epoch => Some("the recipients have changed"),
            _ if self.options.baseline => Some("asked for"),
            Err(_) => Some("this host's index key cannot read the last snapshot"),
            _ if index_lost => Some("index objects of the last snapshot are missing"),
            _ if since > self.options.baseline_every => Some("the last baseline is too old"),
            Ok(_) => None,
        };
        if let Some(why) = baseline {
            self.begin_baseline(why);
            return Ok(());
        }
        let sealed = sealed?;
        if !continues {
            self.mode = Mode::Full;
        } else if self.options.full {
            self.mode = Mode::Full;
            self.why = "asked for".into();
        }
        let incremental = self.mode == Mode::Incremental;
        let survey = survey(&self.host.open, snapshot, &sealed, &identities, incremental, self.options.heal)?;
        self.note_covers(&[], &survey.covers);
        self.basis = survey.basis;
        self.basis.shortcuts = incremental.then_some(snapshot.started);
        self.lost = survey.lost;
        self.secrets = sealed.secrets.clone();
        self.basis_of = Some((snapshot.clone(), sealed));
        Ok(())
    }

    /// Whether index objects of `snapshot` are gone; a notice says which.
    fn index_lost(&mut self, snapshot: &Snapshot) -> Result<bool> {
        let lost = lost_index(&self.host.open, snapshot)?;
        if !lost.is_empty() {
            self.notices.push(format!(
                "{}: index objects of snapshot {} are missing from the store or have another size, so that it cannot be restored: {lost:?}. \
                 This run is a baseline. Find out who deleted them; `verify` lists the snapshots hurt",
                self.name, snapshot.seq
            ));
        }
        Ok(!lost.is_empty())
    }

    fn begin_baseline(&mut self, why: &str) {
        self.mode = Mode::Full;
        self.why = format!("baseline: {why}");
    }

    fn go(&mut self, source: &mut dyn Source) -> Result<Committed> {
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

/// Whether the series still has a commit that this host has seen. That it cannot be read now is not yet an alarm.
fn still_there(series: &Series, seq: u64, hash: Hash) -> Result<bool> {
    match series.has(seq, hash) {
        Err(e) if e.chain().any(|cause| cause.is::<storage::Error>()) => Err(e),
        found => Ok(found.unwrap_or(false)),
    }
}

fn new_lineage() -> Result<String> {
    let mut id = [0u8; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow!("draw random bytes"))?;
    Ok(id.iter().map(|b| format!("{b:02x}")).collect())
}
