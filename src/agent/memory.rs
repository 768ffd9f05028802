//! What the agent knows of the past: its own runs, from the catalog, and what the repository shows, which counts as well.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

use super::observe::{Seen, Span};
use super::problems::needs_snapshot;
use super::receivers::Standing;
use crate::catalog::{Catalog, Run};
use crate::job::{Job, Task};
use crate::repository::layout::SourceName;
use crate::scheduler::{History, Last, Past, SourcePast};

/// Of one task: what the agent itself has done.
#[derive(Debug, Clone, Default)]
struct Own {
    since: Option<Timestamp>,
    last: Option<Last>,
    failures: u32,
    running: Option<Timestamp>,
}

#[derive(Default)]
pub struct Memory {
    own: BTreeMap<(SourceName, Task), Own>,
}

impl Memory {
    /// Learns the tasks of `jobs`, those that are new from the catalog. A catalog that cannot be read is no hindrance: it is a cache.
    pub fn learn(&mut self, jobs: &[Job], catalog: &Catalog, now: Timestamp) {
        for (job, task) in jobs.iter().flat_map(|job| job.tasks.keys().map(move |task| (job, *task))) {
            let key = (job.source.clone(), task);
            if self.own.get(&key).is_some_and(|own| own.since.is_some()) {
                continue;
            }
            let since = catalog.since(&job.source, task, now);
            let last = catalog.last(&job.source, task);
            for error in [since.as_ref().err(), last.as_ref().err()].into_iter().flatten() {
                tracing::warn!(error = format!("{error:#}"), "the catalog cannot be read");
            }
            let own = self.own.entry(key).or_default();
            own.since = Some(since.unwrap_or(now).min(now));
            if let Ok(Some((run, failures))) = last {
                own.last = Some(last_of(&run));
                own.failures = failures;
            }
        }
    }

    pub fn begin(&mut self, source: &SourceName, task: Task, at: Timestamp) {
        self.own.entry((source.clone(), task)).or_default().running = Some(at);
    }

    pub fn end(&mut self, run: &Run) {
        let own = self.own.entry((run.source.clone(), run.task)).or_default();
        own.running = None;
        own.last = Some(last_of(run));
        own.failures = if run.done() { 0 } else { own.failures.saturating_add(1) };
    }

    /// The past of `jobs`, with what the repository and the receivers show.
    pub fn history(
        &self,
        jobs: &[Job],
        seen: &BTreeMap<SourceName, Seen>,
        standings: &BTreeMap<SourceName, Standing>,
        now: Timestamp,
    ) -> History {
        let none = Seen::default();
        let mut history = History::new();
        for job in jobs {
            let newest = newest(job, seen);
            let standing = standings.get(&job.source);
            let needs_snapshot = standing.is_some_and(|standing| needs_snapshot(standing, seen.get(&job.source)));
            let seen = seen.get(&job.source).unwrap_or(&none);
            let mut past = SourcePast {
                newest,
                reaches: seen.reaches().max(standing.and_then(|standing| current(standing, seen))),
                needed: standing
                    .and_then(|standing| standing.stretch)
                    .filter(|_| needs_snapshot)
                    .map(|(_, since)| since),
                usual: SignedDuration::try_from(seen.usual).unwrap_or_default(),
                retired: seen.retired.is_some(),
                ..SourcePast::default()
            };
            // All tasks, also those that the job does not name: a full counts for an incremental.
            for task in Task::ALL {
                let own = self.own.get(&(job.source.clone(), task)).cloned().unwrap_or_default();
                let last = newer(own.last, stored(seen, task), now);
                let failures = if last == own.last { own.failures } else { 0 };
                past.tasks.insert(task, Past { since: own.since, last, failures, running: own.running });
            }
            history.insert(job.source.clone(), past);
        }
        history
    }
}

/// From when the newest data is; of a plan that of its oldest source, once all have some.
fn newest(job: &Job, seen: &BTreeMap<SourceName, Seen>) -> Option<Timestamp> {
    let of = |source: &SourceName| seen.get(source).and_then(|s| s.newest.as_ref()).map(|n| n.data_time);
    match &job.plan {
        Some(plan) => plan.sources.iter().map(of).collect::<Option<Vec<_>>>()?.into_iter().min(),
        None => of(&job.source),
    }
}

/// Up to when the receiver knows that nothing would be lost, if a snapshot leads into the log that it writes: an engine that writes nothing leaves
/// no later time in the log itself.
fn current(standing: &Standing, seen: &Seen) -> Option<Timestamp> {
    let (stretch, _) = standing.stretch?;
    standing.current.filter(|_| seen.into == Some(stretch))
}

fn last_of(run: &Run) -> Last {
    Last { started: run.started, finished: run.finished, done: run.done() }
}

fn stored(seen: &Seen, task: Task) -> Option<Last> {
    let span = match task {
        Task::Full => seen.full,
        Task::Incremental => seen.incremental,
        Task::Drill(level) => seen.drills.get(&level).map(|d| d.span),
        Task::Prune => seen.prune.map(|at| Span { started: at, finished: at }),
        Task::Verify => None,
    }?;
    Some(Last { started: span.started, finished: span.finished, done: true })
}

/// What somebody else did later than this agent counts, unless it lies in the future: then only our own memory can be trusted.
fn newer(own: Option<Last>, stored: Option<Last>, now: Timestamp) -> Option<Last> {
    match (own, stored) {
        (Some(own), Some(stored)) if stored.started > own.finished && stored.finished <= now => Some(stored),
        (Some(own), _) => Some(own),
        (None, stored) => stored,
    }
}
