//! What a drill may use where nothing else is said.

use jiff::SignedDuration;
use std::time::Duration;

use crate::child::process::memory_available;
pub use crate::child::watch::Bounds;

/// Longer than any restore that is worth waiting for in a rehearsal.
const TIME: Duration = Duration::from_secs(24 * 3600);
/// The part of the memory that is free at the start: the live systems need some, too.
const SHARE: (u64, u64) = (3, 4);

/// The bounds asked for, or the usual ones: a day, and three quarters of the memory that is free now.
pub fn bounds(time: Option<SignedDuration>, memory: Option<u64>) -> Bounds {
    let free = || memory_available().map_or(u64::MAX, |free| free / SHARE.1 * SHARE.0);
    Bounds { time: time.map_or(TIME, |time| time.unsigned_abs()), memory: memory.unwrap_or_else(free) }
}
