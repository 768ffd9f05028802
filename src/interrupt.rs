//! The wish to stop, which a signal leaves for the whole process. Operations look at it wherever they begin the next piece of work.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Failure, Kind};

/// Set once, never taken back: the process is about to end.
static WISHED: AtomicBool = AtomicBool::new(false);
/// So often who pauses looks whether to stop.
const SLICE: Duration = Duration::from_millis(200);

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

/// Lets `length` go by, and fails as [`check`] does as soon as it is to stop.
pub fn pause(length: Duration, help: &str) -> anyhow::Result<()> {
    let until = Instant::now() + length;
    loop {
        check(help)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::kind_of;

    #[test]
    fn a_pause_ends_with_its_time_or_with_that_of_its_thread() {
        pause(Duration::from_millis(1), "").expect("nothing is to stop");
        let bound = deadline(Instant::now() + Duration::from_millis(1));
        let stopped =
            pause(Duration::from_secs(600), "nothing was changed").expect_err("the time of the thread is over");
        assert_eq!(kind_of(&stopped), Kind::Environment);
        drop(bound);
        pause(Duration::ZERO, "").expect("the bound is gone");
    }
}
