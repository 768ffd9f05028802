//! The arithmetic of slots: what follows upon what, jitter, and how old data may become.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::job::{Job, Rhythm, Task};
use crate::time::free_at;

/// Jitter of cron tasks where the job names none: a tenth of the shortest interval, at most this.
const JITTER_MAX: SignedDuration = SignedDuration::from_mins(5);
/// An interval that follows from an RPO is at least this.
const DERIVED_MIN: SignedDuration = SignedDuration::from_secs(10);
/// The scheduler looks at the clock this often.
const TICK: SignedDuration = SignedDuration::from_secs(1);

/// How often to back up so that no more than `rpo` is ever lost, where a backup takes `usual`: half of what the RPO leaves, so that
/// one run may fail.
pub fn derived_interval(rpo: SignedDuration, usual: SignedDuration) -> SignedDuration {
    let left = rpo.saturating_sub(usual.saturating_mul(2)) / 2;
    left.max(rpo / 4).max(DERIVED_MIN)
}

/// The interval of a rhythm that has one.
fn interval(rhythm: &Rhythm, usual: SignedDuration) -> Option<SignedDuration> {
    match rhythm {
        Rhythm::Every(d) => Some(*d),
        Rhythm::Rpo(rpo) => Some(derived_interval(*rpo, usual)),
        Rhythm::Cron(_) => None,
    }
}

/// The slot after `t`.
pub fn after(rhythm: &Rhythm, t: Timestamp, usual: SignedDuration) -> Option<Timestamp> {
    match rhythm {
        Rhythm::Cron(cron) => cron.after(t),
        other => t.checked_add(interval(other, usual)?).ok(),
    }
}

/// The first slot after `t`, where `slot` is one.
pub fn first_after(rhythm: &Rhythm, slot: Timestamp, t: Timestamp, usual: SignedDuration) -> Option<Timestamp> {
    match rhythm {
        Rhythm::Cron(cron) => cron.after(t),
        _ if slot > t => Some(slot),
        other => {
            let length = interval(other, usual)?.as_millis().max(1);
            let steps = t.duration_since(slot).as_millis() / length + 1;
            let ahead = SignedDuration::from_millis(i64::try_from(steps.checked_mul(length)?).ok()?);
            slot.checked_add(ahead).ok()
        }
    }
}

/// Slots after `slot` that have passed by `now`: each was missed, at most `most`.
pub fn count(rhythm: &Rhythm, slot: Timestamp, now: Timestamp, usual: SignedDuration, most: u32) -> u32 {
    let mut missed = 0;
    let mut last = slot;
    while missed < most {
        match after(rhythm, last, usual) {
            Some(next) if next <= now => (missed, last) = (missed + 1, next),
            _ => break,
        }
    }
    missed
}

/// By how much this host puts off the runs of a cron task: always the same for the same host, source and task.
pub fn jitter(job: &Job, task: Task, rhythm: &Rhythm, host: &str) -> SignedDuration {
    let window = jitter_window(job, rhythm).as_millis();
    if window <= 0 {
        return SignedDuration::ZERO;
    }
    let hash = Sha256::digest(format!("{host}\n{}\n{task}", job.source));
    let number = u64::from_be_bytes(std::array::from_fn(|i| hash[i]));
    let part = i128::from(number) % window;
    SignedDuration::from_millis(i64::try_from(part).unwrap_or(0))
}

fn jitter_window(job: &Job, rhythm: &Rhythm) -> SignedDuration {
    match (rhythm, job.jitter) {
        (Rhythm::Cron(_), Some(jitter)) => jitter,
        (Rhythm::Cron(_), None) => (rhythm.gaps().0 / 10).min(JITTER_MAX),
        _ => SignedDuration::ZERO,
    }
}

/// The longest time between two backups of a job as planned; none if it makes no backup.
pub fn expected_interval(job: &Job, usual: SignedDuration) -> Option<SignedDuration> {
    let longest = |task: Task| {
        let rhythm = job.tasks.get(&task)?;
        Some(interval(rhythm, usual).unwrap_or_else(|| rhythm.gaps().1 + jitter_window(job, rhythm)))
    };
    [longest(Task::Full), longest(Task::Incremental)].into_iter().flatten().min()
}

/// The most data, as time, that a disaster may cost when every run succeeds: the interval, the longest blackout, and the time that a backup
/// takes until it counts.
pub fn worst_case(job: &Job, usual: SignedDuration, now: Timestamp) -> Option<SignedDuration> {
    let interval = expected_interval(job, usual)?;
    // Windows begin at some minute; ten minutes are fine enough for a warning.
    let probes = (0..8 * 24 * 6).filter_map(|n| now.checked_add(SignedDuration::from_mins(10 * n)).ok());
    let longest_blackout = if job.blackout.is_empty() {
        SignedDuration::ZERO
    } else {
        probes.filter_map(|t| Some(free_at(&job.blackout, t)?.duration_since(t))).max().unwrap_or_default()
    };
    Some(interval.saturating_add(longest_blackout).saturating_add(usual).saturating_add(TICK))
}
