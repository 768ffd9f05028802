//! Continuous archiving: an engine's log into the repository, and back out of it. PostgreSQL's WAL unless a module says otherwise.

pub mod behind;
pub mod check;
pub mod commands;
pub mod get;
pub mod keep;
mod lag;
pub mod push;
pub mod receive;
pub mod recover;
pub mod replay;
pub mod replicate;
pub mod timeline;

use anyhow::{Context, Result};

use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::log::{Log, Position, SealedStretch, Stretch, Window};
use crate::repository::series::Whole;
use crate::repository::snapshot::LogRange;

/// Bytes of a segment of the log, as its newest stretch says.
pub fn segment_size(log: &Log, identities: &[Identity]) -> Result<u64> {
    let newest = log.stretches.last().context("nothing of the log is stored")?;
    let sealed = SealedStretch::open(&newest.line, identities)?;
    sealed.facts["segment_size"].as_u64().context("the log does not say how large its segments are")
}

/// Stretches that follow each other, as indices into [`Log::stretches`]; and where they begin and end.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub first: usize,
    pub last: usize,
    pub from: Position,
    pub to: (u32, Position),
}

impl From<&Window> for Part {
    fn from(window: &Window) -> Part {
        Part { first: window.first, last: window.last, from: window.from.1, to: window.to }
    }
}

/// Whether the log of a part goes on where `range` ends. Positions alone do not tell which of several parts is meant, where the engine has no
/// name for what they count on: a server that was set back writes the same ones again.
pub fn goes_on_from(log: &Log, part: &Part, range: &LogRange) -> bool {
    let Some(id) = &range.id else {
        return has_timeline(log, part, range.timeline)
            && range.timeline <= part.to.0
            && part.from <= range.end
            && (range.end <= part.to.1 || range.timeline < part.to.0);
    };
    let stretches = &log.stretches[part.first..=part.last];
    let ends = stretches.iter().skip(1).map(|s| s.line.start).chain([part.to.1]);
    let mut named = stretches.iter().zip(ends).filter(|(s, _)| s.line.id.as_ref() == Some(id));
    part.from <= range.end && named.any(|(s, end)| s.line.start <= range.end && range.end <= end)
}

/// Where the first complete snapshot ends that lies in the newest part of the log without a gap: from there on every moment can be reached, once
/// so much is stored.
pub fn base(log: &Log, whole: &Whole) -> Option<u64> {
    let complete = whole.snapshots().map(|(_, s)| s).filter(|s| s.outcome == Outcome::Complete);
    let ranges = complete.filter_map(|s| s.log.as_ref());
    ranges.filter(|range| lies_in_the_newest_part(log, range)).map(|range| range.end.0).min()
}

/// Whether the range of a snapshot ends in the newest part of the log without a gap, where positions have a name: also where nothing is stored of
/// it so far.
pub fn lies_in_the_newest_part(log: &Log, range: &LogRange) -> bool {
    let begun = |s: &Stretch| !s.line.continues;
    let first = log.stretches.iter().rposition(begun).unwrap_or(0);
    let stretches = &log.stretches[first..];
    let ends = stretches.iter().skip(1).map(|s| s.line.start.0).chain([u64::MAX]);
    let holds = |(s, end): (&Stretch, u64)| s.line.id == range.id && (s.line.start.0..=end).contains(&range.end.0);
    range.id.is_some() && stretches.iter().zip(ends).any(holds)
}

/// Whether the part has bytes that `timeline` wrote, or its beginning.
pub fn has_timeline(log: &Log, part: &Part, timeline: u32) -> bool {
    let stretches = &log.stretches[part.first..=part.last];
    stretches.iter().any(|s| s.line.timeline == timeline || s.histories.contains_key(&timeline))
}
