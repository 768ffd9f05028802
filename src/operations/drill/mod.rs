//! A drill: a restore into scratch, the engine's own checks, a stopwatch, a signed report. It is the same restore as at 3 a.m.
//!
//! Cheaper levels read the repository without a restore; the dearest restores with stock tools alone. What is wrong with the backup is a report
//! that did not pass. What is wrong with the place (no room, no server program, no network) is an error of `Kind::Environment` and no report.

mod bounds;
mod cold;
mod drilled;
pub mod gameday;
mod isolation;
mod key;
mod levels;
mod mirror;
mod options;
mod point;
mod scope;
pub mod scratch;

pub use bounds::{Bounds, bounds};
pub use drilled::{Drilled, keys, note_phases};
pub use key::signer;
pub use options::Options;
pub use point::{Chosen, Point, choose};
pub use scratch::Scratch;

use anyhow::Result;

use super::Open;
pub use super::evidence::{DrillReport, Level};
use crate::child::watch::Watch;
use crate::repository::agefile::Identity;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};

/// Restores `snapshot` into scratch, checks it, and signs what was found. `Err`: the drill itself could not be carried out; a
/// snapshot that does not come back is a report that did not pass.
pub fn drill(
    open: &Open,
    identities: &[Identity],
    signer: &SigningKey,
    commit: &Commit,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<DrillReport> {
    let leftovers = scratch::sweep(&options.scratch, open.now());
    let scratch = Scratch::make(&options.scratch)?;
    let watch = Watch::begin(scratch.notes(), options.bounds)?;
    let drilled = Drilled::carry_out(open, identities, (commit, snapshot), scratch.path(), options);
    // Whatever came of it: what was ended from outside tells nothing.
    watch.check()?;
    drop(watch);
    let drilled = drilled?;
    let passed = drilled.checks.iter().all(|c| c.passed);
    let scratch_removed = if options.keep_failed && !passed {
        drop(scratch.keep());
        false
    } else {
        scratch.remove()
    };
    drilled.sign(open, signer, (commit, snapshot), options, (scratch_removed, leftovers))
}
