//! The restore plans in `status`: whether a drill has verified each as it is now, and whether the next one is overdue.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use crate::commands::plan::say_state;
use crate::config::Config;
use crate::job::Task;
use crate::operations::Open;
use crate::plan::{self, Plan, State};

#[derive(Serialize)]
pub struct Row {
    pub plan: String,
    /// `None`: its text is wrong.
    state: Option<State>,
    last_drill: Option<Timestamp>,
    /// That two drills of its schedule are missing.
    overdue: bool,
    rto_seconds: Option<f64>,
    achieved_rto_seconds: Option<f64>,
    /// What is wrong, for people.
    pub attention: Option<String>,
}

/// One row for each plan of the configuration.
pub fn rows(open: &Open, config: Option<&Config>) -> Result<Vec<Row>> {
    let Some(config) = config else { return Ok(Vec::new()) };
    plan::files(config)?
        .iter()
        .map(|file| {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match Plan::read(file, config) {
                Ok(plan) => row(open, config, &plan),
                Err(error) => Ok(Row {
                    plan: name,
                    state: None,
                    last_drill: None,
                    overdue: false,
                    rto_seconds: None,
                    achieved_rto_seconds: None,
                    attention: Some(format!("cannot be read: {error:#}")),
                }),
            }
        })
        .collect()
}

fn row(open: &Open, config: &Config, plan: &Plan) -> Result<Row> {
    let reports = plan::reports(open, &plan.name)?;
    let state = plan::state(plan, &reports);
    let last = reports.iter().rfind(|r| r.mode == "drill");
    let job = config.jobs.iter().find(|job| job.enabled && job.source.plan() == Some(&plan.name));
    let rhythm = job.and_then(|job| job.tasks.get(&Task::DRILL));
    let overdue = rhythm
        .zip(last)
        .is_some_and(|(rhythm, last)| open.now().duration_since(last.finished) > rhythm.gaps().1.saturating_mul(2));
    let wrong = match &state {
        State::Verified { .. } if overdue => Some(format!("{}: its drill is OVERDUE", say_state(&state))),
        State::Verified { .. } => None,
        state => Some(format!("is {}", say_state(state))),
    };
    let attention = wrong.map(|wrong| format!("{wrong}: run `blackstart drill --plan {}`", plan.name));
    Ok(Row {
        plan: plan.name.clone(),
        last_drill: last.map(|last| last.finished),
        overdue,
        rto_seconds: plan.rto.map(|rto| rto.as_secs_f64()),
        achieved_rto_seconds: last.map(|last| last.achieved_rto_seconds),
        state: Some(state),
        attention,
    })
}

impl Row {
    pub fn say(&self) -> String {
        match (&self.attention, &self.state) {
            (Some(attention), _) => format!("plan {}: {attention}", self.plan),
            (None, Some(state)) => format!("plan {}: {}", self.plan, say_state(state)),
            (None, None) => format!("plan {}", self.plan),
        }
    }
}
