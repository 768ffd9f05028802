//! What a run of a plan found: signed into the chain `plan.<name>`, and read again to predict the next run.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Action, Plan};
use crate::operations::evidence::{Chain, Environment, Keys, Public};
use crate::operations::measures::{self, Prediction};
use crate::operations::{Open, verified};
use crate::report::{Check, HIDDEN, Phase, remarks_in_public};
use crate::repository::layout::{GroupName, Hash, SourceName};

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Done,
    Failed,
    /// Left out, as a drill leaves out what would touch live systems.
    Skipped,
    /// A stage that it needs did not get done, or the plan had stopped.
    NotReached,
    /// In an earlier part of this run.
    DoneBefore,
    Undone,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageReport {
    pub name: String,
    pub action: String,
    pub outcome: Ended,
    pub seconds: f64,
    pub budget_seconds: Option<f64>,
    pub checks: Vec<Check>,
    /// What came of it, or what went wrong, for people.
    pub detail: String,
    /// Of a real restore that replaced something: where that is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Of a restore: which point of which source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointReport>,
    /// Of the restore of a group: the common point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<CommonPoint>,
}

impl StageReport {
    pub fn over_budget(&self) -> bool {
        self.budget_seconds.is_some_and(|budget| self.seconds > budget)
    }

    /// What it restored.
    pub fn points(&self) -> impl Iterator<Item = &PointReport> {
        self.point.iter().chain(self.group.iter().flat_map(|group| &group.members))
    }
}

/// A common point that a plan restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommonPoint {
    pub group: GroupName,
    pub n: u64,
    /// Hash of the common point.
    pub point: Hash,
    /// How far apart the points of its members may lie, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<u64>,
    pub spread_ms: u64,
    /// Those that have come back.
    pub members: Vec<PointReport>,
}

impl StageReport {
    /// What went wrong is told in a program's or an engine's words.
    fn in_public(&self) -> StageReport {
        let failed = self.outcome == Ended::Failed && !self.detail.is_empty();
        let detail =
            if failed { format!("{HIDDEN} ({} bytes of text)", self.detail.len()) } else { self.detail.clone() };
        StageReport { checks: self.checks.iter().map(Check::in_public).collect(), detail, ..self.clone() }
    }
}

/// A recovery point that a plan restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PointReport {
    pub source: SourceName,
    pub seq: u64,
    pub commit: Hash,
    pub data_time: Timestamp,
    pub why: String,
    /// Where the copy lies, or lay.
    pub to: String,
    /// Of a member of a group that replaced something: where that is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

/// FORMAT.md §2.7.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanReport {
    pub r#type: String,
    pub format: u32,
    pub repository: String,
    pub subject: String,
    pub n: u64,
    pub previous: Option<Hash>,
    pub plan: String,
    /// Of the plan's file.
    pub hash: Hash,
    /// `drill` or `real`.
    pub mode: String,
    pub trigger: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub passed: bool,
    pub sources: Vec<SourceName>,
    pub points: Vec<PointReport>,
    pub stages: Vec<StageReport>,
    /// Those of all stages.
    pub checks: Vec<Check>,
    pub tested: Vec<String>,
    pub not_tested: Vec<String>,
    pub timeline: Vec<Phase>,
    /// Of the oldest data among the points, when the run began.
    pub rpo_exposure_seconds: f64,
    pub rpo_target_seconds: Option<f64>,
    pub rpo_met: Option<bool>,
    /// From the first stage to the end of the last, on a monotonic clock; of a resumed run, all parts without the pauses.
    pub achieved_rto_seconds: f64,
    pub rto_target_seconds: Option<f64>,
    pub rto_met: Option<bool>,
    pub deviations: Vec<String>,
    pub environment: Environment,
    pub keys: Keys,
    pub configuration: Option<Hash>,
    pub scratch_removed: bool,
    pub agent: String,
}

impl Public for PlanReport {
    fn in_public(&self) -> PlanReport {
        let stages = self.stages.iter().map(StageReport::in_public).collect();
        let checks = self.checks.iter().map(Check::in_public).collect();
        PlanReport { stages, checks, deviations: remarks_in_public(&self.deviations), ..self.clone() }
    }
}

/// The name under which reports on a plan are kept.
pub fn subject(plan: &str) -> String {
    format!("plan.{plan}")
}

/// The runs of a plan so far, the oldest first.
pub fn reports(open: &Open, plan: &str) -> Result<Vec<PlanReport>> {
    let chain = Chain::read(open, &subject(plan))?;
    Ok(chain.reports.iter().filter_map(|s| s.decode().ok()).collect())
}

/// Whether a plan can be relied on.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// The newest drill passed, with the plan as it is now.
    Verified {
        at: Timestamp,
        seconds: f64,
    },
    /// The plan was edited after it was drilled.
    Edited {
        drilled: Timestamp,
    },
    Failed {
        at: Timestamp,
    },
    NeverDrilled,
}

pub fn state(plan: &Plan, reports: &[PlanReport]) -> State {
    match reports.iter().rfind(|r| r.mode == "drill") {
        None => State::NeverDrilled,
        Some(last) if last.hash != plan.hash => State::Edited { drilled: last.started },
        Some(last) if !last.passed => State::Failed { at: last.started },
        Some(last) => State::Verified { at: last.finished, seconds: last.achieved_rto_seconds },
    }
}

/// How long a stage will take, and how that is known.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    pub seconds: Option<f64>,
    pub from: String,
}

/// From earlier runs of the stage; of a restore, else from drills of its source.
pub fn forecast(open: &Open, plan: &Plan, runs: &[PlanReport]) -> Result<Vec<Forecast>> {
    plan.stages
        .iter()
        .map(|stage| {
            let same =
                |s: &&StageReport| s.name == stage.name && s.action == stage.action.name() && s.outcome == Ended::Done;
            let mut measured: Vec<f64> =
                runs.iter().flat_map(|r| r.stages.iter().filter(same).map(|s| s.seconds)).collect();
            measured.sort_by(f64::total_cmp);
            if let Some(median) = measured.get(measured.len() / 2) {
                return Ok(Forecast { seconds: Some(*median), from: format!("{} earlier runs", measured.len()) });
            }
            match &stage.action {
                Action::Restore(restore) => of_drills(open, &restore.source),
                Action::RestoreGroup(restore) => {
                    let all: Vec<Forecast> =
                        restore.to.keys().map(|member| of_drills(open, member)).collect::<Result<_>>()?;
                    let seconds: Option<f64> = all.iter().map(|forecast| forecast.seconds).sum();
                    let from = if seconds.is_some() { "drills of its members" } else { "not all measured yet" };
                    Ok(Forecast { seconds, from: from.into() })
                }
                _ => Ok(Forecast::unknown()),
            }
        })
        .collect()
}

impl Forecast {
    fn unknown() -> Forecast {
        Forecast { seconds: None, from: "not measured yet".into() }
    }
}

fn of_drills(open: &Open, source: &SourceName) -> Result<Forecast> {
    let known = measures::measure(&verified::reports(open, source)?.drills, None, None);
    Ok(match (known.predicted_rto, known.achieved_rto_seconds) {
        (Prediction::Between { seconds, measured, .. }, _) => {
            Forecast { seconds: Some(seconds), from: format!("{measured} drills") }
        }
        (_, Some(seconds)) => Forecast { seconds: Some(seconds), from: "the last drill".into() },
        _ => Forecast::unknown(),
    })
}
