//! What drills have proven, and how long ago: each level for itself.

use jiff::Timestamp;
use std::collections::BTreeSet;

use super::super::observe::Drilled;
use super::{Ending, View, problem};
use crate::job::{Job, Task};
use crate::notify::{Problem, Severity};
use crate::operations::evidence::Level;

pub fn problems(view: &View, job: &Job, now: Timestamp, (found, unknown): (&mut Vec<Problem>, &mut BTreeSet<String>)) {
    let source = &job.source;
    let past = view.history.get(source);
    let newest = past.and_then(|p| p.newest);
    let mut add = |what: &str, severity, title, detail: String| {
        found.push(problem(format!("{source}/{what}"), severity, Some(source), title, detail));
    };
    for (level, rhythm) in job.drills().filter(|_| newest.is_some()) {
        let task = Task::Drill(level);
        let since = past.and_then(|p| p.tasks.get(&task)).and_then(|p| p.since);
        let last = view.seen.get(source).and_then(|s| s.drills.get(&level)).map(|d| d.span.finished);
        let interval = rhythm.gaps().1;
        let overdue = last.or(since).is_some_and(|t| now.duration_since(t) > interval.saturating_mul(2));
        if overdue && view.is_new(job, interval, now) {
            unknown.insert(format!("{source}/{task}-overdue"));
        } else if overdue {
            let (of_level, option) = match task {
                Task::DRILL => (String::new(), String::new()),
                _ => (format!(" of level {level}"), format!(" --level {level}")),
            };
            let title = format!("{source}: a drill{of_level} is overdue");
            let known = last.map_or("There has never been one".into(), |t| format!("The last one was at {t:.0}"));
            let of = source.plan().map_or_else(|| source.to_string(), |plan| format!("--plan {plan}"));
            let unknown = match level {
                Level::GameDay => "whether faults are noticed is not known",
                level if level.proves() => "whether the backups come back is not known",
                _ => "whether what is stored is whole is not known",
            };
            let detail = format!("{known}; {unknown}. Run `blackstart drill {of}{option}`");
            add(&format!("{task}-overdue"), Severity::Warning, title, detail);
        }
    }
    if let Some(seq) = view.seen.get(source).and_then(|s| s.verified.taken_back) {
        let title = format!("{source}: snapshot {seq} was proven, and is NOT VERIFIED any more");
        let detail = format!(
            "A later backup found that packs are gone which it needs; that backup and newer ones do without them. `blackstart verify {source}` names what is \
             missing and whom it hurts. Find out who or what removed it, and prove a newer snapshot: `blackstart drill {source}`"
        );
        add("unproven", Severity::Warning, title, detail);
    }
    if let Some(report) = view.seen.get(source).and_then(|s| s.broken.as_ref()) {
        let title = format!("{source}: a drill report does not verify");
        let detail = format!(
            "{report} is damaged or was altered, so that a failed drill or a proof may be missing here. `blackstart report` names all such; find out who or \
             what changed it, and prove the newest snapshot: `blackstart drill {source}`"
        );
        add("evidence", Severity::Warning, title, detail);
    }
    if let (Some(plan), Some(drilled)) = (&job.plan, view.seen.get(source).and_then(|s| s.plan))
        && plan.hash != drilled
    {
        let title = format!("{source} was edited: it is NOT VERIFIED");
        let of = source.plan().unwrap_or_default();
        let detail = format!(
            "No drill has run it as it is now; the next one on the schedule will. Or run `blackstart drill --plan {of}`"
        );
        add("edited", Severity::Warning, title, detail);
    }
}

/// Whether a drill, by hand or of a dearer level, has shown since that what had failed is well: an older snapshot that comes back says nothing of
/// a newer one.
pub fn answers(drill: &Drilled, ending: &Ending) -> bool {
    drill.passed && drill.span.started > ending.finished && ending.seq.is_none_or(|seq| drill.seq >= seq)
}
