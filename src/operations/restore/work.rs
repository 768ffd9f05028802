//! The parallel part of a restore: packs are fetched ahead, a worker takes each and writes all that it holds.

use anyhow::{Context, Result, anyhow};
use async_channel::{Receiver, Sender};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use zstd::bulk::Decompressor;

use super::fetch::{OpenPack, range_needed};
use super::plan::{FileWork, PackWork, Plan, Write};
use crate::durable;
use crate::interrupt;
use crate::limits::FRAME_RAW_MAX;
use crate::operations::Open;
use crate::progress::Progress;
use crate::report::Stopwatch;
use crate::repository::agefile::Identity;
use crate::repository::history;
use crate::repository::layout::{self, SourceName};
use crate::storage;
use crate::target::StagingTree;

/// Files that a worker keeps open.
const OPEN_FILES: usize = 128;

/// A pack on its way to a worker; `None` where a range of it is to be read.
type Fetched = (u64, Option<storage::Result<Bytes>>);

/// Writes the contents of all files of the plan into the tree. Returns the stored bytes fetched.
pub fn write_all(stage: &Stage<'_>, workers: usize) -> Result<u64> {
    let in_memory = workers + 2;
    // A token is the permission to have a pack in memory, from its fetch until it is written. The other queue has room for as many
    // packs, so that one that arrives is never turned away.
    let tokens = async_channel::bounded::<()>(in_memory);
    let (fetched_in, fetched) = async_channel::bounded::<Fetched>(in_memory);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                let (fetched, tokens) = (fetched.clone(), tokens.1.clone());
                scope.spawn(move || stage.work(&fetched, &tokens))
            })
            .collect();
        drop((fetched, tokens.1));
        let sent = stage.fetch(&fetched_in, &tokens.0);
        drop((fetched_in, tokens.0));
        let mut total = 0;
        let mut failed = sent.err();
        for handle in handles {
            match handle.join().map_err(|_| anyhow!("a worker panicked; this is a bug, please report it")).flatten() {
                Ok(bytes) => total += bytes,
                // A worker's error is the cause; the fetcher only saw that the workers had gone.
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(total), Err)
    })
    .and_then(|total| stage.all_written().map(|()| total))
}

/// What the threads of a restore look at.
pub struct Stage<'a> {
    pub open: &'a Open,
    pub source: &'a SourceName,
    pub identities: &'a [Identity],
    pub plan: &'a Plan,
    pub tree: &'a StagingTree,
    pub journal: Journal,
    pub progress: &'a Progress,
    /// Time of all workers together, by what they did.
    pub times: Stopwatch,
}

/// Names of the phases of [`Stage::times`].
pub const PHASES: [&str; 4] = ["fetch", "decrypt", "decode", "write"];

impl Stage<'_> {
    /// Starts the fetch of each pack that is not written yet, as long as there are tokens.
    fn fetch(&self, to: &Sender<Fetched>, tokens: &Sender<()>) -> Result<()> {
        for number in self.plan.pack_numbers()? {
            if self.journal.done.contains(&number) {
                self.progress.add(self.plan.pack(number)?.size);
                continue;
            }
            interrupt::check("Nothing is at the target yet. The same command again goes on from here.")?;
            if tokens.send_blocking(()).is_err() {
                return Err(anyhow!("the workers have stopped"));
            }
            let pack = self.plan.pack(number)?;
            if range_needed(&pack).is_some() {
                to.send_blocking((number, None)).map_err(|_| anyhow!("the workers have stopped"))?;
                continue;
            }
            let to = to.clone();
            // The channel has room for every token, so this never waits.
            let done = move |result| drop(to.try_send((number, Some(result))));
            self.open.store.get_later(layout::pack(self.source, &pack.name), None, done);
        }
        Ok(())
    }

    fn all_written(&self) -> Result<()> {
        none_left(&self.plan.pack_numbers()?, &self.journal.written())
    }

    fn work(&self, fetched: &Receiver<Fetched>, tokens: &Receiver<()>) -> Result<u64> {
        let mut decompressor = Decompressor::new().context("set up decompression")?;
        let mut raw = Vec::with_capacity(FRAME_RAW_MAX);
        let mut total = 0;
        let [fetch, decrypt, ..] = PHASES;
        while let Ok((number, bytes)) = self.times.time(fetch, || fetched.recv_blocking()) {
            let pack = self.plan.pack(number)?;
            // A range is fetched and decrypted in one go.
            let opening = if bytes.is_some() { decrypt } else { fetch };
            total += self
                .times
                .time(opening, || self.open_pack(&pack, bytes))
                .and_then(|open| self.write(&pack, &open, &mut decompressor, &mut raw).map(|()| open.fetched))
                .or_else(|failed| {
                    let open = self.open_first_version(&pack, failed)?;
                    self.write(&pack, &open, &mut decompressor, &mut raw).map(|()| open.fetched)
                })
                .with_context(|| format!("read pack {} of {}", pack.name, self.source))?;
            self.journal.note(number)?;
            self.progress.add(pack.size);
            tokens.try_recv().context("a pack that was fetched without a token")?;
        }
        Ok(total)
    }

    fn open_pack(&self, pack: &PackWork, bytes: Option<storage::Result<Bytes>>) -> Result<OpenPack> {
        match (bytes, range_needed(pack)) {
            (Some(bytes), _) => OpenPack::whole(bytes?, self.identities),
            (None, Some(range)) => OpenPack::part(&self.open.store, self.source, pack, range, self.identities),
            (None, None) => Err(anyhow!("a pack without bytes")),
        }
    }

    /// What a store with versions still has of a pack that was deleted or written over; otherwise the error as it was. Nothing of a
    /// frame is written before it was checked, so a second try is safe.
    fn open_first_version(&self, pack: &PackWork, failed: anyhow::Error) -> Result<OpenPack> {
        let key = layout::pack(self.source, &pack.name);
        let gone = [storage::Kind::NotFound, storage::Kind::Truncated];
        let hopeless = failed.downcast_ref::<storage::Error>().is_some_and(|e| !gone.contains(&e.kind));
        let written = if hopeless { None } else { history::of(&self.open.store, &key).ok() };
        let Some(written) = written.filter(|written| written.cover().is_some()) else { return Err(failed) };
        OpenPack::whole(written.read(&self.open.store, |bytes| pack.is(bytes))?, self.identities)
    }

    fn write(
        &self,
        pack: &PackWork,
        open: &OpenPack,
        decompressor: &mut Decompressor<'_>,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        let mut files: HashMap<i64, (File, FileWork, u64)> = HashMap::new();
        let mut frame = None;
        let begun = Instant::now();
        let mut decoding = Duration::ZERO;
        let mut left = pack.writes.as_slice();
        while let Some(write) = left.first() {
            let together = together(left);
            let end = left[together - 1].extent;
            left = &left[together..];
            if frame != Some(write.extent.frame) {
                let decode = Instant::now();
                open.frame(pack, write.extent.frame, decompressor, raw)?;
                decoding += decode.elapsed();
                frame = Some(write.extent.frame);
            }
            let from = write.extent.from as usize;
            let bytes = raw
                .get(from..(end.from + end.len) as usize)
                .context("the index is damaged: an extent beyond its frame")?;
            if !files.contains_key(&write.file) {
                if files.len() >= OPEN_FILES {
                    // Those of several packs can be opened again; of one pack they would lose count, so they stay.
                    files.retain(|_, (_, work, _)| work.one_pack);
                }
                let work = self.plan.file(write.file)?;
                files.insert(write.file, (self.tree.open_file(&work.entry.path)?, work, 0));
            }
            let Some((file, work, written)) = files.get_mut(&write.file) else { continue };
            file.write_all_at(bytes, write.extent.at).with_context(|| format!("write {}", work.entry.path))?;
            *written += together as u64;
            if work.one_pack && *written == work.extents {
                self.tree.set_metadata(file, &work.entry)?;
                files.remove(&write.file);
            }
        }
        let [.., decode, write] = PHASES;
        self.times.add(decode, decoding);
        self.times.add(write, begun.elapsed().saturating_sub(decoding));
        Ok(())
    }
}

/// How many of the first writes go on where the one before ends, in the file and in the frame: one call writes them. At least 1.
fn together(writes: &[Write]) -> usize {
    let joins = |two: &[Write]| two[0].file == two[1].file && two[0].extent.joins(&two[1].extent);
    1 + writes.windows(2).take_while(|two| joins(two)).count()
}

/// A pack that nobody wrote would leave zeros in files that look whole.
fn none_left(planned: &[u64], written: &HashSet<u64>) -> Result<()> {
    let left = planned.iter().filter(|n| !written.contains(n)).count();
    anyhow::ensure!(left == 0, "{left} packs were not written; this is a bug, please report it");
    Ok(())
}

/// Which packs are written, for a restore that is interrupted and resumed. Trusted only within one boot: what a crash of the machine
/// left of the page cache, nobody knows.
pub struct Journal {
    file: Mutex<File>,
    /// Written before this run.
    done: HashSet<u64>,
    /// Written by this run.
    noted: Mutex<HashSet<u64>>,
}

impl Journal {
    pub fn open(path: &Path) -> Result<Journal> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut done = HashSet::new();
        let same_boot = !boot.is_empty() && text.lines().next() == Some(boot.trim());
        // A line cut short, as a full disk cuts it, has no LF and does not count; with the next one behind it, it would be another number.
        let whole = text.rfind('\n').map_or(0, |lf| lf + 1);
        if same_boot {
            done = text[..whole].lines().skip(1).filter_map(|line| line.parse().ok()).collect();
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true);
        if same_boot {
            options.append(true)
        } else {
            options.truncate(true)
        };
        let mut file = options.open(path).with_context(|| format!("open the journal {}", path.display()))?;
        if same_boot {
            file.set_len(whole as u64).context("take up the journal")?;
        } else {
            writeln!(file, "{}", boot.trim()).context("begin the journal")?;
        }
        Ok(Journal { file: Mutex::new(file), done, noted: Mutex::default() })
    }

    /// Packs written in this run and in those that it resumes.
    fn written(&self) -> HashSet<u64> {
        let noted = self.noted.lock().unwrap_or_else(|e| e.into_inner());
        self.done.union(&noted).copied().collect()
    }

    fn note(&self, pack: u64) -> Result<()> {
        self.noted.lock().unwrap_or_else(|e| e.into_inner()).insert(pack);
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.write_all(format!("{pack}\n").as_bytes()).context("write the journal")
    }
}

/// Removes the journal, durably: with the tree that it speaks of gone, it would make the next restore leave holes.
pub fn forget(journal: &Path) -> Result<()> {
    durable::remove(journal).with_context(|| format!("remove the journal {}", journal.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_that_nobody_wrote_ends_the_restore() {
        none_left(&[1, 2, 3], &HashSet::from([3, 1, 2, 9])).unwrap();
        assert!(none_left(&[1, 2, 3], &HashSet::from([1, 3])).unwrap_err().to_string().starts_with("1 packs"));
    }

    #[test]
    fn a_line_that_a_full_disk_has_cut_short_never_becomes_another_pack() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::open(&path).unwrap().note(7).unwrap();
        // Of `37\n` as much as there was room for.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"3").unwrap();
        let resumed = Journal::open(&path).unwrap();
        assert_eq!(resumed.done, HashSet::from([7]), "of the cut line nothing counts");
        resumed.note(41).unwrap();
        assert_eq!(Journal::open(&path).unwrap().done, HashSet::from([7, 41]), "`3` and `41` are not pack 341");
    }
}
