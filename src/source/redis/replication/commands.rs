//! The commands in a replication stream: where each begins and ends, and which of them matter to whoever stores or cuts it.
//!
//! The stream is what clients send, in RESP (`*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n`), one command after the other, whichever way the server made
//! them: expired keys come as `DEL`, scripts as what they wrote, transactions between `MULTI` and `EXEC`. Values may be 512 MiB long and more:
//! nothing but the first words of a command is kept here.

use anyhow::{Context, Result, bail, ensure};

/// Bytes kept of a command's first words.
const WORD_MAX: usize = 64;
/// The longest line that announces something, in bytes.
const LINE_MAX: usize = 32;

/// What a command is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Keeps the connection alive (`PING`), or an empty line.
    Alive,
    /// The server asks how far we are (`REPLCONF GETACK *`).
    GetAck,
    Select(u32),
    Multi,
    Exec,
    /// Anything that changes data.
    Write,
}

impl What {
    /// Whether it is talk between server and replica, and no data.
    pub fn is_talk(self) -> bool {
        matches!(self, What::Alive | What::GetAck)
    }
}

/// What a stretch of the stream is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of a command; whether they are data is known once it is [`Part::Named`]: what comes before that is at most some 200 bytes.
    Bytes(&'a [u8]),
    /// Bytes of a word of the command under way; they have been given as [`Part::Bytes`], too.
    Word(&'a [u8]),
    WordEnded,
    /// The command under way is such; for `SELECT` without its database.
    Named(What),
    /// The command ends here: bytes of the stream before this.
    Ended(What, u64),
}

/// Follows the stream from a position between two commands.
#[derive(Debug, Clone)]
pub struct Parser {
    at: u64,
    expect: Expect,
    line: Vec<u8>,
    /// Words of the command that are still to come.
    words: u64,
    /// The first two.
    first: Vec<Vec<u8>>,
    what: Option<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// `*2\r\n`
    Count,
    /// `$6\r\n`
    Length,
    /// So many bytes of a word.
    Word(u64),
    /// What ends a word: so many bytes of `\r\n`.
    End(u8),
}

impl Parser {
    pub fn new(at: u64) -> Parser {
        Parser { at, expect: Expect::Count, line: Vec::new(), words: 0, first: Vec::new(), what: None }
    }

    /// Bytes of the stream before where it stands.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Gives the parts of `bytes`, which follow what was fed before.
    pub fn feed(&mut self, bytes: &[u8], each: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = match self.expect {
                Expect::Count | Expect::Length => rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1),
                Expect::Word(left) => rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
                Expect::End(left) => rest.len().min(left.into()),
            };
            let (now, later) = rest.split_at(n);
            each(Part::Bytes(now))?;
            self.at += n as u64;
            self.take(now, each).with_context(|| {
                format!("the replication stream is not understood shortly before offset {}", self.at)
            })?;
            rest = later;
        }
        Ok(())
    }

    fn take(&mut self, now: &[u8], each: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        match self.expect {
            Expect::Count | Expect::Length => {
                self.line.extend_from_slice(now);
                ensure!(self.line.len() <= LINE_MAX, "an endless line");
                if !now.ends_with(b"\n") {
                    return Ok(());
                }
                let line = std::mem::take(&mut self.line);
                if self.expect == Expect::Count && (line == b"\n" || line == b"\r\n") {
                    each(Part::Named(What::Alive))?;
                    return each(Part::Ended(What::Alive, self.at));
                }
                let mark = if self.expect == Expect::Count { b'*' } else { b'$' };
                let number = announced(&line, mark)?;
                if self.expect == Expect::Length {
                    self.expect = if number == 0 { Expect::End(2) } else { Expect::Word(number) };
                    if self.first.len() < 2 {
                        self.first.push(Vec::new());
                    }
                    return Ok(());
                }
                ensure!(number > 0, "a command without a word");
                (self.words, self.expect) = (number, Expect::Length);
                self.first.clear();
                self.what = None;
                Ok(())
            }
            Expect::Word(left) => {
                each(Part::Word(now))?;
                let left = left - now.len() as u64;
                if self.what.is_none_or(|what| matches!(what, What::Select(_)))
                    && let Some(word) = self.first.last_mut()
                {
                    let room = WORD_MAX.saturating_sub(word.len()).min(now.len());
                    word.extend_from_slice(&now[..room]);
                }
                self.expect = if left == 0 { Expect::End(2) } else { Expect::Word(left) };
                Ok(())
            }
            Expect::End(left) => {
                let expected = &b"\r\n"[2 - usize::from(left)..][..now.len()];
                ensure!(now == expected, "a word is longer than it was announced");
                let left = left - now.len() as u8;
                self.expect = Expect::End(left);
                if left > 0 { Ok(()) } else { self.word_ended(each) }
            }
        }
    }

    fn word_ended(&mut self, each: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        self.words -= 1;
        each(Part::WordEnded)?;
        if self.what.is_none() {
            let what = named(&self.first[0]);
            self.what = Some(what);
            each(Part::Named(what))?;
        }
        self.expect = Expect::Length;
        if self.words > 0 {
            return Ok(());
        }
        self.expect = Expect::Count;
        let what = match self.what.unwrap_or(What::Write) {
            What::Select(_) => {
                let text = self.first.get(1).and_then(|word| std::str::from_utf8(word).ok());
                What::Select(text.and_then(|t| t.parse().ok()).context("SELECT without a database")?)
            }
            other => other,
        };
        each(Part::Ended(what, self.at))
    }
}

fn named(word: &[u8]) -> What {
    match word.to_ascii_uppercase().as_slice() {
        b"PING" => What::Alive,
        b"REPLCONF" => What::GetAck,
        b"SELECT" => What::Select(0),
        b"MULTI" => What::Multi,
        b"EXEC" => What::Exec,
        _ => What::Write,
    }
}

fn announced(line: &[u8], mark: u8) -> Result<u64> {
    let (Some(first), Some(digits)) = (line.first(), line.get(1..).and_then(|l| l.strip_suffix(b"\r\n"))) else {
        bail!("{:?} where a command was due", String::from_utf8_lossy(line));
    };
    ensure!(*first == mark, "{:?} where a command was due", String::from_utf8_lossy(line));
    let number: u64 = std::str::from_utf8(digits)?.parse().context("read a length")?;
    ensure!(number < 1 << 40, "a length of {number} bytes");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    fn ends(pieces: &[&[u8]]) -> Result<Vec<(What, u64)>> {
        let (mut parser, mut found) = (Parser::new(100), Vec::new());
        let mut bytes = Vec::new();
        for piece in pieces {
            parser.feed(piece, &mut |part| {
                match part {
                    Part::Ended(what, at) => found.push((what, at)),
                    Part::Bytes(more) => bytes.extend_from_slice(more),
                    Part::Word(_) | Part::WordEnded | Part::Named(_) => {}
                }
                Ok(())
            })?;
        }
        assert_eq!(bytes, pieces.concat());
        Ok(found)
    }

    #[test]
    fn commands_end_where_they_end_however_they_come() {
        let all = [
            command(&[b"SELECT", b"12"]),
            command(&[b"set", b"*1\r\n$4\r\nPING\r\n", b""]),
            command(&[b"MULTI"]),
            command(&[b"INCR", b"a"]),
            command(&[b"EXEC"]),
            command(&[b"PING"]),
            b"\n".to_vec(),
            command(&[b"REPLCONF", b"GETACK", b"*"]),
            command(&[b"SET", b"k", &[0, 255, 13, 10, 42]]),
        ];
        let mut at = 100;
        let whats = [
            What::Select(12),
            What::Write,
            What::Multi,
            What::Write,
            What::Exec,
            What::Alive,
            What::Alive,
            What::GetAck,
            What::Write,
        ];
        let expected: Vec<_> = all
            .iter()
            .zip(whats)
            .map(|(bytes, what)| {
                at += bytes.len() as u64;
                (what, at)
            })
            .collect();
        let stream = all.concat();
        assert_eq!(ends(&[&stream]).unwrap(), expected);
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(ends(&single).unwrap(), expected);
        for size in 2..40 {
            let chunks: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(ends(&chunks).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for bad in
            [&b"+OK\r\n"[..], b"SET a b\r\n", b"*1\r\n+PING\r\n", b"*1\r\n$4\r\nPINGS\r\n", b"*0\r\n", b"*-1\r\n"]
        {
            assert!(ends(&[bad]).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(ends(&[&[b'*'; 100]]).is_err());
    }

    proptest! {
        #[test]
        fn any_words_pass(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 1..5), size in 1usize..30) {
            let bytes = command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assume!(named(&words[0]) == What::Write);
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(ends(&chunks).unwrap(), vec![(What::Write, 100 + bytes.len() as u64)]);
        }
    }
}
