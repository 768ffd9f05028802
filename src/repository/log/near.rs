//! One file of a log without listing all of it: a server that recovers asks for one after the other, and a log may have a million objects.
//!
//! What is found so is what the whole log would show. That something is *not* there, the whole log must tell.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::ops::Range;

use super::line::Position;
use super::listing::{Log, Span, Window};
use crate::bridge::Store;
use crate::repository::history;
use crate::repository::layout::{self, LogKey, SourceName};
use crate::repository::trust::Trust;

/// Units that one listing takes in.
const UNITS_AT_ONCE: u64 = 16;

impl Log {
    /// The stretches and histories, without any piece or run.
    pub fn records(store: &Store, trust: &Trust, source: &SourceName) -> Result<Log> {
        let mut listed = Vec::new();
        for prefix in [layout::log_stretches(source), layout::log_histories(source)] {
            let found = history::list(store, &prefix);
            listed.extend(found.with_context(|| format!("list the log of {source}"))?);
        }
        Ok(Log::of(store, trust, source, listed))
    }

    /// Adds the objects to [`Log::records`] that `timeline` itself wrote in `range` (both ends are multiples of a unit), and perhaps neighbours. Gives
    /// the part of the log that has them, as far as it matters for reading them; `None`: only the whole log can tell.
    pub fn look_near(&mut self, store: &Store, timeline: u32, range: Range<u64>) -> Result<Option<Window>> {
        let Some((first, last)) = self.part_at(timeline, range.start) else { return Ok(None) };
        for stretch in &mut self.stretches[first..=last] {
            let line = &stretch.line;
            let wrote = line.timeline == timeline || stretch.histories.contains_key(&timeline);
            if !wrote || line.start.0 >= range.end {
                continue;
            }
            let block = line.unit * UNITS_AT_ONCE;
            let starts = (range.start / block..range.end.div_ceil(block)).map(|n| n * block);
            let prefix = |start| layout::log_unit(&self.source, line.n, timeline, start, block);
            let prefixes: BTreeSet<String> = starts.map(prefix).collect();
            let mut spans: Vec<Span> = Vec::new();
            for prefix in prefixes {
                let listed = history::list(store, &prefix).with_context(|| format!("list {prefix}"))?;
                for written in listed {
                    if let Some(LogKey::Piece { start, end, .. }) = layout::parse_log(&self.source, &written.key) {
                        spans.extend(Span::listed(&written, start, end));
                    }
                }
            }
            if !spans.is_empty() {
                stretch.timelines.insert(timeline, spans);
            }
        }
        let from = (self.stretches[first].line.timeline, self.stretches[first].line.start);
        let (to, until) = ((timeline, Position(u64::MAX)), Timestamp::MAX);
        Ok(Some(Window { first, last, from, to, until, stored_at: until }))
    }

    /// The stretches that follow each other around the newest one that has the position, where `timeline` itself wrote what is there.
    fn part_at(&self, timeline: u32, position: u64) -> Option<(usize, usize)> {
        let holds = |at: usize| {
            let line = &self.stretches[at].line;
            line.start.0 <= position && line.timeline <= timeline
        };
        let at = (0..self.stretches.len()).rev().find(|at| holds(*at))?;
        let stretch = &self.stretches[at];
        let own = stretch.line.timeline == timeline || stretch.histories.contains_key(&timeline);
        if !own || stretch.timeline_at(timeline, position) != timeline {
            return None;
        }
        let goes_on = |at: usize| {
            let (line, before) = (&self.stretches[at].line, &self.stretches[at - 1].line);
            line.continues && before.n + 1 == line.n
        };
        let first = (1..=at).rev().find(|at| !goes_on(*at)).unwrap_or(0);
        let last = (at + 1..self.stretches.len()).find(|at| !goes_on(*at)).unwrap_or(self.stretches.len()) - 1;
        Some((first, last))
    }
}
