//! What has come over a connection and is not yet taken: bytes, and the messages among them.

use anyhow::{Result, ensure};
use std::io::{self, Read};
use std::time::Duration;

use crate::net::Stream;

/// Longest message that is taken, in bytes. A server sends at most 128 KiB of WAL and 64 KiB of a base backup at once.
const MESSAGE_MAX: usize = 16 << 20;
/// Bytes read from the connection at once.
const READ_BYTES: usize = 256 << 10;

#[derive(Default)]
pub struct Received {
    /// `bytes[at..end]` is not yet taken; what lies behind is room, zeroed once.
    bytes: Vec<u8>,
    at: usize,
    end: usize,
    /// The message taken last: `bytes[body.0..body.1]`.
    body: (usize, usize),
    /// The socket's own bound of a read.
    bound: Option<Duration>,
}

impl Received {
    /// The contents of the message taken last.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body.0..self.body.1]
    }

    /// Takes the next whole message, if there is one; gives its type.
    pub fn take(&mut self) -> Result<Option<u8>> {
        let waiting = &self.bytes[self.at..self.end];
        let Some((&tag, rest)) = waiting.split_first() else { return Ok(None) };
        let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        ensure!((4..=MESSAGE_MAX).contains(&length), "the server sent a message of {length} bytes");
        if rest.len() < length {
            return Ok(None);
        }
        self.body = (self.at + 5, self.at + 1 + length);
        self.at += 1 + length;
        Ok(Some(tag))
    }

    /// Reads more, for at most about `wait`; gives how many bytes. The message taken last is gone.
    pub fn fill(&mut self, stream: &mut Stream, wait: Duration) -> io::Result<usize> {
        self.bytes.copy_within(self.at..self.end, 0);
        (self.at, self.end, self.body) = (0, self.end - self.at, (0, 0));
        if self.bytes.len() < self.end + READ_BYTES {
            self.bytes.resize(self.end + READ_BYTES, 0);
        }
        self.set_bound(stream, wait)?;
        let n = stream.read(&mut self.bytes[self.end..])?;
        self.end += n;
        Ok(n)
    }

    /// A long wait may become a second longer: then most reads need not set it.
    fn set_bound(&mut self, stream: &Stream, wait: Duration) -> io::Result<()> {
        let bound = match wait.as_secs() {
            0..10 => wait.max(Duration::from_millis(1)),
            seconds => Duration::from_secs(seconds + 1),
        };
        if self.bound != Some(bound) {
            stream.set_read_timeout(Some(bound))?;
            self.bound = Some(bound);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    const WAIT: Duration = Duration::from_secs(30);

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::Unix(ours), theirs)
    }

    /// However the bytes are cut, and whether a message is longer than a read or many fit into one.
    #[test]
    fn messages_come_whole_and_in_order() {
        let (mut stream, mut server) = pair();
        let bodies: Vec<Vec<u8>> = [0, 1, 3, READ_BYTES, 5, 2 * READ_BYTES + 7, 0, 8000]
            .iter()
            .map(|n| (0..*n).map(|b| b as u8).collect())
            .collect();
        let all: Vec<u8> = bodies.iter().zip(b'a'..).flat_map(|(body, tag)| message(tag, body)).collect();
        let sending = thread::spawn(move || {
            let (first, rest) = all.split_at(30);
            first.iter().for_each(|byte| server.write_all(&[*byte]).unwrap());
            rest.chunks(8191).for_each(|piece| server.write_all(piece).unwrap());
        });
        let mut received = Received::default();
        for (body, tag) in bodies.iter().zip(b'a'..) {
            while received.take().unwrap().inspect(|taken| assert_eq!(*taken, tag)).is_none() {
                assert!(
                    received.fill(&mut stream, WAIT).unwrap() > 0,
                    "the bytes end before message {}",
                    char::from(tag)
                );
            }
            assert!(received.body() == body, "message {} is not what was sent", char::from(tag));
        }
        sending.join().unwrap();
        assert_eq!(received.fill(&mut stream, WAIT).unwrap(), 0, "nothing is left");
    }

    #[test]
    fn a_wait_ends_and_nothing_is_lost_by_it() {
        let (mut stream, mut server) = pair();
        let mut received = Received::default();
        server.write_all(&message(b'd', b"half")[..7]).unwrap();
        received.fill(&mut stream, WAIT).unwrap();
        let late = received.fill(&mut stream, Duration::ZERO).unwrap_err();
        assert!(matches!(late.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{late}");
        assert_eq!(received.take().unwrap(), None);
        server.write_all(b"lf").unwrap();
        received.fill(&mut stream, WAIT).unwrap();
        assert_eq!(received.take().unwrap(), Some(b'd'));
        assert_eq!(received.body(), b"half");
    }

    #[test]
    fn a_length_that_no_server_sends_is_an_error() {
        for length in [0, 3, u32::try_from(MESSAGE_MAX).unwrap() + 1, u32::MAX] {
            let (mut stream, mut server) = pair();
            let mut received = Received::default();
            server.write_all(&[&b"d"[..], &length.to_be_bytes()].concat()).unwrap();
            received.fill(&mut stream, WAIT).unwrap();
            assert!(received.take().is_err(), "a message of {length} bytes is taken");
        }
    }
}
