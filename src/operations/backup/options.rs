//! How a backup is to be made.

use jiff::SignedDuration;
use std::time::Duration;

use crate::limits::{self, CHECKPOINT_EVERY, PACKS_IN_MEMORY};
use crate::operations::prune;
use crate::pipeline::SpoolPlace;
use crate::progress::Progress;
use crate::source::canary::Stated;

#[derive(Debug, Clone)]
pub struct Options {
    /// Read every byte.
    pub full: bool,
    /// Refer to nothing earlier.
    pub baseline: bool,
    /// A new baseline is due when the last is older than this.
    pub baseline_every: SignedDuration,
    /// Continue a series that another key has written.
    pub adopt: bool,
    /// Take up a source again that was retired.
    pub revive: bool,
    /// Go on when more than 1 % of the packs are missing.
    pub heal: bool,
    /// A great change against the newest snapshot is meant: see [`crate::source::Before`].
    pub accept_change: bool,
    /// zstd's.
    pub level: Option<i32>,
    pub workers: usize,
    /// Packs in memory at once, those of the workers among them.
    pub packs: usize,
    /// Where packs wait that the store does not take as fast as the source is read. Without, the source waits.
    pub spool: Option<SpoolPlace>,
    /// An interrupted run stores again at most what it read in this time, or in a sixteenth of its own where entries come in no order.
    pub checkpoint_every: Duration,
    /// Prune's: what an interrupted run has left is taken over only while it is younger than half of it.
    pub grace: SignedDuration,
    /// The canary that is due in the source: the snapshot says so, and a drill asks for it.
    pub canary: Option<Stated>,
    /// Counts the bytes read or passed over.
    pub progress: Progress,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            full: false,
            baseline: false,
            baseline_every: SignedDuration::from_hours(30 * 24),
            adopt: false,
            revive: false,
            heal: false,
            accept_change: false,
            level: None,
            workers: limits::workers(),
            packs: PACKS_IN_MEMORY,
            spool: None,
            checkpoint_every: CHECKPOINT_EVERY,
            grace: prune::GRACE,
            canary: None,
            progress: Progress::default(),
        }
    }
}
