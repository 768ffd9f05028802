//! How far a stored log is behind its engine. What the engine has said of the end of its log, and when, is held against what is stored: an engine
//! that writes without pause is never wholly stored, and yet what it had a second ago is.

use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;

use crate::operations::receiver::Event;

/// What the engine said and is not stored yet; while nothing can be stored, the newest of it stands for what came between.
const SAID_MAX: usize = 64;

/// A clock is not set back by less; two that differ a little are no clock set back.
const CLOCK_BACK: SignedDuration = SignedDuration::from_secs(60);

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
        // It has said before that it goes further: this is how far it was sent.
        if end < self.end {
            return;
        }
        self.end = end;
        let last = self.said.back().map(|(_, last)| *last).max(self.current);
        if last.is_some_and(|last| last.duration_since(at) > CLOCK_BACK) {
            // The clock was ahead, and is right now: what was said by it would hold as current what is not.
            self.said.clear();
            self.current = None;
        }
        let known = self.said.pop_back_if(|(last, _)| *last == end).map_or(at, |(_, known)| known.max(at));
        if self.said.len() == SAID_MAX {
            self.said.pop_back();
        }
        self.said.push_back((end, known));
    }

    /// The newest moment of which everything that the engine had then lies before `position`.
    pub fn current(&mut self, position: u64) -> Option<Timestamp> {
        while let Some((_, at)) = self.said.front().copied().filter(|(end, _)| *end <= position) {
            self.current = self.current.max(Some(at));
            self.said.pop_front();
        }
        self.current
    }

    /// What was said of an end at `end` or beyond does not count: the log went on elsewhere from there, nobody knows since when.
    pub fn left_at(&mut self, end: u64) {
        self.said.retain(|(said, _)| *said < end);
    }

    /// Where things stand, with everything before `stored` stored.
    pub fn stand(&mut self, stored: u64) -> Event {
        let current = self.current(stored);
        Event::Lag { bytes: self.end.saturating_sub(stored), current }
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
        // A clock that goes back a little takes nothing back; one that was far ahead has said nothing.
        lag.said(300, at(1));
        assert_eq!(stand(&mut lag, 300), (0, Some(at(3))));
        lag.said(300, at(100_000));
        assert_eq!(stand(&mut lag, 300), (0, Some(at(100_000))));
        lag.said(400, at(4));
        assert_eq!(stand(&mut lag, 300), (100, None));
        assert_eq!(stand(&mut lag, 400), (0, Some(at(4))));
    }

    #[test]
    fn what_is_caught_up_on_is_as_old_as_it_is_and_not_as_its_sending() {
        let mut lag = Lag::default();
        // Six hours are to be caught up on; each message says how far the engine is by now.
        for n in 1..=100 {
            lag.said(1000, at(n));
            assert_eq!(lag.current(u64::try_from(n).unwrap()), None);
        }
        lag.said(1100, at(101));
        assert_eq!(lag.current(999), None);
        assert_eq!(lag.current(1000), Some(at(100)));
        assert_eq!(lag.current(1100), Some(at(101)));
    }

    /// A piece that is cut while more has come is as old as its own end.
    #[test]
    fn each_position_is_asked_for_by_itself() {
        let mut lag = Lag::default();
        for (end, seconds) in [(100, 1), (200, 2), (300, 3)] {
            lag.said(end, at(seconds));
        }
        assert_eq!((lag.current(150), lag.current(250), lag.current(300)), (Some(at(1)), Some(at(2)), Some(at(3))));
        // What only tells how far it was sent is no news.
        lag.said(500, at(4));
        lag.said(400, at(5));
        assert_eq!((lag.current(499), lag.current(500)), (Some(at(3)), Some(at(4))));
        // A timeline that was left says for ever that it ends there.
        lag.said(600, at(6));
        lag.said(700, at(7));
        lag.left_at(700);
        assert_eq!(lag.current(700), Some(at(6)));
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
