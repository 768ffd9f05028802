//! The canary of a source, as `status` shows it.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::commands::output::span;
use crate::config::Config;
use crate::operations::canary::CanaryReport;
use crate::operations::drill::DrillReport;
use crate::repository::layout::SourceName;

/// From so much on, and three intervals, a canary is overdue.
const LATE: SignedDuration = SignedDuration::from_mins(2);

#[derive(Serialize)]
pub struct Row {
    /// When this host last wrote one.
    written: Option<Timestamp>,
    age_seconds: Option<f64>,
    every_seconds: u64,
    /// What the last drill found in its copy.
    drilled: Option<CanaryReport>,
    #[serde(skip)]
    overdue: bool,
}

/// `None`: the source has none, as far as is known here.
pub fn row(config: Option<&Config>, source: &SourceName, drills: &[DrillReport], now: Timestamp) -> Option<Row> {
    let config = config?;
    let of = config.source.iter().find(|s| s.name == *source)?;
    let stated = config.canary_stated(of)?;
    let age = stated.written.map(|at| now.duration_since(at));
    let every = SignedDuration::from_secs(i64::try_from(stated.every_seconds).unwrap_or(i64::MAX));
    let most = every.saturating_mul(3).saturating_add(LATE);
    Some(Row {
        written: stated.written,
        age_seconds: age.map(|age| age.as_secs_f64()),
        every_seconds: stated.every_seconds,
        drilled: drills.iter().rev().find_map(|report| report.canary),
        overdue: age.is_none_or(|age| age > most),
    })
}

impl Row {
    /// For people: how it stands.
    pub fn told(&self) -> String {
        let mut text = match self.age_seconds {
            Some(age) => format!("canary written {} ago", span(age)),
            None => "canary never written from here".to_owned(),
        };
        if self.overdue {
            text.push_str(": OVERDUE, is the agent running, or `blackstart canary` in cron?");
        }
        if let Some(drilled) = self.drilled {
            text.push_str(&format!(
                "; in the copy of the last drill it was {} older than the data",
                span(drilled.age_seconds)
            ));
        }
        text
    }
}
