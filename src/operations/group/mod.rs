//! Groups: several sources of one application, backed up at one moment and brought back to it.
//!
//! * [`backup`]: all members read side by side, their points fixed together; the common point is written last.
//! * [`find`]: which common point a restore or a drill takes, and whether all of it is there.
//! * [`look`]: how the groups stand, for those who watch.
//! * [`restore`]: all members below one directory, which appears in one step.

mod backup;
mod find;
mod look;
mod restore;

pub use backup::{GroupReport, MemberResult, MemberRun, OpenSource, Written, backup};
pub use find::{Found, Pick, Standing, Wholeness, broken_by, find};
pub use look::{Sight, look, look_at};
pub use restore::{GroupRestored, Request, restore};
