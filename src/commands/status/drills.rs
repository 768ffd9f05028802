//! The drills in `status`: when each level that the schedule promises was last done.

use jiff::Timestamp;
use serde::Serialize;

use crate::commands::output::span;
use crate::job::Job;
use crate::operations::drill::{DrillReport, Level};

#[derive(Serialize)]
pub struct Row {
    level: Level,
    /// The longest planned time between two.
    interval_seconds: f64,
    /// The last that tells as much: its end, and whether it passed.
    last: Option<Timestamp>,
    passed: Option<bool>,
    /// That two in a row are missing.
    overdue: bool,
}

/// One row for each level on the schedule, from the cheap to the dear; `reports` are the source's, the oldest first.
pub fn rows(job: Option<&Job>, reports: &[DrillReport], now: Timestamp) -> Vec<Row> {
    let drills = job.into_iter().flat_map(Job::drills);
    let row = |(level, rhythm): (Level, &crate::job::Rhythm)| {
        let last = reports.iter().rfind(|r| r.r#type == "drill" && r.level.covers(level));
        let interval = rhythm.gaps().1;
        Row {
            level,
            interval_seconds: interval.as_secs_f64(),
            last: last.map(|r| r.finished),
            passed: last.map(|r| r.passed),
            // Since when the schedule promises it only the agent knows.
            overdue: last.is_some_and(|r| now.duration_since(r.finished) > interval.saturating_mul(2)),
        }
    };
    drills.map(row).collect()
}

impl Row {
    /// What is wrong with the drills of this level, for people.
    pub fn attention(&self, source: &str) -> Option<String> {
        let level = self.level;
        self.overdue
            .then(|| format!("a drill of level {level} is OVERDUE: run `blackstart drill {source} --level {level}`"))
    }
}

/// When each was last done, in one line; nothing where there is no more than the usual one.
pub fn say(rows: &[Row], now: Timestamp) -> Option<String> {
    let ago = |at: Timestamp| format!("{} ago", span(now.duration_since(at).as_secs_f64().max(0.0)));
    let one = |row: &Row| {
        let failed = if row.passed == Some(false) { ", FAILED" } else { "" };
        format!("{} {}{failed}", row.level, row.last.map_or("never".into(), ago))
    };
    (rows.len() > 1).then(|| format!("drills: {}", rows.iter().map(one).collect::<Vec<_>>().join("; ")))
}
