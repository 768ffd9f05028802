//! What each channel has been told, for whoever looks now and then and keeps a file in between: `watch`.
//!
//! A channel is told of a change at the first look at which that can be done: what did not arrive is tried again at the next, what quiet hours keep
//! back is told after them if it still stands, and what nobody was told of need not be taken back.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{Channel, Head, Notice, Phase, Problem, REMIND, Route};

/// A problem as one channel knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    problem: Problem,
    since: Timestamp,
    /// None: it has not been told yet.
    told: Option<Timestamp>,
}

/// By channel and by the problem's key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger(BTreeMap<String, BTreeMap<String, Known>>);

/// What a look has found.
pub struct Finding<'a> {
    pub problems: &'a [Problem],
    /// Whether nothing can be said of a problem that is not among `problems`, since what it is about could not be read; otherwise it is over.
    pub unknown: &'a dyn Fn(&Problem) -> bool,
    pub host: &'a str,
    pub now: Timestamp,
    /// Where the series stood that a problem is about.
    pub head: &'a dyn Fn(&Problem) -> Option<Head>,
}

impl Ledger {
    /// Tells every channel what has changed for it, by `send`. Gives the channels that could not be told, and why.
    pub fn tell(
        &mut self,
        channels: &[Channel],
        finding: &Finding,
        mut send: impl FnMut(&Channel, &Notice) -> Result<()>,
    ) -> Vec<(String, String)> {
        self.0.retain(|name, _| channels.iter().any(|channel| channel.name == *name));
        let mut failed = Vec::new();
        for channel in channels.iter().filter(|channel| channel.kind().is_some()) {
            let known = self.0.entry(channel.name.clone()).or_default();
            if let Err(error) = tell_one(channel, known, finding, &mut send) {
                failed.push((channel.name.clone(), format!("{error:#}")));
            }
        }
        failed
    }
}

/// Stops at the first notice that does not arrive: the rest would not either, and comes with it next time.
fn tell_one(
    channel: &Channel,
    known: &mut BTreeMap<String, Known>,
    finding: &Finding,
    send: &mut impl FnMut(&Channel, &Notice) -> Result<()>,
) -> Result<()> {
    let now = finding.now;
    for problem in finding.problems {
        let fresh = || Known { problem: problem.clone(), since: now, told: None };
        let entry = known.entry(problem.key.clone()).or_insert_with(fresh);
        if entry.problem.severity < problem.severity {
            // Worse than it was: that is news.
            entry.told = None;
        }
        entry.problem = problem.clone();
        let phase = match entry.told {
            None => Phase::Begun,
            // A clock that was set back must not silence an alarm for long.
            Some(told) if told > now || now.duration_since(told) >= REMIND => Phase::Reminder,
            Some(_) => continue,
        };
        let notice = notice(finding, phase, entry);
        match channel.route(&notice, now) {
            Route::Hold(_) => continue,
            Route::Drop => {}
            Route::Send => send(channel, &notice)?,
        }
        entry.told = Some(now);
    }
    let is_over = |known: &Known| {
        !finding.problems.iter().any(|p| p.key == known.problem.key) && !(finding.unknown)(&known.problem)
    };
    let over: Vec<String> = known.iter().filter(|(_, known)| is_over(known)).map(|(key, _)| key.clone()).collect();
    for key in over {
        let Some(entry) = known.get(&key) else { continue };
        if entry.told.is_some() {
            let notice = notice(finding, Phase::Recovered, entry);
            match channel.route(&notice, now) {
                Route::Hold(_) => continue,
                Route::Drop => {}
                Route::Send => send(channel, &notice)?,
            }
        }
        known.remove(&key);
    }
    Ok(())
}

fn notice(finding: &Finding, phase: Phase, known: &Known) -> Notice {
    let problem = known.problem.clone();
    let head = (finding.head)(&problem);
    Notice { version: 1, phase, at: finding.now, since: known.since, host: finding.host.to_owned(), problem, head }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::Severity;
    use jiff::SignedDuration;

    fn problem(key: &str, severity: Severity) -> Problem {
        Problem { key: key.into(), severity, source: None, title: key.into(), detail: String::new() }
    }

    fn channel(text: &str) -> Channel {
        toml::from_str(&format!("name = \"c\"\ncommand = {{ argv = [\"true\"] }}\n{text}")).unwrap()
    }

    /// What a look at that hour tells; with the channel deaf, nothing arrives.
    fn look(ledger: &mut Ledger, channel: &Channel, hour: i64, found: Option<&[Problem]>, deaf: bool) -> Vec<Phase> {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour);
        let unknown = |problem: &Problem| found.is_none() || problem.key == "unread";
        let finding =
            Finding { problems: found.unwrap_or_default(), unknown: &unknown, host: "h", now, head: &|_| None };
        let mut told = Vec::new();
        let failed = ledger.tell(std::slice::from_ref(channel), &finding, |_, notice| {
            anyhow::ensure!(!deaf, "nobody answers");
            told.push(notice.phase);
            Ok(())
        });
        assert_eq!(failed.is_empty(), !deaf || told.is_empty() && failed.is_empty());
        // As it comes back from its file.
        *ledger = serde_json::from_str(&serde_json::to_string(ledger).unwrap()).unwrap();
        told
    }

    #[test]
    fn told_once_again_daily_and_once_when_it_is_over() {
        let (mut ledger, channel) = (Ledger::default(), channel(""));
        let mut go = |hour, found: Option<&[Problem]>| look(&mut ledger, &channel, hour, found, false);
        let bad = [problem("a", Severity::Warning)];
        assert_eq!(go(1, Some(&bad[..])), [Phase::Begun]);
        assert_eq!(go(2, Some(&bad)), []);
        // A look that failed says nothing of what is over.
        assert_eq!(go(3, None), []);
        assert_eq!(go(25, Some(&bad)), [Phase::Reminder]);
        assert_eq!(go(26, Some(&[problem("a", Severity::Critical)])), [Phase::Begun]);
        assert_eq!(go(-100, Some(&bad)), [Phase::Reminder]);
        assert_eq!(go(28, Some(&[])), [Phase::Recovered]);
        assert_eq!(go(29, Some(&[])), []);
        // Nor does one that could not read just what it is about.
        assert_eq!(go(30, Some(&[problem("unread", Severity::Warning)])), [Phase::Begun]);
        assert_eq!(go(31, Some(&[])), []);
    }

    #[test]
    fn what_does_not_arrive_is_tried_at_the_next_look() {
        let (mut ledger, channel) = (Ledger::default(), channel(""));
        let bad = [problem("a", Severity::Warning)];
        assert_eq!(look(&mut ledger, &channel, 1, Some(&bad), true), []);
        assert_eq!(look(&mut ledger, &channel, 2, Some(&bad), false), [Phase::Begun]);
        assert_eq!(look(&mut ledger, &channel, 3, Some(&[]), true), []);
        assert_eq!(look(&mut ledger, &channel, 4, Some(&[]), false), [Phase::Recovered]);
    }

    #[test]
    fn quiet_hours_hold_it_back_and_what_passed_meanwhile_is_never_told() {
        let channel = channel("quiet = [{ from = \"22:00\", to = \"06:00\" }]\n");
        let mut ledger = Ledger::default();
        let mut go = |hour, found: &[Problem]| look(&mut ledger, &channel, hour, Some(found), false);
        let (a, b) = (problem("a", Severity::Warning), problem("b", Severity::Warning));
        assert_eq!(go(23, &[a.clone(), b.clone()]), []);
        assert_eq!(go(29, std::slice::from_ref(&b)), [], "a is over, and nobody knew of it");
        assert_eq!(go(30, std::slice::from_ref(&b)), [Phase::Begun]);
        // What is critical wakes people up; that it is over can wait.
        assert_eq!(go(47, &[b.clone(), problem("c", Severity::Critical)]), [Phase::Begun]);
        assert_eq!(go(48, &[]), [Phase::Recovered]);
        assert_eq!(go(54, &[]), [Phase::Recovered]);
    }
}
