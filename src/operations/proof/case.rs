//! What a proof is given.

use std::path::Path;

use crate::operations::Open;
use crate::operations::moment::Moment;
use crate::report::Stopwatch;
use crate::repository::agefile::Identity;
use crate::repository::snapshot::Snapshot;
use crate::source::Settings;

/// A restored copy to be proven.
pub struct Case<'a> {
    pub open: &'a Open,
    pub identities: &'a [Identity],
    pub snapshot: &'a Snapshot,
    /// Up to where the log after it is replayed; without it, as far as it goes.
    pub moment: Option<Moment>,
    /// What was restored. Checked against the snapshot before any engine may touch it.
    pub copy: &'a Path,
    /// A directory for sockets, logs and further copies; it is removed with the copy.
    pub scratch: &'a Path,
    /// Engines note here what is not a check: `engine start`, `replay`. The rest of the proof counts as `checks`.
    pub times: &'a Stopwatch,
    /// The operator's checks, programs and the like; empty where the configuration is not at hand.
    pub settings: &'a Settings,
}
