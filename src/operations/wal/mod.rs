//! Continuous archiving: PostgreSQL's log into the repository, and back out of it.

pub mod check;
pub mod get;
pub mod keep;
pub mod push;
pub mod receive;
pub mod recover;
pub mod timeline;

use anyhow::{Context, Result};

use crate::repository::agefile::Identity;
use crate::repository::log::{Log, SealedStretch, Window};

/// Bytes of a segment of the log, as its newest stretch says.
pub fn segment_size(log: &Log, identities: &[Identity]) -> Result<u64> {
    let newest = log.stretches.last().context("nothing of the log is stored")?;
    let sealed = SealedStretch::open(&newest.line, identities)?;
    sealed.facts["segment_size"].as_u64().context("the log does not say how large its segments are")
}

/// Whether the window has bytes that `timeline` wrote, or its beginning.
pub fn has_timeline(log: &Log, window: &Window, timeline: u32) -> bool {
    let stretches = &log.stretches[window.first..=window.last];
    stretches.iter().any(|s| s.line.timeline == timeline || s.histories.contains_key(&timeline))
}
