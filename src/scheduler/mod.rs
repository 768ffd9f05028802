//! When what runs: a pure function of (jobs, history, now). It starts nothing and reads no clock.
//!
//! A slot is a time at which a task is to run. One slot follows upon the start of the last run: by the interval, or as the cron pattern says.
//! So slots that were missed are made up for by one run, however many they were.

mod slots;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::job::{CatchUp, Job, Overlap, Rhythm, Task};
use crate::operations::evidence::Level;
use crate::repository::layout::SourceName;
use crate::time::{free_at, in_words};

pub use slots::{derived_interval, expected_interval, worst_case};

/// Between a failed run and the next try: the first time, and at most.
const RETRY_FIRST: SignedDuration = SignedDuration::from_secs(30);
const RETRY_MAX: SignedDuration = SignedDuration::from_mins(15);
/// The same for drills: each may fetch the whole source again, and what the place lacks is seldom there a minute later.
const DRILL_RETRY_FIRST: SignedDuration = SignedDuration::from_hours(1);
const DRILL_RETRY_MAX: SignedDuration = SignedDuration::from_hours(24);
/// A run that comes no later than this is not late: other runs may have been in the way.
const LATE: SignedDuration = SignedDuration::from_mins(5);
/// Missed slots are counted up to this.
const MISSED_MAX: u32 = 100;

/// A run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    pub started: Timestamp,
    pub finished: Timestamp,
    /// Whether it did what it was to do; a partial backup did, a drill that found the data damaged did.
    pub done: bool,
}

/// What is known of one task of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// When the agent first saw this task in a job.
    pub since: Option<Timestamp>,
    pub last: Option<Last>,
    /// Failed runs since the last that was done.
    pub failures: u32,
    /// When the run that is under way began.
    pub running: Option<Timestamp>,
}

/// What is known of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourcePast {
    pub tasks: BTreeMap<Task, Past>,
    /// Time of the data of the newest complete snapshot.
    pub newest: Option<Timestamp>,
    /// Up to when data can be brought back: the log that goes on from there counts too.
    pub reaches: Option<Timestamp>,
    /// Since when a snapshot is wanted out of turn: none leads into the log that is being received.
    pub needed: Option<Timestamp>,
    /// What a backup took lately, upload included.
    pub usual: SignedDuration,
    /// It was given up on purpose: nothing is due.
    pub retired: bool,
}

pub type History = BTreeMap<SourceName, SourcePast>;

/// What holds for all jobs together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Its hash decides the jitter.
    pub host: String,
    /// Runs at the same time.
    pub runs: usize,
    /// Drills among them.
    pub drills: usize,
    /// Since when the agent has been up. A slot before that was missed; what has only been held since was not.
    pub up_since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its time has not come.
    Waiting,
    /// To be started now.
    Start,
    /// Its time has come, and something is in the way.
    Held,
    /// Under way.
    Running,
}

/// What is to become of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub source: SourceName,
    pub task: Task,
    pub state: State,
    /// When it is to start, as far as one can see.
    pub at: Timestamp,
    pub why: String,
    /// Slots that have passed without a run of their own.
    pub missed: u32,
}

/// Decides on every task of `jobs`. Those to start come first, the most urgent at the head.
pub fn plan(jobs: &[Job], history: &History, limits: &Limits, now: Timestamp) -> Vec<Decision> {
    let none = SourcePast::default();
    let mut all: Vec<Decision> = Vec::new();
    let enabled = || jobs.iter().filter(|job| job.enabled);
    for job in enabled() {
        let past = history.get(&job.source).unwrap_or(&none);
        all.extend(job.tasks.keys().map(|task| decide(job, *task, past, limits, now)));
    }
    let members = enabled().filter(|job| !job.members.is_empty()).map(|job| (&job.source, job.members.as_slice()));
    in_turn(&mut all, &members.collect());
    all.sort_by_key(|d| (d.state != State::Running, d.state != State::Start, !d.task.is_backup(), d.at));
    let (mut running, mut reading, mut drills) = (0, 0, 0);
    for decision in &mut all {
        let drill = usize::from(decision.task.is_drill());
        let reads = usize::from(only_reads(decision.task));
        // What only reads may take hours: one run is left for backups, where there is more than one.
        let full = running >= limits.runs || reading + reads > limits.runs.saturating_sub(1).max(1);
        if decision.state == State::Start && (full || drills + drill > limits.drills) {
            decision.state = State::Held;
            decision.why = "waits until another run has ended".into();
        }
        if matches!(decision.state, State::Start | State::Running) {
            running += 1;
            reading += reads;
            drills += drill;
        }
    }
    all.sort_by_key(|d| (d.state != State::Start, !d.task.is_backup(), d.at));
    all
}

/// The members of groups, by the names under which these are scheduled.
type Members<'a> = BTreeMap<&'a SourceName, &'a [SourceName]>;

/// Of the tasks of one source those wait that exclude one under way, or a more urgent one. What a group does, it does to all its members. Groups go
/// first, those that are due longest at the head: a group that waits for one member keeps the others from starting anything that it would have to
/// wait for next, or it would wait for ever.
fn in_turn(all: &mut [Decision], members: &Members) {
    let mut due: BTreeMap<SourceName, Timestamp> = BTreeMap::new();
    for decision in all.iter().filter(|d| d.state == State::Start && members.contains_key(&d.source)) {
        let first = due.entry(decision.source.clone()).or_insert(decision.at);
        *first = decision.at.min(*first);
    }
    all.sort_by_cached_key(|d| {
        let group = due.get(&d.source).map(|at| (*at, d.source.clone()));
        (d.state != State::Running, group.is_none(), group, turn(d.task))
    });
    // By source: what is done to it, or is to be, and whose run that is.
    let mut before: BTreeMap<SourceName, Vec<(Task, SourceName)>> = BTreeMap::new();
    for decision in all.iter_mut().filter(|d| matches!(d.state, State::Running | State::Start)) {
        let of_group = members.get(&decision.source).copied().unwrap_or_default();
        let touched: Vec<&SourceName> = of_group.iter().chain([&decision.source]).collect();
        let mut others = touched.iter().filter_map(|source| before.get(*source)).flatten();
        let in_the_way = others.find(|(task, _)| waits_for(decision.task, *task)).cloned();
        let waits = decision.state == State::Start && in_the_way.is_some();
        if let Some((task, whose)) = in_the_way.filter(|_| waits) {
            decision.state = State::Held;
            decision.why = match (whose == decision.source, whose.group()) {
                (true, _) => format!("waits for the {task} of this source"),
                (false, Some(group)) => format!("waits for the {task} of group {group}, which is due or under way"),
                (false, None) => format!("waits for the {task} of {whose}"),
            };
        }
        if !waits || !of_group.is_empty() {
            for source in touched {
                before.entry(source.clone()).or_default().push((decision.task, decision.source.clone()));
            }
        }
    }
}

/// The order of what is due at the same time: of two drills the dearer one, which may spare the other.
fn turn(task: Task) -> (u8, Reverse<Option<Level>>) {
    let (turn, level) = match task {
        Task::Full => (0, None),
        Task::Incremental => (1, None),
        Task::Drill(level) => (2, Some(level)),
        Task::Prune => (3, None),
        Task::Verify => (4, None),
    };
    (turn, Reverse(level))
}

/// Whether two tasks of one source, or of a group and its member, must not run at the same time: all but a backup and what reads what is stored. A drill of hours must hold up
/// no backup; a prune waits for it, as it may remove what the drill reads.
pub fn exclude_each_other(one: Task, other: Task) -> bool {
    let beside = |backup: Task, reader: Task| backup.is_backup() && only_reads(reader);
    !beside(one, other) && !beside(other, one)
}

/// Whether a task is not begun while `before` is under way or about to begin: also what only reads waits for a backup, since it would tell of the
/// snapshot before.
fn waits_for(task: Task, before: Task) -> bool {
    exclude_each_other(task, before) || only_reads(task) && before.is_backup()
}

/// Whether it changes nothing of what is stored.
fn only_reads(task: Task) -> bool {
    task.is_drill() || task == Task::Verify
}

fn decide(job: &Job, task: Task, past: &SourcePast, limits: &Limits, now: Timestamp) -> Decision {
    let own = past.tasks.get(&task).cloned().unwrap_or_default();
    let decision = |state, at, why: &str, missed| Decision {
        source: job.source.clone(),
        task,
        state,
        at,
        why: why.to_owned(),
        missed,
    };
    if let Some(started) = own.running {
        return decision(State::Running, started, "under way", 0);
    }
    // That its snapshots are whole is looked at all the same.
    if past.retired && task != Task::Verify {
        return decision(State::Held, now, "the source is retired", 0);
    }
    if task.is_drill() && past.newest.is_none() {
        return decision(State::Held, now, "there is no snapshot yet", 0);
    }
    let Some(Slot { at, missed, why }) = next(job, task, past, limits, now) else {
        return decision(State::Held, now, "its pattern has no further time", 0);
    };
    match free_at(&job.blackout, at.max(now)) {
        None => decision(State::Held, at, "a blackout without an end", missed),
        Some(free) if free > now && at <= now => decision(State::Held, free, "a blackout", missed),
        Some(free) if free > now => decision(State::Waiting, free, why, missed),
        Some(_) => decision(State::Start, at, why, missed),
    }
}

/// When a task is to run next, which may be in the past.
struct Slot {
    at: Timestamp,
    missed: u32,
    why: &'static str,
}

fn next(job: &Job, task: Task, past: &SourcePast, limits: &Limits, now: Timestamp) -> Option<Slot> {
    let rhythm = job.tasks.get(&task)?;
    let own = past.tasks.get(&task).cloned().unwrap_or_default();
    let since = own.since.unwrap_or(now).min(now);
    let after = |t: Timestamp| slots::after(rhythm, t, past.usual);
    let jitter = slots::jitter(job, task, rhythm, &limits.host);
    let Some(last) = newest_run(task, past) else {
        let first_of_source = task.is_backup() && past.newest.is_none() && takes_the_first(job, task);
        if first_of_source || task.is_drill() {
            return Some(Slot { at: since, missed: 0, why: "never done" });
        }
        return Some(Slot { at: after(since)?.checked_add(jitter).ok()?, missed: 0, why: "on schedule" });
    };
    if last.started > now || last.finished > now {
        return Some(Slot { at: now, missed: 0, why: "the clock was set back" });
    }
    let slot = after(last.started)?;
    if !last.done {
        let again = last.finished.checked_add(retry(task, own.failures)).ok()?;
        return Some(Slot { at: again.min(slot.checked_add(jitter).ok()?), missed: 0, why: "the last run failed" });
    }
    if let Some(needed) = past.needed.filter(|needed| takes_the_first(job, task) && last.started < *needed) {
        return Some(Slot { at: needed, missed: 0, why: "the log needs a snapshot to go on from" });
    }
    let overlapped = slot <= last.finished && job.overlap == Overlap::Skip;
    let overlaps = if overlapped { 1 + slots::count(rhythm, slot, last.finished, past.usual, MISSED_MAX) } else { 0 };
    let slot = if overlapped { slots::first_after(rhythm, slot, last.finished, past.usual)? } else { slot };
    let at = slot.checked_add(jitter).ok()?;
    let missed = overlaps + slots::count(rhythm, slot, now, past.usual, MISSED_MAX);
    // Counted from when the agent came up, which stays: counted from now the slot would move on for ever.
    if job.catch_up == CatchUp::Skip && limits.up_since.duration_since(at) > LATE {
        let at = slots::first_after(rhythm, slot, limits.up_since, past.usual)?.checked_add(jitter).ok()?;
        return Some(Slot { at, missed, why: "on schedule, what was missed left out" });
    }
    let why = if missed > 0 && now.duration_since(at) > LATE { "makes up for missed runs" } else { "on schedule" };
    Some(Slot { at, missed, why })
}

/// An incremental need not follow upon a full at once, nor a drill upon a dearer one that tells the same: the later counts.
fn newest_run(task: Task, past: &SourcePast) -> Option<Last> {
    let of = |task| past.tasks.get(&task).and_then(|p| p.last);
    match task {
        Task::Incremental => match (of(Task::Incremental), of(Task::Full)) {
            (Some(incremental), Some(full)) if full.done && full.started > incremental.started => Some(full),
            (None, Some(full)) if full.done => Some(full),
            (incremental, _) => incremental,
        },
        Task::Drill(level) => {
            let dearer =
                past.tasks.keys().filter(|other| matches!(other, Task::Drill(o) if *o != level && o.covers(level)));
            let done = dearer.filter_map(|other| of(*other)).filter(|last| last.done);
            of(task).into_iter().chain(done).max_by_key(|last| last.started)
        }
        task => of(task),
    }
}

/// The first backup of a source is a full whatever it is called: one of the two tasks makes it at once.
fn takes_the_first(job: &Job, task: Task) -> bool {
    task == Task::Incremental || !job.tasks.contains_key(&Task::Incremental)
}

/// Doubles with each failure.
fn retry(task: Task, failures: u32) -> SignedDuration {
    let doubled = 2_i32.saturating_pow(failures.saturating_sub(1).min(10));
    let (first, most) = if task.is_drill() { (DRILL_RETRY_FIRST, DRILL_RETRY_MAX) } else { (RETRY_FIRST, RETRY_MAX) };
    first.saturating_mul(doubled).min(most)
}

/// Why a job cannot keep its promise, in words; none if it can.
pub fn warning(job: &Job, usual: SignedDuration, now: Timestamp) -> Option<String> {
    // What keeps it then is no schedule.
    let rpo = job.rpo.filter(|_| !job.continuous)?;
    let worst = worst_case(job, usual, now)?;
    let schedule = job.tasks.get(&Task::Incremental).or_else(|| job.tasks.get(&Task::Full))?;
    (worst > rpo).then(|| {
        let cure = match schedule {
            Rhythm::Rpo(_) => "shorten the blackout, or make the RPO longer",
            _ => "run more often, or leave the interval out: then it follows from the RPO",
        };
        // Whole seconds, rounded up: what nobody has measured nobody should read.
        let told = |length: SignedDuration| {
            let up = i64::from(length.subsec_nanos() > 0);
            in_words(SignedDuration::from_secs(length.as_secs().saturating_add(up)))
        };
        format!(
            "{}: the RPO of {} cannot be kept: with backups {schedule} up to {} of data may be lost \
             (interval, jitter, blackouts, and the {} that a backup takes); {cure}",
            job.source,
            in_words(rpo),
            told(worst),
            told(usual)
        )
    })
}
