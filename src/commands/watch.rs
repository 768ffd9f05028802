//! `watch`: raises the alarm when agents fall silent. It needs no key and changes nothing in the repository.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::output::{Ending, Exit, Shell, count, numbers, span, table, time};
use crate::cli::Watch;
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::notify::{self, Channel, Finding, Head, Ledger, Message, Problem, Pulse, Severity};
use crate::operations::Open;
use crate::operations::group;
use crate::operations::watch::{self, Alarm, Bounds, Cause, GroupAlarm, Seen, Sight};
use crate::repository::layout::SourceName;

/// What does not arrive at once is tried again after these; and at the next look.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// What is remembered from one look to the next.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// The newest commits that were ever seen.
    heads: Seen,
    /// Who was told what.
    #[serde(default)]
    told: Ledger,
    /// Sources that the store does not give, and since when.
    #[serde(default)]
    unread: BTreeMap<SourceName, Timestamp>,
}

/// What one look has found.
struct Looked {
    sights: Vec<Sight>,
    alarms: Vec<Alarm>,
    groups: Vec<group::Sight>,
    group_alarms: Vec<GroupAlarm>,
}

impl Looked {
    fn causes(&self) -> impl Iterator<Item = Cause> {
        self.alarms.iter().map(|alarm| alarm.cause).chain(self.group_alarms.iter().map(|alarm| alarm.cause))
    }

    /// Which alarms there are: ages in their texts change with each look.
    fn keys(&self) -> Vec<String> {
        let of_sources = self.alarms.iter().map(|alarm| format!("{}/{:?}", alarm.source, alarm.cause));
        let of_groups = self.group_alarms.iter().map(|alarm| format!("group {}/{:?}", alarm.group, alarm.cause));
        of_sources.chain(of_groups).collect()
    }

    /// How the keys of all problems begin of what could not be read.
    fn unread(&self) -> BTreeSet<String> {
        let sources = self.sights.iter().filter(|s| s.unread.is_some()).map(|s| format!("watch/{}/", s.source));
        let groups = self.groups.iter().filter(|s| s.unread.is_some()).map(|s| format!("watch/group.{}/", s.group));
        sources.chain(groups).collect()
    }

    fn ending(&self, told: bool) -> Result<Ending> {
        let report = json!({"sources": self.sights, "alarms": self.alarms, "groups": self.groups, "group_alarms": self.group_alarms});
        Ending::new(exit(self.causes().max(), told), report)
    }
}

/// One who looks again and again.
struct Watcher<'a> {
    shell: &'a Shell,
    args: &'a Watch,
    bounds: Bounds,
    /// Whose channels are told.
    config: Option<Config>,
    state: Option<PathBuf>,
    memory: Memory,
}

pub fn run(shell: &Shell, args: &Watch) -> Result<Ending> {
    let bounds = Bounds {
        newest: args.older_than,
        of_source: args.bound.iter().cloned().collect(),
        verified: args.verified_within,
    };
    let config = args.notify.then(|| channels_of(shell)).transpose()?;
    let state = args.state.clone().or_else(|| config.as_ref().map(|config| config.state().join("watch.json")));
    let memory = state.as_deref().map(recall).transpose()?.unwrap_or_default();
    let mut watcher = Watcher { shell, args, bounds, config, state, memory };
    let Some(every) = args.every else {
        let (looked, told) = watcher.look()?;
        say(shell, &looked);
        return looked.ending(told);
    };
    let mut before: Option<Vec<String>> = None;
    let mut left = args.rounds;
    loop {
        let ended = match watcher.look() {
            Ok((looked, told)) => {
                let keys = looked.keys();
                if before.as_ref() != Some(&keys) {
                    say(shell, &looked);
                }
                before = Some(keys);
                looked.ending(told)
            }
            Err(error) => {
                // A repository that cannot be reached is an alarm too, and the next look may reach it.
                before = None;
                shell.complain(&error);
                Err(error)
            }
        };
        left = left.map(|n| n.saturating_sub(1));
        if left == Some(0) {
            return ended;
        }
        interrupt::pause(every.unsigned_abs(), "Nobody watches any more. The backups are as they were.")?;
    }
}

fn channels_of(shell: &Shell) -> Result<Config> {
    let config = Config::load_alone(shell.config.as_deref())?;
    if config.notify.is_empty() {
        let help = format!(
            "Nothing was looked at. Add a [[notify]] to {}, or leave --notify out: then the exit code tells.",
            config.file.display()
        );
        return Err(Failure::new(Kind::Config, "there is nobody to notify", help));
    }
    Ok(config)
}

impl Watcher<'_> {
    /// One look, and what comes of it: told, and remembered. False: somebody could not be told.
    fn look(&mut self) -> Result<(Looked, bool)> {
        let looked = self.sights();
        let told = self.tell(&looked);
        if let Some(path) = &self.state {
            durable::publish_over(path, &serde_json::to_vec_pretty(&self.memory)?, 0o600)
                .with_context(|| format!("remember what was seen in {}", path.display()))?;
        }
        Ok((looked?, told))
    }

    fn sights(&mut self) -> Result<Looked> {
        let reader = self.shell.reader(&self.args.place)?;
        let open: &Open = &reader.open;
        // What this host itself has seen counts as seen before.
        let mut before = self.memory.heads.clone();
        for (source, head) in open.remembered()? {
            before.0.entry(source).or_insert(head);
        }
        let mut sights = watch::look(open, &before, &self.bounds, &reader.expected())?;
        let mut unread = BTreeMap::new();
        for (source, found) in sights.iter_mut().filter_map(|sight| Some((&sight.source, sight.unread.as_mut()?))) {
            found.since = self.memory.unread.get(source).copied().unwrap_or(found.since);
            unread.insert(source.clone(), found.since);
        }
        self.memory.unread = unread;
        if sights.is_empty() {
            let help =
                "Nothing is protected here: somebody emptied it, or nothing was ever backed up. Is the address right?";
            return Err(Failure::new(Kind::CheckFailed, "the repository holds no source", help));
        }
        let alarms = watch::judge(&sights, &self.bounds, open.now());
        watch::remember(&mut self.memory.heads, &sights);
        let groups = group::look(open)?;
        let group_alarms = watch::judge_groups(&groups, &self.bounds, open.now());
        Ok(Looked { sights, alarms, groups, group_alarms })
    }

    /// Tells the channels what has changed. A look that failed is a problem of its own, and says nothing of those before it.
    fn tell(&mut self, looked: &Result<Looked>) -> bool {
        let Some(config) = &self.config else { return true };
        let problems = match looked {
            Ok(looked) => {
                looked.alarms.iter().map(problem).chain(looked.group_alarms.iter().map(problem_of_group)).collect()
            }
            Err(error) => vec![out_of_reach(error)],
        };
        let heads = &self.memory.heads;
        let head = |problem: &Problem| {
            let (seq, commit) = heads.0.get(problem.source.as_ref()?)?;
            Some(Head { seq: *seq, commit: commit.to_string() })
        };
        let (host, now) = (config.host_name(), self.shell.clock.now());
        let unread: BTreeSet<String> = looked.as_ref().map(Looked::unread).unwrap_or_default();
        let unknown = |problem: &Problem| looked.is_err() || unread.iter().any(|of| problem.key.starts_with(of));
        let finding = Finding { problems: &problems, unknown: &unknown, host: &host, now, head: &head };
        let mut failed = self.memory.told.tell(&config.notify, &finding, |channel, notice| {
            send(channel, &Message::Notice(Box::new(notice.clone())), config.base())
        });
        let suffix = if looked.is_ok() { "" } else { "/fail" };
        for channel in config.notify.iter().filter(|channel| channel.ping.is_some()) {
            let ping = Message::Ping { of: Pulse::Watch, suffix, run: crate::agent::run_id() };
            if let Err(error) = send(channel, &ping, config.base()) {
                failed.push((channel.name.clone(), format!("{error:#}")));
            }
        }
        for (channel, why) in &failed {
            self.shell.warn(format!("{channel} could NOT be told: {why}\n  It is tried again at the next look"));
        }
        failed.is_empty()
    }
}

fn send(channel: &Channel, message: &Message, base: &Path) -> Result<()> {
    let mut pauses = PAUSES.iter();
    loop {
        let Err(error) = notify::send(channel, message, base) else { return Ok(()) };
        match pauses.next() {
            Some(pause) if !interrupt::is_wished() => std::thread::sleep(*pause),
            _ => return Err(error),
        }
    }
}

fn problem_of_group(alarm: &GroupAlarm) -> Problem {
    let next = match alarm.cause {
        Cause::Unread => "Whether it is whole cannot be said. Look at the store, and at what this credential may read",
        Cause::Damaged => "Somebody may be at work in the store. Find out who before you trust it: `blackstart verify`",
        _ => "The snapshots of its members may be fresh, but do not belong together. Run `blackstart backup --group`",
    };
    Problem {
        key: format!("watch/group.{}/{}", alarm.group, alarm.cause),
        severity: Severity::Critical,
        source: None,
        title: format!("group {}: {}", alarm.group, alarm.text),
        detail: next.into(),
    }
}

fn problem(alarm: &Alarm) -> Problem {
    let (severity, next) = match alarm.cause {
        Cause::Unproven => {
            (Severity::Warning, "Whether it comes back is not known. Run `blackstart drill` where the keys are")
        }
        Cause::Stale => (
            Severity::Critical,
            "Its agent, its host, its network or its credentials are down, and nobody else may tell. Look at the host: `blackstart status`",
        ),
        Cause::Unread => (
            Severity::Critical,
            "Whether it was backed up since cannot be said, and a restore would fail there too. Look at the store, and at what this credential may read",
        ),
        Cause::Missing => (Severity::Critical, "Nothing of it can be restored. Look at the host: `blackstart status`"),
        Cause::Damaged | Cause::Covered | Cause::RolledBack => (
            Severity::Critical,
            "Somebody may be at work in the store. Find out who before you trust it: `blackstart verify`",
        ),
    };
    Problem {
        key: format!("watch/{}/{}", alarm.source, alarm.cause),
        severity,
        source: Some(alarm.source.clone()),
        title: format!("{}: {}", alarm.source, alarm.text),
        detail: next.into(),
    }
}

fn out_of_reach(error: &anyhow::Error) -> Problem {
    Problem {
        key: "watch/repository".into(),
        severity: Severity::Critical,
        source: None,
        title: "the repository cannot be looked at".into(),
        detail: format!(
            "Whether backups are made is not known, and nothing could be restored from here. See whether the store answers, and whether this credential \
             may still read: {error:#}"
        ),
    }
}

/// A memory that is there and cannot be read is an error: it is what notices a rollback.
fn recall(path: &Path) -> Result<Memory> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Memory::default()),
        read => {
            let bytes = read.with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
        }
    }
}

fn exit(worst: Option<Cause>, told: bool) -> Exit {
    match worst {
        None if told => Exit::Done,
        None => Exit::Partial,
        Some(Cause::Stale | Cause::Unproven) => Exit::Missed,
        Some(_) => Exit::CheckFailed,
    }
}

fn say(shell: &Shell, looked: &Looked) {
    let Looked { sights, alarms, groups, group_alarms } = looked;
    let now = shell.clock.now();
    let rows: Vec<[String; 4]> = sights
        .iter()
        .map(|sight| {
            let none = if sight.unread.is_some() { "not known" } else { "none" };
            let newest = sight
                .newest
                .map_or(none.into(), |at| format!("{} ({} ago)", time(at), span(now.duration_since(at).as_secs_f64())));
            let host = sight.host.clone().unwrap_or_else(|| "?".into());
            let wrong = alarms.iter().any(|alarm| alarm.source == sight.source);
            let state = match (wrong, sight.retired) {
                (true, _) => "ALARM".into(),
                (false, Some(at)) => format!("retired {}", time(at)),
                (false, None) => "well".into(),
            };
            [sight.source.to_string(), host, newest, state]
        })
        .collect();
    shell.say(table(["SOURCE", "HOST", "NEWEST POINT", "STATE"], &rows));
    for group in groups {
        let none = if group.unread.is_some() { "not known" } else { "none" };
        let newest = group.newest.map_or(none.into(), time);
        shell.say(format!("group {}: newest whole common point {newest}", group.group));
        if !group.expired.is_empty() {
            let gone = numbers(&group.expired);
            shell.say(format!("group {}: retention has removed members of points {gone}", group.group));
        }
    }
    for alarm in alarms {
        shell.warn(format!("ALARM: {}: {}", alarm.source, alarm.text));
    }
    for alarm in group_alarms {
        shell.warn(format!("ALARM: group {}: {}", alarm.group, alarm.text));
    }
    if alarms.is_empty() && group_alarms.is_empty() {
        shell.say(format!("{} as they should be.", count(sights.len() as u64, "source")));
    }
}
