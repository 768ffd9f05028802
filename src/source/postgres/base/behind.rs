//! How long ago the server may have sent what is only read now: what lies in the buffers of both sockets and between them.

use std::collections::VecDeque;
use std::time::Instant;

/// More than Linux lets two sockets of a connection hold, unless somebody has set them far larger (tcp_rmem and tcp_wmem, 6 and 4 MiB).
const BUFFERED: u64 = 32 << 20;
/// Between two notes.
const STEP: u64 = 1 << 20;

/// When how much had been read: at most some 32 notes.
pub struct Behind {
    read: u64,
    notes: VecDeque<(u64, Instant)>,
}

impl Behind {
    pub fn begin(now: Instant) -> Behind {
        Behind { read: 0, notes: VecDeque::from([(0, now)]) }
    }

    pub fn note(&mut self, bytes: usize, now: Instant) {
        self.read += bytes as u64;
        if self.notes.back().is_some_and(|(at, _)| self.read >= at + STEP) {
            self.notes.push_back((self.read, now));
        }
        while self.notes.get(1).is_some_and(|(at, _)| at + BUFFERED <= self.read) {
            self.notes.pop_front();
        }
    }

    /// What is read now was sent after this, or at it.
    pub fn earliest(&self) -> Option<Instant> {
        self.notes.front().map(|(_, when)| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_may_be_buffered_is_behind() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let mut behind = Behind::begin(began);
        for second in 1..=100 {
            behind.note(STEP as usize, at(second));
            assert!(behind.notes.len() <= 34, "{}", behind.notes.len());
        }
        assert_eq!(behind.earliest(), Some(at(68)));
        let mut small = Behind::begin(began);
        small.note(1000, at(5));
        assert_eq!(small.earliest(), Some(began));
    }
}
