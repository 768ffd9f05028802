//! What stands wrong: a pure function of what the agent knows. Silence is a problem too; not to know is no recovery.

use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

use super::canaries::Beat;
use super::observe::Seen;
use super::receivers::Standing;
use crate::config::GroupConfig;
use crate::job::{Job, Task};
use crate::notify::{Channel, Problem, REPOSITORY, Severity};
use crate::repository::layout::SourceName;
use crate::scheduler::{self, History};
use crate::time::in_words;

mod canary;
mod drills;
mod endings;
mod group;
mod log;
mod runs;
mod unknown;

pub use endings::{Ended, Ending, Endings};
pub use log::needs_snapshot;
use runs::of_runs;
use unknown::{is_seen, unknown};

/// A source without any snapshot is told of after twice its interval, within these bounds.
const NEVER_MIN: SignedDuration = SignedDuration::from_secs(10);
const NEVER_MAX: SignedDuration = SignedDuration::from_hours(24);

/// What the agent knows.
pub struct View<'a> {
    pub jobs: &'a [Job],
    /// Since when a job is as it is, where it has changed since the agent was started.
    pub edited: &'a BTreeMap<SourceName, Timestamp>,
    pub history: &'a History,
    pub seen: &'a BTreeMap<SourceName, Seen>,
    /// Of sources whose log is received.
    pub standings: &'a BTreeMap<SourceName, Standing>,
    /// Of sources with a canary, and when the agent was started.
    pub canaries: (&'a BTreeMap<SourceName, Beat>, Timestamp),
    pub endings: &'a Endings,
    /// Why the repository cannot be read.
    pub repository: Option<&'a str>,
    /// Why the changed configuration is not in force.
    pub configuration: Option<&'a str>,
    /// The drill key that is not there.
    pub drill_key: Option<&'a str>,
    pub channels: &'a [Channel],
    /// Restore plans whose text is wrong, and why.
    pub wrong_plans: &'a [(String, String)],
    pub groups: &'a [GroupConfig],
    /// Why metrics and health are not served where the configuration says, and where they are.
    pub page: Option<&'a str>,
    /// Channels that do not deliver, and why.
    pub mute: &'a BTreeMap<String, String>,
    /// Channels that have delivered since the agent was started.
    pub sent: &'a BTreeMap<String, u64>,
}

impl View<'_> {
    /// Whether the schedule has been changed so lately that nobody can be late with two slots of it: that begins no alarm, and ends none.
    fn is_new(&self, job: &Job, interval: SignedDuration, now: Timestamp) -> bool {
        let edited = self.edited.get(&job.source);
        edited.is_some_and(|edited| now.duration_since(*edited) <= interval.saturating_mul(2))
    }
}

/// What the agent can say of what is wrong.
#[derive(Debug, Default)]
pub struct Findings {
    pub wrong: Vec<Problem>,
    /// Keys of what may or may not be wrong: that cannot be said now. Such an alarm stands as it stood.
    pub unknown: BTreeSet<String>,
}

pub fn problems(view: &View, now: Timestamp) -> Findings {
    let mut found = of_the_agent(view);
    of_the_unread(view, &mut found);
    let mut unknown = unknown(view, now);
    for job in view.jobs.iter().filter(|job| job.enabled) {
        if let Some(since) = view.seen.get(&job.source).and_then(|seen| seen.retired) {
            found.push(of_the_retired(job, since));
            // What there is of it is looked over all the same.
            of_runs(view, job, |task| task == Task::Verify, (&mut found, &mut unknown));
            continue;
        }
        if is_seen(view, job) {
            of_the_data(view, job, now, (&mut found, &mut unknown));
            drills::problems(view, job, now, (&mut found, &mut unknown));
        }
        of_runs(view, job, |_| true, (&mut found, &mut unknown));
        if let Some(standing) = view.standings.get(&job.source) {
            let source = &job.source;
            let all = log::problems(job, standing, view.seen.get(source), now).into_iter();
            found.extend(all.map(|(what, severity, title, detail)| {
                problem(format!("{source}/{what}"), severity, Some(source), title, detail)
            }));
        }
    }
    let (beats, started) = view.canaries;
    found.extend(beats.iter().filter_map(|(source, beat)| canary::problem(source, beat, started, now)));
    let silent = beats.iter().filter(|(_, beat)| !canary::is_known(beat, started));
    unknown.extend(silent.map(|(source, _)| format!("{source}/canary")));
    found.extend(view.groups.iter().filter_map(|group| group::of_points(view, group)));
    Findings { wrong: found, unknown }
}

fn problem(
    key: impl Into<String>,
    severity: Severity,
    source: Option<&SourceName>,
    title: String,
    detail: impl Into<String>,
) -> Problem {
    let source = source.filter(|name| name.is_source()).cloned();
    Problem { key: key.into(), severity, source, title, detail: detail.into() }
}

fn of_the_agent(view: &View) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(why) = view.repository {
        let detail = format!(
            "No backup can be made and none be read from here until it is back; what is stored is as it was, and backups begin again by themselves. \
             See whether the store runs, and whether its address and credentials still hold, with `blackstart check`: {why}"
        );
        found.push(problem(REPOSITORY, Severity::Critical, None, "the repository cannot be reached".into(), detail));
    }
    if let Some(why) = view.configuration {
        let detail = format!(
            "Backups go on with the configuration of before; what was changed is not in force. Correct the file, and it is read again by itself: {why}"
        );
        found.push(problem(
            "configuration",
            Severity::Warning,
            None,
            "the changed configuration is wrong".into(),
            detail,
        ));
    }
    if let Some(path) = view.drill_key {
        let title = "drills are on the schedule and cannot run: there is no drill key here".into();
        let detail = format!(
            "Backups go on, but nothing proves that they come back. Put a key file at {path}, or name one: [agent] drill_key"
        );
        found.push(problem("drill-key", Severity::Warning, None, title, detail));
    }
    if let Some(why) = view.page {
        let title = "metrics and health are not served where the configuration says".into();
        let detail = format!(
            "Backups go on, and notices are sent. Free the port, or correct [agent] listen; it is tried again all the time: {why}"
        );
        found.push(problem("listen", Severity::Warning, None, title, detail));
    }
    for (plan, why) in view.wrong_plans {
        let title = format!("the restore plan {plan} is wrong");
        let detail = format!(
            "In a disaster it would not run, and it is not drilled. Correct it, and run `blackstart check`: {why}"
        );
        found.push(problem(format!("plan.{plan}/text"), Severity::Warning, None, title, detail));
    }
    for (channel, why) in view.mute {
        let title = format!("notices do not reach {channel:?}");
        let detail =
            format!("Whoever reads there knows nothing of what is wrong: {why}. Try it: blackstart notify --test");
        found.push(problem(format!("notify/{channel}"), Severity::Warning, None, title, detail));
    }
    found
}

/// Sources of which the store does not give what there is.
fn of_the_unread(view: &View, found: &mut Vec<Problem>) {
    for (source, unread) in view.seen.iter().filter_map(|(source, seen)| Some((source, seen.unread.as_ref()?))) {
        let known = view.seen.get(source).and_then(|seen| seen.looked);
        let known = known.map_or("Nothing is known of it".into(), |at| format!("What is known of it is of {at:.0}"));
        let title = format!("{source}: the repository cannot be read since {:.0}", unread.since);
        let detail = format!(
            "{known}: how old its newest point is and what drills have proven may have changed since, and a restore would fail there too. \
             Other sources are looked at as before. Look at the store, and at what this credential may read: {}",
            unread.why
        );
        found.push(problem(format!("{source}/unread"), Severity::Critical, Some(source), title, detail));
    }
}

/// That nothing is done for a source, although a job promises it: whoever has a host's key could have said so.
fn of_the_retired(job: &Job, since: Timestamp) -> Problem {
    let source = &job.source;
    let title = format!("{source} is retired, and a job here is switched on for it");
    let of_the_log = if job.continuous {
        ". A PostgreSQL server may still keep log for it in a replication slot, until its disk is full: drop the slot there"
    } else {
        ""
    };
    let detail = format!(
        "Nothing has been backed up or drilled since {since:.0}, and nothing else will be said of that. If it is meant, remove the job; \
         if not, `{}` takes it up again, and find out who retired it{of_the_log}",
        group::backup(source)
    );
    problem(format!("{source}/retired"), Severity::Warning, Some(source), title, detail)
}

/// How old the data is, and what has been proven.
fn of_the_data(view: &View, job: &Job, now: Timestamp, (found, unknown): (&mut Vec<Problem>, &mut BTreeSet<String>)) {
    let source = &job.source;
    let past = view.history.get(source);
    let usual = past.map_or(SignedDuration::ZERO, |p| p.usual);
    let expected = scheduler::expected_interval(job, usual);
    let newest = past.and_then(|p| p.newest);
    let since = |task: Task| past.and_then(|p| p.tasks.get(&task)).and_then(|p| p.since);
    let backup_since = [Task::Incremental, Task::Full].into_iter().filter_map(since).min();
    let mut add = |what: &str, severity, title, detail: String| {
        found.push(problem(format!("{source}/{what}"), severity, Some(source), title, detail));
    };
    match (newest, expected) {
        (None, Some(expected)) => {
            let patience = expected.saturating_mul(2).clamp(NEVER_MIN, NEVER_MAX);
            if backup_since.is_some_and(|since| now.duration_since(since) > patience) {
                let (title, detail) = group::never(source);
                add("never", Severity::Critical, title, detail);
            }
        }
        (Some(newest), _) => {
            let reaches = past.and_then(|p| p.reaches).map_or(newest, |reaches| reaches.max(newest));
            if let Some(rpo) = job.rpo.filter(|rpo| now.duration_since(reaches) > *rpo) {
                let title = format!("{source}: the RPO of {} is exceeded", in_words(rpo));
                let detail = format!(
                    "A disaster now would lose everything since {reaches:.0}; what is older can be restored. Look for other alarms of {source}, and see why no \
                     backup ends well: run `{}` by hand",
                    group::backup(source)
                );
                add("rpo", Severity::Critical, title, detail);
            } else if (job.rpo.is_none() || job.continuous)
                && let Some(expected) = expected
                && now.duration_since(newest) > expected.saturating_mul(2).saturating_add(usual)
            {
                let title = format!("{source}: two backups in a row are missing");
                let detail = format!(
                    "A disaster now would lose what was written since {newest:.0}. See why no backup ends well: run `{}` by hand",
                    group::backup(source)
                );
                if view.is_new(job, expected, now) {
                    unknown.insert(format!("{source}/overdue"));
                } else {
                    add("overdue", Severity::Warning, title, detail);
                }
            }
        }
        (None, None) => {}
    }
    if let Some(warning) = scheduler::warning(job, usual, now) {
        add("schedule", Severity::Warning, format!("{source}: its schedule cannot keep its RPO"), warning);
    }
}

#[cfg(test)]
mod tests;
