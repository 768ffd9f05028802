//! Integrity of the repository: chain, signatures and existence without any key; hashes by reading; data by decrypting and decompressing.

use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use zstd::bulk::Decompressor;

use super::basis::{index_store, pack_table};
use super::evidence::Chain;
use super::restore::{OpenPack, PackWork};
use super::{Open, wal};
use crate::limits::FRAME_RAW_MAX;
use crate::repository::agefile::Identity;
use crate::repository::history::{self, Cover, Written};
use crate::repository::index::PackLine;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series::{self, Series};
use crate::repository::snapshot::Snapshot;
use crate::storage::{self, Key};

#[derive(Clone, Default)]
pub struct Options {
    /// Read every object and compare its SHA-256 with its name.
    pub hashes: bool,
    /// Decrypt and decompress every frame with these.
    pub read_data: Option<Vec<Identity>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    pub sources: Vec<SourceVerified>,
    /// As those of the sources, of what belongs to none.
    pub covers: Vec<Cover>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SourceVerified {
    pub source: SourceName,
    pub snapshots: u64,
    /// Objects that snapshots name.
    pub objects: u64,
    pub bytes_read: u64,
    /// Packs that could not be read because they lie in an archive class. That they are there has been checked.
    pub archived: u64,
    pub faults: Vec<Fault>,
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
}

impl VerifyReport {
    pub fn sound(&self) -> bool {
        self.covers.is_empty() && self.sources.iter().all(|s| s.faults.is_empty() && s.covers.is_empty())
    }
}

/// Verifies one source, or all.
pub fn verify(open: &Open, source: Option<&SourceName>, options: &Options) -> Result<VerifyReport> {
    let names = match source {
        Some(name) => vec![name.clone()],
        None => series::sources(&open.store)?,
    };
    let sources = names.iter().map(|name| verify_source(open, name, options)).collect::<Result<_>>()?;
    let covers = history::of_repository(&open.store).context("list what belongs to no source")?;
    Ok(VerifyReport { sources, covers: covers.iter().filter_map(Written::cover).collect() })
}

/// What snapshots need: size, and which snapshots.
type Needed = BTreeMap<Key, (Hash, u64, Vec<u64>)>;

fn verify_source(open: &Open, source: &SourceName, options: &Options) -> Result<SourceVerified> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let mut faults: Vec<Fault> = whole
        .faults
        .iter()
        .map(|(seq, why)| Fault {
            object: layout::snapshot(source, *seq).to_string(),
            what: why.clone(),
            hurts: Vec::new(),
        })
        .collect();
    let mut needed = Needed::new();
    for (_, snapshot) in whole.snapshots() {
        let mut need = |key: Key, hash: Hash, size: u64| {
            needed.entry(key).or_insert_with(|| (hash, size, Vec::new())).2.push(snapshot.seq);
        };
        series::index_objects(snapshot).for_each(|(hash, size)| need(layout::index(source, hash), *hash, *size));
        match series::packs_of(&open.store, snapshot) {
            Ok(packs) => packs.iter().for_each(|(hash, size)| need(layout::pack(source, hash), *hash, *size)),
            Err(e) => faults.push(Fault {
                object: layout::snapshot(source, snapshot.seq).to_string(),
                what: format!("{e:#}"),
                hurts: vec![snapshot.seq],
            }),
        }
    }
    let mut there: HashMap<Key, Written> = HashMap::new();
    for area in ["packs", "index"] {
        let listed = history::list(&open.store, &layout::content_prefix(area, source)).context("list objects")?;
        there.extend(listed.into_iter().map(|w| (w.key.clone(), w)));
    }
    let mut covers = whole.covers.clone();
    covers.extend(needed.keys().filter_map(|key| there.get(key)?.cover()));
    drill_faults(open, source, &mut faults, &mut covers)?;
    let log = wal::check::check(open, source, options.hashes || options.read_data.is_some())?;
    faults.extend(log.faults.into_iter().map(|(object, what)| Fault { object, what, hurts: Vec::new() }));
    let (mut bytes_read, mut archived) = (log.bytes_read, 0);
    for (key, (hash, size, seqs)) in &needed {
        let what = match there.get(key).and_then(|written| Some((written, written.size()?))) {
            None => Some("is missing".to_owned()),
            Some((written, found)) if !written.has_size(*size) => Some(format!("has {found} bytes, not {size}")),
            Some(_) if options.hashes && options.read_data.is_none() => match wrong_hash(open, key, hash) {
                Err(e) if is_archived(&e) => {
                    archived += 1;
                    None
                }
                what => {
                    bytes_read += size;
                    what?
                }
            },
            Some(_) => None,
        };
        faults.extend(what.map(|what| Fault { object: key.to_string(), what, hurts: seqs.clone() }));
    }
    if let Some(identities) = &options.read_data {
        for (_, snapshot) in whole.snapshots() {
            let read = read_snapshot(open, snapshot, identities, &mut needed, &mut faults);
            (bytes_read, archived) = (bytes_read + read.0, archived + read.1);
        }
    }
    Ok(SourceVerified {
        source: source.clone(),
        snapshots: whole.snapshots().count() as u64,
        objects: needed.len() as u64 + log.objects,
        bytes_read,
        archived,
        faults,
        covers,
    })
}

/// Reports that prove nothing, because they do not verify, gaps in their chain, and those that are covered.
fn drill_faults(open: &Open, source: &SourceName, faults: &mut Vec<Fault>, covers: &mut Vec<Cover>) -> Result<()> {
    let chain = Chain::read(open, source.as_str())?;
    covers.extend(chain.covers);
    faults.extend(chain.faults.into_iter().map(|(key, what)| Fault {
        object: key.to_string(),
        what,
        hurts: Vec::new(),
    }));
    Ok(())
}

/// What is wrong with the bytes of an object. `Err`: they could not be read.
fn wrong_hash(open: &Open, key: &Key, hash: &Hash) -> Result<Option<String>> {
    match history::fetch(&open.store, key, hash) {
        Err(e) if e.is::<storage::Error>() => Err(e.context(format!("read {key}"))),
        result => Ok(result.err().map(|e| format!("{e:#}"))),
    }
}

fn is_archived(error: &anyhow::Error) -> bool {
    error.downcast_ref::<storage::Error>().is_some_and(|e| e.kind == storage::Kind::Archived)
}

/// Decrypts and decompresses the packs of `snapshot` that have not been read yet. Packs read are taken out of `needed`. Returns the bytes
/// read, and how many packs are archived.
fn read_snapshot(
    open: &Open,
    snapshot: &Snapshot,
    identities: &[Identity],
    needed: &mut Needed,
    faults: &mut Vec<Fault>,
) -> (u64, u64) {
    let index = index_store(open, &snapshot.source, false);
    let (mut bytes, mut archived) = (0, 0);
    let table = pack_table(&index, snapshot, identities, |line, _| {
        let PackLine::Pack { name, size, frames, .. } = line else { return Ok(()) };
        let key = layout::pack(&snapshot.source, &name);
        let Some((_, _, hurts)) = needed.remove(&key) else { return Ok(()) };
        let pack = PackWork { name, size, frames, writes: Vec::new() };
        match read_pack(open, &key, &pack, identities) {
            Ok(()) => bytes += size,
            Err(e) if is_archived(&e) => archived += 1,
            Err(e) => faults.push(Fault { object: key.to_string(), what: format!("{e:#}"), hurts }),
        }
        Ok(())
    });
    if let Err(e) = table {
        let object = layout::snapshot(&snapshot.source, snapshot.seq).to_string();
        faults.push(Fault { object, what: format!("its index cannot be read: {e:#}"), hurts: vec![snapshot.seq] });
    }
    (bytes, archived)
}

pub(super) fn read_pack(open: &Open, key: &Key, pack: &PackWork, identities: &[Identity]) -> Result<()> {
    let body = history::fetch(&open.store, key, &pack.name)?;
    let opened = OpenPack::whole(body, identities)?;
    let mut decompressor = Decompressor::new().context("set up decompression")?;
    let mut raw = Vec::with_capacity(FRAME_RAW_MAX);
    (0..pack.frames.len() as u64).try_for_each(|n| opened.frame(pack, n, &mut decompressor, &mut raw))
}
