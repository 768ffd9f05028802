//! What is listed of a log and cannot be used: nobody may take it for the end of the log.

use anyhow::Result;
use std::collections::BTreeMap;

use super::listing::{Log, Span, Window};
use super::stretch::Stretch;
use crate::bridge::Store;
use crate::limits::LOG_UNIT_MAX;
use crate::repository::layout;
use crate::repository::snapshot::LogRange;
use crate::repository::trust::Trust;
use crate::storage::{self, Key};

/// Pieces and runs of a stretch, none of which can be used.
#[derive(Debug, Clone)]
pub struct Lost {
    pub stretch: u64,
    /// The object that keeps them from being used, and why.
    pub key: Key,
    pub why: String,
    /// How the store refused that object; `None`: it is at fault itself.
    pub refused: Option<storage::Kind>,
    /// The engine's name of what positions count on, where it has one and it is known.
    id: Option<String>,
    /// How far they may reach, by timeline.
    reaches: BTreeMap<u32, u64>,
}

/// What there is of a log: the parts without a gap, and what cannot be used.
#[derive(Default)]
pub struct Survey {
    pub windows: Vec<Window>,
    pub lost: Vec<Lost>,
}

impl Lost {
    /// Whether some of it may follow where the range of a snapshot ends, on timelines up to `up_to`.
    pub fn may_follow(&self, range: &LogRange, up_to: u32) -> bool {
        // Where positions have names, only those of one name can be compared.
        let comparable = range.id.is_none() || range.id == self.id;
        self.reaches.range(..=up_to).any(|(_, reach)| !comparable || *reach > range.end.0)
    }

    /// Whether it may hold something of `timeline`, as that goes on at `position`.
    pub fn may_hold(&self, timeline: u32, position: u64) -> bool {
        self.reaches.range(..=timeline).any(|(_, reach)| *reach > position)
    }

    /// Whether something of `timeline` or of one that came after it is in it.
    pub fn has_from(&self, timeline: u32) -> bool {
        self.reaches.range(timeline..).next().is_some()
    }

    /// In a sentence.
    pub fn told(&self) -> String {
        match self.refused {
            Some(_) => format!("the store does not give {}: {}", self.key, self.why),
            None => format!("{} {}", self.key, self.why),
        }
    }
}

impl Log {
    /// The windows, and what cannot be used.
    pub fn survey(&self, store: &Store, trust: &Trust) -> Result<Survey> {
        let mut survey = self.sound(store, trust)?;
        let unusable = self.unusable.iter().filter_map(|(n, timelines)| self.without_record(*n, timelines));
        survey.lost.extend(unusable);
        survey.lost.sort_by_key(|lost| lost.stretch);
        Ok(survey)
    }

    /// What lies in a stretch whose record, or the history of one of whose timelines, cannot be used.
    fn without_record(&self, n: u64, timelines: &BTreeMap<u32, Vec<Span>>) -> Option<Lost> {
        let of = |key: &Key| layout::parse_log(&self.source, key).is_some_and(|place| place.stretch() == n);
        let (key, why) = self.faults.iter().find(|(key, _)| of(key))?;
        let refused = self.refused.get(key).copied();
        let why = if refused.is_some() { why.clone() } else { format!("does not verify: {why}") };
        let unit = LOG_UNIT_MAX as u64;
        let reaches = reaches(timelines.iter(), unit);
        (!reaches.is_empty()).then(|| Lost { stretch: n, key: key.clone(), why, refused, id: None, reaches })
    }
}

/// The timelines of a stretch from `from` on, none of whose objects verifies.
pub(super) fn of_stretch(stretch: &Stretch, from: u32) -> Option<Lost> {
    let timelines = || stretch.timelines.range(from..);
    let key = timelines().flat_map(|(_, spans)| spans).max_by_key(|span| span.reaches())?.object.key.clone();
    let objects: usize = timelines().map(|(_, spans)| spans.len()).sum();
    Some(Lost {
        stretch: stretch.line.n,
        key,
        why: format!("does not verify, nor does anything else of what is stored there ({objects} in all)"),
        refused: None,
        id: stretch.line.id.clone(),
        reaches: reaches(timelines(), stretch.line.unit),
    })
}

fn reaches<'a>(timelines: impl Iterator<Item = (&'a u32, &'a Vec<Span>)>, unit: u64) -> BTreeMap<u32, u64> {
    // How long a piece is its name does not tell; it crosses no unit.
    let reach = |span: &Span| span.end.unwrap_or((span.start / unit + 1).saturating_mul(unit));
    timelines.filter_map(|(t, spans)| Some((*t, spans.iter().map(reach).max()?))).collect()
}
