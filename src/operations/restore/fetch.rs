//! Opens one pack: fetched whole or in part, decrypted, each frame checked against its SHA-256 and decompressed.

use anyhow::{Context, Result, anyhow, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::ops::Range;
use zstd::bulk::Decompressor;

use super::plan::PackWork;
use crate::bridge::Store;
use crate::limits::FRAME_RAW_MAX;
use crate::operations::Open;
use crate::repository::agefile::{self, Identity, Opener};
use crate::repository::history;
use crate::repository::layout::{self, SourceName};

/// Below this share of a pack it is cheaper to fetch a range.
const WHOLE_SHARE: f64 = 0.5;
/// Enough for an age header to many recipients.
const HEAD: u64 = 8 << 10;

/// Reads a whole pack for nothing but to know that its data comes back: every frame decrypts, has its hash and decompresses.
pub fn read_pack(open: &Open, source: &SourceName, pack: &PackWork, identities: &[Identity]) -> Result<()> {
    let opened =
        OpenPack::whole(history::fetch(&open.store, &layout::pack(source, &pack.name), &pack.name)?, identities)?;
    let mut decompressor = Decompressor::new().context("set up decompression")?;
    let mut raw = Vec::with_capacity(FRAME_RAW_MAX);
    (0..pack.frames.len() as u64).try_for_each(|n| opened.frame(pack, n, &mut decompressor, &mut raw))
}

/// The plaintext range of the pack that its needed frames span, if that is worth a ranged read.
pub fn range_needed(pack: &PackWork) -> Option<Range<u64>> {
    let first = pack.writes.first()?.extent.frame;
    let last = pack.writes.last()?.extent.frame;
    let start: u64 = pack.frames.iter().take(first as usize).map(|f| f.0).sum();
    let end: u64 = pack.frames.iter().take(last as usize + 1).map(|f| f.0).sum();
    ((end - start) as f64 + (HEAD as f64) < pack.size as f64 * WHOLE_SHARE).then_some(start..end)
}

/// Decrypted bytes of a pack, from plaintext offset `from` on.
pub struct OpenPack {
    bytes: Vec<u8>,
    /// Where the plaintext begins in `bytes`: behind the age header, which stays where it is.
    base: usize,
    /// Plaintext offset of the first byte.
    from: u64,
    /// Stored bytes fetched.
    pub fetched: u64,
}

impl OpenPack {
    pub fn whole(stored: Bytes, identities: &[Identity]) -> Result<OpenPack> {
        let fetched = stored.len() as u64;
        let mut bytes = Vec::from(stored);
        let opener = Opener::new(&bytes, identities)?;
        let base = opener.payload_from();
        let len = opener.open_chunks(bytes.get_mut(base..).context("pack cut short")?, 0, true)?;
        bytes.truncate(base + len);
        Ok(OpenPack { bytes, base, from: 0, fetched })
    }

    pub fn part(
        store: &Store,
        source: &SourceName,
        pack: &PackWork,
        range: Range<u64>,
        identities: &[Identity],
    ) -> Result<OpenPack> {
        let key = layout::pack(source, &pack.name);
        let head = store.get_range(&key, 0..HEAD.min(pack.size))?;
        let opener = Opener::new(&head, identities)?;
        let (first, start, end) = agefile::stored_range(range.start, range.end);
        let payload = opener.payload_from() as u64;
        let (start, end) = (payload + start, (payload + end).min(pack.size));
        ensure!(start < end, "the index is damaged: a frame lies beyond its pack");
        let mut bytes = Vec::from(store.get_range(&key, start..end)?);
        let len = opener.open_chunks(&mut bytes, first, end == pack.size)?;
        bytes.truncate(len);
        Ok(OpenPack { bytes, base: 0, from: agefile::chunk_start(first), fetched: HEAD.min(pack.size) + end - start })
    }

    /// Checks frame `n` and decompresses it into `raw`.
    pub fn frame(&self, pack: &PackWork, n: u64, decompressor: &mut Decompressor<'_>, raw: &mut Vec<u8>) -> Result<()> {
        let start: u64 = pack.frames.iter().take(n as usize).map(|f| f.0).sum();
        let (stored, raw_len, hash) = pack.frames.get(n as usize).context("the index is damaged: no such frame")?;
        let from = self.base + usize::try_from(start - self.from)?;
        let frame = self.bytes.get(from..from + *stored as usize).context("pack is shorter than its index says")?;
        let expected = BASE64_STANDARD.decode(hash).map_err(|_| anyhow!("the index is damaged: malformed hash"))?;
        ensure!(Sha256::digest(frame)[..] == expected[..], "frame {n} does not match its SHA-256");
        raw.clear();
        raw.reserve(FRAME_RAW_MAX);
        let len = decompressor.decompress_to_buffer(frame, raw).context("decompress a frame")?;
        ensure!(len as u64 == *raw_len, "frame {n} has {len} bytes, not {raw_len}");
        Ok(())
    }
}
