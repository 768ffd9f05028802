//! Reads the source beside the basis, in path order or as its entries come, decides what must be read at all, and cuts the rest into batches.

use anyhow::{Context, Result, anyhow};
use async_channel::{Receiver, Sender};
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::batch::{BasisPages, Batch, Part};
use super::cut::Cutter;
use super::pages::BasisCursor;
use crate::entry::{Entry, EntryKind, Name};
use crate::interrupt;
use crate::limits::{BATCH_BYTES, SEGMENT_PAGES, STREAMS_MAX};
use crate::progress::Progress;
use crate::repository::index::{BasisTable, Merge, MergedEntry, Segment};
use crate::source::{Finished, Order, Piece, Source};

/// Parts of one batch, for sources of many entries and few bytes.
const PARTS_MAX: usize = 4096;
/// A file whose times are younger than this before the basis's start may have changed again within the clock's grain.
const TIME_GRAIN: SignedDuration = SignedDuration::from_secs(2);

/// What the reading of a source adds up to.
#[derive(Default)]
pub struct Tally {
    pub entries: u64,
    pub bytes: u64,
    pub bytes_read: u64,
    /// Live bytes by pack, of files that were not read.
    pub live: HashMap<u64, u64>,
    /// Files that could not be read to their end, after the workers had begun on them.
    pub lost: Vec<Name>,
    /// Entries of streams, with the sizes that only their ends have told.
    pub streams: Vec<Entry>,
}

pub struct Reader<'a> {
    pub basis: Option<Merge>,
    /// Start of the basis's run, where unchanged files may be passed over.
    pub shortcuts: Option<Timestamp>,
    /// Files to read in any case: their extents lie in packs that must not be referred to.
    pub reread: HashSet<Name>,
    /// … and of these, those of which it will not do to read changes only.
    pub read_whole: HashSet<Name>,
    /// Whether pages of the basis that nobody reads again may stay in this pack.
    pub may_stay: Option<Box<dyn Fn(u64) -> bool + 'a>>,
    pub cutter: Cutter,
    /// Called before the first streamed file is read.
    pub load_chunks: Box<dyn FnMut() -> Result<()> + 'a>,
    /// Called for each batch sent: takes note of packs that have become durable.
    pub on_batch: Box<dyn FnMut() -> Result<()> + 'a>,
    pub batches: Sender<Batch>,
    pub buffers: Receiver<Vec<u8>>,
    pub tally: Tally,
    pub progress: Progress,
    batch: Batch,
    used: usize,
    chunks_loaded: bool,
    next_of_basis: Option<MergedEntry>,
    /// The basis, for a source whose entries come in no order.
    table: Option<BasisTable>,
}

impl<'a> Reader<'a> {
    pub fn new(basis: Option<Merge>, cutter: Cutter, batches: Sender<Batch>, buffers: Receiver<Vec<u8>>) -> Reader<'a> {
        let batch = Batch { seq: 0, bytes: vec![0; BATCH_BYTES], parts: Vec::new() };
        Reader {
            basis,
            shortcuts: None,
            reread: HashSet::new(),
            read_whole: HashSet::new(),
            may_stay: None,
            cutter,
            load_chunks: Box::new(|| Ok(())),
            on_batch: Box::new(|| Ok(())),
            batches,
            buffers,
            tally: Tally::default(),
            progress: Progress::default(),
            batch,
            used: 0,
            chunks_loaded: false,
            next_of_basis: None,
            table: None,
        }
    }

    /// Reads the source to its end, and ends it: it holds nothing up any longer, whatever the workers and the store have still to do.
    pub fn run(&mut self, source: &mut dyn Source) -> Result<Finished> {
        if source.order() == Order::AsTheyCome {
            return self.run_as_they_come(source);
        }
        self.advance_basis()?;
        while let Some(entry) = source.next().context("read the source")? {
            self.pass_gone(Some(&entry.path))?;
            let before = match &self.next_of_basis {
                Some(basis) if basis.path == entry.path => basis.entry.clone(),
                _ => None,
            };
            let met = self.next_of_basis.as_ref().is_some_and(|b| b.path == entry.path);
            self.tally.entries += 1;
            if entry.kind == EntryKind::File {
                self.file(source, entry, before)?;
            } else if before.as_ref() != Some(&entry) {
                self.part(Part::Entry { entry: Box::new(entry), inherit: 0 })?;
            }
            if met {
                self.advance_basis()?;
            }
        }
        let finished = source.finish().context("finish reading the source")?;
        self.pass_gone(None)?;
        self.flush()?;
        Ok(finished)
    }

    fn run_as_they_come(&mut self, source: &mut dyn Source) -> Result<Finished> {
        self.table = self.basis.take().map(BasisTable::load).transpose()?;
        if let (Some(table), Some(_)) = (&self.table, self.shortcuts) {
            let whole = &self.read_whole;
            source.lean_on(&|each| {
                table.each_entry(&mut |entry| {
                    let is_there = entry.kind == EntryKind::File && !whole.contains(&entry.path);
                    if is_there { each(entry) } else { Ok(()) }
                })
            })?;
        }
        while let Some(entry) = source.next().context("read the source")? {
            let before = self.table.as_mut().map_or(Ok(None), |table| table.meet(&entry.path))?;
            self.tally.entries += 1;
            if entry.kind == EntryKind::File {
                self.file(source, entry, before)?;
            } else if before.as_ref() != Some(&entry) {
                self.part(Part::Entry { entry: Box::new(entry), inherit: 0 })?;
            }
        }
        let finished = source.finish().context("finish reading the source")?;
        if let Some(table) = self.table.take() {
            table.each_unmet(|path| self.part(Part::Gone(path)))?;
        }
        self.flush()?;
        Ok(finished)
    }

    fn advance_basis(&mut self) -> Result<()> {
        if let Some(basis) = &mut self.basis {
            self.next_of_basis = basis.next_entry().context("read the basis's index")?;
        }
        Ok(())
    }

    /// Notes entries of the basis that come before `path` (all that are left, for `None`): they are gone.
    fn pass_gone(&mut self, path: Option<&Name>) -> Result<()> {
        while let Some(basis) = &self.next_of_basis
            && path.is_none_or(|path| basis.path < *path)
        {
            let gone = basis.path.clone();
            self.part(Part::Gone(gone))?;
            self.advance_basis()?;
        }
        Ok(())
    }

    fn file(&mut self, source: &mut dyn Source, entry: Entry, before: Option<Entry>) -> Result<()> {
        self.tally.bytes += entry.size;
        if let Some(before) = &before
            && self.is_unchanged(&entry, before)
        {
            self.progress.add(entry.size);
            while let Some(segment) = self.basis_segment()? {
                for extent in segment.extents {
                    *self.tally.live.entry(extent.pack).or_default() += extent.len;
                }
            }
            if *before != entry {
                let inherit = entry.size;
                self.part(Part::Entry { entry: Box::new(entry), inherit })?;
            }
            return Ok(());
        }
        let path = entry.path.clone();
        let complete = match entry.page {
            Some(page) => self.paged(source, entry, before, page as usize)?,
            None => self.streamed(source, entry)?,
        };
        if !complete {
            self.tally.lost.push(path);
        }
        Ok(())
    }

    /// FORMAT.md §4-8.
    fn is_unchanged(&self, entry: &Entry, before: &Entry) -> bool {
        let Some(started) = self.shortcuts else { return false };
        let Some(stat) = entry.stat else { return false };
        let older = |seconds: i64| Timestamp::from_second(seconds).is_ok_and(|t| t + TIME_GRAIN < started);
        before.kind == EntryKind::File
            && before.stat == Some(stat)
            && (before.size, before.mtime, before.page) == (entry.size, entry.mtime, entry.page)
            && older(entry.mtime.0 + 1)
            && older(stat.2 + 1)
            && !self.reread.contains(&entry.path)
    }

    fn basis_segment(&mut self) -> Result<Option<Segment>> {
        if let Some(table) = &mut self.table {
            return table.next_segment();
        }
        self.basis.as_mut().map_or(Ok(None), |b| b.next_segment().context("read the basis's index"))
    }

    /// The entry is written once something in the file differs from the basis.
    fn paged(&mut self, source: &mut dyn Source, entry: Entry, before: Option<Entry>, page: usize) -> Result<bool> {
        let known = before.as_ref().filter(|b| b.kind == EntryKind::File && b.page == entry.page);
        let inherit = known.map_or(0, |b| b.size.min(entry.size));
        let mut basis = BasisCursor::new(known.is_some(), page);
        let mut unwritten = Some(entry.clone());
        let span = (SEGMENT_PAGES * page) as u64;
        let mut at = 0u64;
        loop {
            if at.is_multiple_of(span) {
                basis.pass_to(at, || self.basis_segment())?;
            }
            self.room(page.max(BATCH_BYTES / 8))?;
            let room = ((BATCH_BYTES - self.used) as u64).min(span - at % span) as usize / page * page;
            match source.read(&mut self.batch.bytes[self.used..self.used + room])? {
                Piece::Data(len) => {
                    anyhow::ensure!(
                        len % page == 0,
                        "the source read {len} bytes, which are not whole pages of {page}"
                    );
                    // Not by `part`, which may send the batch: what was read is in it, and not yet counted.
                    let entry = unwritten.take().map(|entry| Part::Entry { entry: Box::new(entry), inherit });
                    self.batch.parts.extend(entry);
                    let from = self.used;
                    self.used += len;
                    self.count(len);
                    self.part(Part::Pages { at, from, len, page, basis: basis.pages.clone() })?;
                    at += len as u64;
                }
                Piece::Same(len) => {
                    let end = at + len;
                    let whole = len > 0 && len % page as u64 == 0 && end <= entry.size;
                    anyhow::ensure!(
                        basis.has && whole,
                        "the source passes over {len} bytes of {} (this is a bug)",
                        entry.path
                    );
                    self.progress.add(len);
                    while at < end {
                        if at.is_multiple_of(span) {
                            basis.pass_to(at, || self.basis_segment())?;
                        }
                        let to = end.min(at - at % span + span);
                        self.same(&entry.path, basis.pages.as_deref(), at..to, page as u64)?;
                        at = to;
                    }
                }
                Piece::Hole(_) => anyhow::bail!("a paged source has no holes"),
                Piece::StreamEnd => anyhow::bail!("a paged source is no stream"),
                Piece::End => {
                    if let Some(entry) = unwritten.filter(|entry| before.as_ref() != Some(entry)) {
                        self.part(Part::Entry { entry: Box::new(entry), inherit })?;
                    }
                    return Ok(true);
                }
                Piece::Lost => {
                    if let Some(entry) = unwritten {
                        self.part(Part::Entry { entry: Box::new(entry), inherit })?;
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// Takes the pages of the basis at these positions over as they are. They must lie in packs that may be referred to: nobody reads them again.
    fn same(&mut self, path: &Name, basis: Option<&BasisPages>, at: Range<u64>, page: u64) -> Result<()> {
        let bug = || format!("the source passes over pages of {path} that the basis does not have (this is a bug)");
        let basis = basis.with_context(bug)?;
        let nth = |position: u64| ((position - basis.at) / page) as usize;
        for known in &basis.pages[nth(at.start)..nth(at.end)] {
            let (extent, _) = known.as_ref().with_context(bug)?;
            let may = self.may_stay.as_ref().is_some_and(|may| may(extent.pack));
            anyhow::ensure!(may, "the source passes over pages of {path} that must be stored again (this is a bug)");
            *self.tally.live.entry(extent.pack).or_default() += page;
        }
        Ok(())
    }

    fn streamed(&mut self, source: &mut dyn Source, entry: Entry) -> Result<bool> {
        if !self.chunks_loaded {
            (self.load_chunks)()?;
            self.chunks_loaded = true;
        }
        let size = entry.size;
        self.part(Part::Entry { entry: Box::new(entry.clone()), inherit: 0 })?;
        // Bytes from `from` to `used` are read and not yet cut; the first of them lies at `at` in the file.
        let most = self.cutter.max();
        self.room(most.min(usize::try_from(size).unwrap_or(most)))?;
        let (mut at, mut from) = (0u64, self.used);
        loop {
            if self.used == BATCH_BYTES {
                from = self.carry(from)?;
            }
            match source.read(&mut self.batch.bytes[self.used..])? {
                Piece::Data(len) => {
                    self.used += len;
                    self.count(len);
                    self.cut(&mut at, &mut from, most)?;
                }
                Piece::Hole(len) => {
                    self.cut(&mut at, &mut from, 1)?;
                    at += len;
                }
                Piece::End => {
                    self.cut(&mut at, &mut from, 1)?;
                    return Ok(true);
                }
                Piece::Same(_) => anyhow::bail!("a streamed source has no pages to pass over"),
                Piece::StreamEnd => {
                    self.cut(&mut at, &mut from, 1)?;
                    self.tally.bytes = self.tally.bytes - size + at;
                    if at != size {
                        anyhow::ensure!(self.tally.streams.len() < STREAMS_MAX, "more than {STREAMS_MAX} streams");
                        self.tally.streams.push(Entry { size: at, ..entry });
                    }
                    return Ok(true);
                }
                Piece::Lost => {
                    self.used = from;
                    return Ok(false);
                }
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.tally.bytes_read += bytes as u64;
        self.progress.add(bytes as u64);
    }

    /// Cuts chunks off while at least `least` bytes are there.
    fn cut(&mut self, at: &mut u64, from: &mut usize, least: usize) -> Result<()> {
        while self.used - *from >= least {
            let len = self.cutter.first(&self.batch.bytes[*from..self.used]);
            self.batch.parts.push(Part::Chunk { at: *at, from: *from, len });
            *from += len;
            *at += len as u64;
        }
        Ok(())
    }

    /// Sends the batch and begins the next with its uncut tail. Returns where the tail begins now: 0.
    fn carry(&mut self, from: usize) -> Result<usize> {
        let mut fresh = self.buffer();
        let tail = self.used - from;
        fresh[..tail].copy_from_slice(&self.batch.bytes[from..self.used]);
        self.send(fresh)?;
        self.used = tail;
        Ok(0)
    }

    fn part(&mut self, part: Part) -> Result<()> {
        self.batch.parts.push(part);
        if self.batch.parts.len() >= PARTS_MAX { self.flush() } else { Ok(()) }
    }

    /// Makes room for `bytes`, sending the batch if need be.
    fn room(&mut self, bytes: usize) -> Result<()> {
        if BATCH_BYTES - self.used < bytes { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.parts.is_empty() {
            return Ok(());
        }
        let fresh = self.buffer();
        self.send(fresh)?;
        self.used = 0;
        Ok(())
    }

    /// A used buffer, or a new one; the queue to the workers bounds how many there are.
    fn buffer(&self) -> Vec<u8> {
        self.buffers.try_recv().unwrap_or_else(|_| vec![0; BATCH_BYTES])
    }

    fn send(&mut self, fresh: Vec<u8>) -> Result<()> {
        let seq = self.batch.seq;
        let next = Batch { seq: seq + 1, bytes: fresh, parts: Vec::new() };
        let batch = std::mem::replace(&mut self.batch, next);
        interrupt::check(
            "No snapshot was made, and the earlier ones stand. What was stored already is taken up by the next run.",
        )?;
        self.batches.send_blocking(batch).map_err(|_| anyhow!("the workers have stopped"))?;
        (self.on_batch)()
    }
}
