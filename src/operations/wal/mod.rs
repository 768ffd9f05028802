//! Continuous archiving: an engine's log into the repository, and back out of it. PostgreSQL's WAL unless a module says otherwise.

pub mod check;
pub mod get;
pub mod keep;
pub mod push;
pub mod receive;
pub mod recover;
pub mod replay;
pub mod replicate;
pub mod timeline;

use anyhow::{Context, Result};

use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::log::{Log, SealedStretch, Stretch, Window};
use crate::repository::series::Whole;
use crate::repository::snapshot::LogRange;

/// Bytes of a segment of the log, as its newest stretch says.
pub fn segment_size(log: &Log, identities: &[Identity]) -> Result<u64> {
    let newest = log.stretches.last().context("nothing of the log is stored")?;
    let sealed = SealedStretch::open(&newest.line, identities)?;
    sealed.facts["segment_size"].as_u64().context("the log does not say how large its segments are")
}

/// Whether the log of a window goes on where `range` ends. Positions alone do not tell which of several windows is meant, where the engine has no
/// name for what they count on: a server that was set back writes the same ones again.
pub fn goes_on_from(log: &Log, window: &Window, range: &LogRange) -> bool {
    let Some(id) = &range.id else {
        return has_timeline(log, window, range.timeline)
            && window.from.1 <= range.end
            && (range.end <= window.to.1 || range.timeline < window.to.0);
    };
    let stretches = &log.stretches[window.first..=window.last];
    let ends = stretches.iter().skip(1).map(|s| s.line.start).chain([window.to.1]);
    let mut named = stretches.iter().zip(ends).filter(|(s, _)| s.line.id.as_ref() == Some(id));
    window.from.1 <= range.end && named.any(|(s, end)| s.line.start <= range.end && range.end <= end)
}

/// Where the first complete snapshot ends that lies in the newest part of the log without a gap: from there on every moment can be reached, once
/// so much is stored.
pub fn base(log: &Log, whole: &Whole) -> Option<u64> {
    let last = log.stretches.len().checked_sub(1)?;
    let begun = |n: &usize| !log.stretches[*n].line.continues || *n == 0;
    let first = (0..=last).rev().find(begun)?;
    let stretches = &log.stretches[first..];
    let ends = stretches.iter().skip(1).map(|s| s.line.start.0).chain([u64::MAX]);
    let spans: Vec<_> = stretches.iter().zip(ends).collect();
    let complete = whole.snapshots().map(|(_, s)| s).filter(|s| s.outcome == Outcome::Complete);
    let ranges = complete.filter_map(|s| s.log.as_ref());
    let within = |range: &&LogRange| {
        let holds =
            |(s, end): &(&Stretch, u64)| s.line.id == range.id && (s.line.start.0..=*end).contains(&range.end.0);
        spans.iter().any(holds)
    };
    ranges.filter(within).map(|range| range.end.0).min()
}

/// Whether the window has bytes that `timeline` wrote, or its beginning.
pub fn has_timeline(log: &Log, window: &Window, timeline: u32) -> bool {
    let stretches = &log.stretches[window.first..=window.last];
    stretches.iter().any(|s| s.line.timeline == timeline || s.histories.contains_key(&timeline))
}
