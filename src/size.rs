//! Lengths in bytes as people write them: `4 GiB`, `500MB`, `64 KiB`.

use serde::{Deserialize, Deserializer};

/// Units that are understood, with their bytes.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Bytes. A plain number counts bytes; letters of either case; `None` for anything else, and for more than fits.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].trim());
    let bytes = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.checked_mul(bytes)
}

/// Bytes for people: three digits and a decimal unit.
pub fn in_words(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 999.5
        && let Some(larger) = units.next()
    {
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// As [`parse`]; the error says what to write.
pub fn read(text: &str) -> Result<u64, String> {
    parse(text).ok_or_else(|| format!("{text:?} is not a size such as \"500MB\" or \"4GiB\""))
}

/// For `#[serde(default, deserialize_with = …)]`.
pub fn optional<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    read(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_size_and_what_is_none() {
        for (text, bytes) in [("0", 0), ("17", 17), ("4GiB", 4 << 30), (" 500 mb ", 500_000_000), ("1 KiB", 1024)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for wrong in ["", "GiB", "-1", "1.5GB", "4 G", "4 gigs", "99999999999 TiB", "5%"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
