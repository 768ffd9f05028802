//! `watch`: raises the alarm when agents fall silent. It needs no key and changes nothing in the repository.

use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

use super::output::{Ending, Exit, Shell, count, span, table, time};
use crate::cli::Watch;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::watch::{self, Alarm, Bounds, Cause, Seen, Sight};

pub fn run(shell: &Shell, args: &Watch) -> Result<Ending> {
    let bounds = Bounds {
        newest: args.older_than,
        of_source: args.bound.iter().cloned().collect(),
        verified: args.verified_within,
    };
    let mut seen = match &args.state {
        Some(path) => recall(path)?,
        None => Seen::default(),
    };
    let Some(every) = args.every else {
        let (sights, alarms) = round(shell, args, &bounds, &mut seen)?;
        say(shell, &sights, &alarms);
        return Ending::new(exit(&alarms), json!({"sources": sights, "alarms": alarms}));
    };
    let mut before: Option<Vec<Alarm>> = None;
    let mut left = args.rounds;
    loop {
        let ended = match round(shell, args, &bounds, &mut seen) {
            Ok((sights, alarms)) => {
                // Ages change with each round; what counts is which alarms there are.
                let key = |alarm: &Alarm| (alarm.source.clone(), alarm.cause);
                let same = before.as_ref().is_some_and(|b| b.iter().map(key).eq(alarms.iter().map(key)));
                if !same {
                    say(shell, &sights, &alarms);
                }
                let exit = exit(&alarms);
                before = Some(alarms);
                Ending::new(exit, json!({"sources": sights, "alarms": before}))
            }
            Err(error) => {
                // A repository that cannot be reached is an alarm too, and the next round may reach it.
                before = None;
                shell.complain(&error);
                Err(error)
            }
        };
        left = left.map(|n| n.saturating_sub(1));
        if left == Some(0) {
            return ended;
        }
        std::thread::sleep(every.unsigned_abs());
    }
}

fn round(shell: &Shell, args: &Watch, bounds: &Bounds, seen: &mut Seen) -> Result<(Vec<Sight>, Vec<Alarm>)> {
    let reader = shell.reader(&args.place)?;
    let open: &Open = &reader.open;
    // What this host itself has seen counts as seen before.
    let mut before = seen.clone();
    for (source, head) in open.remembered() {
        before.0.entry(source).or_insert(head);
    }
    let sights = watch::look(open, &before, bounds, &reader.expected())?;
    if sights.is_empty() {
        let help =
            "Nothing is protected here: somebody emptied it, or nothing was ever backed up. Is the address right?";
        return Err(Failure::new(Kind::CheckFailed, "the repository holds no source", help));
    }
    let alarms = watch::judge(&sights, bounds, open.now());
    watch::remember(seen, &sights);
    if let Some(path) = &args.state {
        durable::publish_over(path, &serde_json::to_vec_pretty(seen)?, 0o600)
            .with_context(|| format!("remember what was seen in {}", path.display()))?;
    }
    Ok((sights, alarms))
}

/// A memory that is there and cannot be read is an error: it is what notices a rollback.
fn recall(path: &Path) -> Result<Seen> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Seen::default()),
        read => {
            let bytes = read.with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
        }
    }
}

fn exit(alarms: &[Alarm]) -> Exit {
    match alarms.iter().map(|alarm| alarm.cause).max() {
        None => Exit::Done,
        Some(Cause::Stale | Cause::Unproven) => Exit::Missed,
        Some(_) => Exit::CheckFailed,
    }
}

fn say(shell: &Shell, sights: &[Sight], alarms: &[Alarm]) {
    let now = shell.clock.now();
    let rows: Vec<[String; 4]> = sights
        .iter()
        .map(|sight| {
            let newest = sight.newest.map_or("none".into(), |at| {
                format!("{} ({} ago)", time(at), span(now.duration_since(at).as_secs_f64()))
            });
            let host = sight.host.clone().unwrap_or_else(|| "?".into());
            let wrong = alarms.iter().any(|alarm| alarm.source == sight.source);
            [sight.source.to_string(), host, newest, if wrong { "ALARM".into() } else { "well".into() }]
        })
        .collect();
    shell.say(table(["SOURCE", "HOST", "NEWEST POINT", "STATE"], &rows));
    for alarm in alarms {
        shell.warn(format!("ALARM: {}: {}", alarm.source, alarm.text));
    }
    if alarms.is_empty() {
        shell.say(format!("{} as they should be.", count(sights.len() as u64, "source")));
    }
}
