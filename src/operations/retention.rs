//! Which snapshots stay: a pure function of (snapshots, policy, now) to decisions with reasons.
//!
//! What is always kept goes by `seq`, which no clock can falsify; periods go by the time of the data.

use crate::error::{Failure, Kind};
use anyhow::Result;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// How many snapshots to keep: the newest ones, and the newest of each of so many hours, days, … that have any.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    /// ISO weeks, which begin on Monday.
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Everything younger than this stays, e.g. `30d` or `1y 6mo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
    /// Of a source whose log is stored: how far back every moment can be reached, e.g. `14d`; without it, as far back as a snapshot is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points_in_time: Option<Span>,
    /// Where days and hours begin.
    #[serde(with = "jiff::fmt::serde::tz::required")]
    pub timezone: TimeZone,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            last: 0,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            within: None,
            points_in_time: None,
            timezone: TimeZone::UTC,
        }
    }
}

impl Policy {
    /// How many snapshots are kept for a reason that goes by periods.
    pub fn count(&self, reason: Reason) -> u32 {
        match reason {
            Reason::Hourly => self.hourly,
            Reason::Daily => self.daily,
            Reason::Weekly => self.weekly,
            Reason::Monthly => self.monthly,
            Reason::Yearly => self.yearly,
            _ => 0,
        }
    }

    /// Refuses a policy that names nothing to keep, or a `within` that is not a length of time.
    pub fn validate(&self) -> Result<()> {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        if self.within.is_none() && counts.iter().all(|&n| n == 0) {
            return Err(Failure::new(
                Kind::Config,
                "the retention policy keeps nothing",
                "Only the newest snapshot would stay. Set at least one of last, hourly, daily, weekly, monthly, yearly, within; \
                 without a [retention] section nothing expires.",
            ));
        }
        if [self.within, self.points_in_time].iter().flatten().any(|span| !span.is_positive()) {
            return Err(Failure::new(
                Kind::Config,
                "`within` or `points_in_time` of the retention policy is not positive",
                "Write a length of time, e.g. within = \"30d\".",
            ));
        }
        Ok(())
    }

    /// The moment from which on every point in time is to be reached.
    pub fn reachable_from(&self, now: Timestamp) -> Option<Timestamp> {
        self.points_in_time.map(|span| earlier(now, span, &self.timezone))
    }
}

/// What retention knows of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub seq: u64,
    pub data_time: Timestamp,
    /// Nothing of the source is missing in it.
    pub complete: bool,
    /// A drill has proven it.
    pub verified: bool,
    /// The store's clock contradicts its times (FORMAT.md §4-10), or its fingerprint does not fit (§4-11).
    pub suspect: bool,
    /// Where it has a place in the log of its source: when it was complete, which is the first moment that can be reached from it.
    #[serde(default)]
    pub reaches_from: Option<Timestamp>,
}

/// Why a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The newest complete one.
    Newest,
    /// The newest that a drill has proven.
    NewestVerified,
    /// Newer than that, and a report that does not verify any more may have proven it.
    MayBeVerified,
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Within,
    /// The newest that was complete before `points_in_time`, or the oldest: the first moments of that time are reached from it.
    PointsInTime,
    /// Partial, but nothing complete came after it.
    PartialNewest,
    /// Its times or contents cannot be trusted, so no rule may remove it.
    Suspect,
    /// A lock in the store holds it.
    Locked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Newest => "newest complete",
            Reason::NewestVerified => "newest verified",
            Reason::MayBeVerified => "may be verified, by a report that is broken",
            Reason::Last => "last",
            Reason::Hourly => "hourly",
            Reason::Daily => "daily",
            Reason::Weekly => "weekly",
            Reason::Monthly => "monthly",
            Reason::Yearly => "yearly",
            Reason::Within => "within",
            Reason::PointsInTime => "points in time",
            Reason::PartialNewest => "partial, nothing complete since",
            Reason::Suspect => "suspect",
            Reason::Locked => "locked",
        })
    }
}

/// What becomes of one snapshot: it stays for these reasons; without any it may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub seq: u64,
    pub keep: Vec<Reason>,
}

/// Decides on each of `points`, in their order. A snapshot from the future of `now` counts as suspect: by its time it would displace real ones.
pub fn decide(points: &[Point], policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let trusted = |p: &&Point| !p.suspect && p.data_time <= now;
    let newest = points.iter().filter(trusted).filter(|p| p.complete).map(|p| p.seq).max();
    let verified = points.iter().filter(trusted).filter(|p| p.verified).map(|p| p.seq).max();
    let horizon = policy.within.map(|span| earlier(now, span, &policy.timezone));
    let reachable = policy.reachable_from(now);
    let before = |p: &&Point| p.complete && p.reaches_from.zip(reachable).is_some_and(|(at, from)| at <= from);
    let in_log = |p: &&Point| reachable.is_some() && p.complete && p.reaches_from.is_some();
    let first = points.iter().filter(trusted).filter(before).max_by_key(|p| (p.reaches_from, p.seq));
    let oldest = || points.iter().filter(trusted).filter(in_log).min_by_key(|p| (p.reaches_from, p.seq));
    let first = first.or_else(oldest).map(|p| p.seq);
    let slots = slots(points.iter().filter(trusted).filter(|p| p.complete).collect(), policy);
    points
        .iter()
        .map(|point| {
            let mut keep = Vec::new();
            let mut because = |holds: bool, reason| {
                if holds {
                    keep.push(reason);
                }
            };
            because(!trusted(&point), Reason::Suspect);
            because(Some(point.seq) == newest, Reason::Newest);
            because(Some(point.seq) == verified, Reason::NewestVerified);
            slots.get(&point.seq).into_iter().flatten().for_each(|&reason| because(true, reason));
            because(horizon.is_some_and(|horizon| point.data_time >= horizon), Reason::Within);
            because(Some(point.seq) == first, Reason::PointsInTime);
            because(!point.complete && newest.is_none_or(|newest| point.seq > newest), Reason::PartialNewest);
            Decision { seq: point.seq, keep }
        })
        .collect()
}

/// A part of a source's log without a gap: up to when it reaches, and the snapshots that lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    pub until: Timestamp,
    pub snapshots: Vec<u64>,
}

/// Adds to `decisions` on `points` what gaps in the log make necessary: of each part that reaches into the time for which every moment is promised,
/// the snapshot stays from which its first such moments are reached.
pub fn keep_for_the_log(
    decisions: &mut [Decision],
    points: &[Point],
    parts: &[LogPart],
    policy: &Policy,
    now: Timestamp,
) {
    let Some(from) = policy.reachable_from(now) else { return };
    for part in parts.iter().filter(|part| part.until >= from) {
        let good = |p: &&Point| p.complete && !p.suspect && part.snapshots.contains(&p.seq) && p.reaches_from.is_some();
        let inside = || points.iter().filter(good);
        let before = inside().filter(|p| p.reaches_from <= Some(from)).max_by_key(|p| (p.reaches_from, p.seq));
        let Some(first) = before.or_else(|| inside().min_by_key(|p| (p.reaches_from, p.seq))) else { continue };
        for decision in decisions.iter_mut().filter(|d| d.seq == first.seq && !d.keep.contains(&Reason::PointsInTime)) {
            decision.keep.push(Reason::PointsInTime);
        }
    }
}

/// `now - span` by the calendar; the beginning of time if there is no such moment, which keeps everything.
fn earlier(now: Timestamp, span: Span, timezone: &TimeZone) -> Timestamp {
    now.to_zoned(timezone.clone()).checked_sub(span).map_or(Timestamp::MIN, |then| then.timestamp())
}

/// The slots that each snapshot fills.
fn slots(mut points: Vec<&Point>, policy: &Policy) -> HashMap<u64, Vec<Reason>> {
    let mut slots: HashMap<u64, Vec<Reason>> = HashMap::new();
    points.sort_by_key(|point| std::cmp::Reverse(point.seq));
    for point in points.iter().take(policy.last as usize) {
        slots.entry(point.seq).or_default().push(Reason::Last);
    }
    points.sort_by_key(|point| std::cmp::Reverse((point.data_time, point.seq)));
    for reason in [Reason::Hourly, Reason::Daily, Reason::Weekly, Reason::Monthly, Reason::Yearly] {
        let count = policy.count(reason);
        let mut filled = HashSet::new();
        for point in &points {
            if filled.len() == count as usize {
                break;
            }
            if filled.insert(period(reason, &point.data_time.to_zoned(policy.timezone.clone()))) {
                slots.entry(point.seq).or_default().push(reason);
            }
        }
    }
    slots
}

/// A stretch of local time: the date on which it begins; for an hour also which one, and its offset, since clocks that go back show an hour twice.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Period(Date, Option<(i8, i32)>);

/// The period of `reason` that `at` lies in; reasons that go by no period have one for ever.
fn period(reason: Reason, at: &Zoned) -> Option<Period> {
    Some(match reason {
        Reason::Hourly => Period(at.date(), Some((at.hour(), at.offset().seconds()))),
        Reason::Daily => Period(at.date(), None),
        Reason::Weekly => Period(week(at.date()), None),
        Reason::Monthly => Period(at.date().first_of_month(), None),
        Reason::Yearly => Period(at.date().first_of_year(), None),
        _ => return None,
    })
}

/// Whether the hour, day, … of `at` has ended at `now`, so that no later snapshot can take its place.
pub fn period_is_over(reason: Reason, at: Timestamp, now: Timestamp, timezone: &TimeZone) -> bool {
    let of = |time: Timestamp| period(reason, &time.to_zoned(timezone.clone()));
    now > at && of(at) != of(now)
}

/// The Monday of the date's week.
fn week(date: Date) -> Date {
    let days = date.weekday().to_monday_zero_offset();
    date.checked_sub(Span::new().days(days)).unwrap_or(Date::MIN)
}
