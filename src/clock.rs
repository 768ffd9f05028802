//! The clock is an argument: whoever needs the time takes a `&dyn Clock`, so that tests can move it.

use jiff::Timestamp;

/// Wall-clock time. Durations are measured with `std::time::Instant`, never with this.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
