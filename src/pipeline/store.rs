//! One run of the data path, wired up: from a source to layers and packs that are durable, but not yet committed.

use anyhow::{Context, Result, anyhow};
use async_channel::Receiver;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::chunks::ChunkTable;
use super::collector::{self, Collected};
use super::cut::Cutter;
use super::pack::{Done, Packs, Place};
use super::reader::{Reader, Tally};
use super::worker::{self, Shared};
use crate::entry::{Entry, Name};
use crate::repository::agefile::{Identity, Recipient};
use crate::repository::index::{
    IndexStore, LayerReader, LayerWriter, LineTable, LinesOut, Merge, ObjectWriter, PackLine, layers_to_fold,
};
use crate::repository::sealed::Secrets;
use crate::repository::snapshot::{Layer, Named, PackChange};
use crate::source::{Finished, Order, Source};

/// Where a run writes to.
#[derive(Clone)]
pub struct Target {
    pub index: IndexStore,
    /// Who can read packs: the recovery recipients.
    pub data: Arc<[Recipient]>,
    /// Who can read index objects: those, and the host.
    pub index_to: Arc<[Recipient]>,
    /// The host's index identity.
    pub identities: Arc<[Identity]>,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// zstd's.
    pub level: i32,
    pub workers: usize,
}

/// A pack of the basis.
#[derive(Debug, Clone, Copy)]
pub struct BasisPack {
    pub name: Named,
    pub live: u64,
    pub raw: u64,
}

/// What a run compares with. A baseline has an empty one.
#[derive(Default)]
pub struct Basis {
    pub layers: Vec<Layer>,
    pub packs: HashMap<u64, BasisPack>,
    pub next_pack: u64,
    /// Start of the basis's run, if unchanged files may be passed over.
    pub shortcuts: Option<Timestamp>,
    /// Packs not to refer to: lost ones, and those that forward compaction empties.
    pub avoid: HashSet<u64>,
}

/// Everything a commit needs to name; every object of it is durable. Only [`store`] makes one, and only from a source that was
/// read to its known end.
#[non_exhaustive]
pub struct Stored {
    pub layers: Vec<Layer>,
    pub packs: PackChange,
    pub next_pack: u64,
    pub finished: Finished,
    pub entries: u64,
    pub bytes: u64,
    pub bytes_read: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
}

/// Reads `source` to its end and stores what `basis` does not have.
pub fn store(
    source: &mut dyn Source,
    basis: &Basis,
    secrets: &Secrets,
    target: &Target,
    options: Options,
) -> Result<Stored> {
    let mut layers = fold(&basis.layers, target).context("merge index layers")?;
    let in_memory = options.workers + 2;
    let (packs, done) = Packs::new(
        target.index.store.clone(),
        target.index.source.clone(),
        target.data.clone(),
        options.level,
        in_memory,
        basis.next_pack,
    );
    let chunks = ChunkTable::new()?;
    let shared = Shared { packs: &packs, chunks: &chunks, secrets, avoid: &basis.avoid };
    let mut table = PackTable::new(target, basis.next_pack);
    let run = Run { shared: &shared, basis, target, options };
    let (mut tally, mut collected, appended) = run.threads(source, &mut table, &done)?;
    let finished = source.finish().context("finish reading the source")?;
    table.wait(&packs, &done)?;

    for (pack, bytes) in &tally.live {
        *collected.live.entry(*pack).or_default() += bytes;
    }
    let (lines, change, stored) = table.finish(basis, &collected.live)?;
    let layer = Layer { packs: lines, entries: collected.entries };
    let index_bytes = layer.packs.iter().chain(&layer.entries).map(|(_, size)| size).sum::<u64>();
    if !layer.packs.is_empty() || !layer.entries.is_empty() {
        layers.push(layer);
    }
    if !tally.lost.is_empty() || !tally.streams.is_empty() {
        tally.lost.sort();
        tally.streams.sort_by(|a, b| a.path.cmp(&b.path));
        layers.push(amend(&tally.lost, &tally.streams, target)?);
    }
    Ok(Stored {
        layers,
        packs: change,
        next_pack: packs.next_number(),
        finished,
        entries: tally.entries,
        bytes: tally.bytes,
        bytes_read: tally.bytes_read,
        bytes_new: appended,
        bytes_stored: stored + index_bytes,
    })
}

struct Run<'a> {
    shared: &'a Shared<'a>,
    basis: &'a Basis,
    target: &'a Target,
    options: Options,
}

impl Run<'_> {
    /// Reader, workers and collector, until all have ended. The first error is the run's; it is looked for where it arose, since the
    /// others only see closed channels.
    fn threads(
        &self,
        source: &mut dyn Source,
        table: &mut PackTable,
        done: &Receiver<Done>,
    ) -> Result<(Tally, Collected, u64)> {
        let workers = self.options.workers;
        let (to_workers, batches) = async_channel::bounded(workers);
        let (findings_in, findings) = async_channel::bounded(workers);
        let (buffers_in, buffers) = async_channel::bounded(2 * workers + 2);
        let writer = LayerWriter::new(ObjectWriter::new(self.target.index.clone(), self.target.index_to.clone()));
        let writer = match source.order() {
            Order::ByName => LinesOut::InOrder(writer),
            Order::AsTheyCome => LinesOut::ToSort(LineTable::new(writer)?),
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|_| {
                    let (batches, findings_in, buffers_in) = (batches.clone(), findings_in.clone(), buffers_in.clone());
                    scope.spawn(move || worker::run(self.shared, &batches, &findings_in, &buffers_in))
                })
                .collect();
            drop((batches, findings_in, buffers_in));
            let collector = scope.spawn(move || collector::run(writer, &findings));
            let read = self.read(source, table, done, to_workers, buffers);
            let mut appended = 0;
            let mut failed = None;
            for handle in handles {
                match handle.join().map_err(|_| anyhow!("a worker panicked; this is a bug, please report it")).flatten()
                {
                    Ok(bytes) => appended += bytes,
                    Err(e) => failed = Some(e),
                }
            }
            let collected = collector
                .join()
                .map_err(|_| anyhow!("the collector panicked; this is a bug, please report it"))
                .flatten();
            match (failed, collected, read) {
                (Some(e), _, _) | (None, Err(e), _) | (None, Ok(_), Err(e)) => Err(e),
                (None, Ok(collected), Ok(tally)) => Ok((tally, collected, appended)),
            }
        })
    }

    fn read(
        &self,
        source: &mut dyn Source,
        table: &mut PackTable,
        done: &Receiver<Done>,
        to_workers: async_channel::Sender<super::batch::Batch>,
        buffers: Receiver<Vec<u8>>,
    ) -> Result<Tally> {
        let layers = &self.basis.layers;
        let merge = (!layers.is_empty()).then(|| merge(layers, self.target));
        let mut reader = Reader::new(merge, Cutter::new(self.shared.secrets.gear()?), to_workers, buffers);
        reader.shortcuts = self.basis.shortcuts;
        if !self.basis.avoid.is_empty() && reader.shortcuts.is_some() {
            reader.reread = paths_in(&self.basis.avoid, layers, self.target)?;
        }
        reader.load_chunks = Box::new(|| load_chunks(self.shared.chunks, layers, self.target));
        reader.on_batch = Box::new(|| table.note(done));
        reader.run(source)?;
        Ok(std::mem::take(&mut reader.tally))
    }
}

fn readers(layers: &[Layer], target: &Target, list: impl Fn(&Layer) -> &[Named]) -> Vec<LayerReader> {
    layers.iter().map(|l| LayerReader::new(target.index.clone(), target.identities.clone(), list(l))).collect()
}

fn merge(layers: &[Layer], target: &Target) -> Merge {
    Merge::new(readers(layers, target, |l| &l.entries))
}

/// Notes where the chunks of the basis lie.
fn load_chunks(chunks: &ChunkTable, layers: &[Layer], target: &Target) -> Result<()> {
    let mut merge = merge(layers, target);
    while let Some(merged) = merge.next_entry().context("read the basis's index")? {
        if merged.entry.is_none_or(|e| e.page.is_some()) {
            continue;
        }
        while let Some(segment) = merge.next_segment().context("read the basis's index")? {
            for (extent, id) in segment.extents.iter().zip(segment.ids.chunks_exact(32)) {
                chunks.insert(id, Place { pack: extent.pack, frame: extent.frame, from: extent.from })?;
            }
        }
    }
    Ok(())
}

/// Files of the basis with bytes in one of `packs`.
fn paths_in(packs: &HashSet<u64>, layers: &[Layer], target: &Target) -> Result<HashSet<Name>> {
    let mut found = HashSet::new();
    let mut merge = merge(layers, target);
    while let Some(merged) = merge.next_entry()? {
        while let Some(segment) = merge.next_segment()? {
            if segment.extents.iter().any(|e| packs.contains(&e.pack)) {
                found.insert(merged.path.clone());
            }
        }
    }
    Ok(found)
}

/// A layer above all others with what the run's own layer could not know yet: it takes `lost` out of the snapshot, and gives `streams`
/// their sizes. Both are in path order.
fn amend(lost: &[Name], streams: &[Entry], target: &Target) -> Result<Layer> {
    let mut writer = LayerWriter::new(ObjectWriter::new(target.index.clone(), target.index_to.clone()));
    let mut lost = lost.iter().peekable();
    for entry in streams {
        while let Some(path) = lost.next_if(|path| **path < entry.path) {
            writer.gone(path)?;
        }
        writer.entry(entry, entry.size)?;
    }
    for path in lost {
        writer.gone(path)?;
    }
    Ok(Layer { packs: Vec::new(), entries: writer.finish()? })
}

/// Merges the newest layers into one, as many as keep their sizes geometric.
fn fold(layers: &[Layer], target: &Target) -> Result<Vec<Layer>> {
    let count = layers_to_fold(layers);
    if count < 2 {
        return Ok(layers.to_vec());
    }
    let (kept, folded) = layers.split_at(layers.len() - count);
    let whole = kept.is_empty();
    let mut writer = LayerWriter::new(ObjectWriter::new(target.index.clone(), target.index_to.clone()));
    let mut merge = merge(folded, target);
    while let Some(merged) = merge.next_entry()? {
        match &merged.entry {
            None if whole => continue,
            None => {
                writer.gone(&merged.path)?;
                continue;
            }
            Some(entry) => writer.entry(entry, if whole { 0 } else { merged.inherit })?,
        }
        while let Some(segment) = merge.next_segment()? {
            writer.data(&merged.path, &segment)?;
        }
    }
    let packs = fold_packs(folded, target, whole)?;
    let mut layers = kept.to_vec();
    layers.push(Layer { packs, entries: writer.finish()? });
    Ok(layers)
}

fn fold_packs(folded: &[Layer], target: &Target, whole: bool) -> Result<Vec<Named>> {
    let mut live: BTreeMap<u64, u64> = BTreeMap::new();
    for mut layer in readers(folded, target, |l| &l.packs) {
        while let Some(line) = layer.line()? {
            if let PackLine::Live { pack, live: bytes } = serde_json::from_slice(line).context("read a pack line")? {
                live.insert(pack, bytes);
            }
        }
    }
    let mut writer = ObjectWriter::new(target.index.clone(), target.index_to.clone());
    for mut layer in readers(folded, target, |l| &l.packs) {
        while let Some(line) = layer.line()? {
            let pack: PackLine = serde_json::from_slice(line).context("read a pack line")?;
            if matches!(pack, PackLine::Pack { .. }) && (!whole || live.get(&pack.number()).is_none_or(|l| *l > 0)) {
                writer.pack_line(&pack)?;
            }
        }
    }
    for (pack, live) in live.into_iter().filter(|(_, live)| !whole || *live > 0) {
        writer.pack_line(&PackLine::Live { pack, live })?;
    }
    writer.finish()
}

/// The pack table of the new layer. Lines are written in order of their numbers, each once its pack is durable.
struct PackTable {
    writer: ObjectWriter,
    early: BTreeMap<u64, PackLine>,
    next: u64,
    add: BTreeMap<u64, Named>,
}

impl PackTable {
    fn new(target: &Target, first: u64) -> PackTable {
        let writer = ObjectWriter::new(target.index.clone(), target.index_to.clone());
        PackTable { writer, early: BTreeMap::new(), next: first, add: BTreeMap::new() }
    }

    fn accept(&mut self, (number, result): Done) -> Result<()> {
        let line = result.context("store a pack")?;
        self.early.insert(number, line);
        while let Some(line) = self.early.remove(&self.next) {
            if let PackLine::Pack { name, size, .. } = &line {
                self.add.insert(self.next, (*name, *size));
            }
            self.writer.pack_line(&line)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Takes what has become durable, without waiting.
    fn note(&mut self, done: &Receiver<Done>) -> Result<()> {
        while let Ok(done) = done.try_recv() {
            self.accept(done)?;
        }
        Ok(())
    }

    /// Waits for all packs that were begun.
    fn wait(&mut self, packs: &Packs, done: &Receiver<Done>) -> Result<()> {
        while self.next < packs.next_number() {
            self.accept(done.recv_blocking().context("wait for packs")?)?;
        }
        Ok(())
    }

    /// Adds the counts of live bytes that have changed. Returns the objects, the packs added and dropped, and the bytes added.
    fn finish(mut self, basis: &Basis, live: &HashMap<u64, u64>) -> Result<(Vec<Named>, PackChange, u64)> {
        let mut change = PackChange::default();
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for (number, pack) in &basis.packs {
            let now = live.get(number).copied().unwrap_or(0);
            if now != pack.live {
                counts.insert(*number, now);
            }
            if now == 0 {
                change.drop.push(pack.name.0);
            }
        }
        let mut stored = 0;
        for (number, name) in &self.add {
            let now = live.get(number).copied().unwrap_or(0);
            counts.insert(*number, now);
            stored += name.1;
            if now > 0 {
                change.add.push(*name);
            }
        }
        change.drop.sort();
        for (pack, live) in counts {
            self.writer.pack_line(&PackLine::Live { pack, live })?;
        }
        Ok((self.writer.finish()?, change, stored))
    }
}
