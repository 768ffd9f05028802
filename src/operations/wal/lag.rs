//! How far a stored log is behind its engine. What the engine has said of the end of its log, and when, is held against what is stored: an engine
//! that writes without pause is never wholly stored, and yet what it had a second ago is.

use jiff::Timestamp;
use std::collections::VecDeque;

use crate::operations::receiver::Event;

/// What the engine said and is not stored yet; while nothing can be stored, the newest of it stands for what came between.
const SAID_MAX: usize = 64;

/// What an engine has said of the end of its log.
#[derive(Debug, Default)]
pub struct Lag {
    said: VecDeque<(u64, Timestamp)>,
    end: u64,
    current: Option<Timestamp>,
}

impl Lag {
    /// The engine's log went up to `end` when the clock showed `at`.
    pub fn said(&mut self, end: u64, at: Timestamp) {
        self.end = self.end.max(end);
        if self.said.len() == SAID_MAX {
            self.said.pop_back();
        }
        self.said.push_back((end, at));
    }

    /// Where things stand, with everything before `stored` stored.
    pub fn stand(&mut self, stored: u64) -> Event {
        while let Some((_, at)) = self.said.front().copied().filter(|(end, _)| *end <= stored) {
            self.current = self.current.max(Some(at));
            self.said.pop_front();
        }
        Event::Lag { bytes: self.end.saturating_sub(stored), current: self.current }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn stand(lag: &mut Lag, stored: u64) -> (u64, Option<Timestamp>) {
        let Event::Lag { bytes, current } = lag.stand(stored) else { panic!("no lag") };
        (bytes, current)
    }

    #[test]
    fn what_the_engine_had_counts_once_it_is_stored_however_much_it_writes_on() {
        let mut lag = Lag::default();
        assert_eq!(stand(&mut lag, 0), (0, None));
        lag.said(100, at(1));
        assert_eq!(stand(&mut lag, 99), (1, None));
        lag.said(200, at(2));
        lag.said(300, at(3));
        assert_eq!(stand(&mut lag, 250), (50, Some(at(2))));
        // A clock that was set back takes nothing back.
        lag.said(300, at(1));
        assert_eq!(stand(&mut lag, 300), (0, Some(at(3))));
    }

    #[test]
    fn a_store_that_is_away_for_long_costs_no_memory() {
        let mut lag = Lag::default();
        for n in 1..10_000_i64 {
            lag.said(n.unsigned_abs(), at(n));
        }
        assert_eq!(lag.said.len(), SAID_MAX);
        assert_eq!(stand(&mut lag, 10).1, Some(at(10)));
        assert_eq!(stand(&mut lag, 9_999), (0, Some(at(9_999))));
    }
}
