//! One run of the data path, wired up: from a source to layers and packs that are durable, but not yet committed.

use anyhow::{Context, Result, anyhow};
use async_channel::Receiver;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::chunks::ChunkTable;
use super::collector::{self, Collected};
use super::cut::Cutter;
use super::layers;
use super::pack::Packs;
use super::reader::{Reader, Tally};
use super::spool::SpoolPlace;
use super::table::{Done, PackTable, lists, sender};
use super::uploads::Uploads;
use super::worker::{self, Shared};
use crate::limits::{CHECKPOINT_EVERY, PACKS_IN_MEMORY};
use crate::progress::Progress;
use crate::repository::agefile::{Identity, Recipient};
use crate::repository::checkpoint::{Beginning, Circumstances, Journal};
use crate::repository::index::{IndexStore, LayerWriter, LineTable, LinesOut, ObjectWriter, PackLine};
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

#[derive(Debug, Clone)]
pub struct Options {
    /// zstd's.
    pub level: i32,
    pub workers: usize,
    /// Packs in memory at once, those of the workers among them.
    pub packs: usize,
    /// Where objects wait that the store does not take as fast as the source is read; without, the source waits.
    pub spool: Option<SpoolPlace>,
    /// Where the run notes what it has stored, and under which circumstances another may go on from that.
    pub checkpoint: Option<(PathBuf, Circumstances)>,
    pub checkpoint_every: Duration,
    /// Counts the bytes read.
    pub progress: Progress,
}

impl Options {
    pub fn new(level: i32, workers: usize) -> Options {
        Options {
            level,
            workers,
            packs: PACKS_IN_MEMORY,
            spool: None,
            checkpoint: None,
            checkpoint_every: CHECKPOINT_EVERY,
            progress: Progress::default(),
        }
    }
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
    /// Of these, the packs in which nothing may stay, even where it costs the reading of a whole file of which only changes would have been read.
    pub leave: HashSet<u64>,
    /// Entries of interrupted runs, which lie above the layers; see [`crate::repository::checkpoint`].
    pub unfinished: Vec<Vec<Named>>,
    /// Packs of interrupted runs that are there.
    pub taken_over: BTreeMap<u64, PackLine>,
}

impl Basis {
    /// Whether this run may refer to a pack: to its own, and to those of the basis that are there and are not to be avoided. An interrupted
    /// run also names packs that it never sent.
    pub fn usable(&self, pack: u64) -> bool {
        pack >= self.next_pack || (self.is_known(pack) && !self.avoid.contains(&pack))
    }

    /// Whether pages that nobody reads again may stay in a pack.
    pub fn may_stay(&self, pack: u64) -> bool {
        self.is_known(pack) && !self.leave.contains(&pack)
    }

    fn is_known(&self, pack: u64) -> bool {
        self.packs.contains_key(&pack) || self.taken_over.contains_key(&pack)
    }

    /// All layers that a run compares with.
    pub(super) fn all_layers(&self) -> Vec<Layer> {
        let unfinished = self.unfinished.iter().cloned().map(layers::only_entries);
        self.layers.iter().cloned().chain(unfinished).collect()
    }
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
    /// Bytes that waited in the spool, and why it could not be used, if something was wrong with it.
    pub spooled: (u64, Option<String>),
}

/// Reads `source` to its end and stores what `basis` does not have.
pub fn store(
    source: &mut dyn Source,
    basis: &Basis,
    secrets: &Secrets,
    target: &Target,
    options: &Options,
) -> Result<Stored> {
    let (mut layers, unfinished) = layers::ground(basis, target).context("merge index layers")?;
    let journal = begin_journal(basis, &unfinished, secrets, target, options)?;
    let place = options.spool.as_ref().filter(|_| source.holds_others_up());
    let uploads = Arc::new(Uploads::start(target.index.store.clone(), options.workers, options.packs, place)?);
    // Unbounded but small: a line is a few KiB, and what is under way is bounded by the uploads.
    let (told, done) = async_channel::unbounded();
    let packs = Packs::new(target, options.level, Arc::clone(&uploads), basis.next_pack, told.clone());
    let chunks = ChunkTable::new()?;
    let shared = Shared { packs: &packs, chunks: &chunks, secrets, basis };
    let mut table = PackTable::new(basis, sender(target, &uploads, &told, None), target, journal)?;
    let in_order = source.order() == Order::ByName;
    let entries = sender(target, &uploads, &told, in_order.then(|| packs.numbers()));
    let writer = LayerWriter::new(ObjectWriter::sending(target.index_to.clone(), entries));
    let writer = match in_order {
        true => LinesOut::InOrder(writer),
        false => LinesOut::ToSort(Box::new(LineTable::new(writer, lists(&packs, told.clone()))?)),
    };
    let run = Run { shared: &shared, target, options };
    let read = run.threads(source, &mut table, &done, writer).and_then(|read| {
        table.wait(packs.next_number(), &done)?;
        Ok(read)
    });
    if read.is_err() {
        // The next run goes on from what has become durable.
        uploads.settle();
        drop(table.note(&done));
    }
    let (mut tally, finished, mut collected, appended) = read?;

    for (pack, bytes) in &tally.live {
        *collected.live.entry(*pack).or_default() += bytes;
    }
    let (lines, change, stored) = table.finish(basis, &collected.live)?;
    uploads.finish();
    table.note(&done)?;
    let layer = Layer { packs: lines, entries: collected.entries };
    let index_bytes = layer.packs.iter().chain(&layer.entries).map(|(_, size)| size).sum::<u64>();
    layers.extend(unfinished.into_iter().map(layers::only_entries));
    if !layer.packs.is_empty() || !layer.entries.is_empty() {
        layers.push(layer);
    }
    if !tally.lost.is_empty() || !tally.streams.is_empty() {
        tally.lost.sort();
        tally.streams.sort_by(|a, b| a.path.cmp(&b.path));
        layers.push(layers::amend(&tally.lost, &tally.streams, target)?);
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
        spooled: uploads.spooled(),
    })
}

/// Before the source is read, and after the index objects that it names are durable.
fn begin_journal(
    basis: &Basis,
    unfinished: &[Vec<Named>],
    secrets: &Secrets,
    target: &Target,
    options: &Options,
) -> Result<Journal> {
    let Some((path, circumstances)) = &options.checkpoint else { return Ok(Journal::none()) };
    Journal::begin(
        path,
        &Beginning {
            circumstances,
            unfinished,
            secrets,
            recipients: &target.index_to,
            packs: &basis.taken_over,
            next_pack: basis.next_pack,
        },
    )
}

struct Run<'a> {
    shared: &'a Shared<'a>,
    target: &'a Target,
    options: &'a Options,
}

impl Run<'_> {
    /// Reader, workers and collector, until all have ended. The first error is the run's; it is looked for where it arose, since the
    /// others only see closed channels.
    fn threads(
        &self,
        source: &mut dyn Source,
        table: &mut PackTable,
        done: &Receiver<Done>,
        writer: LinesOut,
    ) -> Result<(Tally, Finished, Collected, u64)> {
        let workers = self.options.workers;
        let (to_workers, batches) = async_channel::bounded(workers);
        let (findings_in, findings) = async_channel::bounded(workers);
        let (buffers_in, buffers) = async_channel::bounded(2 * workers + 2);
        let every = self.options.checkpoint_every;
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|_| {
                    let (batches, findings_in, buffers_in) = (batches.clone(), findings_in.clone(), buffers_in.clone());
                    scope.spawn(move || worker::run(self.shared, &batches, &findings_in, &buffers_in))
                })
                .collect();
            drop((batches, findings_in, buffers_in));
            let collector = scope.spawn(move || collector::run(writer, &findings, every));
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
                (None, Ok(collected), Ok((tally, finished))) => Ok((tally, finished, collected, appended)),
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
    ) -> Result<(Tally, Finished)> {
        let (basis, target) = (self.shared.basis, self.target);
        let all = basis.all_layers();
        let merge = (!all.is_empty()).then(|| layers::merge(&all, target));
        let cutter = Cutter::new(self.shared.secrets.gear()?, source.grain());
        let mut reader = Reader::new(merge, cutter, to_workers, buffers);
        reader.progress = self.options.progress.clone();
        reader.shortcuts = basis.shortcuts;
        if reader.shortcuts.is_some() {
            let again = layers::to_read_again(basis, target)?;
            (reader.reread, reader.read_whole) = (again.reread, again.whole);
            reader.may_stay = Some(Box::new(|pack| basis.may_stay(pack)));
        }
        reader.load_chunks = Box::new(|| layers::load_chunks(self.shared.chunks, basis, target));
        reader.on_batch = Box::new(|| table.note(done));
        let finished = reader.run(source)?;
        Ok((std::mem::take(&mut reader.tally), finished))
    }
}
