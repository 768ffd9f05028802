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
    pub finished: Timestamp,
    pub result: String,
    pub line: String,
    pub help: Option<String>,
    /// Of a drill: the snapshot.
    pub seq: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Endings(BTreeMap<(SourceName, Task), Ending>);

impl Endings {
    pub fn of(&self, source: &SourceName, task: Task) -> Option<&Ending> {
        self.0.get(&(source.clone(), task))
    }

    /// Learns the tasks of `jobs`, those that are new from the catalog, and forgets the others.
    pub fn learn(&mut self, jobs: &[Job], catalog: &Catalog) {
        self.0.retain(|(source, task), _| jobs.iter().any(|j| j.source == *source && j.tasks.contains_key(task)));
        let tasks = jobs.iter().flat_map(|job| job.tasks.keys().map(|task| (&job.source, *task)));
        let new = tasks.filter(|(source, task)| self.of(source, *task).is_none());
        // One that cannot be read has been told of where the same was asked for the schedule.
        let mut runs: Vec<Run> =
            new.filter_map(|(source, task)| catalog.last(source, task).ok()?).map(|(run, _)| run).collect();
        runs.sort_by_key(|run| run.finished);
        runs.iter().for_each(|run| self.take(run));
    }

    /// Takes note of a run that has ended.
    pub fn take(&mut self, run: &Run) {
        let Run { finished, result, line, help, .. } = run;
        let report: Option<Value> = serde_json::from_str(&run.report).ok();
        let seq = report.filter(|_| run.task.is_drill()).and_then(|report| report["seq"].as_u64());
        let ending =
            Ending { finished: *finished, result: result.clone(), line: line.clone(), help: help.clone(), seq };
        // A backup that went well is a backup, whichever of the two it was.
        if run.done() && run.task.is_backup() {
            let other = if run.task == Task::Full { Task::Incremental } else { Task::Full };
            if let Some(other) = self.0.get_mut(&(run.source.clone(), other)) {
                *other = Ending { result: "done".into(), ..ending.clone() };
            }
        }
        self.0.insert((run.source.clone(), run.task), ending);
    }
}
