//! Notices: what stands wrong is an alarm; it is told once when it begins, again every day, and once when it is over.
//!
//! Alarms and routes are pure; `deliver` sends, on a thread for each channel.

mod channel;
mod deliver;
mod ledger;
mod send;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use crate::repository::layout::SourceName;
use crate::time::free_at;

pub use channel::{Channel, Email, Ping, Tls, validate};
pub use deliver::{Delivered, Deliveries};
pub use ledger::{Finding, Ledger};
pub use send::{Message, Pulse, send};

/// The key of the problem that the repository cannot be reached.
pub const REPOSITORY: &str = "repository";

/// An alarm that still stands is told again after this.
pub const REMIND: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    #[default]
    Warning,
    Critical,
}

/// Something that is not as it should be. Two with one key are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `orders/rpo`, `repository`: what it is, for deduplication; no times in it.
    pub key: String,
    pub severity: Severity,
    pub source: Option<SourceName>,
    /// One line: what happened.
    pub title: String,
    /// What it means for the data, and what to do next.
    pub detail: String,
}

/// A problem that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    pub problem: Problem,
    pub since: Timestamp,
    pub told: Timestamp,
    /// The worst that it was: whoever was told of that is told of the end.
    #[serde(default)]
    pub worst: Option<Severity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Begun,
    Reminder,
    /// The problem is over.
    Recovered,
    Test,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Begun => "begun",
            Phase::Reminder => "reminder",
            Phase::Recovered => "recovered",
            Phase::Test => "test",
        }
    }
}

/// Where the series of a source stood when a notice was made: whoever sees an older head later knows of a rollback (FORMAT.md §6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub seq: u64,
    pub commit: String,
}

/// One message to people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    pub version: u32,
    pub phase: Phase,
    pub at: Timestamp,
    pub since: Timestamp,
    pub host: String,
    #[serde(flatten)]
    pub problem: Problem,
    pub head: Option<Head>,
}

/// The alarms that stand, by key.
#[derive(Debug, Clone, Default)]
pub struct Alarms(BTreeMap<String, Alarm>);

/// A change that is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub phase: Phase,
    pub alarm: Alarm,
}

impl Alarms {
    /// Those that stood when the agent last ran.
    pub fn recall(alarms: Vec<Alarm>) -> Alarms {
        Alarms(alarms.into_iter().map(|a| (a.problem.key.clone(), a)).collect())
    }

    /// One that somebody else has told of, so that its end is told here.
    pub fn add(&mut self, problem: Problem, since: Timestamp) {
        let worst = Some(problem.severity);
        self.0.entry(problem.key.clone()).or_insert(Alarm { problem, since, told: since, worst });
    }

    pub fn all(&self) -> impl Iterator<Item = &Alarm> {
        self.0.values()
    }

    /// Compares what stands wrong now with what stood before, and gives what is to be told. An alarm whose key is `unknown` stands as it stood:
    /// only what is known to be over is told so.
    pub fn update(&mut self, mut problems: Vec<Problem>, unknown: &BTreeSet<String>, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut before = std::mem::take(&mut self.0);
        let found: BTreeSet<String> = problems.iter().map(|problem| problem.key.clone()).collect();
        let stands = |key: &String| unknown.contains(key) && !found.contains(key);
        problems.extend(before.values().filter(|a| stands(&a.problem.key)).map(|a| a.problem.clone()));
        for problem in problems {
            let mut alarm = match before.remove(&problem.key) {
                // Worse than it was: that is news.
                Some(known) if known.problem.severity >= problem.severity => Alarm { problem, ..known },
                Some(known) => Alarm { problem, told: Timestamp::MIN, ..known },
                None => Alarm { problem, since: now, told: Timestamp::MIN, worst: None },
            };
            alarm.worst = alarm.worst.max(Some(alarm.problem.severity));
            let phase = if alarm.told == Timestamp::MIN { Phase::Begun } else { Phase::Reminder };
            // A clock that was set back must not silence an alarm for long.
            if phase == Phase::Begun || alarm.told > now || now.duration_since(alarm.told) >= REMIND {
                alarm.told = now;
                changes.push(Change { phase, alarm: alarm.clone() });
            }
            self.0.insert(alarm.problem.key.clone(), alarm);
        }
        // While the repository is out of reach, nothing that is told of a source can be known to be well again.
        let blind = self.0.contains_key(REPOSITORY);
        for mut alarm in before.into_values() {
            if blind && alarm.problem.source.is_some() {
                self.0.insert(alarm.problem.key.clone(), alarm);
            } else {
                alarm.problem.severity =
                    alarm.worst.map_or(alarm.problem.severity, |worst| worst.max(alarm.problem.severity));
                changes.push(Change { phase: Phase::Recovered, alarm });
            }
        }
        changes
    }
}

/// What a channel does with a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Send,
    /// Quiet hours: not before this.
    Hold(Timestamp),
    Drop,
}

impl Channel {
    /// Whether `notice` goes to this channel now.
    pub fn route(&self, notice: &Notice, now: Timestamp) -> Route {
        let wanted = self.sources.is_empty() || notice.problem.source.as_ref().is_none_or(|s| self.sources.contains(s));
        let recovered = notice.phase != Phase::Recovered || self.recovered;
        if !wanted || !recovered || notice.problem.severity < self.severity || self.kind().is_none() {
            return Route::Drop;
        }
        match free_at(&self.quiet, now) {
            // What is critical wakes people up.
            Some(free) if free > now && notice.problem.severity < Severity::Critical => Route::Hold(free),
            _ => Route::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(key: &str, severity: Severity) -> Problem {
        Problem { key: key.into(), severity, source: None, title: key.into(), detail: String::new() }
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
    }

    fn phases(changes: &[Change]) -> Vec<Phase> {
        changes.iter().map(|c| c.phase).collect()
    }

    #[test]
    fn an_alarm_is_told_once_then_daily_then_when_it_is_over() {
        let mut alarms = Alarms::default();
        let none = BTreeSet::new();
        let mut go = |hours, problems: &[Problem]| phases(&alarms.update(problems.to_vec(), &none, at(hours)));
        let bad = [problem("a", Severity::Warning)];
        assert_eq!(go(1, &bad), [Phase::Begun]);
        assert_eq!(go(2, &bad), []);
        assert_eq!(go(25, &bad), [Phase::Reminder]);
        assert_eq!(go(26, &[problem("a", Severity::Critical)]), [Phase::Begun]);
        assert_eq!(go(27, &bad), []);
        assert_eq!(go(28, &[]), [Phase::Recovered]);
        assert_eq!(go(29, &[]), []);
        assert_eq!(go(30, &bad), [Phase::Begun]);
        assert_eq!(go(-100, &bad), [Phase::Reminder]);
    }

    #[test]
    fn whoever_was_told_of_the_worst_is_told_of_the_end() {
        let mut alarms = Alarms::default();
        let mut go = |problems: &[Problem]| alarms.update(problems.to_vec(), &BTreeSet::new(), at(1));
        for severity in [Severity::Warning, Severity::Critical, Severity::Warning] {
            go(&[problem("a", severity)]);
        }
        assert_eq!(go(&[])[0].alarm.problem.severity, Severity::Critical);
    }

    #[test]
    fn an_alarm_of_which_nothing_is_known_stands_and_none_begins() {
        let mut alarms = Alarms::default();
        let unknown = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let bad = vec![problem("a", Severity::Critical)];
        assert_eq!(phases(&alarms.update(bad.clone(), &BTreeSet::new(), at(1))), [Phase::Begun]);
        assert_eq!(phases(&alarms.update(Vec::new(), &unknown, at(2))), []);
        assert_eq!(alarms.all().map(|a| a.since).collect::<Vec<_>>(), [at(1)]);
        assert_eq!(phases(&alarms.update(Vec::new(), &unknown, at(25))), [Phase::Reminder]);
        assert_eq!(phases(&alarms.update(bad, &unknown, at(26))), []);
        assert_eq!(phases(&alarms.update(Vec::new(), &BTreeSet::new(), at(27))), [Phase::Recovered]);
    }

    #[test]
    fn nothing_of_a_source_recovers_while_the_repository_is_out_of_reach() {
        let mut alarms = Alarms::default();
        let mut go =
            |hours, problems: &[Problem]| phases(&alarms.update(problems.to_vec(), &BTreeSet::new(), at(hours)));
        let failed = Problem { source: Some(SourceName::new("a").unwrap()), ..problem("a/full", Severity::Warning) };
        let gone = problem(REPOSITORY, Severity::Critical);
        assert_eq!(go(1, &[failed, problem("configuration", Severity::Warning)]), [Phase::Begun, Phase::Begun]);
        assert_eq!(go(2, std::slice::from_ref(&gone)), [Phase::Begun, Phase::Recovered]);
        assert_eq!(go(3, &[gone]), []);
        assert_eq!(go(4, &[]), [Phase::Recovered, Phase::Recovered]);
    }

    #[test]
    fn routes_go_by_severity_source_and_hour() {
        let text = "name = \"c\"\nseverity = \"warning\"\nsources = [\"a\"]\ncommand = { argv = [\"true\"] }\n\
                    quiet = [{ from = \"22:00\", to = \"06:00\" }]\n";
        let channel: Channel = toml::from_str(text).unwrap();
        let notice = |severity, source: Option<&str>, phase| Notice {
            version: 1,
            phase,
            at: at(12),
            since: at(12),
            host: "h".into(),
            problem: Problem { source: source.map(|s| SourceName::new(s).unwrap()), ..problem("k", severity) },
            head: None,
        };
        let route = |severity, source, hour| channel.route(&notice(severity, source, Phase::Begun), at(hour));
        assert_eq!(route(Severity::Warning, Some("a"), 12), Route::Send);
        assert_eq!(route(Severity::Warning, None, 12), Route::Send);
        assert_eq!(route(Severity::Warning, Some("b"), 12), Route::Drop);
        assert_eq!(route(Severity::Info, Some("a"), 12), Route::Drop);
        assert_eq!(route(Severity::Warning, Some("a"), 23), Route::Hold(at(30)));
        assert_eq!(route(Severity::Critical, Some("a"), 23), Route::Send);
    }
}
