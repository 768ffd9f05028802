//! Canaries that are not written: then drills cannot tell how old a copy is.

use jiff::{SignedDuration, Timestamp};

use crate::agent::canaries::Beat;
use crate::notify::{Problem, Severity};
use crate::repository::layout::SourceName;

/// So many tries in a row that failed are not chance.
const TRIES: u32 = 2;
/// A writing that neither succeeds nor fails for so long, and three intervals, hangs.
const HANGS: SignedDuration = SignedDuration::from_mins(5);

/// What is wrong with the canary of `source`; the agent runs since `started`.
pub fn problem(source: &SourceName, beat: &Beat, started: Timestamp, now: Timestamp) -> Option<Problem> {
    let every = SignedDuration::try_from(beat.every).unwrap_or(SignedDuration::MAX);
    let last = beat.written.max(beat.excused).map_or(started, |at| at.max(started));
    let hangs = now.duration_since(last) > every.saturating_mul(3).saturating_add(HANGS);
    let why = match &beat.failing {
        Some(failing) if failing.tries >= TRIES => failing.why.clone(),
        _ if hangs => "it has neither been written nor failed: the engine lets it wait".to_owned(),
        _ => return None,
    };
    let known = beat.written.map_or("none was ever written".to_owned(), |at| format!("the last one is of {at:.0}"));
    Some(Problem {
        key: format!("{source}/canary"),
        severity: Severity::Warning,
        source: Some(source.clone()),
        title: format!("{source}: its canary cannot be written"),
        detail: format!("Drills cannot tell exactly how old a copy is; {known}. {why}"),
    })
}

/// Whether anything can be said of a canary yet: an alarm from before the agent was started stands until then.
pub fn is_known(beat: &Beat, started: Timestamp) -> bool {
    beat.written.is_some_and(|written| written >= started)
        || beat.failing.as_ref().is_some_and(|failing| failing.tries >= TRIES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::canaries::Failing;
    use std::time::Duration;

    #[test]
    fn one_failure_is_chance_and_silence_is_not() {
        let at = |minutes: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let source = SourceName::new("a").unwrap();
        let beat = || Beat { every: Duration::from_secs(60), ..Beat::default() };
        let failing = |tries| Some(Failing { since: at(0), tries, why: "no rights".into() });
        let told = |beat: Beat, minutes| problem(&source, &beat, at(0), at(minutes)).map(|p| p.detail);
        assert_eq!(told(beat(), 8), None);
        assert!(told(beat(), 9).unwrap().contains("none was ever written"));
        assert_eq!(told(Beat { written: Some(at(60)), failing: failing(1), ..beat() }, 61), None);
        let detail = told(Beat { written: Some(at(60)), failing: failing(2), ..beat() }, 61).unwrap();
        assert!(detail.contains("no rights") && detail.contains("1970-01-01T01:00:00Z"), "{detail}");
        // What was written before the agent was started says nothing of it.
        assert_eq!(told(Beat { written: Some(at(-999)), ..beat() }, 8), None);
        assert_eq!(told(Beat { excused: Some(at(100)), ..beat() }, 101), None);
        let known = |beat: Beat| is_known(&beat, at(0));
        assert!(!known(beat()) && !known(Beat { written: Some(at(-1)), ..beat() }));
        assert!(known(Beat { written: Some(at(1)), ..beat() }) && known(Beat { failing: failing(2), ..beat() }));
    }
}
