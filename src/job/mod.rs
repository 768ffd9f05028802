//! Jobs: one file in `schedules/` for each source or group of sources, which says when what is to happen to it. Strict TOML, as `blackstart.toml` is.
//!
//! A job that would never run, or contradicts itself, is an error when it is read, with the file, the line and a cure.

mod drills;
mod file;
mod join;
mod plans;
mod rhythm;

use anyhow::Result;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::source::SourceConfig;
use crate::config::text;
use crate::error::{Failure, Kind};
use crate::operations::evidence::Level;
use crate::operations::retention::Policy;
use crate::operations::tiers::Tiers;
use crate::repository::layout::{Hash, SourceName};
use crate::time::Window;

pub use rhythm::{Cron, Rhythm};

/// What is done to a source, in the order in which it goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    Full,
    Incremental,
    /// Each level has a rhythm and a past of its own.
    Drill(Level),
    Prune,
    Verify,
}

impl Task {
    /// What `drill` means where no level is named, and all that a plan has.
    pub const DRILL: Task = Task::Drill(Level::Engine);
    pub const ALL: [Task; 11] = [
        Task::Full,
        Task::Incremental,
        Task::Drill(Level::Existence),
        Task::Drill(Level::Hashes),
        Task::Drill(Level::Decode),
        Task::DRILL,
        Task::Drill(Level::Point),
        Task::Drill(Level::ColdStart),
        Task::Drill(Level::GameDay),
        Task::Prune,
        Task::Verify,
    ];

    /// As the catalog, metrics and notices call it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Full => "full",
            Task::Incremental => "incremental",
            Task::Drill(Level::Existence) => "drill-existence",
            Task::Drill(Level::Hashes) => "drill-hashes",
            Task::Drill(Level::Decode) => "drill-decode",
            Task::Drill(Level::Engine) => "drill",
            Task::Drill(Level::Point) => "drill-point",
            Task::Drill(Level::ColdStart) => "drill-cold-start",
            Task::Drill(Level::GameDay) => "drill-game-day",
            Task::Prune => "prune",
            Task::Verify => "verify",
        }
    }

    /// Whether it makes a recovery point.
    pub fn is_backup(self) -> bool {
        matches!(self, Task::Full | Task::Incremental)
    }

    pub fn is_drill(self) -> bool {
        matches!(self, Task::Drill(_))
    }
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What becomes of runs that were missed while the agent did not run, or while a blackout lasted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// However many were missed, one run makes up for them at once.
    #[default]
    Once,
    /// The next one comes at its time.
    Skip,
}

/// What becomes of runs that fall due while the one before is still under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// They are left out, and counted.
    #[default]
    Skip,
    /// One run follows at once.
    Queue,
}

/// Where a log keeps the RPO and nothing else is said, snapshots come so often: a restore replays the log from the newest.
const UNDER_A_LOG: SignedDuration = SignedDuration::from_hours(24);

/// One job: a source, a group or a plan, and when what happens to it.
#[derive(Debug, Clone)]
pub struct Job {
    pub file: PathBuf,
    /// A job that is switched off is checked, and nothing more.
    pub enabled: bool,
    /// Of a plan: [`SourceName::of_plan`]; of a group: [`SourceName::of_group`].
    pub source: SourceName,
    /// The plan that is drilled, instead of a source.
    pub plan: Option<Planned>,
    /// Of a group: the sources that are backed up together, instead of one.
    pub members: Vec<SourceName>,
    pub tasks: BTreeMap<Task, Rhythm>,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    /// Runs of `cron` are put off by a part of this, always the same part on one host.
    pub jitter: Option<SignedDuration>,
    pub catch_up: CatchUp,
    pub overlap: Overlap,
    /// When no run may start.
    pub blackout: Vec<Window>,
    /// The source's log is received all the time: it keeps the RPO, and backups need not.
    pub continuous: bool,
}

/// What a job must know of the plan that it drills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Of the plan's text as it is now.
    pub hash: Hash,
    pub sources: Vec<SourceName>,
}

impl Job {
    /// Whether what it does is done to `source`, too.
    pub fn covers(&self, source: &SourceName) -> bool {
        self.source == *source || self.members.contains(source)
    }

    /// The drills on its schedule, from the cheap to the dear.
    pub fn drills(&self) -> impl Iterator<Item = (Level, &Rhythm)> {
        self.tasks.iter().filter_map(|(task, rhythm)| match task {
            Task::Drill(level) => Some((*level, rhythm)),
            _ => None,
        })
    }

    /// An RPO that no backup here is made for brings one of its own: as often as it needs.
    fn derive(&mut self) {
        if self.continuous {
            self.tasks.retain(|_, rhythm| !matches!(rhythm, Rhythm::Rpo(_)));
            if !self.tasks.keys().any(|task| task.is_backup()) {
                self.tasks.insert(Task::Incremental, Rhythm::Every(UNDER_A_LOG));
            }
            return;
        }
        if let Some(rpo) = self.rpo
            && !self.tasks.contains_key(&Task::Incremental)
            && self.tasks.get(&Task::Full).is_none_or(|full| full.gaps().1 >= rpo)
        {
            self.tasks.insert(Task::Incremental, Rhythm::Rpo(rpo));
        }
    }
}

/// A job file as read: the job, and what it says of the source.
#[derive(Debug)]
pub struct Declared {
    pub job: Job,
    /// A source that is declared in the job file itself.
    pub inline: Option<SourceConfig>,
    pub retention: Option<Policy>,
    pub tier: Option<Tiers>,
}

/// Reads every `*.toml` in `directory`, by name. A directory that does not exist has none.
pub fn load(directory: &Path) -> Result<Vec<Declared>> {
    let mut jobs: Vec<Declared> = Vec::new();
    for path in files(directory)? {
        let declared = read(&path)?;
        if let Some(other) = jobs.iter().find(|j| j.job.source == declared.job.source) {
            return Err(Failure::new(
                Kind::Config,
                format!("{} and {} are both for {}", other.job.file.display(), path.display(), declared.job.source),
                "Nothing was done. Put all that happens to one of them into one file.",
            ));
        }
        jobs.push(declared);
    }
    Ok(jobs)
}

/// The job files of `directory`, sorted.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    text::files(directory, "job")
}

/// Reads one job file.
pub fn read(path: &Path) -> Result<Declared> {
    let text = text::read(path, "A job is a small text file that this user may read.")?;
    file::parse(&text, path)
}

/// As [`read`], of a text that is given.
pub fn parse(text: &str, path: &Path) -> Result<Declared> {
    file::parse(text, path)
}
