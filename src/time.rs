//! Lengths of time as people write them in a configuration, `90s`, `1h`, `30d`; and times as they are told.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::{Deserialize, Deserializer};

mod window;
mod zone;

pub use window::{Window, free_at};
pub use zone::Zone;

/// RFC 3339 in local time, without sub-seconds: how people are told a time everywhere.
pub fn local(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// A positive length of time; a day has 24 hours. The error says what to write.
pub fn length(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a length of time such as \"90m\" or \"30d\"");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if length.is_positive() { Ok(length) } else { Err(wrong()) }
}

/// A length of time for people, as they would write it: whole days in days.
pub fn in_words(length: SignedDuration) -> String {
    const DAY: i64 = 24 * 60 * 60;
    match (length.as_secs(), length.subsec_nanos()) {
        (seconds, 0) if seconds >= DAY && seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => format!("{length:#}"),
    }
}

/// A time as people write it: RFC 3339, or a local date and time. The error says what to write.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let local: DateTime = text.parse().map_err(|_| "write 2026-01-31T03:00:00Z or \"2026-01-31 03:00\"".to_owned())?;
    Ok(local.to_zoned(TimeZone::system()).map_err(|e| e.to_string())?.timestamp())
}

/// For `#[serde(default, deserialize_with = …)]`.
pub fn optional_length<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SignedDuration>, D::Error> {
    length(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_positive_and_have_units() {
        assert_eq!(length("90m"), Ok(SignedDuration::from_mins(90)));
        assert_eq!(length("2d"), Ok(SignedDuration::from_hours(48)));
        assert_eq!(
            ["90m", "24h", "30d", "36h"].map(|text| in_words(length(text).unwrap())),
            ["1h 30m", "1d", "30d", "36h"]
        );
        for wrong in ["", "5", "-1h", "0s", "soon"] {
            assert!(length(wrong).unwrap_err().contains("length of time"), "{wrong}");
        }
    }
}
