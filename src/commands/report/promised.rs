//! What schedules promise of drills, and what became of it in a period. Pure: the drills and the moments are given.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::config::Config;
use crate::job::{Job, Rhythm};
use crate::operations::evidence::Level;
use crate::repository::layout::SourceName;

/// More slots than this are not looked at: a drill each minute of a month.
const SLOTS_MAX: usize = 50_000;

/// A drill that is on a schedule.
#[derive(Debug, Clone)]
pub struct Promise {
    pub level: Level,
    pub rhythm: Rhythm,
    /// The file that says so.
    pub by: String,
}

/// What became of a promise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    pub level: Level,
    /// For people: `every 7d`.
    pub rhythm: String,
    pub by: String,
    /// How many drills were due in the period, and how many of these have been done, whatever they found.
    pub due: u64,
    pub done: u64,
    /// When those were due that were not done.
    pub missed: Vec<Timestamp>,
}

/// The promises of the jobs and plans in force, by the subject of the reports that keep them. A plan that is drilled drills its sources, too: they are
/// promised by it where no job of their own goes as deep.
pub fn promises(config: &Config) -> BTreeMap<String, Vec<Promise>> {
    let mut all: BTreeMap<String, Vec<Promise>> = BTreeMap::new();
    let jobs = || config.jobs.iter().filter(|job| job.enabled);
    let by = |job: &Job| job.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for job in jobs() {
        let own = job.drills().map(|(level, rhythm)| Promise { level, rhythm: rhythm.clone(), by: by(job) });
        all.entry(job.source.to_string()).or_default().extend(own);
    }
    for job in jobs() {
        for (source, (level, rhythm)) in job
            .plan
            .iter()
            .flat_map(|plan| &plan.sources)
            .flat_map(|source| job.drills().map(move |drill| (source, drill)))
        {
            let own = all.entry(source.to_string()).or_default();
            if !own.iter().any(|promise| promise.level.covers(level)) {
                own.push(Promise { level, rhythm: rhythm.clone(), by: by(job) });
            }
        }
    }
    all.retain(|_, promises| !promises.is_empty());
    all
}

/// The sources that no job backs up, alone or in a group.
pub fn without_job(config: &Config) -> Vec<SourceName> {
    let backs_up = |job: &Job, source: &SourceName| job.enabled && job.plan.is_none() && job.covers(source);
    let mut idle: Vec<SourceName> = Vec::new();
    for source in &config.source {
        let mut jobs = config.jobs.iter().filter(|job| backs_up(job, &source.name));
        if !source.continuous && !jobs.any(|job| job.tasks.keys().any(|task| task.is_backup())) {
            idle.push(source.name.clone());
        }
    }
    idle
}

/// Holds `drills`, the starts of those that tell as much as was promised, in order of time, against the promise. It holds `within` the period, from
/// when there was something to drill, up to now or to when the source was given up. What is due and may still come is not missed.
pub fn kept(promise: &Promise, drills: &[Timestamp], period: &Range<Timestamp>, holds: &Range<Timestamp>) -> Kept {
    let from = period.start.max(holds.start);
    let to = period.end.min(holds.end);
    let missed: Vec<Timestamp> = match &promise.rhythm {
        Rhythm::Cron(cron) => {
            let before = from.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(from);
            let slots = std::iter::successors(cron.after(before), |slot| cron.after(*slot));
            let slots: Vec<Timestamp> = slots.take_while(|slot| *slot < holds.end).take(SLOTS_MAX).collect();
            // A slot has until the next one.
            let pairs = slots.windows(2).filter(|pair| pair[0] < to);
            let done = |pair: &[Timestamp]| drills.iter().any(|at| (pair[0]..pair[1]).contains(at));
            pairs.filter(|pair| !done(pair)).map(|pair| pair[0]).collect()
        }
        other => gaps(other.gaps().1, drills, &(from..to), holds),
    };
    let done = drills.iter().filter(|at| (from..to).contains(*at)).count() as u64;
    let (by, rhythm) = (promise.by.clone(), promise.rhythm.to_string());
    Kept { level: promise.level, rhythm, by, due: done + missed.len() as u64, done, missed }
}

/// Of drills that follow upon each other by an interval: when those were due that did not come. A drill comes later than it is due by what it waits for;
/// half an interval is not held against it.
fn gaps(
    interval: SignedDuration,
    drills: &[Timestamp],
    within: &Range<Timestamp>,
    holds: &Range<Timestamp>,
) -> Vec<Timestamp> {
    let length = interval.as_nanos().max(1);
    let (mut missed, mut last) = (Vec::new(), holds.start);
    let done = drills.iter().copied().filter(|at| holds.contains(at)).map(|at| (at, true));
    for (at, came) in done.chain([(holds.end, false)]) {
        let gap = at.duration_since(last).as_nanos();
        // Of those that were due in between, the one that came is the last.
        let due = if came { (gap + length / 2) / length - 1 } else { (gap - length / 2) / length };
        let times = std::iter::successors(last.checked_add(interval).ok(), |t| t.checked_add(interval).ok());
        let count = usize::try_from(due).unwrap_or(0).min(SLOTS_MAX);
        missed.extend(times.take(count).filter(|due| within.contains(due)));
        last = at;
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job;
    use std::path::Path;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn promise(drill: &str) -> Promise {
        let text = format!("source = \"a\"\nevery = \"1h\"\ndrill = {drill}\n");
        let job = job::parse(&text, Path::new("a.toml")).unwrap().job;
        let (level, rhythm) = job.drills().next().unwrap();
        Promise { level, rhythm: rhythm.clone(), by: "a.toml".into() }
    }

    /// Due, done, and the days on which one was missed, in June 2026.
    fn june(drill: &str, drills: &[&str], holds: Range<&str>) -> (u64, u64, Vec<String>) {
        let drills: Vec<Timestamp> = drills.iter().map(|t| at(t)).collect();
        let period = at("2026-06-01T00:00:00Z")..at("2026-07-01T00:00:00Z");
        let kept = kept(&promise(drill), &drills, &period, &(at(holds.start)..at(holds.end)));
        (kept.due, kept.done, kept.missed.iter().map(|t| t.strftime("%d").to_string()).collect())
    }

    const LONG: Range<&str> = "2026-01-01T00:00:00Z".."2026-12-31T00:00:00Z";

    #[test]
    fn a_pattern_has_until_its_next_time() {
        // Sundays: 7, 14, 21, 28 June.
        let weekly = "{ cron = \"0 3 * * 0\", timezone = \"UTC\" }";
        let three = ["2026-06-07T03:00:02Z", "2026-06-16T12:00:00Z", "2026-06-28T03:04:00Z"];
        assert_eq!(june(weekly, &three, LONG), (4, 3, vec!["21".into()]));
        assert_eq!(june(weekly, &[], LONG).2, ["07", "14", "21", "28"]);
        // Before there was anything, and after it was given up, nothing is promised; the last one may still come.
        assert_eq!(june(weekly, &[], "2026-06-10T00:00:00Z".."2026-06-24T00:00:00Z").2, ["14"]);
        assert_eq!(june(weekly, &[], "2026-06-10T00:00:00Z".."2026-06-28T04:00:00Z").2, ["14", "21"]);
    }

    #[test]
    fn an_interval_counts_from_the_drill_before() {
        let weekly = "{ every = \"7d\" }";
        // Each a little later than the one before: none is missed, and the first follows one of May.
        let late = [
            "2026-05-30T00:00:00Z",
            "2026-06-06T01:00:00Z",
            "2026-06-13T09:00:00Z",
            "2026-06-21T00:00:00Z",
            "2026-06-28T00:00:00Z",
        ];
        assert_eq!(june(weekly, &late, LONG), (4, 4, vec![]));
        let gap = ["2026-05-30T00:00:00Z", "2026-06-06T00:00:00Z", "2026-06-28T00:00:00Z"];
        assert_eq!(june(weekly, &gap, LONG), (4, 2, vec!["13".into(), "20".into()]));
        assert_eq!(
            june(weekly, &["2026-05-30T00:00:00Z"], "2026-01-01T00:00:00Z".."2026-06-17T00:00:00Z").2,
            ["06", "13"]
        );
        assert_eq!(june(weekly, &["2026-05-30T00:00:00Z"], "2026-01-01T00:00:00Z".."2026-06-16T00:00:00Z").2, ["06"]);
        // Never drilled: due since there was something to drill.
        assert_eq!(june(weekly, &[], "2026-06-01T00:00:00Z".."2026-06-20T00:00:00Z").2, ["08", "15"]);
        assert_eq!(june(weekly, &[], "2026-06-25T00:00:00Z".."2026-06-26T00:00:00Z").2, [""; 0]);
    }
}
