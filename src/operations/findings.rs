//! What `verify` and `prune` have found wrong with a source on this machine, by hand or under the agent, until they have seen it well.
//!
//! Both leave no trace of that in the repository: without this note neither the agent nor `status` would know of what somebody has seen by hand, and
//! a cheap look would take back what a dear one has found. A note that cannot be written only makes an alarm last longer.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::Open;
use super::evidence::Level;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// What a `verify` found that none has seen well since.
    pub damage: Option<Damage>,
    /// By how deep it looked: when a `verify` that found nothing wrong was begun.
    #[serde(default)]
    pub whole: BTreeMap<Level, Timestamp>,
    /// What the store refused to remove, unless a prune since then was whole.
    pub refused: Option<Refused>,
    /// When a prune of which the store refused nothing was begun.
    #[serde(default)]
    pub pruned: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub at: Timestamp,
    /// The cheapest `verify` that sees all of it: existence, hashes or decode.
    pub level: Level,
    /// Packs in an archive class that it could not read.
    #[serde(default)]
    pub archived: u64,
    /// Nothing is hurt: objects were deleted or written over in a store that keeps the first versions.
    #[serde(default)]
    pub covered: bool,
    /// For people.
    pub what: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub at: Timestamp,
    pub objects: u64,
    pub first: String,
}

/// How a `verify` of one source ended that could read all it looked for.
#[derive(Debug, Clone)]
pub struct Looked {
    pub begun: Timestamp,
    /// How deep it looked, at all of the source.
    pub level: Level,
    pub archived: u64,
    pub damage: Option<Seen>,
}

/// The damage that one `verify` has seen.
#[derive(Debug, Clone)]
pub struct Seen {
    pub level: Level,
    pub covered: bool,
    pub what: String,
}

impl Findings {
    /// What is noted of `source`. What is there and cannot be read is an error: taken for nothing, damage would look well.
    pub fn recall(open: &Open, source: &SourceName) -> Result<Findings> {
        let Some(path) = path(open, source) else { return Ok(Findings::default()) };
        let read = match std::fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Findings::default()),
            read => read.map_err(anyhow::Error::from),
        };
        read.and_then(|text| Ok(serde_json::from_slice(&text)?)).map_err(|e| {
            Failure::new(
                Kind::Environment,
                format!("what `verify` and `prune` have found here cannot be read: {}: {e:#}", path.display()),
                format!("Run this as the user whose agent makes the backups. If the file is broken: remove it, and run `blackstart verify {source} --read-data`."),
            )
        })
    }

    /// Whether a `verify` that was begun after `at` found nothing wrong, and looked as deep as `level`.
    pub fn whole_since(&self, at: Timestamp, level: Level) -> bool {
        self.whole.iter().any(|(looked, begun)| looked.covers(level) && *begun > at)
    }

    /// Takes note of a `verify`.
    pub fn take(&mut self, looked: &Looked) {
        let Looked { begun, level, archived, .. } = *looked;
        match &looked.damage {
            Some(Seen { level: seen_at, covered, what }) => {
                // What a dearer one has found and this one could not see stands beside it.
                let deeper = self.damage.as_ref().filter(|known| !level.covers(known.level));
                let covered = *covered && deeper.is_none_or(|known| known.covered);
                let level = deeper.map_or(*seen_at, |known| known.level.max(*seen_at));
                self.damage = Some(Damage { at: begun, level, archived, covered, what: what.clone() });
            }
            None => {
                self.whole.insert(level, begun);
                let seen = |known: &Damage| level.covers(known.level) && archived <= known.archived;
                self.damage = self.damage.take().filter(|known| !seen(known));
            }
        }
    }

    /// Takes note of a prune that was begun at `begun`, and of what the store refused to remove.
    pub fn take_prune(&mut self, begun: Timestamp, refused: &[String]) {
        match refused.first() {
            Some(first) => {
                self.refused = Some(Refused { at: begun, objects: refused.len() as u64, first: first.clone() });
            }
            None => (self.refused, self.pruned) = (None, Some(begun)),
        }
    }
}

/// Changes what is noted of `source`. Where nothing can be written nothing is: then its reader goes on with what it knows.
pub fn note(open: &Open, source: &SourceName, change: impl FnOnce(&mut Findings)) {
    let Some(path) = path(open, source) else { return };
    // What is there and cannot be read is not written over: it may tell of damage.
    let Ok(before) = Findings::recall(open, source) else { return };
    let mut now = before.clone();
    change(&mut now);
    if now != before
        && let Ok(text) = serde_json::to_vec(&now)
    {
        // Whoever runs the verb, the agent reads it.
        drop(durable::publish_over(&path, &text, 0o644));
    }
}

fn path(open: &Open, source: &SourceName) -> Option<PathBuf> {
    let directory = open.state.as_ref()?.join(&open.trust.id);
    Some(directory.join("findings").join(format!("{source}.json")))
}

impl Damage {
    /// What it means, and what to do next.
    pub fn advice(&self, source: &SourceName) -> String {
        let command = self.command(source);
        if self.covered {
            return format!(
                "Everything restores from the first versions, as long as the store keeps them. Find out who it was, change the credentials, then take away what \
                 lies over them with `blackstart prune {source} --uncover`, as keeper; `{command}` tells when all is well"
            );
        }
        format!(
            "Some snapshots cannot be restored whole. `{command}` names them, and tells when all is well; `blackstart backup {source} --full` stores anew \
             what is missing from now on. Find out who or what did it"
        )
    }

    /// What can see whether it is well again.
    fn command(&self, source: &SourceName) -> String {
        match self.level {
            Level::Existence => format!("blackstart verify {source}"),
            Level::Hashes => format!("blackstart verify {source} --hashes"),
            _ => format!("blackstart verify {source} --read-data"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    fn looked(minutes: i64, level: Level, damage: Option<Level>) -> Looked {
        let damage = damage.map(|level| Seen { level, covered: false, what: format!("damage of {minutes}") });
        Looked { begun: at(minutes), level, archived: 0, damage }
    }

    #[test]
    fn damage_stands_until_a_look_as_deep_has_passed() {
        use Level::{Decode, Existence, Hashes};
        let mut findings = Findings::default();
        let stands = |findings: &Findings| findings.damage.as_ref().map(|damage| (damage.at, damage.level));
        findings.take(&looked(1, Hashes, Some(Hashes)));
        findings.take(&looked(2, Existence, None));
        assert_eq!(stands(&findings), Some((at(1), Hashes)), "a cheap look cannot see what the dear one saw");
        assert!(findings.whole_since(at(1), Existence) && !findings.whole_since(at(1), Hashes));
        findings.take(&looked(3, Existence, Some(Existence)));
        assert_eq!(stands(&findings), Some((at(3), Hashes)), "what only the dear one saw stands beside what is new");
        findings.take(&looked(4, Decode, None));
        assert_eq!(stands(&findings), None);
        assert!(findings.whole_since(at(3), Hashes) && !findings.whole_since(at(4), Hashes), "begun after it");
        // A dear look may find what a cheap one would see: then the cheap one ends it.
        findings.take(&looked(5, Hashes, Some(Existence)));
        findings.take(&looked(6, Existence, None));
        assert_eq!(stands(&findings), None);
        // What has gone into an archive since cannot be seen to be well.
        findings.take(&looked(7, Hashes, Some(Hashes)));
        findings.take(&Looked { archived: 1, ..looked(8, Hashes, None) });
        assert_eq!(stands(&findings), Some((at(7), Hashes)));
    }

    #[test]
    fn what_was_refused_stands_until_a_prune_was_whole() {
        let mut findings = Findings::default();
        findings.take_prune(at(1), &["a: locked".into(), "b: locked".into()]);
        let refused = findings.refused.clone().unwrap();
        assert_eq!((refused.objects, refused.first.as_str(), findings.pruned), (2, "a: locked", None));
        findings.take_prune(at(2), &[]);
        assert_eq!((findings.refused, findings.pruned), (None, Some(at(2))));
    }
}
