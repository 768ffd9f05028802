//! Retention against golden files (`UPDATE=1` rewrites them; read the diff), and against what must hold for any history.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "test files need no durability")]

use blackstart::error::{Kind, kind_of};
use blackstart::operations::retention::{Decision, Point, Policy, decide};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// One golden file. A line of `points` reads `SEQ TIME [complete|partial] [verified] [suspect] [in-log] => REASONS`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    about: String,
    policy: serde_json::Value,
    now: Timestamp,
    points: Vec<String>,
}

fn parse(line: &str) -> Point {
    let mut words = line.split("=>").next().unwrap().split_whitespace();
    let seq = words.next().unwrap().parse().unwrap();
    let data_time = words.next().unwrap().parse().unwrap();
    let flags: Vec<&str> = words.collect();
    let has = |flag| flags.contains(&flag);
    assert!(has("complete") != has("partial"), "{line}");
    let known = ["complete", "partial", "verified", "suspect", "in-log", "in-log-a-day-later"];
    assert!(flags.iter().all(|f| known.contains(f)), "{line}");
    let late = SignedDuration::from_hours(if has("in-log-a-day-later") { 24 } else { 0 });
    let reaches_from = flags.iter().any(|f| f.starts_with("in-log")).then(|| data_time + late);
    Point {
        seq,
        data_time,
        complete: has("complete"),
        verified: has("verified"),
        suspect: has("suspect"),
        reaches_from,
    }
}

fn decided(line: &str, decision: &Decision) -> String {
    let reasons: Vec<String> = decision.keep.iter().map(ToString::to_string).collect();
    let reasons = if reasons.is_empty() { "may go".to_owned() } else { reasons.join(", ") };
    format!("{} => {reasons}", line.split("=>").next().unwrap().trim_end())
}

#[test]
fn golden() {
    let mut cases = 0;
    for file in std::fs::read_dir("tests/golden/retention").unwrap() {
        let path = file.unwrap().path();
        let mut case: Case = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let policy: Policy = serde_json::from_value(case.policy.clone()).unwrap();
        let points: Vec<Point> = case.points.iter().map(|line| parse(line)).collect();
        let decisions = decide(&points, &policy, case.now);
        let lines: Vec<String> = case.points.iter().zip(&decisions).map(|(line, d)| decided(line, d)).collect();
        if std::env::var_os("UPDATE").is_some() {
            case.points = lines;
            std::fs::write(&path, serde_json::to_string_pretty(&case).unwrap() + "\n").unwrap();
        } else {
            assert_eq!(case.points, lines, "{}: {}", path.display(), case.about);
        }
        cases += 1;
    }
    assert!(cases >= 12);
}

#[test]
fn a_policy_that_keeps_nothing_is_refused() {
    let policy = |json: &str| serde_json::from_str::<Policy>(json).unwrap();
    for bad in ["{}", r#"{"daily": 0}"#, r#"{"within": "0d"}"#, r#"{"within": "-3d"}"#] {
        let error = policy(bad).validate().unwrap_err();
        assert_eq!(kind_of(&error), Kind::Config, "{bad}");
    }
    for good in [r#"{"daily": 1}"#, r#"{"within": "30d"}"#, r#"{"within": "1y 6mo", "timezone": "Asia/Tokyo"}"#] {
        policy(good).validate().unwrap();
    }
    assert!(serde_json::from_str::<Policy>(r#"{"dayly": 7}"#).is_err());
}

const NOW: &str = "2026-06-01T12:00:00Z";

/// A history: mostly in order, with clocks that jump and runs that fail.
fn points() -> impl Strategy<Value = Vec<Point>> {
    let point = (0i64..400 * 24 * 60, 0u8..10, any::<bool>(), 0u8..20);
    proptest::collection::vec(point, 0..60).prop_map(|mut raw| {
        raw.sort_by_key(|(age, jump, ..)| if *jump == 0 { 0 } else { -*age });
        let now: Timestamp = NOW.parse().unwrap();
        raw.iter()
            .enumerate()
            .map(|(i, &(minutes, complete, verified, suspect))| Point {
                seq: i as u64 + 1,
                data_time: now - SignedDuration::from_mins(minutes - 60),
                complete: complete != 1,
                verified,
                suspect: suspect == 0,
                reaches_from: (i % 3 > 0).then(|| now - SignedDuration::from_mins(minutes - 61)),
            })
            .collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let zones = proptest::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Tokyo", "America/St_Johns"]);
    let counts = [0u32..4, 0..5, 0..8, 0..4, 0..5, 0..3];
    (counts, proptest::option::of(1i64..500), zones).prop_map(
        |([last, hourly, daily, weekly, monthly, yearly], within, zone)| Policy {
            points_in_time: None,
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within: within.map(|days| jiff::Span::new().days(days)),
            timezone: jiff::tz::TimeZone::get(zone).unwrap(),
        },
    )
}

fn kept(points: &[Point], policy: &Policy) -> Vec<Point> {
    let now = NOW.parse().unwrap();
    points.iter().zip(decide(points, policy, now)).filter(|(_, d)| !d.keep.is_empty()).map(|(p, _)| p.clone()).collect()
}

proptest! {
    #[test]
    fn what_must_never_go_stays(points in points(), policy in policies()) {
        let now: Timestamp = NOW.parse().unwrap();
        let kept = kept(&points, &policy);
        let trusted = |p: &&Point| !p.suspect && p.data_time <= now;
        let newest = points.iter().filter(trusted).filter(|p| p.complete).max_by_key(|p| p.seq);
        prop_assert!(newest.is_none_or(|p| kept.contains(p)));
        let verified = points.iter().filter(trusted).filter(|p| p.verified).max_by_key(|p| p.seq);
        prop_assert!(verified.is_none_or(|p| kept.contains(p)));
        prop_assert!(points.iter().filter(|p| !trusted(p)).all(|p| kept.contains(p)));
        prop_assert!(points.is_empty() || !kept.is_empty());
    }

    #[test]
    fn decisions_come_in_the_order_asked(points in points(), policy in policies()) {
        let decisions = decide(&points, &policy, NOW.parse().unwrap());
        prop_assert!(decisions.iter().map(|d| d.seq).eq(points.iter().map(|p| p.seq)));
        let mut reversed = points.clone();
        reversed.reverse();
        let mut again = decide(&reversed, &policy, NOW.parse().unwrap());
        again.reverse();
        prop_assert_eq!(decisions, again);
    }

    #[test]
    fn what_stayed_once_stays_when_asked_again(points in points(), policy in policies()) {
        let once = kept(&points, &policy);
        prop_assert_eq!(kept(&once, &policy), once);
    }

    #[test]
    fn suspect_points_displace_nothing(points in points(), policy in policies()) {
        let now: Timestamp = NOW.parse().unwrap();
        let trusted: Vec<Point> = points.iter().filter(|p| !p.suspect && p.data_time <= now).cloned().collect();
        let mut of_all = kept(&points, &policy);
        of_all.retain(|p| trusted.contains(p));
        prop_assert_eq!(of_all, kept(&trusted, &policy));
    }

    #[test]
    fn a_new_point_takes_nothing_from_within(points in points(), policy in policies(), minutes in 0i64..10_000, complete: bool) {
        let now: Timestamp = NOW.parse().unwrap();
        let seq = points.len() as u64 + 1;
        let data_time = now - SignedDuration::from_mins(minutes);
        let new = Point { seq, data_time, complete, verified: false, suspect: false, reaches_from: Some(data_time) };
        let within = |points: &[Point]| -> Vec<u64> {
            let reason = blackstart::operations::retention::Reason::Within;
            decide(points, &policy, now).into_iter().filter(|d| d.keep.contains(&reason)).map(|d| d.seq).collect()
        };
        let mut more = points.clone();
        more.push(new);
        let after = within(&more);
        prop_assert!(within(&points).iter().all(|seq| after.contains(seq)));
    }
}
