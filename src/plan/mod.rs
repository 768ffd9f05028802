//! Restore plans: `restore-plans/*.toml` beside the configuration, the disaster written down. One executor runs a plan for real and in a drill,
//! so that what is rehearsed is what happens.
//!
//! Stages run one after the other in the order of the file. A stage needs those that it names in `after`; without it, the one before. In a drill
//! `restore` goes to scratch, and what would touch live systems (`run`, `notify`, `wait_for`, checks by HTTP or command) is skipped unless the
//! stage says `drill = "run"` or gives a replacement; what was skipped stands in the report as not tested.

pub mod check;
mod file;
mod journal;
mod report;
mod run;
mod stage;
mod variables;

use anyhow::Result;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, text};
use crate::error::{Failure, Kind};
use crate::job::Rhythm;
use crate::repository::layout::{GroupName, Hash, SourceName};
use crate::secret::{Secret, Text};
use check::CheckOf;

pub use journal::Journal;
pub use report::{CommonPoint, Ended, Forecast, PlanReport, StageReport, State, forecast, reports, state, subject};
pub use run::{Mode, Run, Wanted};
pub use variables::Variables;

const DIRECTORY: &str = "restore-plans";

/// A plan, read and found to hold together.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The file's name without `.toml`.
    pub name: String,
    pub file: PathBuf,
    /// Of the file's bytes: any edit makes another plan of it.
    pub hash: Hash,
    pub about: String,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    pub drill: Option<Rhythm>,
    pub variables: BTreeMap<String, String>,
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone)]
pub struct Stage {
    pub name: String,
    pub after: Vec<String>,
    pub budget: Option<SignedDuration>,
    /// Longest time that a program, a request or a wait may take.
    pub timeout: Duration,
    pub action: Action,
    pub in_drill: InDrill,
    pub on_failure: OnFailure,
    /// Takes the stage back, in a rollback.
    pub undo: Vec<String>,
    /// Variables of programs, read where they are needed.
    pub secrets: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone)]
pub enum Action {
    Run(Vec<String>),
    Restore(Restore),
    RestoreGroup(RestoreGroup),
    Check(Vec<CheckOf>),
    WaitFor(WaitFor),
    Notify(Notify),
}

impl Action {
    pub fn name(&self) -> &'static str {
        match self {
            Action::Run(_) => "run",
            Action::Restore(_) | Action::RestoreGroup(_) => "restore",
            Action::Check(_) => "check",
            Action::WaitFor(_) => "wait for",
            Action::Notify(_) => "notify",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Restore {
    pub source: SourceName,
    /// Where the real restore goes.
    pub to: String,
    pub point: PointOf,
    /// Something may lie there; it is kept beside.
    pub replace: bool,
    /// The version of the engine that the plan is made for, or the beginning of it: `15`, `7.0`.
    pub version: Option<String>,
    /// What the engine calls itself for life: PostgreSQL's system identifier, SQLite's application id.
    pub identity: Option<String>,
}

/// All members of a group, to one common point.
#[derive(Debug, Clone)]
pub struct RestoreGroup {
    pub group: GroupName,
    /// Where each member goes in a real restore.
    pub to: BTreeMap<SourceName, String>,
    pub point: PointOf,
    /// As of [`Restore`], for each member.
    pub replace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointOf {
    /// The newest complete one that is not suspect.
    Latest,
    /// The newest that a drill has proven.
    Verified,
    /// Of a group: the number of a common point.
    Seq(u64),
}

#[derive(Debug, Clone)]
pub enum WaitFor {
    /// Answers with 2xx.
    Http(String),
    /// `host:port` takes a connection.
    Tcp(String),
    /// Exists.
    File(String),
}

#[derive(Debug, Clone)]
pub struct Notify {
    pub text: String,
    /// Receives `{"text": …}` by POST.
    pub webhook: Option<Text>,
    pub run: Vec<String>,
}

/// What a stage does in a drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InDrill {
    /// `restore`, and checks of copies: yes. Anything that may touch live systems: no.
    Usual,
    Run,
    Skip,
    /// Another program instead.
    Replace(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    #[default]
    Stop,
    /// Stages that do not need this one go on.
    Continue,
    /// What was done is undone, the last first; then it stops.
    Rollback,
}

impl Stage {
    /// The sources that it restores, where each goes, and whether something may lie there.
    pub fn places(&self) -> Vec<(&SourceName, &str, bool)> {
        match &self.action {
            Action::Restore(restore) => vec![(&restore.source, &restore.to, restore.replace)],
            Action::RestoreGroup(restore) => {
                restore.to.iter().map(|(source, to)| (source, to.as_str(), restore.replace)).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Plan {
    /// The sources that it restores.
    pub fn sources(&self) -> Vec<SourceName> {
        self.stages.iter().flat_map(|stage| stage.places().into_iter().map(|(source, ..)| source.clone())).collect()
    }

    /// Reads one plan's text. The sources that it restores must be in `config`.
    pub fn parse(text: &str, path: &Path, config: &Config) -> Result<Plan> {
        file::parse(text, path, config)
    }

    pub fn read(path: &Path, config: &Config) -> Result<Plan> {
        let text = text::read(path, "A plan is a small text file that this user may read.")?;
        Plan::parse(&text, path, config)
    }

    /// The plan `name` of `config`.
    pub fn named(name: &str, config: &Config) -> Result<Plan> {
        let files = files(config)?;
        let Some(path) = files.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name)) else {
            let known: Vec<String> =
                files.iter().filter_map(|p| Some(p.file_stem()?.to_string_lossy().into())).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let directory = config.base().join(DIRECTORY);
            return Err(Failure::new(
                Kind::Usage,
                format!("there is no restore plan {name} in {}", directory.display()),
                format!("Nothing was done. There are: {known}."),
            ));
        };
        Plan::read(path, config)
    }
}

/// The plan files of a configuration, sorted.
pub fn files(config: &Config) -> Result<Vec<PathBuf>> {
    text::files(&config.base().join(DIRECTORY), "plan")
}
