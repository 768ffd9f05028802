//! Which storage class and which lock a snapshot needs, and with it every pack that it names: pure functions of what retention decided.
//!
//! A snapshot needs the *fastest* class of the tiers that keep it. The lock of the finest tier that keeps it holds at once; those of the
//! coarser ones once their period is over, since until then a later snapshot may take the place. A pack needs the fastest class and the
//! longest lock of all snapshots that name it; a lock's end is rounded up to a week, so that it is extended at most once a week.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::retention::{Decision, Point, Policy, Reason, decide, period_is_over};
use crate::error::{Failure, Kind};
use crate::storage::{Class, Lock, LockMode, Terms};
use crate::time::optional_length;

const WEEK: i64 = 7 * 24 * 3600;

/// What is configured for each tier of the retention.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tiers {
    pub hourly: Option<Tier>,
    pub daily: Option<Tier>,
    pub weekly: Option<Tier>,
    pub monthly: Option<Tier>,
    pub yearly: Option<Tier>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tier {
    pub storage_class: Class,
    /// How long nobody may delete, from the time of the data, e.g. `365d`.
    #[serde(deserialize_with = "optional_length")]
    pub lock: Option<SignedDuration>,
    pub lock_mode: LockMode,
}

/// What a source's configuration says of its snapshots' lives.
#[derive(Debug, Clone, Copy)]
pub struct Tiering<'a> {
    pub policy: &'a Policy,
    pub tiers: &'a Tiers,
}

/// The tiers, from the finest to the coarsest.
const REASONS: [Reason; 5] = [Reason::Hourly, Reason::Daily, Reason::Weekly, Reason::Monthly, Reason::Yearly];

impl Tiers {
    fn of(&self, reason: Reason) -> Option<&Tier> {
        match reason {
            Reason::Hourly => self.hourly.as_ref(),
            Reason::Daily => self.daily.as_ref(),
            Reason::Weekly => self.weekly.as_ref(),
            Reason::Monthly => self.monthly.as_ref(),
            Reason::Yearly => self.yearly.as_ref(),
            _ => None,
        }
    }

    fn configured(&self) -> impl Iterator<Item = (Reason, &Tier)> {
        REASONS.into_iter().filter_map(|reason| Some((reason, self.of(reason)?)))
    }

    /// Whether any tier asks for more than a plain object.
    pub fn is_empty(&self) -> bool {
        self.configured().all(|(_, tier)| tier.storage_class == Class::Standard && tier.lock.is_none())
    }

    /// Whether any tier locks.
    pub fn locks(&self) -> bool {
        self.configured().any(|(_, tier)| tier.lock.is_some())
    }

    /// The classes that packs may be moved to.
    pub fn classes(&self) -> Vec<Class> {
        let mut all: Vec<Class> = self.configured().map(|(_, tier)| tier.storage_class).collect();
        all.retain(|class| *class != Class::Standard);
        all.sort();
        all.dedup();
        all
    }

    /// Refuses tiers that keep nothing, and classes that cannot be read within `rto`.
    pub fn validate(&self, policy: &Policy, rto: Option<SignedDuration>) -> Result<()> {
        for (reason, tier) in self.configured() {
            if policy.count(reason) == 0 {
                let help = format!("Nothing was done. Set {reason} = N in the retention, or leave the tier out.");
                return Err(Failure::new(
                    Kind::Config,
                    format!("the retention keeps no {reason} snapshots, but there is a tier for them"),
                    help,
                ));
            }
            let (class, thaw) = (tier.storage_class, thaw_time(tier.storage_class));
            if rto.is_some_and(|rto| rto < thaw) {
                return Err(Failure::new(
                    Kind::Config,
                    format!(
                        "the {reason} tier is in {class}, which takes up to {} h to thaw: longer than the RTO",
                        thaw.as_hours()
                    ),
                    "Nothing was done. Take GLACIER_IR, which is read at once, or give the RTO that can be kept.",
                ));
            }
        }
        Ok(())
    }
}

/// What a standard retrieval from a class takes at most, as a rule (S3 User Guide, archive retrieval options).
pub fn thaw_time(class: Class) -> SignedDuration {
    match class {
        Class::Glacier => SignedDuration::from_hours(5),
        Class::DeepArchive => SignedDuration::from_hours(12),
        _ => SignedDuration::ZERO,
    }
}

/// What each snapshot that stays needs; those that go need nothing. Pure.
pub fn needs(points: &[Point], decisions: &[Decision], tiering: Tiering, now: Timestamp) -> BTreeMap<u64, Terms> {
    let kept = points.iter().zip(decisions).filter(|(_, decision)| !decision.keep.is_empty());
    kept.map(|(point, decision)| (point.seq, need(point, decision, tiering, now))).collect()
}

fn need(point: &Point, decision: &Decision, tiering: Tiering, now: Timestamp) -> Terms {
    let kept_as: Vec<Reason> = REASONS.into_iter().filter(|reason| decision.keep.contains(reason)).collect();
    // What these keep may be asked for at any time, as may what no tier keeps.
    let asked_for = |r: &Reason| matches!(r, Reason::Last | Reason::Within | Reason::PointsInTime | Reason::Suspect);
    let at_once = decision.keep.iter().any(asked_for);
    let class_of = |reason: &Reason| tiering.tiers.of(*reason).map_or(Class::Standard, |tier| tier.storage_class);
    let class = if at_once { Class::Standard } else { kept_as.iter().map(class_of).min().unwrap_or_default() };
    let mut lock: Option<Lock> = None;
    // A clock that is ahead must not lock for ever what it dates.
    if decision.keep.contains(&Reason::Suspect) {
        return Terms { class, lock };
    }
    for (n, reason) in kept_as.iter().enumerate() {
        let holds = n == 0 || period_is_over(*reason, point.data_time, now, &tiering.policy.timezone);
        if let Some(tier) = tiering.tiers.of(*reason).filter(|_| holds)
            && let Some(length) = tier.lock
        {
            let until = up_to_a_week(point.data_time.saturating_add(length).unwrap_or(Timestamp::MAX));
            lock = Some(stricter(lock, Lock { mode: tier.lock_mode, until }));
        }
    }
    Terms { class, lock }
}

/// What a snapshot made at `now` will need, beside those that there are.
pub fn need_of_next(points: &[Point], seq: u64, tiering: Tiering, now: Timestamp) -> Terms {
    let next = Point { seq, data_time: now, complete: true, verified: false, suspect: false, reaches_from: None };
    let points: Vec<Point> = points.iter().cloned().chain([next]).collect();
    let decisions = decide(&points, tiering.policy, now);
    needs(&points, &decisions, tiering, now).remove(&seq).unwrap_or_default()
}

/// What a pack needs that several snapshots name: the fastest class and the longest lock.
pub fn together(a: Terms, b: Terms) -> Terms {
    let lock = b.lock.map_or(a.lock, |lock| Some(stricter(a.lock, lock)));
    Terms { class: a.class.min(b.class), lock }
}

fn stricter(a: Option<Lock>, b: Lock) -> Lock {
    a.map_or(b, |a| Lock { mode: a.mode.max(b.mode), until: a.until.max(b.until) })
}

/// Whether a lock until and in the mode of `held` is as good as `wanted`.
pub fn holds(held: Option<Lock>, wanted: Lock) -> bool {
    held.is_some_and(|held| held.until >= wanted.until && held.mode >= wanted.mode)
}

fn up_to_a_week(at: Timestamp) -> Timestamp {
    let seconds = at.as_second().div_euclid(WEEK).saturating_add(1).saturating_mul(WEEK);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Span;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn tier(class: Class, days: i64) -> Option<Tier> {
        let lock = (days > 0).then(|| SignedDuration::from_hours(24 * days));
        Some(Tier { storage_class: class, lock, lock_mode: LockMode::Governance })
    }

    fn point(seq: u64, time: &str) -> Point {
        Point { seq, data_time: at(time), complete: true, verified: false, suspect: false, reaches_from: None }
    }

    fn all_needs(points: &[Point], policy: &Policy, tiers: &Tiers, now: &str) -> BTreeMap<u64, Terms> {
        let decisions = decide(points, policy, at(now));
        needs(points, &decisions, Tiering { policy, tiers }, at(now))
    }

    #[test]
    fn the_fastest_class_and_a_month_that_is_over() {
        let policy = Policy { daily: 7, monthly: 12, ..Policy::default() };
        let tiers = Tiers { daily: tier(Class::Standard, 7), monthly: tier(Class::GlacierIr, 365), ..Tiers::default() };
        let points = [point(1, "2026-01-31T03:00:00Z"), point(2, "2026-02-10T03:00:00Z")];
        // In February: January's is kept by the month alone (its day is the second newest, so by the day too).
        let found = all_needs(&points, &policy, &tiers, "2026-02-10T04:00:00Z");
        assert_eq!(found[&1].class, Class::Standard, "the day keeps it too");
        assert!(found[&1].lock.unwrap().until >= at("2027-01-31T03:00:00Z"));
        // The month is not over: a later snapshot may take its place, so it is locked as a day only.
        assert!(found[&2].lock.unwrap().until < at("2026-02-26T00:00:00Z"), "{:?}", found[&2]);
        let days: Vec<Point> = (3..13).map(|n| point(n, &format!("2026-02-{:02}T05:00:00Z", n + 9))).collect();
        let found = all_needs(&[&points[..], &days].concat(), &policy, &tiers, "2026-02-22T00:00:00Z");
        assert_eq!(found[&1].class, Class::GlacierIr, "the month alone keeps it");
        assert_eq!(found[&12].class, Class::Standard);
        assert!(!found.contains_key(&2), "what goes needs nothing");
    }

    #[test]
    fn a_tier_may_be_cold_from_the_start() {
        let policy = Policy { hourly: 720, ..Policy::default() };
        let tiers = Tiers { hourly: tier(Class::Glacier, 0), ..Tiers::default() };
        let tiering = Tiering { policy: &policy, tiers: &tiers };
        assert_eq!(need_of_next(&[], 1, tiering, at("2026-01-01T00:00:00Z")).class, Class::Glacier);
        let policy = Policy { within: Some(Span::new().days(1)), ..policy };
        let tiering = Tiering { policy: &policy, tiers: &tiers };
        assert_eq!(need_of_next(&[], 1, tiering, at("2026-01-01T00:00:00Z")).class, Class::Standard);
    }

    #[test]
    fn what_every_moment_begins_with_is_not_cold() {
        let policy = Policy { monthly: 12, points_in_time: Some(Span::new().days(30)), ..Policy::default() };
        let tiers = Tiers { monthly: tier(Class::Glacier, 0), ..Tiers::default() };
        let of_log = |seq, time| Point { reaches_from: Some(at(time)), ..point(seq, time) };
        let points = [of_log(1, "2026-01-31T03:00:00Z"), of_log(2, "2026-02-28T03:00:00Z")];
        let kept = decide(&points, &policy, at("2026-03-10T00:00:00Z"));
        assert_eq!(kept[0].keep, [Reason::Monthly, Reason::PointsInTime], "the month and the promise keep it");
        let found = all_needs(&points, &policy, &tiers, "2026-03-10T00:00:00Z");
        assert_eq!(found[&1].class, Class::Standard, "it may be asked for at any time");
        let found = all_needs(&points, &policy, &tiers, "2026-04-10T00:00:00Z");
        assert_eq!(found[&1].class, Class::Glacier, "the month alone keeps it");
    }

    #[test]
    fn nonsense_is_refused() {
        let policy = Policy { daily: 7, ..Policy::default() };
        let tiers = Tiers { monthly: tier(Class::Glacier, 0), ..Tiers::default() };
        assert!(tiers.validate(&policy, None).unwrap_err().to_string().contains("keeps no monthly"));
        let tiers = Tiers { daily: tier(Class::DeepArchive, 0), ..Tiers::default() };
        tiers.validate(&policy, None).unwrap();
        tiers.validate(&policy, Some(SignedDuration::from_hours(12))).unwrap();
        let error = tiers.validate(&policy, Some(SignedDuration::from_hours(4))).unwrap_err();
        assert!(error.to_string().contains("12 h to thaw"), "{error}");
    }

    fn some_tier() -> impl Strategy<Value = Option<Tier>> {
        let class = prop::sample::select(&Class::ALL[..]);
        prop::option::of((class, 0i64..400, any::<bool>()).prop_map(|(storage_class, days, compliance)| Tier {
            storage_class,
            lock: (days > 0).then(|| SignedDuration::from_hours(24 * days)),
            lock_mode: if compliance { LockMode::Compliance } else { LockMode::Governance },
        }))
    }

    prop_compose! {
        fn a_life()(
            hours in prop::collection::vec(1i64..2000, 1..40),
            counts in (0u32..5, 0u32..5, 0u32..5, 0u32..5, 0u32..3),
            tiers in (some_tier(), some_tier(), some_tier(), some_tier(), some_tier()),
        ) -> (Vec<Point>, Policy, Tiers) {
            let mut time = at("2025-01-01T00:00:00Z");
            let points = (1..).zip(&hours).map(|(seq, hours)| {
                time += SignedDuration::from_hours(*hours);
                Point { seq, data_time: time, complete: true, verified: false, suspect: false, reaches_from: None }
            });
            let points = points.collect();
            let (hourly, daily, weekly, monthly, yearly) = counts;
            let policy = Policy { hourly, daily, weekly, monthly, yearly, ..Policy::default() };
            let (hourly, daily, weekly, monthly, yearly) = tiers;
            (points, policy, Tiers { hourly, daily, weekly, monthly, yearly })
        }
    }

    proptest! {
        #[test]
        fn needs_keep_the_promises((points, policy, tiers) in a_life(), later in 0i64..3000) {
            let now = points.last().unwrap().data_time + SignedDuration::from_hours(later);
            let decisions = decide(&points, &policy, now);
            let tiering = Tiering { policy: &policy, tiers: &tiers };
            let found = needs(&points, &decisions, tiering, now);
            for (point, decision) in points.iter().zip(&decisions) {
                let Some(need) = found.get(&point.seq) else {
                    prop_assert!(decision.keep.is_empty());
                    continue;
                };
                let mine: Vec<&Tier> = decision.keep.iter().filter_map(|r| tiers.of(*r)).collect();
                // Never slower than any tier that keeps it allows.
                prop_assert!(mine.iter().all(|tier| need.class <= tier.storage_class));
                // Never locked for longer, by more than a week, than the longest lock that it is kept by; never without one.
                let longest = mine.iter().filter_map(|tier| tier.lock).max();
                if let Some(lock) = need.lock {
                    let bound = point.data_time + longest.unwrap() + SignedDuration::from_hours(7 * 24);
                    prop_assert!(lock.until <= bound && lock.until.as_second() % WEEK == 0);
                }
                // Once every period is over, the longest lock holds.
                let years_later = needs(std::slice::from_ref(point), std::slice::from_ref(decision), tiering, now + SignedDuration::from_hours(24 * 800));
                if let Some(longest) = longest {
                    prop_assert!(years_later[&point.seq].lock.unwrap().until >= point.data_time + longest);
                }
            }
            // What shares a pack: fastest and longest, in whatever order.
            let all: Vec<Terms> = found.values().copied().collect();
            let forth = all.iter().copied().reduce(together);
            let back = all.iter().rev().copied().reduce(together);
            prop_assert_eq!(forth, back);
            if let Some(sum) = forth {
                for one in all {
                    prop_assert!(sum.class <= one.class && one.lock.is_none_or(|lock| holds(sum.lock, lock)));
                }
            }
        }
    }
}
