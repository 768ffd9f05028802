//! What has been received and not stored: bytes, when they came, and whether there is any data in them.

use jiff::Timestamp;
use std::time::{Duration, Instant};

use crate::repository::log::Mark;

/// Marks are at least this far apart, in milliseconds: so precise are points in time.
const MARK_EVERY: i64 = 100;
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const GETACK: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
/// So much talk is stored like data.
const QUIET_MAX: usize = 4096;

#[derive(Debug)]
pub struct Pending {
    /// Bytes of the stream before these.
    pub start: u64,
    pub bytes: Vec<u8>,
    pub marks: Vec<Mark>,
    /// When the first of [`Pending::marks`]' last tenth of a second came.
    marked: Option<Timestamp>,
    /// So many of the first bytes are on their way to the store.
    pub away: usize,
    /// When the first byte came that is not on its way; likewise the first with data.
    pub oldest: Option<Instant>,
    pub oldest_data: Option<Instant>,
    /// When the first byte of data came that is not stored.
    pub unsafe_since: Option<Instant>,
}

impl Pending {
    pub fn new(start: u64) -> Pending {
        Pending {
            start,
            bytes: Vec::new(),
            marks: Vec::new(),
            marked: None,
            away: 0,
            oldest: None,
            oldest_data: None,
            unsafe_since: None,
        }
    }

    /// Bytes of the stream before the end of these.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Takes bytes that have just come. Whether the server wants to hear of us.
    pub fn take(&mut self, bytes: &[u8], time: Timestamp) -> bool {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let now = Instant::now();
        self.oldest.get_or_insert(now);
        if self.oldest_data.is_none() && !is_quiet(&self.bytes[self.away..]) {
            self.oldest_data = Some(now);
            self.unsafe_since.get_or_insert(now);
        }
        self.mark(time);
        let from = before.saturating_sub(GETACK.len());
        self.bytes[from..].windows(GETACK.len()).any(|w| w == GETACK)
    }

    /// Notes the time of the last byte.
    fn mark(&mut self, time: Timestamp) {
        let position = self.end();
        // A clock that was set back must not put later bytes before earlier ones.
        let time = self.marks.last().map_or(time, |last| last.time.max(time));
        let within = self.marked.is_some_and(|begun| time.as_millisecond() - begun.as_millisecond() < MARK_EVERY);
        match self.marks.last_mut().filter(|_| within) {
            Some(last) if last.position > self.start + self.away as u64 => *last = Mark { position, time },
            _ => {
                self.marks.push(Mark { position, time });
                self.marked = Some(time);
            }
        }
    }

    /// The first bytes, at most `most`, which are on their way from now on, with when they came.
    pub fn send(&mut self, most: usize, now: Timestamp) -> (Vec<u8>, Vec<Mark>) {
        self.away = self.bytes.len().min(most);
        let end = self.start + self.away as u64;
        let mut marks: Vec<Mark> = self.marks.iter().take_while(|mark| mark.position <= end).copied().collect();
        if marks.last().is_none_or(|mark| mark.position < end) {
            // They end within what came at once.
            let time = self.marks.get(marks.len()).map_or(now, |mark| mark.time);
            marks.push(Mark { position: end, time });
        }
        self.note_rest();
        (self.bytes[..self.away].to_vec(), marks)
    }

    /// Everything before `position` is stored.
    pub fn stored(&mut self, position: u64) {
        let length = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.drain(..length);
        self.start += length as u64;
        let start = self.start;
        self.marks.retain(|mark| mark.position > start);
        self.away = 0;
        self.unsafe_since = self.oldest_data;
    }

    /// What was on its way is not, and has to be sent again.
    pub fn come_back(&mut self) {
        self.away = 0;
        self.oldest = self.oldest.or(self.unsafe_since).or((!self.bytes.is_empty()).then(Instant::now));
        self.oldest_data = self.unsafe_since;
    }

    fn note_rest(&mut self) {
        let rest = &self.bytes[self.away..];
        let now = Instant::now();
        self.oldest = (!rest.is_empty()).then_some(now);
        self.oldest_data = (!is_quiet(rest)).then_some(now);
    }

    /// How long until the bytes that are not on their way are to be stored; `None` where there are none.
    pub fn due_in(&self, data: Duration, quiet: Duration, many: usize) -> Option<Duration> {
        if self.bytes.len() - self.away >= many {
            return Some(Duration::ZERO);
        }
        let of_data = self.oldest_data.map(|since| data.saturating_sub(since.elapsed()));
        of_data.or(self.oldest.map(|since| quiet.saturating_sub(since.elapsed())))
    }
}

/// Whether there is no data in these bytes. What begins within a command counts as data.
fn is_quiet(mut bytes: &[u8]) -> bool {
    if bytes.len() > QUIET_MAX {
        return false;
    }
    while let Some(rest) = [PING, GETACK, b"\n"].iter().find_map(|talk| bytes.strip_prefix(*talk)) {
        bytes = rest;
    }
    // The rest of it may not have come yet.
    bytes.is_empty() || PING.starts_with(bytes) || GETACK.starts_with(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_763_000_000_000 + millis).unwrap()
    }

    fn marks(pending: &[Mark]) -> Vec<(u64, i64)> {
        pending.iter().map(|m| (m.position, m.time.as_millisecond() - 1_763_000_000_000)).collect()
    }

    #[test]
    fn bytes_have_the_time_at_which_they_came() {
        let mut pending = Pending::new(100);
        for (n, millis) in [(10, 0), (10, 50), (10, 99), (10, 100), (10, 400), (10, 350)] {
            pending.take(&vec![b'x'; n], at(millis));
        }
        assert_eq!(marks(&pending.marks), [(130, 99), (140, 100), (160, 400)]);
        let (bytes, sent) = pending.send(45, at(500));
        assert_eq!((bytes.len(), marks(&sent)), (45, vec![(130, 99), (140, 100), (145, 400)]));
        pending.take(b"y", at(420));
        pending.stored(145);
        assert_eq!((pending.start, pending.end(), pending.away), (145, 161, 0));
        let (bytes, sent) = pending.send(100, at(500));
        assert_eq!((bytes.len(), marks(&sent)), (16, vec![(161, 420)]));
    }

    #[test]
    fn talk_is_no_data_and_a_question_is_heard() {
        let mut pending = Pending::new(0);
        assert!(!pending.take(&PING[..5], at(0)) && !pending.take(&PING[5..], at(0)));
        assert!(pending.oldest.is_some() && pending.oldest_data.is_none());
        assert!(!pending.take(&GETACK[..30], at(0)) && pending.take(&GETACK[30..], at(0)));
        assert!(pending.oldest_data.is_none() && pending.unsafe_since.is_none());
        pending.take(b"*3\r\n$3\r\nSET\r\n", at(0));
        assert!(pending.oldest_data.is_some() && pending.unsafe_since.is_some());
        let second = Duration::from_secs(1);
        assert!(pending.due_in(Duration::ZERO, second, 1000).unwrap().is_zero());
        assert!(
            pending.due_in(second, second, 10).unwrap().is_zero()
                && !pending.due_in(second, second, 1000).unwrap().is_zero()
        );
        pending.send(1000, at(1));
        assert!(pending.due_in(second, second, 10).is_none() && pending.unsafe_since.is_some());
        pending.come_back();
        assert!(pending.due_in(second, second, 10).is_some());
        pending.send(1000, at(1));
        pending.stored(pending.end());
        assert!(pending.unsafe_since.is_none());
    }
}
