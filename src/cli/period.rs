//! A period as an auditor names it.

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use std::fmt;
use std::str::FromStr;

/// `2026`, `2026-Q4` or `2026-11`, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    first: Date,
    months: i32,
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Period, String> {
        let wrong = || format!("{text:?} is no period: write 2026, 2026-Q4 or 2026-11");
        let (year, rest) = text.split_once('-').unwrap_or((text, ""));
        let year: i16 = year.parse().ok().filter(|y| (1970..=9999).contains(y)).ok_or_else(wrong)?;
        let (month, months) = match rest.strip_prefix('Q') {
            _ if rest.is_empty() => (1, 12),
            Some(quarter) => (quarter.parse::<i8>().ok().filter(|q| (1..=4).contains(q)).ok_or_else(wrong)? * 3 - 2, 3),
            None => (rest.parse::<i8>().ok().filter(|m| (1..=12).contains(m)).ok_or_else(wrong)?, 1),
        };
        Ok(Period { first: date(year, month, 1), months })
    }
}

impl Period {
    /// The months in it, each from its begin to the begin of the next.
    pub fn parts(self) -> Vec<(Date, Timestamp, Timestamp)> {
        let at = |date: Date| date.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |z| z.timestamp());
        let month = |n: i32| self.first.checked_add(Span::new().months(n)).unwrap_or(Date::MAX);
        (0..self.months).map(|n| (month(n), at(month(n)), at(month(n + 1)))).collect()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let month =
            |n: i32| self.first.checked_add(Span::new().months(n)).unwrap_or(Date::MAX).strftime("%Y-%m").to_string();
        match self.months {
            1 => f.write_str(&month(0)),
            n => write!(f, "{} to {}", month(0), month(n - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read() {
        let read = |text: &str| text.parse::<Period>();
        assert_eq!(read("2026-Q4").unwrap().to_string(), "2026-10 to 2026-12");
        assert_eq!(read("2026-02").unwrap().to_string(), "2026-02");
        let months = read("2026").unwrap().parts();
        assert_eq!((months.len(), months[11].2.to_string().as_str()), (12, "2027-01-01T00:00:00Z"));
        for wrong in ["", "Q4", "2026-Q5", "2026-13", "26-1", "2026-1x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
