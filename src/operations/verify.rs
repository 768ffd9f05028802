//! Integrity of the repository: chain, signatures and existence without any key; hashes by reading; data by decrypting and decompressing.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::basis::{index_store, pack_table};
use super::evidence::{self, Chain, Level};
use super::findings::{self, Looked, Seen};
use super::reread::{Budget, Coverage, Queue};
use super::restore::{self, PackWork};
use super::{Open, group, wal};
use crate::interrupt;
use crate::limits;
use crate::progress::Progress;
use crate::repository::agefile::Identity;
use crate::repository::history::{self, Cover, Written};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series::{self, Series, Whole};
use crate::storage::{self, Key};

#[derive(Clone, Default)]
pub struct Options {
    /// Read every object and compare its SHA-256 with its name.
    pub hashes: bool,
    /// Decrypt and decompress every frame with these; those packs first that were read longest ago.
    pub read_data: Option<Vec<Identity>>,
    /// How much of the data is read in this run.
    pub budget: Budget,
    /// Sources that must be there, beside those that the repository, or this host's memory, knows of.
    pub expected: Vec<SourceName>,
    /// Counts stored bytes read.
    pub progress: Progress,
}

#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    pub sources: Vec<SourceVerified>,
    /// The common points of groups; looked at where all sources are.
    pub groups: Vec<group::Sight>,
    /// As those of the sources, of what belongs to none.
    pub covers: Vec<Cover>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SourceVerified {
    pub source: SourceName,
    /// Since when it is given up on purpose.
    pub retired: Option<Timestamp>,
    pub snapshots: u64,
    /// Objects that snapshots name.
    pub objects: u64,
    pub bytes_read: u64,
    /// What has been decrypted, in this run and before; absent where nothing was to be.
    pub coverage: Option<Coverage>,
    /// Packs that could not be read because they lie in an archive class. That they are there has been checked.
    pub archived: u64,
    pub faults: Vec<Fault>,
    /// Of the faults, those of commits, packs and the log that the store did not give: whether anything is wrong with them is not known.
    pub unread: u64,
    /// Drill reports by keys that may not sign here. They count for nothing and hurt nothing.
    pub foreign: Vec<Fault>,
    /// Objects that somebody has deleted or written over in a store that keeps versions. Older versions of them are there, and count.
    pub covers: Vec<Cover>,
}

/// Something that is wrong, and whom it hurts.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// The object, or the commit.
    pub object: String,
    pub what: String,
    /// Snapshots that cannot be restored as they were; empty: none is hurt, or the commit itself is the fault.
    pub hurts: Vec<u64>,
    /// The cheapest look that sees it: existence (`verify`), hashes (`--hashes`) or decode (`--read-data`).
    pub level: Level,
}

impl Fault {
    /// One that the cheapest look sees, and that hurts no snapshot but its own.
    fn plain(object: &dyn Display, what: String) -> Fault {
        Fault { object: object.to_string(), what, hurts: Vec::new(), level: Level::Existence }
    }
}

impl VerifyReport {
    /// What is wrong with its sources, in one line; none where all is as it should be.
    pub fn wrong(&self) -> Option<String> {
        self.sources.iter().find_map(|source| source.wrong(&self.covers))
    }

    pub fn sound(&self) -> bool {
        self.covers.is_empty()
            // What cannot be read is not known to be whole.
            && self.groups.iter().all(|group| group.faults.is_empty() && group.unread.is_none())
            && self.sources.iter().all(|s| s.faults.is_empty() && s.covers.is_empty())
    }
}

impl Options {
    /// How deep a run with no limit of time or bytes looks.
    fn level(&self) -> Level {
        match (&self.read_data, self.hashes) {
            (Some(_), _) => Level::Decode,
            (None, true) => Level::Hashes,
            (None, false) => Level::Existence,
        }
    }
}

impl SourceVerified {
    /// What is wrong with it, in one line, or with what belongs to no source; none where all is as it should be.
    fn wrong(&self, common: &[Cover]) -> Option<String> {
        let of_fault = |fault: &Fault| format!("{}: {}", fault.object, fault.what);
        let of_cover = |cover: &Cover| {
            let what = if cover.deleted { "was deleted" } else { "was written over" };
            format!("{} {what}, and the store keeps the first version of it", cover.object)
        };
        let covers = || self.covers.iter().chain(common);
        let first = self.faults.first().map(of_fault).or_else(|| covers().next().map(of_cover))?;
        let more = (self.faults.len() + covers().count()).saturating_sub(1);
        Some(if more > 0 { format!("{first} (and {more} more)") } else { first })
    }

    /// Whether the store did not give what is wrong: then nothing is known.
    pub fn is_unread(&self) -> bool {
        self.unread > 0 && self.unread == self.faults.len() as u64
    }

    /// What is worth a note, if the store gave what there is.
    fn looked(&self, options: &Options, common: &[Cover], begun: Timestamp) -> Option<Looked> {
        let all = self.coverage.as_ref().is_none_or(|c| c.packs_read + c.archived >= c.packs);
        let level = match options.level() {
            Level::Decode if !all && options.hashes => Level::Hashes,
            Level::Decode if !all => Level::Existence,
            level => level,
        };
        let damage = self.wrong(common).map(|what| Seen {
            level: self.faults.iter().map(|fault| fault.level).max().unwrap_or(Level::Existence),
            covered: self.faults.is_empty(),
            what,
        });
        (!self.is_unread()).then_some(Looked { begun, level, archived: self.archived, damage })
    }
}

/// Verifies one source, or all. A source of which nothing is left is a fault; a name that nobody knows is `Kind::Usage`.
pub fn verify(open: &Open, source: Option<&SourceName>, options: &Options) -> Result<VerifyReport> {
    // Looked up before the listing, which may only be newer.
    let remembered = open.remembered()?;
    let mut due: BTreeSet<SourceName> = options.expected.iter().chain(remembered.keys()).cloned().collect();
    // Only what had a snapshot was ever drilled.
    due.extend(evidence::subjects(open)?.iter().filter_map(|subject| SourceName::new(subject).ok()));
    let names = match source {
        Some(name) => BTreeSet::from([name.clone()]),
        None => series::sources(&open.store)?.into_iter().chain(due.iter().cloned()).collect(),
    };
    let covers = history::of_repository(&open.store).context("list what belongs to no source")?;
    let covers: Vec<Cover> = covers.iter().filter_map(Written::cover).collect();
    let one = |name: &SourceName| {
        let begun = open.now();
        let found = verify_source(open, name, (due.contains(name), remembered.get(name).copied()), options)?;
        if let Some(looked) = found.looked(options, &covers, begun) {
            findings::note(open, name, |known| known.take(&looked));
        }
        anyhow::Ok(found)
    };
    let sources = names.iter().map(one).collect::<Result<_>>()?;
    let groups = if source.is_none() { group::look(open)? } else { Vec::new() };
    Ok(VerifyReport { sources, groups, covers })
}

/// What snapshots need: size, and which snapshots.
type Needed = BTreeMap<Key, (Hash, u64, Vec<u64>)>;

/// `due`: whether there must be snapshots; `seen`: the newest commit that this host has seen.
fn verify_source(
    open: &Open,
    source: &SourceName,
    (due, seen): (bool, Option<(u64, Hash)>),
    options: &Options,
) -> Result<SourceVerified> {
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    let gone = gone(&series, &whole, due, seen);
    let mut faults: Vec<Fault> = whole
        .faults
        .iter()
        .map(|(seq, why)| Fault::plain(&layout::snapshot(source, *seq), why.clone()))
        .chain(gone)
        .collect();
    let needed = needed_by(open, &whole, source, &mut faults)?;
    let there = history::of_content(&open.store, source).context("list objects")?;
    let mut covers = whole.covers.clone();
    covers.extend(needed.keys().filter_map(|key| there.get(key)?.cover()));
    let foreign = drill_faults(open, source, &mut faults, &mut covers)?;
    let log = wal::check::check(open, source, options.hashes || options.read_data.is_some())?;
    covers.extend(log.covers);
    // Some of them only a look at every object of the log shows, which `--hashes` takes.
    let level = options.level().min(Level::Hashes);
    faults.extend(log.faults.into_iter().map(|(object, what)| Fault { object, what, hurts: Vec::new(), level }));
    if !due && whole.commits.is_empty() && whole.faults.is_empty() && log.objects == 0 {
        return Err(series::unknown(&open.store, source));
    }
    let (mut bytes_read, mut archived) = (log.bytes_read, 0);
    for (key, (hash, size, seqs)) in &needed {
        let mut level = Level::Existence;
        let what = match there.get(key).and_then(|written| Some((written, written.size()?))) {
            None => Some("is missing".to_owned()),
            Some((written, found)) if !written.has_size(*size) => Some(format!("has {found} bytes, not {size}")),
            Some(_) if hash_now(options, key) => match wrong_hash(open, key, hash) {
                Err(e) if storage::is_archived(&e) => {
                    archived += 1;
                    None
                }
                what => {
                    level = Level::Hashes;
                    interrupt::check("Nothing was changed.")?;
                    bytes_read += size;
                    options.progress.add(*size);
                    what?
                }
            },
            Some(_) => None,
        };
        faults.extend(what.map(|what| Fault { object: key.to_string(), what, hurts: seqs.clone(), level }));
    }
    let coverage = match &options.read_data {
        Some(identities) => Some(read_data(open, &whole, identities, options, &needed, &mut faults)?),
        None => None,
    };
    bytes_read += coverage.as_ref().map_or(0, |c| c.bytes_read);
    archived += coverage.as_ref().map_or(0, |c| c.archived);
    Ok(SourceVerified {
        source: source.clone(),
        retired: whole.retired().map(|record| record.started),
        snapshots: whole.snapshots().count() as u64,
        objects: needed.len() as u64 + log.objects,
        bytes_read,
        archived,
        unread: (whole.unread.len() + usize::from(log.unread)) as u64 + coverage.as_ref().map_or(0, |c| c.denied),
        coverage,
        faults,
        foreign,
        covers,
    })
}

/// That commits are gone as a whole, which no chain shows: all of them, or the newest.
fn gone(series: &Series, whole: &Whole, due: bool, seen: Option<(u64, Hash)>) -> Option<Fault> {
    let fault = |object: String, what: &str| {
        Some(Fault { object, what: what.to_owned(), hurts: Vec::new(), level: Level::Existence })
    };
    match series.lacks(seen) {
        Some(seq) => fault(
            layout::snapshot(&series.source, seq).to_string(),
            "is gone: this host has seen it, and no prune record removed it. Somebody deleted it, or the store shows an older state",
        ),
        _ if due && whole.commits.is_empty() && whole.faults.is_empty() => fault(
            layout::snapshots(&series.source),
            "there is no snapshot: none was ever made, or somebody deleted them",
        ),
        _ => None,
    }
}

/// What the snapshots of `source` need.
fn needed_by(open: &Open, whole: &Whole, source: &SourceName, faults: &mut Vec<Fault>) -> Result<Needed> {
    let mut needed = Needed::new();
    for (_, snapshot) in whole.snapshots() {
        let mut need = |key: Key, hash: Hash, size: u64| {
            needed.entry(key).or_insert_with(|| (hash, size, Vec::new())).2.push(snapshot.seq);
        };
        series::index_objects(snapshot).for_each(|(hash, size)| need(layout::index(source, hash), *hash, *size));
        match series::packs_of(&open.store, snapshot) {
            Ok(packs) => packs.iter().for_each(|(hash, size)| need(layout::pack(source, hash), *hash, *size)),
            Err(e) if storage::is_silence(&e) => return Err(e),
            Err(e) => faults.push(Fault {
                object: layout::snapshot(source, snapshot.seq).to_string(),
                what: format!("{e:#}"),
                hurts: vec![snapshot.seq],
                level: Level::Existence,
            }),
        }
    }
    Ok(needed)
}

/// Whether an object is to be hashed by itself: the data that is decrypted is hashed with that.
fn hash_now(options: &Options, key: &Key) -> bool {
    let decrypted = options.read_data.is_some() && options.budget.is_unlimited() && key.as_str().starts_with("packs/");
    let of_index = options.read_data.is_some() && key.as_str().starts_with("index/");
    (options.hashes || of_index) && !decrypted
}

/// Reports that prove nothing, because they do not verify, gaps in their chain, and those that are covered. Gives those that are foreign.
fn drill_faults(
    open: &Open,
    source: &SourceName,
    faults: &mut Vec<Fault>,
    covers: &mut Vec<Cover>,
) -> Result<Vec<Fault>> {
    let chain = Chain::read(open, source.as_str())?;
    covers.extend(chain.covers);
    let fault = |(key, what): (Key, String)| Fault::plain(&key, what);
    faults.extend(chain.faults.into_iter().map(fault));
    Ok(chain.foreign.into_iter().map(fault).collect())
}

/// What is wrong with the bytes of an object. `Err`: they could not be read.
fn wrong_hash(open: &Open, key: &Key, hash: &Hash) -> Result<Option<String>> {
    match history::fetch(&open.store, key, hash) {
        Err(e) if e.is::<storage::Error>() => Err(e.context(format!("read {key}"))),
        result => Ok(result.err().map(|e| format!("{e:#}"))),
    }
}

/// Decrypts and decompresses packs, as many as the budget allows.
fn read_data(
    open: &Open,
    whole: &Whole,
    identities: &[Identity],
    options: &Options,
    needed: &Needed,
    faults: &mut Vec<Fault>,
) -> Result<Coverage> {
    let Some((_, first)) = whole.snapshots().next() else { return Ok(Coverage::default()) };
    let source = &first.source;
    let queue = Queue::open(open, source)?;
    let index = index_store(open, source, false);
    for (_, snapshot) in whole.snapshots() {
        if let Err(e) = pack_table(&index, snapshot, identities, |line, _| queue.add(&line)) {
            if storage::is_silence(&e) {
                return Err(e);
            }
            let object = layout::snapshot(source, snapshot.seq).to_string();
            let what = format!("its index cannot be read: {e:#}");
            faults.push(Fault { object, what, hurts: vec![snapshot.seq], level: Level::Decode });
        }
    }
    let check = |pack: &PackWork| restore::read_pack(open, source, pack, identities);
    let (coverage, unsound) = queue.read(&options.budget, limits::workers(), &options.progress, check)?;
    for (name, what) in unsound {
        let key = layout::pack(source, &name);
        let object = key.to_string();
        // One that is missing, or too short, has been named already.
        if !faults.iter().any(|f| f.object == object) {
            let hurts = needed.get(&key).map(|(_, _, seqs)| seqs.clone()).unwrap_or_default();
            faults.push(Fault { object, what, hurts, level: Level::Decode });
        }
    }
    Ok(coverage)
}
