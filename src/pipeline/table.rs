//! What a run has made durable: the pack table of its own layer, and the notes for its checkpoint.

use anyhow::{Context, Result};
use async_channel::{Receiver, Sender};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pack::Packs;
use super::store::{Basis, Target};
use super::uploads::{Object, Uploads};
use crate::repository::checkpoint::Journal;
use crate::repository::index::{ObjectWriter, PackLine, Put, SortedList};
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
    Index { name: Hash, result: storage::Result<()> },
    /// No object, but what a checkpoint has sent of lines that come in no order, and the number that the next pack was to get.
    List { list: SortedList, next_pack: u64 },
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
                None => Done::Index { name, result },
            };
            // Nobody listens any more when the run has failed.
            drop(done.try_send(what));
        };
        let key = layout::index(&index.source, &name);
        uploads.send(Object { key, name, bytes, pooled: false }, Box::new(told));
        Ok(object)
    })
}

/// Tells the run of the lists that its checkpoints have sent.
pub fn lists(packs: &Packs, done: Sender<Done>) -> Box<dyn FnMut(SortedList) + Send> {
    let numbers = packs.numbers();
    Box::new(move |list| {
        let next_pack = numbers.load(Ordering::SeqCst);
        // Nobody listens any more when the run has failed.
        drop(done.try_send(Done::List { list, next_pack }));
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
    /// Lists of checkpoints of which not all objects are known to be durable, and the index objects that are.
    lists: VecDeque<(SortedList, u64)>,
    durable: HashSet<Hash>,
}

impl PackTable {
    pub fn new(basis: &Basis, put: Put, target: &Target, journal: Journal) -> Result<PackTable> {
        let writer = ObjectWriter::sending(target.index_to.clone(), put);
        let first = basis.next_pack;
        let mut table = PackTable {
            writer,
            journal,
            early: BTreeMap::new(),
            next: first,
            add: BTreeMap::new(),
            first,
            lists: VecDeque::new(),
            durable: HashSet::new(),
        };
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
            Done::Index { name, result } => {
                result.context("store an index object")?;
                self.durable.insert(name);
                self.note_lists();
            }
            Done::List { list, next_pack } => {
                self.lists.push_back((list, next_pack));
                self.note_lists();
            }
        }
        Ok(())
    }

    /// Notes the lists that are durable, in their order: each speaks of those before it.
    fn note_lists(&mut self) {
        let durable = |(list, _): &(SortedList, u64)| list.objects.iter().all(|(name, _)| self.durable.contains(name));
        let ready = self.lists.iter().take_while(|list| durable(list)).count();
        for (list, next_pack) in self.lists.drain(..ready) {
            self.durable.retain(|name| list.objects.iter().all(|(noted, _)| noted != name));
            self.journal.list(list, next_pack);
        }
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
