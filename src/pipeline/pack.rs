//! Packs under construction: chunks and pages go into a frame, full frames are compressed and sealed into the pack at once,
//! full packs go to the store. One [`PackWriter`] a worker; a place is known as soon as bytes are appended.

use anyhow::{Context, Result};
use async_channel::Sender;
use base64::prelude::{BASE64_STANDARD, Engine};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use super::store::Target;
use super::table::Done;
use super::uploads::{Object, Uploads};
use crate::limits::{FRAME_RAW_MAX, PACK_FRAMES_MAX, PACK_TARGET};
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

/// What all workers of one run share: the uploads and the numbers.
pub struct Packs {
    uploads: Arc<Uploads>,
    source: SourceName,
    recipients: Arc<[Recipient]>,
    level: i32,
    next: Arc<AtomicU64>,
    done: Sender<Done>,
}

impl Packs {
    /// `next`: the number of the first pack. What becomes of packs is told to `done`.
    pub fn new(target: &Target, level: i32, uploads: Arc<Uploads>, next: u64, done: Sender<Done>) -> Packs {
        let (source, recipients) = (target.index.source.clone(), target.data.clone());
        Packs { uploads, source, recipients, level, next: Arc::new(AtomicU64::new(next)), done }
    }

    /// The number that the next pack will get.
    pub fn next_number(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// As [`Packs::next_number`], to be asked later.
    pub fn numbers(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.next)
    }

    fn open(&self) -> Result<Open> {
        let buffer = self.uploads.buffer()?;
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        Ok(Open { number, sealer: Sealer::new(&self.recipients, buffer)?, frames: Vec::new() })
    }

    fn send(&self, number: u64, sealed: Sealed, frames: Vec<(u64, u64, String)>) {
        let name = Hash(sealed.sha256);
        let size = sealed.bytes.len() as u64;
        let done = self.done.clone();
        let told = move |result: storage::Result<()>| {
            let line = result.map(|()| PackLine::Pack { pack: number, name, size, frames });
            // Nobody listens any more when the run has failed.
            drop(done.try_send(Done::Pack(number, line)));
        };
        let key = layout::pack(&self.source, &name);
        self.uploads.send(Object { key, name, bytes: sealed.bytes, pooled: true }, Box::new(told));
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
