//! What a canary that was found in a restored copy says of the copy's age. Pure.
//!
//! * What this host had written before a run began, whatever was read in the run has: an older canary is an older copy, and none at all is another one.
//! * The time in it is of the clock by which snapshots state the time of their data. The difference is by how much the data is older than it is said to
//!   be, at the most, and up to the interval of the canaries.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::report::Check;
use crate::source::canary::{Found, Stated};

/// How much younger than the data's stated time a canary may be without a word: the end of a copy is fixed a little after its time is noted.
const AHEAD: SignedDuration = SignedDuration::from_secs(10);
/// How much later than its interval a canary may come: its writer waits for locks, and is started again.
const LATE: SignedDuration = SignedDuration::from_mins(2);
const NAME: &str = "canary";

/// Between which times the data of a copy lies, as its snapshot states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataTime {
    /// The time stated: nothing that was there then is missing.
    pub stated: Timestamp,
    /// The last moment at which something may have come in: for a tree, the end of the walk.
    pub latest: Timestamp,
}

/// In a drill report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CanaryReport {
    /// When it was written that was found.
    pub written: Timestamp,
    /// The time of the copy's data, as its snapshot and log state it.
    pub data_time: Timestamp,
    /// The difference. Negative: the canary is younger.
    pub age_seconds: f64,
    pub every_seconds: u64,
}

/// What a canary brings to a drill.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    pub check: Check,
    pub report: Option<CanaryReport>,
    /// What is not as it should be, though the copy is not to blame.
    pub remark: Option<String>,
}

/// Judges what was found in a copy. `rpo`: by which the age of its data is measured, if one is promised. `fleeting`: the engine itself may have let go
/// of it before the copy was made.
pub fn judge(stated: &Stated, found: Found, data: DataTime, rpo: Option<SignedDuration>, fleeting: bool) -> Judged {
    let every = SignedDuration::from_secs(i64::try_from(stated.every_seconds).unwrap_or(i64::MAX));
    let usual = every.saturating_add(LATE);
    // One that is written more seldom than the RPO can say no more.
    let most = rpo.map_or(usual, |rpo| rpo.max(usual));
    let expected = match rpo {
        Some(_) => format!("written at most {most:#} before the data's time, {}, as the RPO allows", data.stated),
        None => format!("written at most {most:#} before the data's time, {}", data.stated),
    };
    let check = |passed: bool, actual: String| Check { name: NAME.into(), expected: expected.clone(), actual, passed };
    let at = match (found, stated.written) {
        (Found::At(at), _) => at,
        (Found::Missing(_), None) => {
            let why = "none is known to have been written when the snapshot was made: the agent writes them, and so does `blackstart canary`";
            return Judged { check: Check::not_run(NAME, why), report: None, remark: None };
        }
        (Found::Missing(why), Some(written)) => {
            if fleeting {
                let remark = format!(
                    "the canary of {written} is not in the copy ({why}): was everything deleted, or was it evicted?"
                );
                return Judged {
                    check: Check::not_run(NAME, "there is none in the copy"),
                    report: None,
                    remark: Some(remark),
                };
            }
            let actual = format!("MISSING: {why}; one was written at {written}, before the backup began");
            return Judged { check: check(false, actual), report: None, remark: None };
        }
    };
    let age = data.stated.duration_since(at);
    let apart = SignedDuration::from_secs(age.as_secs().abs());
    let report = CanaryReport {
        written: at,
        data_time: data.stated,
        age_seconds: age.as_secs_f64(),
        every_seconds: stated.every_seconds,
    };
    // What was written elsewhere comes a little later.
    let due =
        stated.written.map(|at| if stated.elsewhere { at.saturating_sub(usual).unwrap_or(Timestamp::MIN) } else { at });
    let rounded = SignedDuration::from_millis(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let (mut remark, told) = (None, format!("written at {at}, {rounded:#} before the data's time"));
    let check = if let Some(due) = due.filter(|due| at < *due) {
        check(false, format!("written at {at}: STALE, for one of {due} had been written before the backup began"))
    } else if age > most && stated.written.is_none() {
        check(false, format!("written at {at}, {apart:#} OLDER than the data is said to be{}", nobody(stated)))
    } else {
        if age > usual {
            remark = Some(format!("the canary is {apart:#} older than the data is said to be{}", nobody(stated)));
        } else if at > data.latest.saturating_add(AHEAD).unwrap_or(Timestamp::MAX) {
            remark = Some(format!("the canary is {apart:#} NEWER than the data is said to be: a clock is wrong"));
        }
        check(true, told)
    };
    Judged { check, report: Some(report), remark }
}

/// Where the copy has all that is known to have been written.
fn nobody(stated: &Stated) -> &'static str {
    match stated.written {
        Some(_) => "; none is known to have been written since then: was the agent running?",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn stated(written: Option<i64>) -> Stated {
        Stated { at: "t".into(), database: None, every_seconds: 60, written: written.map(at), elsewhere: false }
    }

    fn judged(stated: &Stated, found: Option<i64>, rpo: Option<i64>) -> Judged {
        let found = found.map_or_else(|| Found::Missing("there is none".into()), |seconds| Found::At(at(seconds)));
        judge(stated, found, DataTime { stated: at(0), latest: at(5) }, rpo.map(SignedDuration::from_secs), false)
    }

    #[test]
    fn a_copy_has_what_was_written_before_it_was_begun() {
        let well = judged(&stated(Some(-30)), Some(-30), None);
        assert!(well.check.passed && well.check.actual.contains("30s before"), "{well:?}");
        assert_eq!(well.check.in_public(), well.check, "a time is no secret");
        assert!((well.report.unwrap().age_seconds - 30.0).abs() < 1e-9);
        assert!(judged(&stated(Some(-30)), Some(-2), None).check.passed, "another was written while the run began");
        let stale = judged(&stated(Some(-30)), Some(-31), None);
        assert!(!stale.check.passed && stale.check.actual.contains("STALE"), "{stale:?}");
        let elsewhere = Stated { elsewhere: true, ..stated(Some(-30)) };
        assert!(judged(&elsewhere, Some(-31), None).check.passed, "a standby may lag");
        assert!(!judged(&elsewhere, Some(-30 - 181), None).check.passed);
    }

    #[test]
    fn an_old_canary_fails_where_nobody_knows_that_none_was_written_since() {
        // The interval and two minutes are always granted; and not a second more.
        for rpo in [None, Some(1), Some(180)] {
            assert!(judged(&stated(None), Some(-180), rpo).check.passed, "{rpo:?}");
            assert!(!judged(&stated(None), Some(-181), rpo).check.passed, "{rpo:?}");
        }
        assert!(judged(&stated(None), Some(-900), Some(900)).check.passed);
        assert!(!judged(&stated(None), Some(-901), Some(900)).check.passed);
        // A copy that has the last one known is not to blame for what nobody wrote.
        for rpo in [None, Some(1), Some(900)] {
            let unwritten = judged(&stated(Some(-901)), Some(-901), rpo);
            assert!(unwritten.check.passed && unwritten.remark.unwrap().contains("was the agent running"), "{rpo:?}");
        }
    }

    #[test]
    fn a_canary_from_the_future_is_told() {
        assert_eq!(judged(&stated(Some(-30)), Some(15), None).remark, None);
        let early = judged(&stated(Some(-30)), Some(16), None);
        assert!(early.check.passed && early.remark.unwrap().contains("NEWER"));
    }

    #[test]
    fn a_missing_one_counts_where_one_was_written() {
        let missing = judged(&stated(Some(-30)), None, None);
        let found = Found::Missing("there is none".into());
        let fleeting = judge(&stated(Some(-30)), found, DataTime { stated: at(0), latest: at(5) }, None, true);
        assert!(!fleeting.check.was_run() && fleeting.remark.unwrap().contains("evicted"));
        assert!(!missing.check.passed && missing.check.actual.contains("MISSING") && missing.report.is_none());
        assert!(!judged(&stated(None), None, None).check.was_run());
    }
}
