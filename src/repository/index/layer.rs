//! One layer: written line by line into index objects, read back object by object.

use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::line::{self, EntriesLine, Extent, PackLine, Segment};
use crate::bridge::Store;
use crate::durable;
use crate::entry::{Entry, Name};
use crate::limits::INDEX_RAW_MAX;
use crate::repository::agefile::{self, Identity, Recipient};
use crate::repository::history;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::snapshot::Named;
use crate::storage;

/// Where index objects of one source are read and written. `cache` is a directory of objects by name, checked on every use.
#[derive(Clone)]
pub struct IndexStore {
    pub store: Store,
    pub source: SourceName,
    pub cache: Option<PathBuf>,
}

impl IndexStore {
    /// The stored bytes of an index object, checked against its name.
    pub fn fetch(&self, object: &Named) -> Result<Vec<u8>> {
        let (hash, size) = object;
        if let Some(path) = self.cached(hash)
            && let Ok(bytes) = std::fs::read(&path)
            && Hash::of(&bytes) == *hash
        {
            return Ok(bytes);
        }
        let bytes = history::fetch(&self.store, &layout::index(&self.source, hash), hash)
            .with_context(|| format!("fetch index object {hash}"))?;
        ensure!(bytes.len() as u64 == *size, "index object {hash} is damaged in the store");
        self.keep(hash, &bytes);
        Ok(bytes.into())
    }

    /// Stores an object under the hash of its bytes; one that is there already is the same one.
    pub fn put(&self, bytes: Vec<u8>) -> Result<Named> {
        let hash = Hash::of(&bytes);
        let size = bytes.len() as u64;
        self.keep(&hash, &bytes);
        match self.store.create(&layout::index(&self.source, &hash), bytes.into(), &hash.0) {
            Ok(_) => Ok((hash, size)),
            Err(e) if e.kind == storage::Kind::AlreadyExists => Ok((hash, size)),
            Err(e) => Err(e).context("store an index object"),
        }
    }

    fn cached(&self, hash: &Hash) -> Option<PathBuf> {
        Some(self.cache.as_ref()?.join(hash.to_string()))
    }

    /// Keeps a copy for the next run. The cache only saves time: a failure to write it is no failure of the run.
    pub fn keep(&self, hash: &Hash, bytes: &[u8]) {
        if let Some(path) = self.cached(hash)
            && !path.exists()
        {
            let _unkept = durable::publish_new(&path, bytes, 0o600).is_err();
        }
    }
}

/// Takes the stored bytes of a finished index object: stores them before it returns, or later.
pub type Put = Box<dyn FnMut(Vec<u8>) -> Result<Named> + Send>;

/// Cuts lines into index objects.
pub struct ObjectWriter {
    put: Put,
    recipients: Arc<[Recipient]>,
    raw: Vec<u8>,
    objects: Vec<Named>,
}

impl ObjectWriter {
    /// Every object is durable as soon as it is finished.
    pub fn new(index: IndexStore, recipients: Arc<[Recipient]>) -> ObjectWriter {
        ObjectWriter::sending(recipients, Box::new(move |bytes| index.put(bytes)))
    }

    /// Objects go to `put`.
    pub fn sending(recipients: Arc<[Recipient]>, put: Put) -> ObjectWriter {
        ObjectWriter { put, recipients, raw: Vec::new(), objects: Vec::new() }
    }

    pub fn line(&mut self, line: &[u8]) -> Result<()> {
        ensure!(line.len() < INDEX_RAW_MAX, "an index line of {} bytes is too long", line.len());
        if self.raw.len() + line.len() + 1 > INDEX_RAW_MAX {
            self.flush()?;
        }
        self.raw.extend_from_slice(line);
        self.raw.push(b'\n');
        Ok(())
    }

    pub fn pack_line(&mut self, line: &PackLine) -> Result<()> {
        self.line(&serde_json::to_vec(line)?)
    }

    pub fn finish(mut self) -> Result<Vec<Named>> {
        self.take()
    }

    /// Finishes the list and begins another.
    pub fn take(&mut self) -> Result<Vec<Named>> {
        self.flush()?;
        Ok(std::mem::take(&mut self.objects))
    }

    /// Finishes the object that is being gathered, so that what was written so far can be found again.
    pub fn flush(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let frame = zstd::bulk::compress(&self.raw, 3).context("compress an index object")?;
        self.raw.clear();
        self.objects.push((self.put)(agefile::seal(&self.recipients, &frame)?.bytes)?);
        Ok(())
    }
}

/// Writes the `entries` of one layer, in order.
pub struct LayerWriter {
    objects: ObjectWriter,
    last: Option<Name>,
}

impl LayerWriter {
    pub fn new(objects: ObjectWriter) -> LayerWriter {
        LayerWriter { objects, last: None }
    }

    pub fn entry(&mut self, entry: &Entry, inherit: u64) -> Result<()> {
        self.in_order(&entry.path)?;
        self.objects.line(&line::entry_line(entry, inherit)?)
    }

    pub fn gone(&mut self, path: &Name) -> Result<()> {
        self.in_order(path)?;
        self.objects.line(&line::gone_line(path)?)
    }

    /// A data line of the entry written last.
    pub fn data(&mut self, path: &Name, segment: &Segment) -> Result<()> {
        debug_assert_eq!(self.last.as_ref(), Some(path));
        self.objects.line(&line::data_line(path, segment)?)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.objects.flush()
    }

    /// A whole line, which the caller has put in its place.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<()> {
        self.objects.line(line)
    }

    pub fn finish(self) -> Result<Vec<Named>> {
        self.objects.finish()
    }

    /// Finishes the list and begins another.
    pub(super) fn take(&mut self) -> Result<Vec<Named>> {
        self.objects.take()
    }

    fn in_order(&mut self, path: &Name) -> Result<()> {
        ensure!(self.last.as_ref().is_none_or(|last| last < path), "index entries out of order at {path}");
        self.last = Some(path.clone());
        Ok(())
    }
}

/// Decrypts and decompresses one index object to its lines.
pub fn decode_object(mut stored: Vec<u8>, identities: &[Identity]) -> Result<Vec<u8>> {
    let opener = agefile::Opener::new(&stored, identities)?;
    let frame = opener.open_all(&mut stored)?;
    zstd::bulk::decompress(frame, INDEX_RAW_MAX).context("decompress an index object")
}

/// Reads the lines of one list of index objects, one object in memory at a time.
pub struct LayerReader {
    index: IndexStore,
    identities: Arc<[Identity]>,
    objects: VecDeque<Named>,
    raw: Vec<u8>,
    at: usize,
    peeked: Option<EntriesLine>,
}

impl LayerReader {
    pub fn new(index: IndexStore, identities: Arc<[Identity]>, objects: &[Named]) -> LayerReader {
        LayerReader {
            index,
            identities,
            objects: objects.iter().copied().collect(),
            raw: Vec::new(),
            at: 0,
            peeked: None,
        }
    }

    /// The next line's bytes, without its LF.
    pub fn line(&mut self) -> Result<Option<&[u8]>> {
        while self.at >= self.raw.len() {
            let Some(object) = self.objects.pop_front() else { return Ok(None) };
            let stored = self.index.fetch(&object)?;
            self.raw =
                decode_object(stored, &self.identities).with_context(|| format!("open index object {}", object.0))?;
            self.at = 0;
        }
        let rest = &self.raw[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').context("an index object ends within a line")?;
        self.at += end + 1;
        Ok(Some(&rest[..end]))
    }

    /// Calls `each` for every chunk of streamed files, whatever layers above say of them: its id and where it lies.
    pub fn each_chunk(&mut self, mut each: impl FnMut(&[u8], Extent) -> Result<()>) -> Result<()> {
        let mut paged = false;
        while self.peek()?.is_some() {
            match self.take() {
                Some(EntriesLine::Entry { entry, .. }) => paged = entry.page.is_some(),
                Some(EntriesLine::Data { path, segment }) if !paged => {
                    segment.check(None).with_context(|| format!("index: {path}"))?;
                    segment
                        .ids
                        .chunks_exact(32)
                        .zip(&segment.extents)
                        .try_for_each(|(id, extent)| each(id, *extent))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The paths that the layer says anything of, in order.
    pub fn each_path(&mut self, mut each: impl FnMut(&Name)) -> Result<()> {
        while let Some(line) = self.peek()? {
            each(line.path());
            self.take();
        }
        Ok(())
    }

    pub(super) fn peek(&mut self) -> Result<Option<&EntriesLine>> {
        if self.peeked.is_none() {
            self.peeked = self.line()?.map(EntriesLine::parse).transpose()?;
        }
        Ok(self.peeked.as_ref())
    }

    pub(super) fn take(&mut self) -> Option<EntriesLine> {
        self.peeked.take()
    }
}
