//! One file of the log for a server that recovers: `restore_command`.
//!
//! A server takes "not there" for the end of the log and opens for writing. So that is said only where the log really ends; a gap, damage, or
//! a repository out of reach are errors.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::behind::Stored;
use super::{has_timeline, segment_size};
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::log::{Log, Lost, Reader, Survey, Window, unit_end};
use crate::source::postgres::wal::{Lsn, WalFile};

/// Segments fetched ahead, and threads that do it.
const AHEAD: u64 = 8;
const THREADS: usize = 2;
/// Segments larger than this are not fetched ahead.
const AHEAD_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// Written, with so many bytes of the log; the rest up to the segment's size is zero.
    Written(u64),
    NotThere,
}

/// The log of one source, open for reading files.
pub struct Files<'a> {
    pub open: &'a Open,
    pub identities: &'a [Identity],
    pub log: Log,
    pub windows: Vec<Window>,
    pub lost: Vec<Lost>,
    pub segment_size: u64,
}

impl<'a> Files<'a> {
    /// `None`: nothing is stored.
    pub fn open(open: &'a Open, identities: &'a [Identity], source: &SourceName) -> Result<Option<Files<'a>>> {
        let log = Log::list(&open.store, &open.trust, source)?;
        if log.is_empty() {
            sound(&log)?;
            return Ok(None);
        }
        let Survey { windows, lost } = log.survey(&open.store, &open.trust)?;
        let segment_size = segment_size(&log, identities)?;
        Ok(Some(Files { open, identities, log, windows, lost, segment_size }))
    }

    pub fn stored(&self) -> Stored<'_> {
        Stored { log: &self.log, windows: &self.windows, lost: &self.lost }
    }

    pub fn reader(&self) -> Reader<'_> {
        Reader { store: &self.open.store, trust: &self.open.trust, identities: self.identities }
    }

    /// Writes a segment of `timeline` to `file`, from `start` on, padded with zeros; gives the bytes that the log has of it.
    pub fn segment(&self, window: &Window, timeline: u32, start: u64, file: &mut File) -> Result<u64> {
        let (bytes, failed) = self.sound_of_segment(window, timeline, start, file)?;
        failed.map_or(Ok(bytes), Err)
    }

    /// The same, as far as what is stored of it is sound; with what it ends at, if that is not the segment's or the log's end.
    pub fn sound_of_segment(
        &self,
        window: &Window,
        timeline: u32,
        start: u64,
        file: &mut File,
    ) -> Result<(u64, Option<anyhow::Error>)> {
        let begin = start / self.segment_size * self.segment_size;
        let end = begin + self.segment_size;
        file.seek(SeekFrom::Start(start - begin)).context("write a segment")?;
        let (mut at, mut failed) = (start, None);
        while at < end {
            match self.reader().next(&self.log, window, timeline, at) {
                Ok(Some(mut shown)) => {
                    shown.bytes.truncate(usize::try_from(end - at)?);
                    file.write_all(&shown.bytes).context("write a segment")?;
                    at += shown.bytes.len() as u64;
                }
                Ok(None) => break,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        file.set_len(at - begin).and_then(|()| file.set_len(self.segment_size)).context("write a segment")?;
        Ok((at - start, failed))
    }

    /// The window that has the start of a segment of `timeline`, the newest first. An error where the log has only what comes later.
    pub fn window_of(&self, timeline: u32, start: u64) -> Result<Option<&Window>> {
        let known: Vec<&Window> =
            self.windows.iter().rev().filter(|w| has_timeline(&self.log, &(*w).into(), timeline)).collect();
        let begins = |w: &&&Window| w.from.1.0 <= start;
        if let Some(window) = known.iter().find(|w| begins(w) && !self.log.is_end(w, timeline, start)) {
            return Ok(Some(window));
        }
        if known.iter().any(|w| w.from.1.0 > start) {
            return Err(Failure::new(
                Kind::Failed,
                format!("the log of {} has a gap at {} of timeline {timeline}", self.log.source, Lsn(start)),
                "Nothing was written. What comes after the gap can only be reached from a snapshot after it: `snapshots` lists the windows.",
            ));
        }
        Ok(None)
    }
}

/// Writes the file `name` of the log to `to`.
pub fn get(open: &Open, identities: &[Identity], source: &SourceName, name: &str, to: &Path) -> Result<Got> {
    let spool = spool(open, source);
    if let Some(bytes) = spool.as_ref().and_then(|spool| std::fs::read(spool.join(name)).ok()) {
        write(to, &bytes)?;
        drop(spool.map(|spool| durable::remove(&spool.join(name))));
        return Ok(Got::Written(bytes.len() as u64));
    }
    if let Some(got) = near(open, identities, source, name, to, spool.as_deref())? {
        return Ok(got);
    }
    let Some(files) = Files::open(open, identities, source)? else { return Ok(Got::NotThere) };
    let got = fetch(&files, name, to, spool.as_deref())?;
    if got == Got::NotThere {
        // It may lie in what cannot be read.
        sound(&files.log)?;
    }
    Ok(got)
}

/// A segment that is there whole, as a look at its neighbourhood tells. `None`: only the whole log can tell what to say of the file.
fn near(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    name: &str,
    to: &Path,
    spool: Option<&Path>,
) -> Result<Option<Got>> {
    let mut log = Log::records(&open.store, &open.trust, source)?;
    if log.is_empty() || !log.faults.is_empty() {
        return Ok(None);
    }
    let segment_size = segment_size(&log, identities)?;
    let Some(WalFile::Segment { timeline, start }) = WalFile::parse(name, segment_size) else { return Ok(None) };
    let ahead = if segment_size > AHEAD_BYTES_MAX { 0 } else { AHEAD };
    let end = start + (1 + ahead) * segment_size;
    let Some(window) = log.look_near(&open.store, timeline, start..end)? else { return Ok(None) };
    let files = Files { open, identities, log, windows: Vec::new(), lost: Vec::new(), segment_size };
    let mut file = File::create(to).with_context(|| format!("write {}", to.display()))?;
    if !files.segment(&window, timeline, start, &mut file).is_ok_and(|bytes| bytes == segment_size) {
        durable::remove(to).with_context(|| format!("remove {}", to.display()))?;
        return Ok(None);
    }
    file.sync_all().with_context(|| format!("write {}", to.display()))?;
    if let Some(spool) = spool {
        // A saving of time only, as below.
        drop(fetch_ahead(&files, &window, timeline, start, spool));
    }
    Ok(Some(Got::Written(segment_size)))
}

fn sound(log: &Log) -> Result<()> {
    let Some((key, why)) = log.faults.first() else { return Ok(()) };
    let help = "Nothing was written. What else is stored can be read, and `restore --snapshot N` restores a snapshot without the log; `verify` tells more.";
    let kind = if log.unsure { Kind::Failed } else { Kind::CheckFailed };
    Err(Failure::new(kind, format!("{key} does not verify: {why}"), help))
}

/// Fails where a file that is not there whole may have been in something that cannot be used.
fn not_lost(files: &Files, held: impl Fn(&Lost) -> bool) -> Result<()> {
    let Some(lost) = files.lost.iter().find(|lost| held(lost)) else { return Ok(()) };
    let help = "Nothing was written: for the server this is not the end of the log. What else is stored can be read; `verify` tells more.";
    Err(Failure::new(Kind::Failed, format!("what follows in the log cannot be used: {}", lost.told()), help))
}

fn fetch(files: &Files, name: &str, to: &Path, spool: Option<&Path>) -> Result<Got> {
    match WalFile::parse(name, files.segment_size) {
        None => Ok(Got::NotThere),
        Some(WalFile::History { timeline }) => {
            for window in files.windows.iter().rev() {
                if let Some(history) = files.reader().history(&files.log, window, timeline)? {
                    write(to, &history.bytes)?;
                    return Ok(Got::Written(history.bytes.len() as u64));
                }
            }
            not_lost(files, |lost| lost.has_from(timeline))?;
            Ok(Got::NotThere)
        }
        Some(WalFile::Segment { timeline, start }) => {
            let Some(window) = files.window_of(timeline, start)? else {
                not_lost(files, |lost| lost.may_hold(timeline, start))?;
                return Ok(Got::NotThere);
            };
            let mut file = File::create(to).with_context(|| format!("write {}", to.display()))?;
            let bytes = files.segment(window, timeline, start, &mut file)?;
            // Zeros behind what is there a server takes for the end of the log, too.
            let rest = (bytes < files.segment_size).then_some(start + bytes);
            let lost = rest.map_or(Ok(()), |rest| not_lost(files, |lost| lost.may_hold(timeline, rest)));
            if lost.is_err() {
                durable::remove(to).with_context(|| format!("remove {}", to.display()))?;
            }
            lost?;
            file.sync_all().with_context(|| format!("write {}", to.display()))?;
            if bytes == 0 {
                durable::remove(to).with_context(|| format!("remove {}", to.display()))?;
                return Ok(Got::NotThere);
            }
            if let Some(spool) = spool {
                // A saving of time only: the next call fetches what is missing.
                drop(fetch_ahead(files, window, timeline, start, spool));
            }
            Ok(Got::Written(bytes))
        }
    }
}

fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(to).with_context(|| format!("write {}", to.display()))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| format!("write {}", to.display()))
}

/// Where segments fetched ahead wait; none if this user has no place for them.
fn spool(open: &Open, source: &SourceName) -> Option<PathBuf> {
    let spool = open.state.as_ref()?.join(&open.trust.id).join("wal").join(source.as_str());
    durable::create_directories(&spool).ok()?;
    Some(spool)
}

/// Fetches whole segments that follow, several at a time.
fn fetch_ahead(files: &Files, window: &Window, timeline: u32, start: u64, spool: &Path) -> Result<()> {
    if files.segment_size > AHEAD_BYTES_MAX {
        return Ok(());
    }
    for old in std::fs::read_dir(spool)?.flatten() {
        let name = old.file_name().to_string_lossy().into_owned();
        if WalFile::parse(&name, files.segment_size).is_none_or(|f| f <= WalFile::Segment { timeline, start }) {
            durable::remove(&old.path())?;
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::SeqCst) as u64;
            let at = start + (n + 1) * files.segment_size;
            let path = spool.join(WalFile::Segment { timeline, start: at }.name(files.segment_size));
            if n >= AHEAD || files.log.is_end(window, timeline, at) {
                return Ok(());
            }
            if path.exists() {
                continue;
            }
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < files.segment_size {
                let from = at + bytes.len() as u64;
                let to = unit_end(from, files.log.stretches[window.last].line.unit);
                let more = files.reader().range(&files.log, window, timeline, from, to.min(at + files.segment_size))?;
                bytes.extend_from_slice(&more);
                if from + (more.len() as u64) < to.min(at + files.segment_size) {
                    // Not whole yet: it may have grown by the time that it is asked for.
                    return Ok(());
                }
            }
            durable::publish_over(&path, &bytes, 0o600)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
