//! The wish to stop, which a signal leaves for the whole process. Operations look at it wherever they begin the next piece of work.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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

thread_local! {
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A bound on what this thread does, until dropped.
#[must_use]
pub struct Deadline(());

/// From `until` on [`check`] fails on this thread.
pub fn deadline(until: Instant) -> Deadline {
    UNTIL.set(Some(until));
    Deadline(())
}

impl Drop for Deadline {
    fn drop(&mut self) {
        UNTIL.set(None);
    }
}

/// Fails with [`Kind::Interrupted`] once a stop is wished, and with [`Kind::Environment`] once the time of this thread is over. `help` says what
/// that means for the data, and what the next run does.
pub fn check(help: &str) -> anyhow::Result<()> {
    if UNTIL.get().is_some_and(|until| Instant::now() >= until) {
        return Err(Failure::new(Kind::Environment, "the time for it is over", help));
    }
    if is_wished() { Err(Failure::new(Kind::Interrupted, "interrupted by a signal", help)) } else { Ok(()) }
}
