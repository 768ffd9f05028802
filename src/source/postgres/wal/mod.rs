//! PostgreSQL's write-ahead log: positions and names of segments, streaming it from a server, and reading what it says.

pub mod events;
pub mod records;
pub mod stream;

use anyhow::{Context, Result, bail, ensure};
use std::fmt;

/// A position in the log, written as PostgreSQL does: `0/1A2B3C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl std::str::FromStr for Lsn {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Lsn> {
        let malformed = || format!("{text:?} is not a position such as 0/1A2B3C");
        let (high, low) = text.trim().split_once('/').with_context(malformed)?;
        let part = |text: &str| u32::from_str_radix(text, 16).with_context(malformed);
        Ok(Lsn(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// A file of the log as PostgreSQL names it: timeline, then the number of the segment in two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalFile {
    Segment { timeline: u32, start: u64 },
    History { timeline: u32 },
}

impl WalFile {
    /// `None` for names that are neither: backup histories, partial segments.
    pub fn parse(name: &str, segment_size: u64) -> Option<WalFile> {
        let hex = |text: &str| {
            let ok = text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            u32::from_str_radix(text, 16).ok().filter(|_| ok)
        };
        if let Some(timeline) = name.strip_suffix(".history") {
            return (timeline.len() == 8).then(|| Some(WalFile::History { timeline: hex(timeline)? }))?;
        }
        if name.len() != 24 || !name.is_ascii() {
            return None;
        }
        let (timeline, high, low) = (hex(&name[..8])?, hex(&name[8..16])?, hex(&name[16..])?);
        let per_id = (1u64 << 32) / segment_size;
        let number = u64::from(high).checked_mul(per_id)?.checked_add(u64::from(low))?;
        (u64::from(low) < per_id).then_some(())?;
        Some(WalFile::Segment { timeline, start: number.checked_mul(segment_size)? })
    }

    pub fn name(self, segment_size: u64) -> String {
        match self {
            WalFile::History { timeline } => format!("{timeline:08X}.history"),
            WalFile::Segment { timeline, start } => {
                let (number, per_id) = (start / segment_size, (1u64 << 32) / segment_size);
                format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id)
            }
        }
    }
}

/// The content of a history file: the timelines before, each with the position at which it was left.
pub fn parse_history(text: &[u8]) -> Result<Vec<(u32, Lsn)>> {
    let text = std::str::from_utf8(text).context("a timeline's history is not text")?;
    let mut left = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(timeline), Some(lsn)) = (words.next(), words.next()) else { bail!("malformed history: {line:?}") };
        let timeline: u32 = timeline.parse().with_context(|| format!("malformed history: {line:?}"))?;
        ensure!(left.last().is_none_or(|(before, _)| *before < timeline), "a history that runs backwards");
        left.push((timeline, lsn.parse()?));
    }
    Ok(left)
}

/// `16MB`, `1GB`: what `SHOW wal_segment_size` answers, in bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.trim().parse().with_context(|| format!("{text:?} is not a size"))?;
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => bail!("{text:?} is not a size"),
    };
    let size = number.checked_mul(factor).with_context(|| format!("{text:?} is not a size"))?;
    ensure!(size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size), "segments of {size} bytes");
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments_are_those_of_postgres() {
        for (size, name, start) in [
            (16u64 << 20, "000000010000000000000001", 16u64 << 20),
            (16 << 20, "0000000A00000001000000FF", 0x1_ff00_0000),
            (1 << 20, "000000010000000000000FFF", 0xfff0_0000),
            (1 << 30, "000000010000000100000003", 7 << 30),
        ] {
            let file = WalFile::parse(name, size).unwrap();
            let WalFile::Segment { start: found, .. } = file else { panic!("{name}") };
            assert_eq!((found, file.name(size).as_str()), (start, name));
        }
        assert_eq!(WalFile::parse("0000000B.history", 1 << 20), Some(WalFile::History { timeline: 11 }));
        for name in ["000000010000000000000100", "00000001000000000000000g", "000000010000000000000001.partial", ""] {
            assert_eq!(WalFile::parse(name, 16 << 20), None, "{name}");
        }
    }

    #[test]
    fn positions_and_histories_are_read() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!((lsn.0, lsn.to_string().as_str()), (0x16_b374_d848, "16/B374D848"));
        assert!("16".parse::<Lsn>().is_err() && "/".parse::<Lsn>().is_err());
        let text = b"1\t0/A000198\tno recovery target specified\n\n2\t0/C0000A0\tbefore 2026-01-01\n";
        let left: Vec<_> = parse_history(text).unwrap().into_iter().map(|(t, l)| (t, l.to_string())).collect();
        assert_eq!(left, [(1, "0/A000198".to_owned()), (2, "0/C0000A0".to_owned())]);
        assert!(parse_history(b"2\t0/1\n1\t0/2\n").is_err());
        assert_eq!(parse_size("16MB").unwrap(), 16 << 20);
        assert!(parse_size("3MB").is_err() && parse_size("8kB").is_err());
    }
}
