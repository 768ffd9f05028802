//! How the last runs ended. The catalog remembers them, so that a restart takes nothing for mended.

use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::catalog::{Catalog, Run};
use crate::job::{Job, Task};
use crate::repository::layout::SourceName;

/// How the last run of a task ended, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    pub started: Timestamp,
    pub finished: Timestamp,
    pub result: String,
    pub line: String,
    pub help: Option<String>,
    /// Of a drill: the snapshot.
    pub seq: Option<u64>,
}

impl Ending {
    /// Whether it says how things stand: a run that could not be carried out does not.
    fn tells(&self) -> bool {
        !matches!(self.result.as_str(), "failed" | "busy" | "environment")
    }

    /// Whether it says how that stands now which `found` was about: a drill of an older snapshot says nothing of a newer one.
    fn answers(&self, found: &Ending) -> bool {
        self.tells() && (found.seq.is_none() || self.seq >= found.seq)
    }
}

/// How the runs of a task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub last: Ending,
    /// What an earlier one found wrong, of which the last says nothing.
    pub found: Option<Ending>,
}

impl Ended {
    /// What is left of it after `ending`.
    fn left(self, ending: &Ending) -> Option<Ending> {
        let wrong = self.found.or_else(|| (self.last.tells() && self.last.result != "done").then_some(self.last));
        wrong.filter(|found| !ending.answers(found))
    }
}

#[derive(Debug, Default)]
pub struct Endings(BTreeMap<(SourceName, Task), Ended>);

impl Endings {
    pub fn of(&self, source: &SourceName, task: Task) -> Option<&Ended> {
        self.0.get(&(source.clone(), task))
    }

    /// Learns the tasks of `jobs`, those that are new from the catalog, and forgets the others.
    pub fn learn(&mut self, jobs: &[Job], catalog: &Catalog) {
        self.0.retain(|(source, task), _| jobs.iter().any(|j| j.source == *source && j.tasks.contains_key(task)));
        let tasks = jobs.iter().flat_map(|job| job.tasks.keys().map(|task| (&job.source, *task)));
        let new = tasks.filter(|(source, task)| self.of(source, *task).is_none());
        // One that cannot be read has been told of where the same was asked for the schedule.
        let mut runs: Vec<Run> =
            new.flat_map(|(source, task)| catalog.endings(source, task).unwrap_or_default()).collect();
        runs.sort_by_key(|run| run.finished);
        runs.iter().for_each(|run| self.take(run));
    }

    /// Takes note of a run that has ended.
    pub fn take(&mut self, run: &Run) {
        let Run { started, finished, result, line, help, .. } = run;
        let report: Option<Value> = serde_json::from_str(&run.report).ok();
        let seq = report.filter(|_| run.task.is_drill()).and_then(|report| report["seq"].as_u64());
        let (started, finished) = (*started, *finished);
        let ending = Ending { started, finished, result: result.clone(), line: line.clone(), help: help.clone(), seq };
        // A backup that went well is a backup, whichever of the two it was; but a full that failed may have failed on what an incremental passes over.
        if run.done() && run.task.is_backup() {
            let other = if run.task == Task::Full { Task::Incremental } else { Task::Full };
            let mends = |ended: &Ended| other == Task::Incremental || ended.last.result != "failed";
            if let Some(other) = self.0.get_mut(&(run.source.clone(), other)).filter(|ended| mends(ended)) {
                *other = Ended { last: Ending { result: "done".into(), ..ending.clone() }, found: None };
            }
        }
        let key = (run.source.clone(), run.task);
        let found = self.0.remove(&key).and_then(|before| before.left(&ending));
        self.0.insert(key, Ended { last: ending, found });
    }
}
