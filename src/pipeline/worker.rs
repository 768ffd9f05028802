//! A worker carries a batch all the way: hash, compare, compress, encrypt, send.

use anyhow::Result;
use async_channel::{Receiver, Sender};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

use super::batch::{BasisPages, Batch, Findings, Part, Row};
use super::chunks::ChunkTable;
use super::pack::{PackWriter, Packs, Place};
use super::store::Basis;
use crate::repository::index::Extent;
use crate::repository::sealed::Secrets;

/// What all workers of a run look at.
pub struct Shared<'a> {
    pub packs: &'a Packs,
    pub chunks: &'a ChunkTable,
    pub secrets: &'a Secrets,
    pub basis: &'a Basis,
}

/// Works until the batches end; returns the raw bytes stored.
pub fn run(
    shared: &Shared,
    batches: &Receiver<Batch>,
    out: &Sender<Findings>,
    buffers: &Sender<Vec<u8>>,
) -> Result<u64> {
    let mut worker = Worker {
        shared,
        writer: PackWriter::new(shared.packs)?,
        page_hash: Sha256::new_with_prefix(shared.secrets.page.as_slice()),
        chunk_hash: Sha256::new_with_prefix(shared.secrets.chunk.as_slice()),
    };
    while let Ok(batch) = batches.recv_blocking() {
        let findings = worker.work(&batch)?;
        // A closed channel means that the run has failed elsewhere; that error is the one reported.
        if out.send_blocking(findings).is_err() {
            return Ok(worker.writer.appended);
        }

        drop(buffers.try_send(batch.bytes));
    }
    worker.writer.finish()?;
    Ok(worker.writer.appended)
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    writer: PackWriter<'a>,
    /// The secret is one block of SHA-256, hashed once.
    page_hash: Sha256,
    chunk_hash: Sha256,
}

impl Worker<'_> {
    fn work(&mut self, batch: &Batch) -> Result<Findings> {
        let mut found =
            Findings { seq: batch.seq, rows: Vec::with_capacity(batch.parts.len()), live: HashMap::new(), reused: 0 };
        for part in &batch.parts {
            match part {
                Part::Entry { entry, inherit } => {
                    found.rows.push(Row::Entry { entry: entry.clone(), inherit: *inherit })
                }
                Part::Gone(path) => found.rows.push(Row::Gone(path.clone())),
                Part::Chunk { at, from, len } => self.chunk(*at, &batch.bytes[*from..from + len], &mut found)?,
                Part::Pages { at, from, len, page, basis } => {
                    self.pages(*at, &batch.bytes[*from..from + len], *page, basis.as_deref(), &mut found)?;
                }
            }
        }
        Ok(found)
    }

    fn chunk(&mut self, at: u64, chunk: &[u8], found: &mut Findings) -> Result<()> {
        let id: [u8; 32] = self.chunk_hash.clone().chain_update(chunk).finalize().into();
        let known = self.shared.chunks.get(&id)?.filter(|place| self.shared.basis.usable(place.pack));
        let place = match known {
            Some(place) => {
                found.reused += chunk.len() as u64;
                place
            }
            None => {
                let place = self.writer.append(chunk)?;
                self.shared.chunks.insert(&id, place)?;
                place
            }
        };
        *found.live.entry(place.pack).or_default() += chunk.len() as u64;
        found.rows.push(Row::Extent { extent: extent(at, chunk.len(), place), ids: id.to_vec() });
        Ok(())
    }

    /// Stores the pages that differ from the basis at the same position; those that are equal are inherited.
    fn pages(
        &mut self,
        at: u64,
        bytes: &[u8],
        page: usize,
        basis: Option<&BasisPages>,
        found: &mut Findings,
    ) -> Result<()> {
        let mut run: Option<(Extent, Vec<u8>)> = None;
        for (n, bytes) in bytes.chunks(page).enumerate() {
            let at = at + (n * page) as u64;
            let hash = self.page_hash.clone().chain_update(bytes).finalize();
            let before = basis.and_then(|b| b.pages.get(((at - b.at) / page as u64) as usize)?.as_ref());
            if let Some((old, id)) = before
                && id[..] == hash[..8]
                && self.shared.basis.usable(old.pack)
            {
                *found.live.entry(old.pack).or_default() += page as u64;
                found.reused += page as u64;
                continue;
            }
            let extent = extent(at, page, self.writer.append(bytes)?);
            *found.live.entry(extent.pack).or_default() += page as u64;
            match &mut run {
                Some((last, ids)) if last.joins(&extent) => {
                    last.len += extent.len;
                    ids.extend_from_slice(&hash[..8]);
                }
                _ => {
                    let done = run.replace((extent, hash[..8].to_vec()));
                    found.rows.extend(done.map(|(extent, ids)| Row::Extent { extent, ids }));
                }
            }
        }
        found.rows.extend(run.map(|(extent, ids)| Row::Extent { extent, ids }));
        Ok(())
    }
}

fn extent(at: u64, len: usize, place: Place) -> Extent {
    Extent { at, len: len as u64, pack: place.pack, frame: place.frame, from: place.from }
}
