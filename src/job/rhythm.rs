//! When something is to happen again: every so often, or at the times of a cron pattern in a time zone.
//!
//! Cron patterns have five fields, or six with seconds first; weekdays go from 0 or 7 (Sunday) to 6. Where clocks go forward over a fixed
//! time, the run comes right after the gap; where they go back, it comes once.

use anyhow::Result;
use croner::parser::{CronParser, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::fmt;

use crate::time::{Zone, in_words, length};

/// Slots that are looked at to find the longest gap between two.
const SLOTS_LOOKED_AT: usize = 3000;
/// So that of a monthly pattern a whole year is seen.
const SLOTS_AT_LEAST: usize = 12;
/// A pattern repeats by the week, mostly: after so long a look the longest gap is known.
const LOOKED_AT: SignedDuration = SignedDuration::from_hours(8 * 24);
/// The shortest interval: more often than this nothing is started.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);
/// What is longer is a slip of the pen.
const LONGEST: SignedDuration = SignedDuration::from_hours(3650 * 24);

#[derive(Debug, Clone, PartialEq)]
pub enum Rhythm {
    Every(SignedDuration),
    Cron(Box<Cron>),
    /// As often as it takes to lose no more than this.
    Rpo(SignedDuration),
}

/// A cron pattern in a time zone, known to fire.
#[derive(Debug, Clone)]
pub struct Cron {
    pattern: croner::Cron,
    text: String,
    timezone: TimeZone,
    /// The shortest and the longest time between two runs.
    gaps: (SignedDuration, SignedDuration),
}

impl PartialEq for Cron {
    fn eq(&self, other: &Cron) -> bool {
        self.text == other.text && self.timezone == other.timezone
    }
}

impl Cron {
    /// Refuses what is no pattern and what never fires; the error says what to write.
    pub fn new(text: &str, timezone: TimeZone) -> Result<Cron, String> {
        let parser = CronParser::builder().year(Year::Disallowed).build();
        let pattern = parser.parse(text).map_err(|_| {
            format!(
                "{text:?} is not a cron pattern; it has minute (0-59), hour (0-23), day (1-31), month (1-12) and weekday (0-7, or sun to sat): \
                 \"0 2 * * *\" is 02:00 every day, \"*/30 * * * *\" every half hour"
            )
        })?;
        let mut cron = Cron { pattern, text: text.to_owned(), timezone, gaps: Default::default() };
        // The first of a leap year, the same every time: a file is right or wrong whenever it is read. Whatever fires at all fires within
        // the eight years after it.
        let beginning = Timestamp::from_second(1_704_067_200).unwrap_or(Timestamp::UNIX_EPOCH);
        let Some(first) = cron.after(beginning) else {
            return Err(format!(
                "{text:?} never fires: there is no such date; the fields are minute, hour, day, month, weekday"
            ));
        };
        cron.gaps = cron.measure(first);
        Ok(cron)
    }

    fn measure(&self, first: Timestamp) -> (SignedDuration, SignedDuration) {
        let (mut shortest, mut longest) = (SignedDuration::MAX, SignedDuration::ZERO);
        let mut before = first;
        for n in 0..SLOTS_LOOKED_AT {
            let Some(after) = self.after(before) else { break };
            let gap = after.duration_since(before);
            (shortest, longest, before) = (shortest.min(gap), longest.max(gap), after);
            if n >= SLOTS_AT_LEAST && after.duration_since(first) > LOOKED_AT {
                break;
            }
        }
        (shortest, longest)
    }

    /// The first time after `t`; none if there is no more.
    pub fn after(&self, t: Timestamp) -> Option<Timestamp> {
        let mut from = t.to_zoned(self.timezone.clone());
        // A time that is not later would make the scheduler run in circles: look from a second later then.
        for _ in 0..8 {
            let next = self.pattern.find_next_occurrence(&from, false).ok()?;
            if next.timestamp() > t {
                return Some(next.timestamp());
            }
            from = from.checked_add(SignedDuration::from_secs(1)).ok()?;
        }
        None
    }
}

impl Rhythm {
    /// The shortest and the longest time between two runs. Of an RPO, half of it.
    pub fn gaps(&self) -> (SignedDuration, SignedDuration) {
        match self {
            Rhythm::Every(d) => (*d, *d),
            Rhythm::Rpo(rpo) => (*rpo / 2, *rpo / 2),
            Rhythm::Cron(cron) => cron.gaps,
        }
    }

    /// From the keys of a table; the error says what to write.
    pub(super) fn written(
        every: Option<Interval>,
        cron: Option<String>,
        timezone: Option<Zone>,
    ) -> Result<Rhythm, String> {
        match (every, cron, timezone) {
            (Some(every), None, None) => Ok(Rhythm::Every(every.0)),
            (None, Some(cron), timezone) => {
                let timezone = timezone.map_or(TimeZone::UTC, |zone| zone.0);
                Cron::new(&cron, timezone).map(|cron| Rhythm::Cron(Box::new(cron)))
            }
            _ => Err("a rhythm is { every = \"30m\" } or { cron = \"0 2 * * *\", timezone = \"Asia/Tokyo\" }".into()),
        }
    }
}

impl fmt::Display for Rhythm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rhythm::Every(d) => write!(f, "every {}", in_words(*d)),
            Rhythm::Rpo(d) => write!(f, "as an RPO of {} needs", in_words(*d)),
            Rhythm::Cron(cron) => {
                write!(f, "cron {:?} {}", cron.text, cron.timezone.iana_name().unwrap_or("local time"))
            }
        }
    }
}

/// `{ every = "30m" }`, or `{ cron = "0 2 * * *", timezone = "Asia/Tokyo" }`; without a time zone UTC.
impl<'de> Deserialize<'de> for Rhythm {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Rhythm, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a rhythm such as { every = \"30m\" } or { cron = \"0 2 * * *\" }")]
        struct Written {
            every: Option<Interval>,
            cron: Option<String>,
            timezone: Option<Zone>,
        }
        let Written { every, cron, timezone } = Written::deserialize(d)?;
        Rhythm::written(every, cron, timezone).map_err(D::Error::custom)
    }
}

/// A length of time of at least a second.
#[derive(Debug, Clone, Copy)]
pub struct Interval(pub SignedDuration);

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Interval, D::Error> {
        let length = length(&String::deserialize(d)?).map_err(D::Error::custom)?;
        if !(SHORTEST..=LONGEST).contains(&length) {
            return Err(D::Error::custom("an interval is at least \"1s\", and at most ten years: \"3650d\""));
        }
        Ok(Interval(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin(pattern: &str) -> Cron {
        Cron::new(pattern, TimeZone::get("Europe/Berlin").unwrap()).unwrap()
    }

    fn runs(cron: &Cron, from: &str, n: usize) -> Vec<String> {
        let first = cron.after(at(from));
        std::iter::successors(first, |t| cron.after(*t)).take(n).map(|t| t.to_string()).collect()
    }

    #[test]
    fn a_time_that_the_spring_skips_comes_right_after_the_gap_and_once() {
        // Clocks go from 02:00 to 03:00 at 01:00Z on 2026-03-29.
        let expected = ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"];
        assert_eq!(runs(&berlin("30 2 * * *"), "2026-03-27T12:00:00Z", 3), expected);
    }

    #[test]
    fn a_time_that_the_autumn_shows_twice_comes_once() {
        // Clocks go from 03:00 back to 02:00 at 01:00Z on 2026-10-25.
        let expected = ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        assert_eq!(runs(&berlin("30 2 * * *"), "2026-10-23T12:00:00Z", 3), expected);
    }

    #[test]
    fn hourly_runs_go_through_both_nights_without_a_hole() {
        for from in ["2026-03-28T22:00:00Z", "2026-10-24T22:00:00Z"] {
            let times: Vec<Timestamp> = runs(&berlin("0 * * * *"), from, 8).iter().map(|t| at(t)).collect();
            let gaps: Vec<i64> = times.windows(2).map(|w| w[1].duration_since(w[0]).as_mins()).collect();
            assert_eq!(gaps, [60; 7], "{times:?}");
        }
    }

    #[test]
    fn tokyo_at_two_is_seventeen_hours_utc() {
        let tokyo = Cron::new("0 2 * * *", TimeZone::get("Asia/Tokyo").unwrap()).unwrap();
        assert_eq!(runs(&tokyo, "2026-11-22T00:00:00Z", 1), ["2026-11-22T17:00:00Z"]);
    }

    #[test]
    fn weekdays_count_from_sunday_as_zero() {
        // 2026-11-23 is a Monday.
        let monday = Cron::new("0 0 * * 1", TimeZone::UTC).unwrap();
        assert_eq!(runs(&monday, "2026-11-20T00:00:00Z", 1), ["2026-11-23T00:00:00Z"]);
        for sunday in ["0 0 * * 0", "0 0 * * 7"] {
            let sunday = Cron::new(sunday, TimeZone::UTC).unwrap();
            assert_eq!(runs(&sunday, "2026-11-20T00:00:00Z", 1), ["2026-11-22T00:00:00Z"]);
        }
    }

    #[test]
    fn what_never_fires_is_refused() {
        assert!(Cron::new("0 0 30 2 *", TimeZone::UTC).unwrap_err().contains("never fires"));
        assert!(Cron::new("61 * * * *", TimeZone::UTC).unwrap_err().contains("not a cron pattern"));
        assert!(Cron::new("0 0 1 1 * 2020", TimeZone::UTC).is_err());
        assert!(Cron::new("0 0 29 2 *", TimeZone::UTC).is_ok());
    }

    #[test]
    fn a_month_has_up_to_31_days() {
        let (shortest, longest) = Rhythm::Cron(Box::new(Cron::new("0 3 1 * *", TimeZone::UTC).unwrap())).gaps();
        assert_eq!((shortest.as_hours() / 24, longest.as_hours() / 24), (29, 31));
    }

    #[test]
    fn the_longest_gap_of_office_hours_is_the_weekend() {
        let (shortest, longest) = Rhythm::Cron(Box::new(Cron::new("*/10 9-17 * * 1-5", TimeZone::UTC).unwrap())).gaps();
        assert_eq!((shortest.as_mins(), longest.as_mins()), (10, 63 * 60 + 10));
    }
}
