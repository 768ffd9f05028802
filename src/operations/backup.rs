//! One backup, top to bottom: lease, basis, read and store, commit.

use anyhow::{Context, Result, anyhow};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::basis::{self, index_store, survey};
use super::{Host, shared};
use crate::error::{Failure, Kind};
use crate::pipeline::{self, Basis, Stored, Target};
use crate::report::{Outcome, Skip, Stats};
use crate::repository::FORMAT;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::lease::Lease;
use crate::repository::memory::Memory;
use crate::repository::sealed::{SKIPS_LISTED, SealedPart, Secrets};
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Commit, Line, Mode, Named, PackChange, Snapshot, write_pack_list};
use crate::repository::trust::{Role, parse_recipient};
use crate::source::Source;
use crate::storage;

/// Pack changes kept in the commit itself; more go to a pack list.
const INLINE_PACKS: usize = 512;
/// Pack lists of one snapshot; more are folded into one.
const PACK_LISTS_MAX: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Read every byte.
    pub full: bool,
    /// Refer to nothing earlier.
    pub baseline: bool,
    /// A new baseline is due when the last is older than this.
    pub baseline_every: SignedDuration,
    /// Continue a series that another key has written.
    pub adopt: bool,
    /// Go on when more than 1 % of the packs are missing.
    pub heal: bool,
    /// zstd's.
    pub level: i32,
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Options {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Options {
            full: false,
            baseline: false,
            baseline_every: SignedDuration::from_hours(30 * 24),
            adopt: false,
            heal: false,
            level: 3,
            workers: cores.clamp(1, crate::limits::WORKERS_MAX),
        }
    }
}

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
    pub skipped: Vec<Skip>,
    pub skipped_count: u64,
    /// Packs that were missing and the snapshots that they hurt.
    pub lost_packs: Vec<Hash>,
    pub hurt: Vec<u64>,
    pub notices: Vec<String>,
    pub facts: serde_json::Value,
}

/// Backs up one source. `open_source` is called once for each try (at most twice).
pub fn backup(
    host: &Host,
    name: &SourceName,
    open_source: &dyn Fn() -> Result<Box<dyn Source>>,
    options: Options,
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
        let mut run = Run::prepare(host, name, options)?;
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
    lineage: String,
    mode: Mode,
    why: String,
    basis_of: Option<(Snapshot, SealedPart)>,
    basis: Basis,
    lost: Vec<Hash>,
    secrets: Secrets,
    /// The repository no longer has a commit that this host has seen in it.
    rolled_back: bool,
    notices: Vec<String>,
}

impl<'a> Run<'a> {
    fn prepare(host: &'a Host, name: &'a SourceName, options: Options) -> Result<Run<'a>> {
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
            lineage: String::new(),
            mode: Mode::Incremental,
            why: String::new(),
            basis_of: None,
            basis: Basis::default(),
            lost: Vec::new(),
            secrets: Secrets::generate()?,
            rolled_back: false,
            notices: Vec::new(),
        };
        let mut newest = None;
        for commit in series.newest_first() {
            let commit = commit.map_err(|e| {
                e.context("nothing was written: `verify` tells more. `restore` still reads the other snapshots")
            })?;
            run.previous.get_or_insert(commit.hash);
            if matches!(commit.line, Line::Snapshot(_)) {
                newest = Some(commit);
                break;
            }
        }
        run.look_back(&series)?;
        run.choose(newest)?;
        Ok(run)
    }

    /// Compares the series with what this host has seen of it: a store that shows an older state is an alarm (FORMAT.md §6).
    fn look_back(&mut self, series: &Series) -> Result<()> {
        if let Some((seq, hash)) = self.memory.seen()
            && !series.has(seq, hash).unwrap_or(false)
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
        self.basis = survey.basis;
        self.basis.shortcuts = incremental.then_some(snapshot.started);
        self.lost = survey.lost;
        self.secrets = sealed.secrets.clone();
        self.basis_of = Some((snapshot.clone(), sealed));
        Ok(())
    }

    /// Whether index objects of `snapshot` are gone; a notice says which.
    fn index_lost(&mut self, snapshot: &Snapshot) -> Result<bool> {
        let lost = basis::lost_index(&self.host.open, snapshot)?;
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
        let open = &self.host.open;
        let data: Arc<[_]> = open.trust.recovery_recipients()?.into();
        let index_key = parse_recipient(&self.host.keys.identity.to_public().to_string())?;
        let target = Target {
            index: index_store(open, self.name, true),
            index_to: data.iter().cloned().chain([index_key]).collect(),
            data,
            identities: shared(std::slice::from_ref(&self.host.keys.identity)),
        };
        let options = pipeline::Options { level: self.options.level, workers: self.options.workers };
        let root = source.root();
        let stored = pipeline::store(source, &self.basis, &self.secrets, &target, options)?;
        self.commit(kind, root, stored, &target)
    }

    fn commit(&mut self, kind: &str, root: String, stored: Stored, target: &Target) -> Result<Committed> {
        let stats = self.stats(&stored);
        let skipped = &stored.finished.skipped;
        let outcome = if skipped.is_empty() { Outcome::Complete } else { Outcome::Partial };
        let sealed = SealedPart {
            secrets: self.secrets.clone(),
            root,
            next_pack: stored.next_pack,
            stats: stats.clone(),
            skipped: skipped.iter().take(SKIPS_LISTED).cloned().collect(),
            skipped_count: skipped.len() as u64,
            facts: stored.finished.facts.clone(),
        };
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
            agent: concat!("blackstart ", env!("CARGO_PKG_VERSION")).into(),
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
            sealed: sealed.seal(&target.index_to)?,
        };
        let Some((snapshot, commit)) = self.create(snapshot)? else { return Ok(Committed::Overtaken(seq)) };
        if let Err(e) = self.memory.see(snapshot.seq, commit) {
            // The snapshot exists; what is lost is the memory of having seen it there.
            self.notices.push(format!("{}: {e:#}", self.name));
        }
        let hurt = self.hurt()?;
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
            skipped: sealed.skipped,
            skipped_count: sealed.skipped_count,
            lost_packs: self.lost.clone(),
            hurt,
            notices: self.notices.clone(),
            facts: sealed.facts,
        })))
    }

    /// Sends the commit. `None`: the number was taken by a commit that may take away what this one names.
    fn create(&mut self, mut snapshot: Snapshot) -> Result<Option<(Snapshot, Hash)>> {
        let open = &self.host.open;
        for _ in 0..3 {
            let body = self.host.keys.signing.sign_line(&Line::Snapshot(Box::new(snapshot.clone())))?;
            let hash = Hash::of(&body);
            self.memory.record(&self.lineage, hash)?;
            match open.store.create(&layout::snapshot(self.name, snapshot.seq), body.into(), &hash.0) {
                Ok(_) => return Ok(Some((snapshot, hash))),
                Err(e) if e.kind == storage::Kind::AlreadyExists => {}
                Err(e) => {
                    return Err(anyhow!(e).context(
                        "commit the snapshot: everything else of it is stored, but it does not exist yet; run again",
                    ));
                }
            }
            // Only a prune that left the basis alone may be followed at once: then every object of the basis is still named. The
            // run's own objects are younger than any grace period.
            let series = Series::list(&open.store, &open.trust, self.name)?;
            for seq in snapshot.seq..=series.head() {
                let commit = series.read(seq)?;
                let Line::Prune(prune) = &commit.line else { return Ok(None) };
                if prune.removed.iter().any(|r| Some(r.seq) == snapshot.basis) {
                    return Ok(None);
                }
                snapshot.previous = Some(commit.hash);
            }
            if snapshot.baseline == snapshot.seq {
                snapshot.baseline = series.head() + 1;
            }
            snapshot.seq = series.head() + 1;
            if !self.all_there(&snapshot)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn all_there(&self, snapshot: &Snapshot) -> Result<bool> {
        let store = &self.host.open.store;
        let list = |area| store.list(&layout::content_prefix(area, self.name)).context("list objects");
        let there: BTreeMap<Hash, u64> = list("packs")?
            .into_iter()
            .chain(list("index")?)
            .filter_map(|o| Some((layout::content_hash(&o.key)?, o.size)))
            .collect();
        let packs = series::packs_of(store, snapshot)?;
        let here = |(hash, size): (&Hash, &u64)| there.get(hash) == Some(size);
        Ok(packs.iter().all(here) && series::index_objects(snapshot).all(|(h, s)| here((h, s))))
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

    /// Snapshots that need a lost pack.
    fn hurt(&self) -> Result<Vec<u64>> {
        if self.lost.is_empty() {
            return Ok(Vec::new());
        }
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

fn new_lineage() -> Result<String> {
    let mut id = [0u8; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow!("draw random bytes"))?;
    Ok(id.iter().map(|b| format!("{b:02x}")).collect())
}

/// How much of what the snapshot's packs hold it refers to.
pub use basis::amplification;
