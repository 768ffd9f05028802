//! `global/pg_control` and the names of WAL files.

use anyhow::{Context, Result, bail, ensure};
use crc_fast::{CrcAlgorithm, checksum};
use std::path::Path;
use std::time::Duration;

/// The checksum lies behind the last field, whose place depends on the version; the fields are somewhere between these, in bytes.
const FIELDS: std::ops::Range<usize> = 200..512;
/// Tries until a reading is whole: the server writes the file in one piece, but reading is not atomic everywhere.
const TRIES: u32 = 20;

/// Reads `pg_control` until its CRC-32C fits.
pub fn read(data: &Path) -> Result<Vec<u8>> {
    let path = data.join("global/pg_control");
    for _ in 0..TRIES {
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if is_whole(&bytes) {
            return Ok(bytes);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{} is damaged: its checksum does not fit", path.display())
}

/// The system identifier: its first eight bytes.
pub fn system_identifier(control: &[u8]) -> Option<u64> {
    control.first_chunk().copied().map(u64::from_ne_bytes)
}

/// Whether the server that runs on `data` was started at this second since 1970: a copy of a cluster has the same identifier, and in a container or behind a
/// tunnel the same path may be another directory. (`postmaster.pid`: process, directory, start, port, …)
pub fn runs_here(data: &Path, started: i64) -> bool {
    let lock = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let noted = lock.lines().nth(2).and_then(|line| line.trim().parse::<i64>().ok());
    // Both are taken at the start, one after the other.
    noted.is_some_and(|noted| (noted - started).abs() <= 10)
}

fn is_whole(bytes: &[u8]) -> bool {
    let fits = |at: usize| {
        let stored = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        stored.is_some_and(|stored| u64::from(stored) == checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..at]))
    };
    FIELDS.step_by(4).any(fits)
}

/// `16/B374D848` as a number.
pub fn lsn(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').with_context(|| format!("{text:?} is no LSN"))?;
    let half = |text: &str| u32::from_str_radix(text, 16).with_context(|| format!("{text:?} is no LSN"));
    Ok(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

/// The names of the segments with WAL from `start` up to, but not at, `end`.
pub fn segments(timeline: u32, start: u64, end: u64, size: u64) -> Result<Vec<(String, u64)>> {
    ensure!(size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size), "a WAL segment of {size} bytes");
    ensure!(end > start && end - start < 1 << 44, "a backup from {start:X} to {end:X}");
    let per_id = (1u64 << 32) / size;
    let numbers = start / size..=(end - 1) / size;
    Ok(numbers.map(|n| (format!("{timeline:08X}{:08X}{:08X}", n / per_id, n % per_id), n * size)).collect())
}

/// Whether a segment begins with the page that its name promises: a file that was recycled has an older one.
pub fn begins_at(segment: &[u8], address: u64) -> bool {
    segment.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes) == Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        let names = |start: &str, end: &str, size| -> Vec<String> {
            segments(1, lsn(start).unwrap(), lsn(end).unwrap(), size)
                .unwrap()
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names("0/2000028", "0/3000000", 16 << 20), ["000000010000000000000002"]);
        assert_eq!(names("0/2000028", "0/3000001", 16 << 20).len(), 2);
        assert_eq!(names("1/FF000028", "2/100", 16 << 20), ["0000000100000001000000FF", "000000010000000200000000"]);
        assert_eq!(names("0/2000028", "0/2100000", 1 << 20), ["000000010000000000000020"]);
        assert!(segments(1, 5, 5, 1 << 20).is_err());
    }
}
