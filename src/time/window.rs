//! Windows: stretches of local time that come back day by day, in which no run starts, or nobody is to be woken.

use anyhow::Result;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::zone::Zone;

/// Windows that follow upon one another without a gap for longer than this leave no time at all.
const LONGEST: SignedDuration = SignedDuration::from_hours(8 * 24);

/// `{ from = "09:00", to = "17:30", days = ["mon", "fri"], timezone = "Asia/Tokyo" }`. Where `to` is not after `from` it ends on the next day.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    from: Time,
    to: Time,
    /// On which it begins; empty: on all.
    days: Vec<Weekday>,
    timezone: TimeZone,
}

impl Window {
    /// The end of this window if `t` lies in it.
    pub fn end(&self, t: Timestamp) -> Option<Timestamp> {
        let today = t.to_zoned(self.timezone.clone()).date();
        let day = Span::new().days(1);
        [today.checked_sub(day).ok()?, today].into_iter().find_map(|date| {
            if !self.days.is_empty() && !self.days.contains(&date.weekday()) {
                return None;
            }
            let ends_on = if self.to > self.from { date } else { date.checked_add(day).ok()? };
            let from = date.to_datetime(self.from).to_zoned(self.timezone.clone()).ok()?.timestamp();
            let to = ends_on.to_datetime(self.to).to_zoned(self.timezone.clone()).ok()?.timestamp();
            (from <= t && t < to).then_some(to)
        })
    }
}

/// The first moment from `t` on that no window covers; none if there is none in sight.
pub fn free_at(windows: &[Window], t: Timestamp) -> Option<Timestamp> {
    let mut free = t;
    while let Some(end) = windows.iter().find_map(|w| w.end(free)) {
        free = end;
        if free.duration_since(t) > LONGEST {
            return None;
        }
    }
    Some(free)
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Window, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a window such as { from = \"09:00\", to = \"11:00\" }")]
        struct Written {
            from: String,
            to: String,
            #[serde(default)]
            days: Vec<Day>,
            timezone: Option<Zone>,
        }
        let written = Written::deserialize(d)?;
        let time = |text: &str| {
            text.parse::<Time>()
                .map_err(|_| D::Error::custom(format!("{text:?} is not a time of day such as \"09:00\"")))
        };
        Ok(Window {
            from: time(&written.from)?,
            to: time(&written.to)?,
            days: written.days.into_iter().map(Day::weekday).collect(),
            timezone: written.timezone.map_or(TimeZone::UTC, |zone| zone.0),
        })
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    fn weekday(self) -> Weekday {
        match self {
            Day::Mon => Weekday::Monday,
            Day::Tue => Weekday::Tuesday,
            Day::Wed => Weekday::Wednesday,
            Day::Thu => Weekday::Thursday,
            Day::Fri => Weekday::Friday,
            Day::Sat => Weekday::Saturday,
            Day::Sun => Weekday::Sunday,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str) -> Window {
        #[derive(Deserialize)]
        struct Sample {
            w: Window,
        }
        toml::from_str::<Sample>(&format!("w = {text}")).unwrap().w
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_may_cross_midnight_and_counts_for_the_day_it_begins_on() {
        let night = window("{ from = \"22:00\", to = \"06:00\", days = [\"fri\"] }");
        // 2026-11-20 is a Friday.
        assert_eq!(night.end(at("2026-11-20T23:00:00Z")), Some(at("2026-11-21T06:00:00Z")));
        assert_eq!(night.end(at("2026-11-21T05:59:59Z")), Some(at("2026-11-21T06:00:00Z")));
        assert_eq!(night.end(at("2026-11-21T06:00:00Z")), None);
        assert_eq!(night.end(at("2026-11-20T05:00:00Z")), None);
    }

    #[test]
    fn windows_add_up_and_may_leave_nothing() {
        let both = [window("{ from = \"08:00\", to = \"12:00\" }"), window("{ from = \"12:00\", to = \"18:00\" }")];
        assert_eq!(free_at(&both, at("2026-11-20T09:00:00Z")), Some(at("2026-11-20T18:00:00Z")));
        assert_eq!(free_at(&both, at("2026-11-20T19:00:00Z")), Some(at("2026-11-20T19:00:00Z")));
        assert_eq!(free_at(&[window("{ from = \"00:00\", to = \"00:00\" }")], at("2026-11-20T19:00:00Z")), None);
    }
}
