//! The primitives of RDB files, read from a stream that is copied on its way: bytes, lengths, strings, and the checksum.

use anyhow::{Result, bail, ensure};
use crc_fast::{CrcAlgorithm, Digest};

use super::bounded;

/// Bytes of the checksum at the end.
const SUM: usize = 8;
/// Bytes asked for at once.
const PIECE: usize = 256 << 10;
/// The longest name of a key or auxiliary field that is kept, in bytes. A server allows 512 MiB; such a key is not understood here.
const STRING_MAX: usize = 64 << 20;

/// Appends some bytes to the buffer, at most so many: at least one, none at a proven end.
pub type More<'a> = dyn FnMut(&mut Vec<u8>, usize) -> Result<usize> + 'a;

/// A cursor over an RDB file that comes in pieces. Every byte goes into the checksum, also those that nobody looks at.
pub struct Tap<'a> {
    more: Box<More<'a>>,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes that came before the buffer.
    before: u64,
    sum: Digest,
    /// The last bytes before the buffer, at most [`SUM`]: they may be the checksum, which is not summed up itself.
    tail: Vec<u8>,
    ended: bool,
    /// Values of strings up to this length are given, not passed over; in bytes.
    pub keep_texts: u64,
}

impl<'a> Tap<'a> {
    pub fn new(more: Box<More<'a>>) -> Tap<'a> {
        Tap {
            more,
            buffer: Vec::new(),
            at: 0,
            before: 0,
            sum: Digest::new(CrcAlgorithm::Crc64Redis),
            tail: Vec::new(),
            ended: false,
            keep_texts: 0,
        }
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Replaces the used-up buffer. `false` at the end of the file.
    fn refill(&mut self) -> Result<bool> {
        self.before += self.buffer.len() as u64;
        self.tail.extend_from_slice(&self.buffer);
        let sure = self.tail.len().saturating_sub(SUM);
        self.sum.update(&self.tail[..sure]);
        self.tail.drain(..sure);
        self.buffer.clear();
        self.at = 0;
        self.ended = (self.more)(&mut self.buffer, PIECE)? == 0;
        Ok(!self.ended)
    }

    /// The next bytes, at least one and at most `most`.
    fn some(&mut self, most: usize) -> Result<&[u8]> {
        if self.at == self.buffer.len() {
            ensure!(self.refill()?, "the file is cut off: it ends within a record");
        }
        let end = self.buffer.len().min(self.at.saturating_add(most));
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.buffer[start..end])
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.some(1)?[0])
    }

    pub fn bytes(&mut self, mut length: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(length.min(PIECE));
        while length > 0 {
            let some = self.some(length)?;
            length -= some.len();
            out.extend_from_slice(some);
        }
        Ok(out)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.byte()?;
        }
        Ok(out)
    }

    pub fn pass(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let most = usize::try_from(length).unwrap_or(usize::MAX);
            length -= self.some(most)?.len() as u64;
        }
        Ok(())
    }

    /// Everything up to the checksum, where its meaning is unknown.
    pub fn pass_rest(&mut self) -> Result<()> {
        loop {
            self.at = self.buffer.len();
            if !self.refill()? {
                return Ok(());
            }
        }
    }

    /// A length, or the number of a special encoding.
    pub fn coded(&mut self) -> Result<Coded> {
        let first = self.byte()?;
        let low = u64::from(first & 0x3f);
        Ok(match first >> 6 {
            0 => Coded::Length(low),
            1 => Coded::Length(low << 8 | u64::from(self.byte()?)),
            3 => Coded::Special(first & 0x3f),
            _ if first == 0x80 => Coded::Length(u32::from_be_bytes(self.array()?).into()),
            _ if first == 0x81 => Coded::Length(u64::from_be_bytes(self.array()?)),
            _ => bail!("the file is damaged: a length begins with {first}"),
        })
    }

    pub fn length(&mut self) -> Result<u64> {
        match self.coded()? {
            Coded::Length(length) => Ok(length),
            Coded::Special(n) => bail!("the file is damaged: encoding {n} where a length belongs"),
        }
    }

    /// A string, decoded.
    pub fn string(&mut self) -> Result<Vec<u8>> {
        Ok(match self.coded()? {
            Coded::Length(length) => self.bytes(bounded(length, STRING_MAX)?)?,
            Coded::Special(3) => {
                let (packed, length) = (self.length()?, self.length()?);
                let packed = self.bytes(bounded(packed, STRING_MAX)?)?;
                unpack(&packed, bounded(length, STRING_MAX)?)?
            }
            Coded::Special(n) => self.number(n)?,
        })
    }

    pub fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.string()?).into_owned())
    }

    /// Passes over a string and gives its length in bytes, where it tells: a number in binary does not.
    pub fn pass_string(&mut self) -> Result<Option<u64>> {
        match self.coded()? {
            Coded::Length(length) => self.pass(length).map(|()| Some(length)),
            Coded::Special(n @ 0..=2) => self.pass(1 << n).map(|()| None),
            Coded::Special(3) => {
                let (packed, length) = (self.length()?, self.length()?);
                self.pass(packed).map(|()| Some(length))
            }
            Coded::Special(n) => bail!("the file is damaged: a string of encoding {n}"),
        }
    }

    /// Passes over the value of a string: its length, and the string itself if it is one of [`Tap::keep_texts`].
    pub fn pass_text(&mut self) -> Result<(Option<u64>, Option<Vec<u8>>)> {
        if self.keep_texts == 0 {
            return Ok((self.pass_string()?, None));
        }
        let (length, packed) = match self.coded()? {
            Coded::Length(length) => (length, None),
            Coded::Special(3) => {
                let packed = self.length()?;
                (self.length()?, Some(packed))
            }
            Coded::Special(n) => return Ok((None, Some(self.number(n)?))),
        };
        let stored = packed.unwrap_or(length);
        if length.max(stored) > self.keep_texts {
            self.pass(stored)?;
            return Ok((Some(length), None));
        }
        let bytes = self.bytes(bounded(stored, STRING_MAX)?)?;
        let text = if packed.is_some() { unpack(&bytes, bounded(length, STRING_MAX)?)? } else { bytes };
        Ok((Some(length), Some(text)))
    }

    /// A number in binary, as text.
    fn number(&mut self, encoding: u8) -> Result<Vec<u8>> {
        Ok(match encoding {
            0 => i8::from_le_bytes(self.array()?).to_string(),
            1 => i16::from_le_bytes(self.array()?).to_string(),
            2 => i32::from_le_bytes(self.array()?).to_string(),
            n => bail!("the file is damaged: a string of encoding {n}"),
        }
        .into_bytes())
    }

    /// After the end record: reads the checksum and compares. `false`: the server wrote none. Nothing may follow.
    pub fn finish(&mut self) -> Result<bool> {
        if !self.ended {
            self.pass(SUM as u64)?;
            let more = self.at < self.buffer.len() || self.refill()?;
            ensure!(!more, "the file is damaged: more bytes follow its end");
        }
        let stored: [u8; SUM] = self.tail.as_slice().try_into().map_err(|_| anyhow::anyhow!("the file is cut off"))?;
        let (stored, computed) = (u64::from_le_bytes(stored), self.sum.finalize());
        ensure!(
            stored == 0 || stored == computed,
            "the file is damaged: its checksum is {stored:016x}, and its bytes have {computed:016x}"
        );
        Ok(stored != 0)
    }
}

pub enum Coded {
    Length(u64),
    Special(u8),
}

/// LZF (<http://software.schmorp.de/pkg/liblzf.html>): runs of literals, and references backwards.
fn unpack(packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let damaged = || anyhow::anyhow!("the file is damaged: a packed string does not unpack");
    let mut out = Vec::with_capacity(length.min(PIECE));
    let mut from = packed.iter().copied();
    while let Some(control) = from.next() {
        let control = usize::from(control);
        if control < 32 {
            for _ in 0..=control {
                out.push(from.next().ok_or_else(damaged)?);
            }
        } else {
            let mut run = control >> 5;
            if run == 7 {
                run += usize::from(from.next().ok_or_else(damaged)?);
            }
            let back = ((control & 31) << 8 | usize::from(from.next().ok_or_else(damaged)?)) + 1;
            let start = out.len().checked_sub(back).ok_or_else(damaged)?;
            for i in start..start + run + 2 {
                out.push(out[i]);
            }
        }
        ensure!(out.len() <= length, damaged());
    }
    ensure!(out.len() == length, damaged());
    Ok(out)
}
