//! What was measured, and what follows from it: RPO exposure, achieved and predicted RTO, the trend. Pure: times and sizes in, numbers out.
//!
//! *Exposure* is the age of the data of the newest usable point, never of its upload. *Achieved RTO* runs from the first read of the repository
//! to the last check. A prediction is an interval, and none is made from fewer than three measurements.

use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

use super::evidence::{DrillReport, Level};
use crate::report::Phase;

/// Measurements below which nothing is predicted.
pub const ENOUGH: usize = 3;
/// Measurements that count: older ones say little of today's machine.
const RECENT: usize = 30;
/// No restore is faster, in bytes a second: what claims to be is a broken stopwatch.
const FASTEST: f64 = 100e9;
/// How far the wall clock and the stopwatch may differ: seconds, and share.
const SLACK: (f64, f64) = (2.0, 0.05);
const DAY: f64 = 86_400.0;

/// One measured restore.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub at: Timestamp,
    pub bytes: f64,
    pub seconds: f64,
}

/// Seconds that a restore will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Prediction {
    /// `low` to `high` holds nine of ten restores, if they go on as those measured.
    Between { seconds: f64, low: f64, high: f64, measured: usize },
    /// There are fewer than [`ENOUGH`] measurements.
    TooFew { measured: usize, needed: usize },
}

impl Prediction {
    pub fn seconds(&self) -> Option<f64> {
        match self {
            Prediction::Between { seconds, .. } => Some(*seconds),
            Prediction::TooFew { .. } => None,
        }
    }
}

/// How a source grows, and when its restore will take longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trend {
    pub bytes_per_day: f64,
    /// Days until the predicted time passes the target; 0 if it has. Absent: never, at this rate.
    pub exceeds_in_days: Option<f64>,
}

/// Everything measured of one source.
#[derive(Debug, Clone, Serialize)]
pub struct Measures {
    /// Of the last drill or restore, as long as it was whole.
    pub achieved_rto_seconds: Option<f64>,
    pub timeline: Vec<Phase>,
    pub predicted_rto: Prediction,
    pub trend: Option<Trend>,
    /// When a drill of each level last passed; a deeper one counts for those above it.
    pub levels: BTreeMap<Level, Option<Timestamp>>,
}

/// Measures from the reports of one source, the oldest first. `bytes_now`: the size of the newest snapshot, if it is known.
pub fn measure(reports: &[DrillReport], bytes_now: Option<u64>, rto_target: Option<f64>) -> Measures {
    let whole: Vec<&DrillReport> = reports.iter().filter(|r| sample(r).is_some()).collect();
    let samples: Vec<Sample> = whole.iter().filter_map(|r| sample(r)).collect();
    let last = whole.last();
    let bytes = bytes_now.map(|b| b as f64).or(samples.last().map(|s| s.bytes)).unwrap_or(0.0);
    let fresh = |level: Level| {
        let passed = reports.iter().filter(|r| r.r#type == "drill" && r.passed && r.level.covers(level));
        (level, passed.map(|r| r.finished).max())
    };
    Measures {
        achieved_rto_seconds: last.map(|r| r.achieved_rto_seconds),
        timeline: last.map(|r| r.timeline.clone()).unwrap_or_default(),
        predicted_rto: predict(&samples, bytes),
        trend: trend(&samples, bytes, rto_target),
        levels: Level::ALL.map(fresh).into(),
    }
}

/// What a report says of the time that a whole restore takes; nothing if it failed, restored a part, or its stopwatch cannot be right.
fn sample(report: &DrillReport) -> Option<Sample> {
    let whole = match report.r#type.as_str() {
        "drill" => report.level == Level::Engine,
        _ => !report.deviations.iter().any(|d| d == PARTIAL_RESTORE || d.starts_with(RESUMED)),
    };
    let wall = report.finished.duration_since(report.started).as_secs_f64();
    let sound = implausible(report.achieved_rto_seconds, report.bytes, wall).is_none();
    (report.passed && whole && sound).then_some(Sample {
        at: report.started,
        bytes: report.bytes as f64,
        seconds: report.achieved_rto_seconds,
    })
}

/// The deviation of a real restore of single paths: its time says nothing of the whole.
pub const PARTIAL_RESTORE: &str = "single paths were restored, not the whole snapshot";
/// Begin of the deviation of a restore that went on where another had stopped.
pub const RESUMED: &str = "an interrupted restore was resumed";

/// Why a duration cannot be true; `wall` is the difference of the wall clock's times.
pub fn implausible(seconds: f64, bytes: u64, wall: f64) -> Option<String> {
    if !seconds.is_finite() || seconds <= 0.0 {
        return Some(format!("the stopwatch shows {seconds} s"));
    }
    if bytes as f64 / seconds > FASTEST {
        return Some(format!("{bytes} bytes in {seconds} s is faster than any machine"));
    }
    // Work after the last check, such as signing, only lengthens the wall time.
    if seconds > wall + SLACK.0 + SLACK.1 * seconds {
        return Some(format!(
            "the stopwatch shows {seconds:.1} s and the clock {wall:.1} s: the clock was set meanwhile"
        ));
    }
    None
}

/// Predicts the seconds that a restore of `bytes` takes.
///
/// Where the measured sizes differ enough, a line through them: a fixed cost and a cost a byte. Otherwise the measured times themselves,
/// scaled up to today's size but never down, since a fixed cost does not shrink.
pub fn predict(samples: &[Sample], bytes: f64) -> Prediction {
    let samples = &samples[samples.len().saturating_sub(RECENT)..];
    let n = samples.len();
    if n < ENOUGH {
        return Prediction::TooFew { measured: n, needed: ENOUGH };
    }
    line(samples, bytes).unwrap_or_else(|| scaled(samples, bytes))
}

fn line(samples: &[Sample], bytes: f64) -> Option<Prediction> {
    let n = samples.len() as f64;
    let mean = |f: fn(&Sample) -> f64| samples.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|s| s.bytes), mean(|s| s.seconds));
    let sxx: f64 = samples.iter().map(|s| (s.bytes - x).powi(2)).sum();
    // Less than 10 % of spread tells a slope from noise badly.
    if samples.len() < 4 || (sxx / n).sqrt() < 0.1 * x || x <= 0.0 {
        return None;
    }
    let slope = samples.iter().map(|s| (s.bytes - x) * (s.seconds - y)).sum::<f64>() / sxx;
    let fixed = y - slope * x;
    if slope < 0.0 || fixed < 0.0 {
        return None;
    }
    let rest: f64 = samples.iter().map(|s| (s.seconds - fixed - slope * s.bytes).powi(2)).sum();
    let deviation = (rest / (n - 2.0)).sqrt();
    let half = student(samples.len() - 2) * deviation * (1.0 + 1.0 / n + (bytes - x).powi(2) / sxx).sqrt();
    Some(between(fixed + slope * bytes, half, samples.len()))
}

fn scaled(samples: &[Sample], bytes: f64) -> Prediction {
    let n = samples.len() as f64;
    let times: Vec<f64> =
        samples.iter().map(|s| s.seconds * if s.bytes > 0.0 { (bytes / s.bytes).max(1.0) } else { 1.0 }).collect();
    let mean = times.iter().sum::<f64>() / n;
    let deviation = (times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    between(mean, student(samples.len() - 1) * deviation * (1.0 + 1.0 / n).sqrt(), samples.len())
}

fn between(seconds: f64, half: f64, measured: usize) -> Prediction {
    Prediction::Between { seconds, low: (seconds - half).max(0.0), high: seconds + half, measured }
}

/// Student's t for nine of ten, by degrees of freedom.
fn student(freedom: usize) -> f64 {
    const T: [f64; 10] = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812];
    match freedom {
        0 => f64::INFINITY,
        1..=10 => T[freedom - 1],
        11..=20 => 1.80,
        _ => 1.73,
    }
}

/// Growth by least squares over at least a day, and when `target` seconds will not suffice any more.
pub fn trend(samples: &[Sample], bytes_now: f64, target: Option<f64>) -> Option<Trend> {
    let samples = &samples[samples.len().saturating_sub(RECENT)..];
    let (first, last) = (samples.first()?.at, samples.last()?.at);
    if samples.len() < ENOUGH || last.duration_since(first).as_secs_f64() < DAY {
        return None;
    }
    let n = samples.len() as f64;
    let day = |s: &Sample| s.at.duration_since(first).as_secs_f64() / DAY;
    let x = samples.iter().map(day).sum::<f64>() / n;
    let y = samples.iter().map(|s| s.bytes).sum::<f64>() / n;
    let sxx: f64 = samples.iter().map(|s| (day(s) - x).powi(2)).sum();
    let bytes_per_day = samples.iter().map(|s| (day(s) - x) * (s.bytes - y)).sum::<f64>() / sxx;
    let exceeds_in_days = target.and_then(|target| days_until(samples, bytes_now, bytes_per_day, target));
    Some(Trend { bytes_per_day, exceeds_in_days })
}

/// Bisects the day on which the predicted time passes `target`, ten years ahead at most.
fn days_until(samples: &[Sample], bytes_now: f64, bytes_per_day: f64, target: f64) -> Option<f64> {
    let exceeds = |days: f64| predict(samples, bytes_now + days * bytes_per_day).seconds().is_some_and(|s| s > target);
    if exceeds(0.0) {
        return Some(0.0);
    }
    let (mut low, mut high) = (0.0, 3650.0);
    if bytes_per_day <= 0.0 || !exceeds(high) {
        return None;
    }
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if exceeds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(all: &[(f64, f64, f64)]) -> Vec<Sample> {
        let at = |day: f64| Timestamp::from_second(1_700_000_000 + (day * DAY) as i64).unwrap();
        all.iter().map(|(day, bytes, seconds)| Sample { at: at(*day), bytes: *bytes, seconds: *seconds }).collect()
    }

    #[test]
    fn nothing_is_predicted_from_too_little() {
        let two = samples(&[(0.0, 1e9, 10.0), (1.0, 1e9, 11.0)]);
        assert_eq!(predict(&two, 1e9), Prediction::TooFew { measured: 2, needed: 3 });
        assert_eq!(trend(&two, 1e9, Some(60.0)), None);
    }

    #[test]
    fn equal_sizes_give_their_mean_and_an_interval_that_holds_them() {
        let all = samples(&[(0.0, 1e9, 10.0), (1.0, 1e9, 12.0), (2.0, 1e9, 11.0)]);
        let Prediction::Between { seconds, low, high, measured } = predict(&all, 1e9) else { panic!() };
        assert!((seconds - 11.0).abs() < 1e-9 && low < 10.0 && high > 12.0 && measured == 3);
        // Twice the data: twice the time. Half the data: no promise.
        assert!((predict(&all, 2e9).seconds().unwrap() - 22.0).abs() < 1e-9);
        assert!((predict(&all, 0.5e9).seconds().unwrap() - 11.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_tells_the_fixed_cost_from_the_cost_of_a_byte() {
        let all = samples(&[(0.0, 1e9, 30.0), (1.0, 2e9, 40.0), (2.0, 3e9, 50.0), (3.0, 4e9, 60.0)]);
        let Prediction::Between { seconds, low, high, .. } = predict(&all, 10e9) else { panic!() };
        assert!((seconds - 120.0).abs() < 1e-6 && high - low < 1e-3);
        let noisy = samples(&[(0.0, 1e9, 25.0), (1.0, 2e9, 45.0), (2.0, 3e9, 45.0), (3.0, 4e9, 65.0)]);
        let width = |bytes| match predict(&noisy, bytes) {
            Prediction::Between { low, high, .. } => high - low,
            Prediction::TooFew { .. } => panic!(),
        };
        assert!(width(20e9) > 2.0 * width(2.5e9), "farther from what was measured is less certain");
    }

    #[test]
    fn the_day_on_which_the_target_is_passed() {
        let all = samples(&[(0.0, 1e9, 10.0), (10.0, 2e9, 20.0), (20.0, 3e9, 30.0), (30.0, 4e9, 40.0)]);
        let found = trend(&all, 4e9, Some(60.0)).unwrap();
        assert!((found.bytes_per_day - 1e8).abs() < 1.0);
        assert!((found.exceeds_in_days.unwrap() - 20.0).abs() < 0.01, "{found:?}");
        assert_eq!(trend(&all, 4e9, Some(30.0)).unwrap().exceeds_in_days, Some(0.0));
        let shrinking = samples(&[(0.0, 4e9, 40.0), (10.0, 3e9, 30.0), (20.0, 2e9, 20.0)]);
        assert_eq!(trend(&shrinking, 2e9, Some(60.0)).unwrap().exceeds_in_days, None);
    }

    #[test]
    fn durations_that_cannot_be_true_are_refused() {
        assert!(implausible(0.0, 10, 1.0).is_some());
        assert!(implausible(f64::NAN, 10, 1.0).is_some());
        assert!(implausible(1e-6, 1 << 40, 1.0).is_some());
        assert!(implausible(600.0, 1 << 30, -3000.0).unwrap().contains("clock was set"));
        assert!(implausible(1.0, 1 << 20, 1.2).is_none());
        // Signing after the last check takes wall time.
        assert!(implausible(1.0, 1 << 20, 9.0).is_none());
    }
}
