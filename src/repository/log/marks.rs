//! Marks: when bytes of a log had come, for engines whose log does not tell it itself (FORMAT.md §2.8).
//!
//! They lie behind a body's zstd frame in a skippable one (RFC 8878, 3.1.2), which `zstd -d` passes over: a magic number and a length, 4 bytes
//! each, little-endian; then for each mark the bytes since the mark before (since the start, for the first) and the milliseconds since it (since
//! 1970), as LEB128.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

/// The bytes before `position` had come at `time`, and none after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub position: u64,
    pub time: Timestamp,
}

const MAGIC: u32 = 0x184D_2A5B;
const HEAD: usize = 8;

/// The skippable frame of marks in bytes that begin at `start`; nothing where there are none.
pub fn frame(start: u64, marks: &[Mark]) -> Result<Vec<u8>> {
    if marks.is_empty() {
        return Ok(Vec::new());
    }
    let mut body = Vec::with_capacity(marks.len() * 4);
    let (mut at, mut millis) = (start, 0);
    for mark in marks {
        let now = u64::try_from(mark.time.as_millisecond()).unwrap_or(0).max(millis);
        number(&mut body, mark.position.checked_sub(at).context("marks out of order")?);
        number(&mut body, now - millis);
        (at, millis) = (mark.position, now);
    }
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(body.len())?.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The marks in what follows the frame of the bytes; none where there is no such frame.
pub fn parse(start: u64, behind: &[u8]) -> Result<Vec<Mark>> {
    let Some((head, body)) = behind.split_at_checked(HEAD) else { return Ok(Vec::new()) };
    if head[..4] != MAGIC.to_le_bytes() {
        return Ok(Vec::new());
    }
    let length = usize::try_from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]))?;
    let mut rest = body.get(..length).context("the marks of a piece are cut short")?;
    let (mut position, mut millis, mut marks) = (start, 0u64, Vec::new());
    while !rest.is_empty() {
        position = position.checked_add(take(&mut rest)?).context("a mark beyond all positions")?;
        millis = millis.checked_add(take(&mut rest)?).context("a mark beyond all times")?;
        let time = Timestamp::from_millisecond(i64::try_from(millis)?).context("a mark beyond all times")?;
        marks.push(Mark { position, time });
    }
    Ok(marks)
}

fn number(to: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        to.push((value % 128) as u8 | 128);
        value /= 128;
    }
    to.push(value as u8);
}

fn take(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().context("the marks of a piece are cut short")?;
        *rest = after;
        let bits = u64::from(byte & 127);
        ensure!(bits << shift >> shift == bits, "a number in the marks is too large");
        value |= bits << shift;
        if byte & 128 == 0 {
            return Ok(value);
        }
    }
    anyhow::bail!("a number in the marks is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(position: u64, millis: i64) -> Mark {
        Mark { position, time: Timestamp::from_millisecond(millis).unwrap() }
    }

    #[test]
    fn marks_come_back_and_stock_zstd_passes_over_them() {
        let marks =
            [mark(1000, 1_763_000_000_000), mark(1000, 1_763_000_000_100), mark(5_000_000_000, 1_763_000_009_000)];
        let behind = frame(990, &marks).unwrap();
        assert_eq!(parse(990, &behind).unwrap(), marks);
        assert_eq!(behind.len(), 8 + (1 + 6) + (1 + 1) + (5 + 2));
        let mut body = zstd::bulk::compress(b"the bytes", 3).unwrap();
        body.extend_from_slice(&behind);
        assert_eq!(zstd::bulk::decompress(&body, 9).unwrap(), b"the bytes");
        for cut in 9..behind.len() {
            assert!(parse(990, &behind[..cut]).is_err(), "{cut}");
        }
        assert!(frame(0, &[]).unwrap().is_empty() && parse(0, &[]).unwrap().is_empty());
    }
}
