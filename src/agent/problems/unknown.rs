//! What cannot be said: where nothing has been seen yet, or the store does not give what there is.

use jiff::Timestamp;
use std::collections::BTreeSet;

use super::{View, log};
use crate::job::{Job, Task};
use crate::repository::layout::SourceName;

/// Whether the repository has shown, since the agent was started, what it has of the source; of a plan, of all its sources.
pub fn is_seen(view: &View, job: &Job) -> bool {
    sources(job).all(|source| view.seen.get(source).is_some_and(|seen| seen.looked.is_some()))
}

/// Whether the last look could read all of it.
fn is_read(view: &View, job: &Job) -> bool {
    is_seen(view, job) && sources(job).all(|source| view.seen.get(source).is_some_and(|seen| seen.unread.is_none()))
}

fn sources(job: &Job) -> impl Iterator<Item = &SourceName> {
    std::iter::once(&job.source).chain(job.plan.iter().flat_map(|plan| &plan.sources))
}

/// What a look at the data, the channels and the receivers would say, where there has been none.
pub fn unknown(view: &View, now: Timestamp) -> BTreeSet<String> {
    let silent = view.channels.iter().map(|c| &c.name).filter(|name| !view.sent.contains_key(*name));
    let mut unknown: BTreeSet<String> = silent.map(|name| format!("notify/{name}")).collect();
    let unseen = view.groups.iter().map(|group| SourceName::of_group(&group.name));
    let unseen = unseen.filter(|name| view.repository.is_some() && !view.seen.contains_key(name));
    unknown.extend(unseen.map(|name| format!("{name}/damaged")));
    for job in view.jobs {
        let source = &job.source;
        let mut add = |all: &[&str]| unknown.extend(all.iter().map(|what| format!("{source}/{what}")));
        // What is old may still begin an alarm; that one is over, only what is new can tell.
        if !is_read(view, job) {
            add(&["never", "rpo", "overdue", "unproven", "evidence", "edited", "schedule"]);
        }
        for drill in Task::ALL.into_iter().filter(|task| task.is_drill()) {
            let overdue = format!("{drill}-overdue");
            if !is_read(view, job) {
                add(&[&overdue]);
            }
            // Without its key no drill runs, and none is over.
            if view.drill_key.is_some() {
                add(&[drill.name(), &overdue]);
            }
        }
        if job.continuous {
            add(&log::unknown(view.standings.get(source), view.seen.get(source), now));
        }
    }
    unknown
}
