//! Packs under construction: chunks and pages go into a frame, full frames are compressed and sealed into the pack at once,
//! full packs go to the store. One [`PackWriter`] a worker; a place is known as soon as bytes are appended.

use anyhow::{Context, Result};
use async_channel::{Receiver, Sender};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::bridge::Store;
use crate::limits::{FRAME_RAW_MAX, PACK_FRAMES_MAX, PACK_MAX, PACK_TARGET};
use crate::repository::agefile::{Recipient, Sealed, Sealer};
use crate::repository::index::PackLine;
use crate::repository::layout::{self, Hash, SourceName};
use crate::storage;

/// Where appended bytes lie: pack number, frame number, offset in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub pack: u64,
    pub frame: u64,
    pub from: u64,
}

/// What all workers of one run share: the store, the numbers, and a bounded pool of pack buffers.
pub struct Packs {
    store: Store,
    source: SourceName,
    recipients: Arc<[Recipient]>,
    level: i32,
    next: AtomicU64,
    /// Holding a buffer is the permission to have a pack in memory.
    free: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    done: Sender<Done>,
}

/// What became of a pack that was sent: its line for the pack table once it is durable.
pub type Done = (u64, storage::Result<PackLine>);

impl Packs {
    pub fn new(
        store: Store,
        source: SourceName,
        recipients: Arc<[Recipient]>,
        level: i32,
        in_memory: usize,
        next: u64,
    ) -> (Packs, Receiver<Done>) {
        let free = async_channel::bounded(in_memory);
        for _ in 0..in_memory {
            // The channel has room for exactly these.
            drop(free.0.try_send(Vec::new()));
        }
        // Unbounded but small: a pack line is a few KiB, and packs are bounded by the pool.
        let (done, lines) = async_channel::unbounded();
        (Packs { store, source, recipients, level, next: AtomicU64::new(next), free, done }, lines)
    }

    /// The number that the next pack will get.
    pub fn next_number(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    fn open(&self) -> Result<Open> {
        let mut buffer = self.free.1.recv_blocking().context("wait for a pack buffer")?;
        if buffer.capacity() == 0 {
            buffer = Vec::with_capacity(PACK_MAX);
        }
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        Ok(Open { number, sealer: Sealer::new(&self.recipients, buffer)?, frames: Vec::new() })
    }

    fn send(&self, number: u64, sealed: Sealed, frames: Vec<(u64, u64, String)>) {
        let name = Hash(sealed.sha256);
        let size = sealed.bytes.len() as u64;
        let (free, done) = (self.free.0.clone(), self.done.clone());
        self.store.create_later(
            layout::pack(&self.source, &name),
            Bytes::from(sealed.bytes),
            name.0,
            move |result, body| {
                let line = result.map(|_| PackLine::Pack { pack: number, name, size, frames });
                // Either end may be gone when the run has failed already.
                drop(done.try_send((number, line)));
                drop(free.try_send(body.try_into_mut().map(Vec::from).unwrap_or_default()));
            },
        );
    }
}

struct Open {
    number: u64,
    sealer: Sealer,
    frames: Vec<(u64, u64, String)>,
}

/// One worker's pack and frame.
pub struct PackWriter<'a> {
    packs: &'a Packs,
    open: Option<Open>,
    raw: Vec<u8>,
    compressed: Vec<u8>,
    compressor: Compressor<'static>,
    /// Raw bytes appended.
    pub appended: u64,
}

impl<'a> PackWriter<'a> {
    pub fn new(packs: &'a Packs) -> Result<PackWriter<'a>> {
        let mut compressor = Compressor::new(packs.level).context("set up compression")?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).context("set up compression")?;
        let raw = Vec::with_capacity(FRAME_RAW_MAX);
        let compressed = Vec::with_capacity(compress_bound(FRAME_RAW_MAX));
        Ok(PackWriter { packs, open: None, raw, compressed, compressor, appended: 0 })
    }

    /// Appends at most `FRAME_RAW_MAX` bytes; they lie together in one frame.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Place> {
        if self.raw.len() + bytes.len() > FRAME_RAW_MAX {
            self.close_frame()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(self.packs.open()?),
        };
        let place = Place { pack: open.number, frame: open.frames.len() as u64, from: self.raw.len() as u64 };
        self.raw.extend_from_slice(bytes);
        self.appended += bytes.len() as u64;
        Ok(place)
    }

    /// Closes what is open and sends it.
    pub fn finish(&mut self) -> Result<()> {
        self.close_frame()?;
        self.close_pack()
    }

    fn close_frame(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if self.raw.is_empty() {
            return Ok(());
        }
        self.compressed.clear();
        let stored =
            self.compressor.compress_to_buffer(&self.raw, &mut self.compressed).context("compress a frame")? as u64;
        let hash = BASE64_STANDARD.encode(Sha256::digest(&self.compressed));
        open.sealer.push(&self.compressed)?;
        open.frames.push((stored, self.raw.len() as u64, hash));
        self.raw.clear();
        if open.sealer.stored() >= PACK_TARGET || open.frames.len() >= PACK_FRAMES_MAX {
            self.close_pack()
        } else {
            Ok(())
        }
    }

    fn close_pack(&mut self) -> Result<()> {
        if let Some(open) = self.open.take() {
            self.packs.send(open.number, open.sealer.finish()?, open.frames);
        }
        Ok(())
    }
}
