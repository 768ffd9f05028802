//! What runs have found wrong, or could not do, until it has been seen that all is well: by the same task, or by hand.

use std::collections::BTreeSet;

use super::super::observe::Seen;
use super::{Ended, Ending, View, drills, group, problem};
use crate::job::{Job, Task};
use crate::notify::{Problem, Severity};
use crate::operations::evidence::Level;
use crate::operations::findings::Findings;
use crate::repository::layout::SourceName;

/// After so many failures in a row it is not chance.
const FAILURES_CRITICAL: u32 = 3;

/// Something that stands wrong with a task.
struct Wrong<'a> {
    result: &'a str,
    severity: Severity,
    /// How it ended, or what was found.
    line: &'a str,
    advice: String,
}

/// What stands wrong with the tasks of `job` that are `wanted`.
pub fn of_runs(
    view: &View,
    job: &Job,
    wanted: impl Fn(Task) -> bool,
    (found, unknown): (&mut Vec<Problem>, &mut BTreeSet<String>),
) {
    let source = &job.source;
    // Somebody may have verified and pruned by hand, whatever is on the schedule.
    let by_hand = |task: &Task| source.is_source() && matches!(task, Task::Verify | Task::Prune);
    for task in Task::ALL.into_iter().filter(|task| job.tasks.contains_key(task) || by_hand(task)) {
        if !wanted(task) {
            continue;
        }
        let key = format!("{source}/{task}");
        let wrong = wrong(view, source, task);
        // The worst comes first; of what is as bad, the last.
        let Some((n, worst)) = wrong.iter().enumerate().max_by_key(|(_, wrong)| wrong.severity) else {
            let known = match view.endings.of(source, task) {
                Some(ended) => !says_nothing(view, source, task, &ended.last),
                None => !job.tasks.contains_key(&task) && view.seen.get(source).is_some_and(|s| s.looked.is_some()),
            };
            if !known {
                unknown.insert(key);
            }
            continue;
        };
        let also = wrong.iter().enumerate().filter(|(other, _)| *other != n).map(|(_, wrong)| wrong.line);
        let also: String = also.map(|line| format!(" Besides: {}.", line.trim_end_matches('.'))).collect();
        let detail = format!("{}. {}{also}", worst.line.trim_end_matches('.'), worst.advice);
        found.push(problem(key, worst.severity, Some(source), title(worst.result, task, source), detail));
    }
}

/// What is known to be wrong: what was found on this machine, and how runs of the agent ended.
fn wrong<'a>(view: &View<'a>, source: &SourceName, task: Task) -> Vec<Wrong<'a>> {
    let (seen, ended) = (view.seen.get(source), view.endings.of(source, task));
    let failures = view.history.get(source).and_then(|p| p.tasks.get(&task)).map_or(0, |p| p.failures);
    let noted = seen.and_then(|seen| noted(&seen.findings, ended, source, task));
    let is_noted = noted.as_ref().map(|wrong| wrong.result);
    let of_ending = |ending: &'a Ending| {
        let result = ending.result.as_str();
        let over = seen.is_some_and(|seen| is_cured(seen, task, ending));
        if result == "done" || over || is_noted == Some(result) || says_nothing(view, source, task, ending) {
            return None;
        }
        let severity = match result {
            "check-failed" => Severity::Critical,
            "failed" if failures >= FAILURES_CRITICAL && task.is_backup() => Severity::Critical,
            _ => Severity::Warning,
        };
        let advice = ending.help.clone().unwrap_or_else(|| advice(result, task, source));
        Some(Wrong { result, severity, line: &ending.line, advice })
    };
    let endings = ended.into_iter().flat_map(|ended| ended.found.iter().chain([&ended.last]));
    noted.into_iter().chain(endings.filter_map(of_ending)).collect()
}

/// What `verify` or `prune` found on this machine, by hand too, and has not seen well since.
fn noted<'a>(findings: &'a Findings, ended: Option<&Ended>, source: &SourceName, task: Task) -> Option<Wrong<'a>> {
    // Where another user has written the note, the agent cannot take it back; it remembers its own runs.
    let whole = |since| ended.is_some_and(|ended| ended.last.result == "done" && ended.last.started > since);
    match task {
        Task::Verify => {
            let damage = findings.damage.as_ref();
            let damage = damage.filter(|damage| damage.level != Level::Existence || !whole(damage.at))?;
            let advice = damage.advice(source);
            Some(Wrong { result: "check-failed", severity: Severity::Critical, line: &damage.what, advice })
        }
        Task::Prune => {
            let refused = findings.refused.as_ref().filter(|refused| !whole(refused.at))?;
            let (severity, advice) = (Severity::Warning, advice("partial", task, source));
            Some(Wrong { result: "partial", severity, line: &refused.first, advice })
        }
        _ => None,
    }
}

/// Busy: another run holds the source, mostly one that somebody started by hand. With the repository away one alarm is enough.
/// Neither says that what stood wrong before is over.
fn says_nothing(view: &View, source: &SourceName, task: Task, ending: &Ending) -> bool {
    let failures = view.history.get(source).and_then(|p| p.tasks.get(&task)).map_or(0, |p| p.failures);
    match ending.result.as_str() {
        "busy" => failures < FAILURES_CRITICAL,
        "failed" => view.repository.is_some(),
        _ => false,
    }
}

fn title(result: &str, task: Task, source: &SourceName) -> String {
    match result {
        "check-failed" if source.plan().is_some() => format!("{source}: the drill of a restore plan FAILED"),
        "check-failed" if task == Task::Drill(Level::GameDay) => {
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
            "It is stored, and a restore passes it over for the one before. If the change is meant, run `{} --accept-change`; if not, \
             look at the source: somebody may be destroying it",
            group::backup(source)
        ),
        ("partial", Task::Prune) => format!(
            "Nothing is lost: those objects stay, and cost room. Locks end by themselves; otherwise see what this credential may delete, and run `blackstart prune {source}`"
        ),
        ("partial", _) => "A restore would lack what was skipped, and has all else. Mend what is named, or exclude it in the configuration".into(),
        ("missed", _) => format!(
            "The data came back whole. In a disaster it would take longer, or be older, than promised: see the phases with `blackstart report show {source}`"
        ),
        _ => "Nothing of this run is stored; what was stored before is as it was. It is tried again by itself".into(),
    }
}

/// Whether the same was done well since the run ended: by hand, or from another host.
fn is_cured(seen: &Seen, task: Task, ending: &Ending) -> bool {
    let at = ending.finished;
    match task {
        // Only a full reads everything: what it could not read, an incremental may have passed over.
        Task::Full if ending.result == "failed" => seen.full.is_some_and(|full| full.started > at),
        Task::Full | Task::Incremental => seen.newest.as_ref().is_some_and(|n| !n.suspect && n.begun > at),
        Task::Drill(level) => seen.drills.get(&level).is_some_and(|drill| drills::answers(drill, ending)),
        Task::Prune => {
            // What the store refused to remove it may refuse again: a record says only that somebody has tried.
            let tried = ending.result != "partial" && seen.prune.is_some_and(|pruned| pruned > at);
            tried || seen.findings.pruned.is_some_and(|pruned| pruned > at)
        }
        // Its own runs look at what is there, and at no more.
        Task::Verify => seen.findings.whole_since(at, Level::Existence),
    }
}
