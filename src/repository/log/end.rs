//! Where a log ends, without listing all of it: a server that archives calls for each segment, and a log may have a million objects.
//!
//! What matters to whoever writes on is the newest stretch, which timelines it has, and of the newest of them the unit in which it ends. That the
//! end is found takes a few requests for pages of a listing, more where it does not lie near the place that was guessed, and two for each timeline
//! of the stretch. Where something of the end does not verify, or is not as a writer leaves it, the whole log must tell.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::ops::Range;

use super::listing::{Log, Span, Tail};
use crate::bridge::Store;
use crate::repository::history::{self, Written};
use crate::repository::layout::{self, LogKey, SourceName};
use crate::repository::trust::Trust;

/// Keys of a page.
const PAGE: usize = 1000;

impl Log {
    /// As [`Log::list`], for whoever writes on: of a sound log only the newest stretch, and of its timelines the newest, as far as the unit in which it ends
    /// goes. `near`: about where it ends.
    pub fn list_end(store: &Store, trust: &Trust, source: &SourceName, near: u64) -> Result<Log> {
        let end = Log::look_at_end(store, trust, source, near);
        match end.with_context(|| format!("look for the end of the log of {source}"))? {
            Some(log) => Ok(log),
            None => Log::list(store, trust, source),
        }
    }

    /// `None`: the whole log must tell.
    fn look_at_end(store: &Store, trust: &Trust, source: &SourceName, near: u64) -> Result<Option<Log>> {
        let Some((n, mut listed)) = newest_stretch(store, source)? else { return Ok(None) };
        let Some(histories) = histories_from(store, source, n)? else { return Ok(None) };
        listed.extend(histories);
        let place = Place { store, source, n };
        let Some(timelines) = place.timelines()? else { return Ok(None) };
        let Some(newest) = timelines.last().copied() else { return Ok(None) };
        let mut log = Log::of(store, trust, source, listed);
        let [stretch] = log.stretches.as_mut_slice() else { return Ok(None) };
        let known = |timeline: &u32| *timeline == stretch.line.timeline || stretch.histories.contains_key(timeline);
        if !log.faults.is_empty() || !timelines.iter().all(known) {
            return Ok(None);
        }
        let spans = place.last_unit(newest, stretch.line.unit, near)?;
        stretch.timelines.insert(newest, spans);
        let Tail::At(last) = log.tail(store, trust)? else { return Ok(None) };
        log.last = Some(last);
        Ok(Some(log))
    }
}

/// The record with the highest number, as listed. `None`: there is none.
fn newest_stretch(store: &Store, source: &SourceName) -> Result<Option<(u64, Vec<Written>)>> {
    let listed = history::list(store, &layout::log_stretches(source))?;
    let there = listed.into_iter().filter(|written| !written.versions.is_empty());
    let numbered = there.filter_map(|written| match layout::parse_log(source, &written.key) {
        Some(LogKey::Stretch(n)) => Some((n, vec![written])),
        _ => None,
    });
    Ok(numbered.max_by_key(|(n, _)| *n))
}

/// The histories of stretch `n`, as listed. `None`: there is one of a later stretch, whose record is lost.
fn histories_from(store: &Store, source: &SourceName, n: u64) -> Result<Option<Vec<Written>>> {
    let prefix = layout::log_histories(source);
    let mut from = Some(format!("{prefix}{n:010}"));
    let mut found = Vec::new();
    while let Some(after) = from {
        let (page, next) = history::page(store, &prefix, &after, PAGE)?;
        for written in page.into_iter().filter(|written| !written.versions.is_empty()) {
            match layout::parse_log(source, &written.key) {
                Some(LogKey::History { stretch, .. }) if stretch == n => found.push(written),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        from = next;
    }
    Ok(Some(found))
}

/// A stretch of a log in a store.
pub(super) struct Place<'a> {
    pub store: &'a Store,
    pub source: &'a SourceName,
    pub n: u64,
}

impl Place<'_> {
    /// The timelines that have any object. `None`: something lies behind the stretch that belongs to none which has a record.
    fn timelines(&self) -> Result<Option<BTreeSet<u32>>> {
        let (prefix, mut found) = (layout::log(self.source), BTreeSet::new());
        let mut after = layout::log_pieces(self.source, self.n);
        while let Some(written) = self.first(&prefix, &after)? {
            match layout::parse_log(self.source, &written.key) {
                Some(LogKey::Piece { stretch, timeline, .. }) if stretch == self.n => {
                    found.insert(timeline);
                    after = layout::behind(&layout::log_timeline(self.source, self.n, timeline));
                }
                Some(LogKey::Stretch(_) | LogKey::History { .. }) => break,
                _ => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// The first object below `prefix` that comes after `after`; what was deleted and has left markers is none.
    fn first(&self, prefix: &str, after: &str) -> Result<Option<Written>> {
        let (mut from, mut most) = (Some(after.to_owned()), 1);
        while let Some(after) = from {
            let (page, next) = history::page(self.store, prefix, &after, most)?;
            if let Some(written) = page.into_iter().find(|written| !written.versions.is_empty()) {
                return Ok(Some(written));
            }
            (from, most) = (next, PAGE);
        }
        Ok(None)
    }

    /// The objects of a timeline that begin in `range`, in the order of their starts.
    pub fn spans(&self, timeline: u32, range: Range<u64>) -> Result<Vec<Span>> {
        let (mut spans, mut from) = (Vec::new(), Some(range.start));
        while let Some(start) = from {
            let (page, next) = self.page(timeline, start)?;
            from = next.filter(|next| *next < range.end);
            spans.extend(page.into_iter().filter(|span| range.contains(&span.start)));
        }
        Ok(spans)
    }

    /// Objects of a timeline that begin at `start` or later; and where the first of those that are not among them may begin, if any are.
    fn page(&self, timeline: u32, start: u64) -> Result<(Vec<Span>, Option<u64>)> {
        let prefix = layout::log_timeline(self.source, self.n, timeline);
        let mut after = layout::log_before(self.source, self.n, timeline, start);
        let mut spans: Vec<Span> = Vec::new();
        loop {
            let (page, next) = history::page(self.store, &prefix, &after, PAGE)?;
            for written in &page {
                if let Some(LogKey::Piece { start, end, .. }) = layout::parse_log(self.source, &written.key) {
                    spans.extend(Span::listed(written, start, end));
                }
            }
            let Some(next) = next else { return Ok((spans, None)) };
            // What begins at one place stays together.
            let last = spans.last().map(|span| span.start).filter(|last| *last > start);
            if let Some(last) = last {
                spans.retain(|span| span.start < last);
                return Ok((spans, Some(last)));
            }
            after = next;
        }
    }

    /// The objects of the unit in which a timeline ends: none of another unit reaches as far. `near`: about there.
    fn last_unit(&self, timeline: u32, unit: u64, near: u64) -> Result<Vec<Span>> {
        let floor = |position: u64| position / unit * unit;
        let guess = floor(near.saturating_sub(1));
        let (spans, next) = self.page(timeline, guess)?;
        if let (Some(last), None) = (spans.last(), next) {
            let begin = floor(last.start);
            // One that lies astride of the guess has its unit whole, too: the guess is where a unit begins.
            return Ok(spans.into_iter().filter(|span| span.start >= begin).collect());
        }
        // Something begins in the unit of `low` or later, nothing at `high` or later.
        let (mut low, mut high) = next.map_or((None, Some(guess)), |there| (Some(floor(there)), None));
        let mut step = unit;
        while low.is_none() || high.is_none() {
            let at = high
                .map_or_else(|| low.unwrap_or_default().saturating_add(step), |high| floor(high.saturating_sub(step)));
            match self.begins_from(timeline, at)? {
                Some(start) => low = Some(floor(start)),
                None if at == 0 => return Ok(Vec::new()),
                None => high = Some(at),
            }
            step = step.saturating_mul(2);
        }
        let (mut low, mut high) = (low.unwrap_or_default(), high.unwrap_or_default());
        while high - low > unit {
            let middle = low + floor((high - low) / 2);
            match self.begins_from(timeline, middle)? {
                Some(start) => low = floor(start),
                None => high = middle,
            }
        }
        self.spans(timeline, low..low.saturating_add(unit))
    }

    /// Where the first object that begins at `position` or later does.
    fn begins_from(&self, timeline: u32, position: u64) -> Result<Option<u64>> {
        let prefix = layout::log_timeline(self.source, self.n, timeline);
        let after = layout::log_before(self.source, self.n, timeline, position);
        let found = self.first(&prefix, &after)?;
        Ok(found.and_then(|written| match layout::parse_log(self.source, &written.key) {
            Some(LogKey::Piece { start, .. }) => Some(start),
            _ => None,
        }))
    }
}
