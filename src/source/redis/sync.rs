//! A full sync over the wire: the server forks, and its child sends the data set as an RDB file, as to a new replica. Nothing touches the
//! server's disk where it syncs diskless, which is the default since Redis 7.
//!
//! ```text
//! REPLCONF capa eof           we take a stream that ends with a mark, so the server need not write a file first
//! REPLCONF rdb-only 1         (Redis 6.2) end after the RDB: otherwise the server piles up what comes after it for us
//! REPLCONF version x.y.z      (Valkey 8.1) without it Valkey 9 sends RDB 11, and fails if a hash has fields that expire
//! SYNC
//! \n \n \n …                  signs of life while the fork is prepared
//! $1234\r\n …                 so many bytes, or
//! $EOF:<mark>\r\n … <mark>    bytes until a mark of 40 characters, which is no part of the file
//! ```
//! We never send `REPLCONF ACK`, so the server sends nothing after the mark.

use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

use super::connection::Connection;
use super::refusal::refused;

const MARK: usize = 40;

/// The bytes of an RDB file on their way from the server.
pub struct Payload<R> {
    from: R,
    end: End,
    /// Received and not delivered: up to [`MARK`] bytes that may be the mark. At most one read and a mark.
    held: Vec<u8>,
    done: bool,
}

enum End {
    /// So many bytes are to come.
    After(u64),
    Mark([u8; MARK]),
}

/// Asks for a full sync, and waits until the file begins. `version` is what a replica of this server would call itself.
pub fn begin(mut connection: Connection, version: &str) -> Result<Payload<Connection>> {
    // A server that does not know one of these does without; SYNC tells whether this user may.
    connection.try_command(&["REPLCONF", "capa", "eof"])?;
    connection.try_command(&["REPLCONF", "rdb-only", "1"])?;
    connection.try_command(&["REPLCONF", "version", version])?;
    connection.send(&[b"SYNC"])?;
    loop {
        let line = connection.line().with_context(|| {
            format!("{} ended the full sync before it began; its log says why", connection.endpoint)
        })?;
        match line.split_at_checked(1) {
            None => {}
            Some(("$", rest)) => return Payload::new(connection, rest),
            Some(("-", said)) => return Err(refused(&connection.endpoint, said)),
            Some(_) => bail!("{} answers SYNC with {line:?}", connection.endpoint),
        }
    }
}

impl<R: Read> Payload<R> {
    /// `announced` is what follows the `$`.
    pub fn new(from: R, announced: &str) -> Result<Payload<R>> {
        let end = match announced.strip_prefix("EOF:") {
            Some(mark) => End::Mark(mark.as_bytes().try_into().context("the mark of a full sync has 40 characters")?),
            None => End::After(announced.parse().context("read the length of a full sync")?),
        };
        Ok(Payload { from, end, held: Vec::new(), done: false })
    }

    /// Whether the server forks for whoever has asked by then, and for nobody after: no file that it had begun before.
    pub fn is_diskless(&self) -> bool {
        matches!(self.end, End::Mark(_))
    }

    /// Appends some bytes of the file to `to`: at least one, none at the end that was announced. An end that was not announced is an error.
    pub fn read_some(&mut self, to: &mut Vec<u8>, most: usize) -> Result<usize> {
        let before = to.len();
        while !self.done && to.len() == before {
            let room = match self.end {
                End::After(0) => {
                    self.done = true;
                    break;
                }
                End::After(left) => usize::try_from(left).unwrap_or(usize::MAX).min(most),
                End::Mark(_) => most,
            };
            let old = self.held.len();
            self.held.resize(old + room, 0);
            let n = self.from.read(&mut self.held[old..]).context("wait for the rest of a full sync");
            self.held.truncate(old + *n.as_ref().unwrap_or(&0));
            ensure!(n? > 0, "the connection ended within a full sync: the file is not whole");
            self.deliver(to);
        }
        Ok(to.len() - before)
    }

    fn deliver(&mut self, to: &mut Vec<u8>) {
        match &mut self.end {
            End::After(left) => {
                *left -= self.held.len() as u64;
                to.append(&mut self.held);
            }
            End::Mark(mark) => {
                self.done = self.held.ends_with(mark);
                let sure = self.held.len().saturating_sub(MARK);
                to.extend_from_slice(&self.held[..sure]);
                self.held.drain(..sure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives its bytes in pieces of these sizes, over and over.
    struct Pieces<'a>(&'a [u8], Vec<usize>, usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1[self.2 % self.1.len()].min(self.0.len()).min(buffer.len());
            self.2 += 1;
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn all(bytes: &[u8], pieces: Vec<usize>, announced: &str) -> Result<Vec<u8>> {
        let mut payload = Payload::new(Pieces(bytes, pieces, 0), announced)?;
        let mut out = Vec::new();
        while payload.read_some(&mut out, 100)? > 0 {}
        assert_eq!(payload.read_some(&mut out, 100)?, 0);
        Ok(out)
    }

    proptest! {
        #[test]
        fn the_mark_is_found_however_reads_are_split(
            file in proptest::collection::vec(any::<u8>(), 0..300),
            pieces in proptest::collection::vec(1usize..60, 1..8),
            cut in 1usize..40,
        ) {
            let mark = "0123456789abcdef0123456789abcdef01234567";
            let sent = [&file, mark.as_bytes()].concat();
            let announced = format!("EOF:{mark}");
            prop_assert_eq!(all(&sent, pieces.clone(), &announced).unwrap(), file.clone());
            prop_assert!(all(&sent[..sent.len() - cut], pieces.clone(), &announced).is_err());
            let mut more = file.clone();
            more.extend(b"+OK\r\n");
            let length = file.len().to_string();
            prop_assert_eq!(all(&more, pieces.clone(), &length).unwrap(), file.clone());
            if !file.is_empty() {
                prop_assert!(all(&file[..file.len() - 1], pieces, &length).is_err());
            }
        }
    }

    #[test]
    fn a_wrong_announcement_is_refused() {
        for bad in ["", "x", "-1", "EOF:short", "EOF:"] {
            assert!(Payload::new(&b""[..], bad).is_err(), "{bad}");
        }
    }
}
