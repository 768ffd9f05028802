//! How the last run of each task ended, unless the repository shows that it has been made good since.

use std::collections::BTreeSet;

use super::super::observe::Seen;
use super::{Ending, View, drills, problem};
use crate::job::{Job, Task};
use crate::notify::{Problem, Severity};
use crate::operations::evidence::Level;
use crate::repository::layout::SourceName;

/// After so many failures in a row it is not chance.
const FAILURES_CRITICAL: u32 = 3;

/// How the last run of each task ended.
pub fn of_runs(view: &View, job: &Job, found: &mut Vec<Problem>, unknown: &mut BTreeSet<String>) {
    for task in job.tasks.keys() {
        let key = format!("{}/{task}", job.source);
        let Some(ending) = view.endings.of(&job.source, *task) else {
            unknown.insert(key);
            continue;
        };
        if view.seen.get(&job.source).is_some_and(|seen| is_cured(seen, *task, ending)) {
            continue;
        }
        let failures = view.history.get(&job.source).and_then(|p| p.tasks.get(task)).map_or(0, |p| p.failures);
        // Busy: another run holds the source, mostly one that somebody started by hand. With the repository away one alarm is enough.
        // Neither says that what stood wrong before is over.
        let says_nothing = match ending.result.as_str() {
            "busy" => failures < FAILURES_CRITICAL,
            "failed" => view.repository.is_some(),
            _ => false,
        };
        if says_nothing {
            unknown.insert(key);
            continue;
        }
        let severity = match ending.result.as_str() {
            "done" => continue,
            "check-failed" => Severity::Critical,
            "failed" if failures >= FAILURES_CRITICAL && task.is_backup() => Severity::Critical,
            _ => Severity::Warning,
        };
        let (source, result) = (&job.source, ending.result.as_str());
        let title = match result {
            "check-failed" if source.plan().is_some() => format!("{source}: the drill of a restore plan FAILED"),
            "check-failed" if *task == Task::Drill(Level::GameDay) => {
                format!("{source}: a game day FAILED: a fault was not noticed as it should be")
            }
            "check-failed" if matches!(task, Task::Drill(level) if !level.proves()) => {
                format!("{source}: a {task} FAILED: the newest snapshot is damaged")
            }
            "check-failed" if task.is_drill() => {
                format!("{source}: a drill FAILED: the newest backup does not come back")
            }
            "check-failed" if task.is_backup() => format!("{source}: the newest snapshot is SUSPECT"),
            "check-failed" => format!("{source}: the repository is damaged"),
            "environment" => format!("{source}: the drill could not be carried out here"),
            "partial" => format!("{source}: the {task} is partial"),
            "missed" => format!("{source}: a drill came back, and missed its target"),
            _ => format!("{source}: the {task} failed"),
        };
        let advice = ending.help.clone().unwrap_or_else(|| advice(result, *task, source));
        let detail = format!("{}. {advice}", ending.line.trim_end_matches('.'));
        found.push(problem(key, severity, Some(source), title, detail));
    }
}

/// What a run that ended so means for the data, and what to do.
fn advice(result: &str, task: Task, source: &SourceName) -> String {
    if let Some(plan) = source.plan() {
        return match result {
            "check-failed" => format!(
                "In a disaster the plan would stop there. Run `blackstart drill --plan {plan}` and see which stage it is; its sources are backed up all the same"
            ),
            _ => format!(
                "The plan works, and not within what it promises. Run `blackstart drill --plan {plan}` and see which stage takes the time"
            ),
        };
    }
    match (result, task) {
        ("check-failed", Task::Drill(Level::GameDay)) => format!(
            "What is stored is as it was; in a disaster this fault might pass for well. See which it was with `blackstart report show {source}`, and report it"
        ),
        ("check-failed", Task::Drill(level)) if !level.proves() => format!(
            "The newest snapshot may not come back. `blackstart verify {source}` names what is damaged; run `blackstart backup {source} --full` for a new one, \
             and find out who or what did it"
        ),
        ("check-failed", Task::Drill(_)) => format!(
            "Take the newest snapshot for lost until a drill has passed: run `blackstart drill {source}`, and `blackstart backup {source} --full` for a new \
             one. `blackstart restore {source} --latest-verified` takes the newest that is proven"
        ),
        ("check-failed", Task::Verify) => format!(
            "Some snapshots cannot be restored whole. `blackstart verify {source}` names them; `blackstart backup {source} --full` stores anew what is missing \
             from now on. Find out who or what did it"
        ),
        ("check-failed", _) => format!(
            "It is stored, and a restore passes it over for the one before. If the change is meant, run `blackstart backup {source} --accept-change`; if not, \
             look at the source: somebody may be destroying it"
        ),
        ("partial", Task::Prune) => "Nothing is lost: those snapshots stay, and cost room. Locks end by themselves; otherwise see what this credential may delete".into(),
        ("partial", _) => "A restore would lack what was skipped, and has all else. Mend what is named, or exclude it in the configuration".into(),
        ("missed", _) => format!(
            "The data came back whole. In a disaster it would take longer, or be older, than promised: see the phases with `blackstart report show {source}`"
        ),
        _ => "Nothing of this run is stored; what was stored before is as it was. It is tried again by itself".into(),
    }
}

/// Whether the repository shows that the same was done well since the run ended: by hand, or from another host. Verifying leaves no trace there.
fn is_cured(seen: &Seen, task: Task, ending: &Ending) -> bool {
    match task {
        Task::Full | Task::Incremental => seen.newest.as_ref().is_some_and(|n| !n.suspect && n.begun > ending.finished),
        Task::Drill(level) => seen.drills.get(&level).is_some_and(|drill| drills::answers(drill, ending)),
        // What the store refused to remove it may refuse again.
        Task::Prune => ending.result != "partial" && seen.prune.is_some_and(|at| at > ending.finished),
        Task::Verify => false,
    }
}
