//! A stretch of a log: where it begins and ends, and which timeline wrote what is in it.

use anyhow::Result;
use jiff::Timestamp;
use std::collections::BTreeMap;

use super::line::{HistoryLine, Position, StretchLine};
use super::listing::{Fetched, Span, fetch, is_of_store};
use crate::bridge::Store;
use crate::repository::layout::Hash;
use crate::repository::signed::PublicKey;
use crate::repository::trust::Trust;

pub struct Stretch {
    pub line: StretchLine,
    pub hash: Hash,
    pub signer: PublicKey,
    /// By timeline, in the order of their starts.
    pub timelines: BTreeMap<u32, Vec<Span>>,
    /// Timelines that began within this stretch, by number: where.
    pub histories: BTreeMap<u32, HistoryLine>,
}

/// Where a stretch begins to be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    pub at: (u32, Position),
    /// Something that was before it in its stretch is gone.
    pub after_a_hole: bool,
}

impl Stretch {
    /// Whether how its first timeline came about is told neither by it nor by the stretch that it continues.
    pub fn lacks_history(&self) -> bool {
        let line = &self.line;
        line.timeline > 1 && !line.continues && !self.histories.contains_key(&line.timeline)
    }

    /// Where what is there without a hole begins, up to a timeline. Prune takes the front of each timeline and leaves its last object (FORMAT.md §3-15): what lies
    /// before a front that was taken does not lead into it.
    pub fn front(&self, up_to: u32) -> Option<Front> {
        let mut front: Option<Front> = None;
        for (timeline, spans) in self.timelines.range(..=up_to) {
            let Some(first) = spans.first().map(|span| span.start) else { continue };
            let history = self.histories.get(timeline).filter(|_| *timeline != self.line.timeline);
            let after_a_hole = first > history.map_or(self.line.start, |history| history.start).0;
            if front.is_none() || after_a_hole {
                front = Some(Front { at: (*timeline, Position(first)), after_a_hole });
            }
        }
        front
    }

    /// The timeline that wrote the bytes at `position`, seen from `timeline`.
    pub fn timeline_at(&self, timeline: u32, position: u64) -> u32 {
        let begun = self.histories.range(..=timeline).rev().find(|(_, history)| history.start.0 <= position);
        begun.map_or(self.line.timeline, |(timeline, _)| *timeline)
    }

    /// The last object of the newest timeline that verifies, and the store's own time of it: what a reader can count on. One that is damaged is no
    /// reason to lose sight of the rest.
    pub fn last_sound(&self, store: &Store, trust: &Trust) -> Result<Option<(Fetched, Timestamp)>> {
        let newest = self.timelines.last_key_value();
        newest.map_or(Ok(None), |(_, spans)| self.last_sound_of(spans, store, trust))
    }

    /// The same of the newest timeline that has one: of one of which nothing verifies the earlier ones can be read all the same. Whoever writes on
    /// must not go on there.
    pub(super) fn newest_sound(&self, store: &Store, trust: &Trust) -> Result<Option<(Fetched, Timestamp)>> {
        for spans in self.timelines.values().rev() {
            if let Some(sound) = self.last_sound_of(spans, store, trust)? {
                return Ok(Some(sound));
            }
        }
        Ok(None)
    }

    fn last_sound_of(&self, spans: &[Span], store: &Store, trust: &Trust) -> Result<Option<(Fetched, Timestamp)>> {
        let mut spans: Vec<&Span> = spans.iter().collect();
        spans.sort_by_key(|s| std::cmp::Reverse(s.reaches()));
        for span in spans {
            match fetch(store, trust, &self.line.source, span) {
                Ok(fetched) => return Ok(Some((fetched, span.object.modified))),
                Err(e) if is_of_store(&e) => return Err(e),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// The object with which the newest timeline ends, as names tell.
    pub fn tail(&self, store: &Store, trust: &Trust) -> Result<Option<Fetched>> {
        let last = self.timelines.last_key_value().and_then(|(_, spans)| spans.iter().max_by_key(|s| s.reaches()));
        last.map(|last| fetch(store, trust, &self.line.source, last)).transpose()
    }
}
