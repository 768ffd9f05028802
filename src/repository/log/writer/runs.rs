//! Runs: one object in place of many pieces, from bytes in hand; and comparing what is stored with what the engine shows.

use anyhow::{Result, bail};
use jiff::Timestamp;

use super::Writer;
use crate::repository::layout::{self, Hash};
use crate::repository::log::end::Place;
use crate::repository::log::listing::{Fetched, Span, fetch, is_damage};
use crate::repository::log::marks::Mark;
use crate::storage;

/// So many pieces become a run, so many runs a longer one: what is read for a unit stays few objects, however slowly it fills.
const FAN_OUT: usize = 32;

/// An object of the unit in which the log ends.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub start: u64,
    pub end: u64,
    /// 0 for a piece, one more for each time that it was merged.
    pub level: u32,
    pub previous: Hash,
    pub last: Hash,
    pub pieces: u64,
    pub check: String,
    /// The engine's clock at its end.
    pub time: Timestamp,
    /// When bytes of it came, where the engine's log does not tell.
    pub marks: Vec<Mark>,
}

impl Writer<'_> {
    /// Merges what has become many. A run that cannot be written now is written later, or never: its pieces are there.
    pub(super) fn merge(&mut self) -> Result<()> {
        let full = self.head.end.is_multiple_of(self.stretch.unit);
        if full {
            let written = if self.parts.len() > 1 { self.write_run(0) } else { Ok(()) };
            self.parts.clear();
            self.hand.clear();
            return passing(written);
        }
        loop {
            let level = self.parts.last().map_or(0, |part| part.level);
            let alike = self.parts.iter().rev().take_while(|part| part.level == level).count();
            if alike < FAN_OUT {
                return Ok(());
            }
            let written = self.write_run(self.parts.len() - alike);
            if written.is_err() {
                return passing(written);
            }
        }
    }

    /// Replaces the parts from `first` on by one run of their bytes.
    pub(super) fn write_run(&mut self, first: usize) -> Result<()> {
        let (Some(from), Some(to)) = (self.parts.get(first).cloned(), self.parts.last().cloned()) else {
            return Ok(());
        };
        let back = usize::try_from(self.head.end - from.start)?;
        if back > self.hand.len() {
            return Ok(());
        }
        let bytes = self.hand[self.hand.len() - back..].to_vec();
        let check = self.sealed.check(&bytes)?;
        let pieces = self.parts[first..].iter().map(|part| part.pieces).sum();
        let mut line = self.line(from.start, to.end, from.previous, &check, to.time);
        (line.last, line.pieces) = (Some(to.last), Some(pieces));
        let key = layout::log_piece(&self.source, self.stretch.n, self.head.timeline, from.start, Some(to.end));
        // One that is there already was written before an interruption.
        let marks: Vec<Mark> = self.parts[first..].iter().flat_map(|part| part.marks.iter().copied()).collect();
        let _there = self.put(key, line, (&bytes, &marks))?;
        let level = 1 + self.parts[first..].iter().map(|part| part.level).max().unwrap_or(0);
        let (start, end, previous, last) = (from.start, to.end, from.previous, to.last);
        let run = Part { start, end, level, previous, last, pieces, check, time: to.time, marks };
        self.parts.splice(first.., [run]);
        Ok(())
    }

    /// The marks in what is stored cannot be read here: pieces have their end at least, runs stay as they are.
    pub(super) fn leave_marked_runs(&mut self) {
        if self.stretch.id.is_none() {
            return;
        }
        if let Some(last) = self.parts.iter().rposition(|part| part.level > 0) {
            self.parts.drain(..=last);
        }
        for part in &mut self.parts {
            part.marks = vec![Mark { position: part.end, time: part.time }];
        }
    }

    /// The fewest objects of the head's timeline that cover a range, or what is there of it without a hole up to its end.
    /// `known` need not be read again; `hole` hears where nothing verifies.
    pub(super) fn parts(
        &self,
        spans: &[Span],
        (from, to): (u64, u64),
        known: Option<&Fetched>,
        hole: fn(u64) -> Result<()>,
    ) -> Result<Vec<Part>> {
        let here: Vec<&Span> = spans.iter().filter(|s| s.start >= from && s.start < to).collect();
        let mut parts: Vec<Part> = Vec::new();
        let mut at = here.first().map_or(to, |s| s.start);
        while at < to {
            let Some(fetched) = self.furthest(&here, at, known)? else {
                hole(at)?;
                parts.clear();
                at = here.iter().map(|s| s.start).find(|start| *start > at).unwrap_or(to);
                continue;
            };
            let line = fetched.line;
            parts.push(Part {
                start: line.start.0,
                end: line.end.0,
                level: u32::from(line.last.is_some()),
                previous: line.previous,
                last: line.last.unwrap_or(fetched.hash),
                pieces: line.pieces.unwrap_or(1),
                check: line.check,
                time: line.time,
                marks: Vec::new(),
            });
            at = line.end.0;
        }
        Ok(parts)
    }

    /// Of the objects that begin at `at` and verify, the one that reaches furthest.
    fn furthest(&self, here: &[&Span], at: u64, known: Option<&Fetched>) -> Result<Option<Fetched>> {
        let mut begin: Vec<&Span> = here.iter().copied().filter(|s| s.start == at).collect();
        begin.sort_by_key(|s| std::cmp::Reverse(s.end));
        for span in begin {
            if let Some(known) = known.filter(|known| known.is_of(span)) {
                return Ok(Some(known.clone()));
            }
            match fetch(self.author.store, self.author.trust, &self.source, span) {
                Ok(fetched) => return Ok(Some(fetched)),
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Whether what is stored of the head's timeline from `start` on, a multiple of the unit, is `bytes`. `None`: not all of it is there.
    pub fn holds(&self, start: u64, bytes: &[u8]) -> Result<Option<bool>> {
        // Whoever has the bytes must not let go of them then.
        let lost = |at| bail!("what the log held at {at:016x} is lost, or does not verify");
        let end = start + bytes.len() as u64;
        let place = Place { store: self.author.store, source: &self.source, n: self.stretch.n };
        let spans = place.spans(self.head.timeline, start..end)?;
        let parts = self.parts(&spans, (start, end), None, lost)?;
        let (mut at, mut rest) = (start, bytes);
        for part in &parts {
            if part.start != at || part.end - at > rest.len() as u64 {
                return Ok(None);
            }
            let (now, later) = rest.split_at(usize::try_from(part.end - at)?);
            if self.sealed.check(now)? != part.check {
                return Ok(Some(false));
            }
            (at, rest) = (part.end, later);
        }
        Ok(rest.is_empty().then_some(true))
    }
}

/// A run saves requests and nothing else: what keeps it from being written now is no reason to stop, unless nothing can be written.
pub(super) fn passing(written: Result<()>) -> Result<()> {
    match written {
        Err(e) if e.chain().any(|cause| cause.is::<storage::Error>()) => Ok(()),
        other => other,
    }
}
