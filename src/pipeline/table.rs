//! What a run has made durable: the pack table of its own layer, and the notes for its checkpoint.

use anyhow::{Context, Result};
use async_channel::{Receiver, Sender};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::store::{Basis, Target};
use super::uploads::{Object, Uploads};
use crate::repository::checkpoint::Journal;
use crate::repository::index::{ObjectWriter, PackLine, Put};
use crate::repository::layout::{self, Hash};
use crate::repository::snapshot::{Named, PackChange};
use crate::storage;

/// What became of an object that was sent.
pub enum Done {
    /// A pack: its line for the pack table.
    Pack(u64, storage::Result<PackLine>),
    /// Object `nth` of the entries; no pack that it names has the number `next_pack` or a higher one.
    Entries { nth: u64, object: Named, next_pack: u64, result: storage::Result<()> },
    /// Another index object.
    Index(storage::Result<()>),
}

/// Sends index objects with the other uploads of a run. `next_pack` is given for the entries, which the checkpoint notes.
pub fn sender(target: &Target, uploads: &Arc<Uploads>, done: &Sender<Done>, next_pack: Option<Arc<AtomicU64>>) -> Put {
    let (index, uploads, done) = (target.index.clone(), Arc::clone(uploads), done.clone());
    let mut sent = 0;
    Box::new(move |bytes| {
        let name = Hash::of(&bytes);
        let object = (name, bytes.len() as u64);
        index.keep(&name, &bytes);
        let nth = sent;
        sent += 1;
        let next_pack = next_pack.as_ref().map(|next| next.load(Ordering::SeqCst));
        let done = done.clone();
        let told = move |result: storage::Result<()>| {
            // One that is there already is the same one.
            let result = result.or_else(|e| if e.kind == storage::Kind::AlreadyExists { Ok(()) } else { Err(e) });
            let what = match next_pack {
                Some(next_pack) => Done::Entries { nth, object, next_pack, result },
                None => Done::Index(result),
            };
            // Nobody listens any more when the run has failed.
            drop(done.try_send(what));
        };
        let key = layout::index(&index.source, &name);
        uploads.send(Object { key, name, bytes, pooled: false }, Box::new(told));
        Ok(object)
    })
}

/// Pack lines are written in order of their numbers, each once its pack is durable.
pub struct PackTable {
    writer: ObjectWriter,
    journal: Journal,
    early: BTreeMap<u64, PackLine>,
    next: u64,
    /// Packs that no commit names yet: this run's, and those taken over from interrupted ones.
    add: BTreeMap<u64, Named>,
    /// The number of the first pack that is this run's own.
    first: u64,
}

impl PackTable {
    pub fn new(basis: &Basis, put: Put, target: &Target, journal: Journal) -> Result<PackTable> {
        let writer = ObjectWriter::sending(target.index_to.clone(), put);
        let first = basis.next_pack;
        let mut table = PackTable { writer, journal, early: BTreeMap::new(), next: first, add: BTreeMap::new(), first };
        basis.taken_over.values().try_for_each(|line| table.write(line))?;
        Ok(table)
    }

    fn write(&mut self, line: &PackLine) -> Result<()> {
        if let PackLine::Pack { pack, name, size, .. } = line {
            self.add.insert(*pack, (*name, *size));
        }
        self.writer.pack_line(line)
    }

    fn accept(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Pack(number, line) => {
                let line = line.context("store a pack")?;
                self.journal.pack(&line);
                self.early.insert(number, line);
                while let Some(line) = self.early.remove(&self.next) {
                    self.write(&line)?;
                    self.next += 1;
                }
            }
            Done::Entries { nth, object, next_pack, result } => {
                result.context("store an index object")?;
                self.journal.entries(nth, object, next_pack);
            }
            Done::Index(result) => result.context("store an index object")?,
        }
        Ok(())
    }

    /// Takes what has become durable, without waiting.
    pub fn note(&mut self, done: &Receiver<Done>) -> Result<()> {
        while let Ok(done) = done.try_recv() {
            self.accept(done)?;
        }
        Ok(())
    }

    /// Waits for all packs with numbers below `next`.
    pub fn wait(&mut self, next: u64, done: &Receiver<Done>) -> Result<()> {
        while self.next < next {
            self.accept(done.recv_blocking().context("wait for packs")?)?;
        }
        Ok(())
    }

    /// Adds the counts of live bytes that have changed. Returns the objects, the packs added and dropped, and the bytes of this run's packs.
    /// The objects are on their way, not yet durable.
    pub fn finish(&mut self, basis: &Basis, live: &HashMap<u64, u64>) -> Result<(Vec<Named>, PackChange, u64)> {
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
            stored += if *number >= self.first { name.1 } else { 0 };
            if now > 0 {
                change.add.push(*name);
            }
        }
        change.drop.sort();
        for (pack, live) in counts {
            self.writer.pack_line(&PackLine::Live { pack, live })?;
        }
        Ok((self.writer.take()?, change, stored))
    }
}
