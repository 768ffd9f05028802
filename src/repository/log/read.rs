//! Reading a log back: any range of a window, with what it takes to fall back from a run to its pieces.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use super::line::{HistoryLine, LogLine, open_body};
use super::listing::{Fetched, Log, Span, Window, fetch};
use super::marks::{self, Mark};
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::repository::agefile::Identity;
use crate::repository::history;
use crate::repository::layout::{self, SourceName};
use crate::repository::trust::Trust;

/// Reads with the recovery identity.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub store: &'a Store,
    pub trust: &'a Trust,
    pub identities: &'a [Identity],
}

/// The engine's account of where a timeline begins.
pub struct StoredHistory {
    pub line: HistoryLine,
    pub bytes: Vec<u8>,
}

/// What one object of a log has from a position on.
pub struct Shown {
    pub bytes: Vec<u8>,
    /// Within these bytes, in order; at their end as well.
    pub marks: Vec<Mark>,
}

/// An account of a timeline is a few lines.
const HISTORY_MAX: usize = 1 << 20;

impl Reader<'_> {
    /// The bytes of `window` from `from` up to `to` as `timeline` has them; both within one unit. Fewer, where the log ends earlier.
    pub fn range(&self, log: &Log, window: &Window, timeline: u32, from: u64, to: u64) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(usize::try_from(to - from)?);
        let mut at = from;
        while at < to {
            let Some(shown) = self.next(log, window, timeline, at)? else { break };
            let take = usize::try_from(to - at)?.min(shown.bytes.len());
            out.extend_from_slice(&shown.bytes[..take]);
            at += take as u64;
        }
        Ok(out)
    }

    /// What follows `at` in one object; `None` at the log's end.
    pub fn next(&self, log: &Log, window: &Window, timeline: u32, at: u64) -> Result<Option<Shown>> {
        let Some((stretch, on)) = log.locate(window, timeline, at) else { return Ok(None) };
        let stretch = &log.stretches[stretch];
        let spans = stretch.timelines.get(&on).map_or(&[][..], Vec::as_slice);
        // Another timeline or stretch may take over before the object ends.
        let until = boundaries(log, window).filter(|b| *b > at).min().unwrap_or(u64::MAX);
        let Some(mut shown) = self.longest(&log.source, spans, at, stretch.line.unit)? else {
            if log.is_end(window, timeline, at) {
                return Ok(None);
            }
            return Err(missing(&log.source, on, at));
        };
        shown.bytes.truncate(usize::try_from(until - at).unwrap_or(usize::MAX));
        shown.marks.retain(|mark| mark.position <= until);
        Ok(Some(shown))
    }

    /// What follows `at` in the object that holds it and reaches furthest; `None`: no object holds it.
    fn longest(&self, source: &SourceName, spans: &[Span], at: u64, unit: u64) -> Result<Option<Shown>> {
        let first = spans.partition_point(|s| s.start < at & !(unit - 1));
        let here = &spans[first..spans.partition_point(|s| s.start <= at)];
        let mut runs: Vec<&Span> = here.iter().filter(|s| s.end.is_some_and(|end| end > at)).collect();
        runs.sort_by_key(|s| std::cmp::Reverse(s.end));
        let piece = here.iter().rev().find(|s| s.end.is_none());
        let mut failed = None;
        for span in runs.into_iter().chain(piece) {
            let opened = fetch(self.store, self.trust, source, span).and_then(|f| Ok((self.open(&f)?, f)));
            match opened {
                Ok((mut shown, fetched)) if fetched.line.end.0 > at => {
                    shown.bytes.drain(..usize::try_from(at - fetched.line.start.0)?);
                    shown.marks.retain(|mark| mark.position >= at);
                    return Ok(Some(shown));
                }
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(None), |e| Err(hurt(e)))
    }

    /// What a piece or run holds.
    pub fn open(&self, fetched: &Fetched) -> Result<Shown> {
        let line = &fetched.line;
        let length = usize::try_from(line.end.0 - line.start.0)?;
        let (bytes, behind) = open_body(&fetched.body, self.identities, length)?;
        ensure!(bytes.len() == length, "the piece at {} holds {} bytes, not {length}", line.start, bytes.len());
        let mut marks = marks::parse(line.start.0, &behind)?;
        if marks.last().is_none_or(|mark| mark.position < line.end.0) {
            marks.push(Mark { position: line.end.0, time: line.time });
        }
        ensure!(marks.iter().all(|mark| mark.position <= line.end.0), "a mark outside the piece at {}", line.start);
        Ok(Shown { bytes, marks })
    }

    pub fn history(&self, log: &Log, window: &Window, timeline: u32) -> Result<Option<StoredHistory>> {
        let found = (window.first..=window.last).rev().find(|n| log.stretches[*n].histories.contains_key(&timeline));
        let Some(stretch) = found.map(|n| &log.stretches[n]) else { return Ok(None) };
        let key = layout::log_history(&log.source, stretch.line.n, timeline);
        let written = history::of(self.store, &key).with_context(|| format!("look for {key}"))?;
        let verified = |object: &Bytes| {
            let verified = LogLine::verify(self.trust, &log.source, object)?;
            let LogLine::History(line) = verified.line else { bail!("is not what its name says") };
            Ok((line, object.slice_ref(verified.body)))
        };
        let (line, body) = written.read(self.store, verified).with_context(|| format!("read {key}"))?;
        let (bytes, _) = open_body(&body, self.identities, HISTORY_MAX)?;
        Ok(Some(StoredHistory { line, bytes }))
    }
}

/// Positions at which another stretch or timeline may take over.
fn boundaries<'a>(log: &'a Log, window: &Window) -> impl Iterator<Item = u64> + 'a {
    log.stretches[window.first..=window.last]
        .iter()
        .flat_map(|s| s.histories.values().map(|h| h.start.0).chain([s.line.start.0]))
}

fn missing(source: &SourceName, timeline: u32, at: u64) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!("the log of {source} has lost what it held at position {at:016x} of timeline {timeline}"),
        "Points in time after it cannot be reached from a snapshot before it; the snapshots themselves are not hurt. \
         `verify` names every loss. Take a new snapshot now: from it on, points in time work again.",
    )
}

fn hurt(error: anyhow::Error) -> anyhow::Error {
    if crate::error::help_of(&error).is_some() || error.chain().any(|c| c.is::<crate::storage::Error>()) {
        return error;
    }
    Failure::new(
        Kind::Failed,
        format!("{error:#}"),
        "Points in time after it cannot be reached from a snapshot before it; the snapshots themselves are not hurt. \
         Copy the object from another copy of the repository, or restore to a point before it.",
    )
}
