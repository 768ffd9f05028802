//! The wish to stop, which a signal leaves for the whole process. Operations look at it wherever they begin the next piece of work.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Failure, Kind};

/// Set once, never taken back: the process is about to end.
static WISHED: AtomicBool = AtomicBool::new(false);

/// Asks everything that runs in this process to stop.
pub fn wish() {
    WISHED.store(true, Ordering::SeqCst);
}

pub fn is_wished() -> bool {
    WISHED.load(Ordering::SeqCst)
}

/// Fails with [`Kind::Interrupted`] once a stop is wished. `help` says what that means for the data, and what the next run does.
pub fn check(help: &str) -> anyhow::Result<()> {
    if is_wished() { Err(Failure::new(Kind::Interrupted, "interrupted by a signal", help)) } else { Ok(()) }
}
