//! What happened to a Redis or Valkey server, from its stored replication stream: so that one can go back to just before a mistake.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::VecDeque;

use super::recover::{self, holds};
use super::replay::{ROUGHLY, TIMELINE, database, history};
use super::timeline::Options;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::log::{Log, Lost, Reader, Window};
use crate::repository::series::Series;
use crate::repository::snapshot::Snapshot;
use crate::source::redis;
use crate::source::redis::replication::commands::{Parser, Part, What as Command};
use crate::source::redis::replication::happened::{Follower, Happened};

/// So much of a replication ID tells histories apart.
pub(super) const ID_SHOWN: usize = 12;

#[derive(Debug, Clone, Serialize)]
pub struct CommandsReport {
    pub source: SourceName,
    pub windows: Vec<WindowRead>,
    pub happened: Vec<Told>,
    /// More than the limit: the earlier ones are left out.
    pub left_out: u64,
    pub commands: u64,
    /// What is stored of the stream and cannot be used: nothing is told of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// A part of the stream without a gap, as far as it was read.
#[derive(Debug, Clone, Serialize)]
pub struct WindowRead {
    /// The snapshot from which on it was read: what comes before nothing leads back to. `None`: no snapshot lies in it.
    pub snapshot: Option<u64>,
    pub from: u64,
    pub to: u64,
    pub until: Timestamp,
}

/// What happened, and how to go back to just before it.
#[derive(Debug, Clone, Serialize)]
pub struct Told {
    #[serde(flatten)]
    pub happened: Happened,
    /// The replication ID on which the position counts.
    pub history: String,
    pub restore: String,
}

/// Whether the newest part of the source's log is a replication stream.
pub fn is_of_redis(open: &Open, source: &SourceName) -> Result<bool> {
    let log = Log::list(&open.store, &open.trust, source)?;
    match log.stretches.last() {
        Some(newest) => Ok(newest.line.kind == redis::KIND),
        // No record of it can be read.
        None => Ok(recover::kind(open, source)?.as_deref() == Some(redis::KIND)),
    }
}

/// Reads the stored stream of `source`.
pub fn commands(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    options: &Options,
) -> Result<CommandsReport> {
    let log = Log::list(&open.store, &open.trust, source)?;
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let complete: Vec<&Snapshot> =
        whole.snapshots().map(|(_, s)| s).filter(|s| s.outcome == Outcome::Complete).collect();
    let survey = log.survey(&open.store, &open.trust)?;
    let mut report = CommandsReport {
        source: source.clone(),
        windows: Vec::new(),
        happened: Vec::new(),
        left_out: 0,
        commands: 0,
        lost: survey.lost.iter().map(Lost::told).collect(),
    };
    let mut newest = VecDeque::new();
    for window in survey.windows {
        let lies = |s: &&&Snapshot| s.log.as_ref().is_some_and(|range| holds(&log, &window, range, s.started));
        // What came before the last of them that is early enough is not asked for.
        let early = |s: &&&Snapshot| options.from.is_some_and(|from| s.data_time + ROUGHLY < from);
        let mut inside = complete.iter().filter(lies);
        let first = inside.clone().rfind(early).or_else(|| inside.next()).copied();
        let from = first.and_then(|s| s.log.as_ref()).map_or(window.from.1.0, |range| range.end.0);
        let (snapshot, to, until) = (first.map(|s| s.seq), window.to.1.0, window.until);
        report.windows.push(WindowRead { snapshot, from, to, until });
        let Some(first) = first.filter(|_| options.from.is_none_or(|from| from <= until)) else { continue };
        let stream = Stream { open, identities, log: &log, window: &window, first };
        let read = stream.each(options, &mut |happened| {
            let early = options.from.is_some_and(|from| happened.until < from);
            let late = options.to.is_some_and(|to| happened.time > to);
            if !early && !late {
                newest.push_back((report.windows.len(), stream.told(source, happened)));
                if newest.len() > options.limit {
                    newest.pop_front();
                    report.left_out += 1;
                }
            }
        });
        report.commands += read.with_context(|| format!("read the stream of {source} from offset {from} on"))?;
    }
    if report.windows.is_empty() && report.lost.is_empty() {
        return Err(Failure::new(
            Kind::Usage,
            format!("no log of {source} is stored"),
            "Nothing was read. `wal-receive` stores the replication stream of a Redis or Valkey server.",
        ));
    }
    newest.make_contiguous().sort_by_key(|(window, told)| (*window, told.happened.position));
    report.happened = newest.into_iter().map(|(_, told)| told).collect();
    Ok(report)
}

/// A part of the stream, from a snapshot on.
struct Stream<'a> {
    open: &'a Open,
    identities: &'a [Identity],
    log: &'a Log,
    window: &'a Window,
    first: &'a Snapshot,
}

impl Stream<'_> {
    /// Gives what happened, in order but for runs, which are told of when they end; and how many commands there were.
    fn each(&self, options: &Options, found: &mut dyn FnMut(Happened)) -> Result<u64> {
        let range = self.first.log.as_ref().context("the snapshot has no place in the stream")?;
        let reader = Reader { store: &self.open.store, trust: &self.open.trust, identities: self.identities };
        // A snapshot ends between two commands; where a window begins, nobody knows.
        let mut at = range.end.0;
        let mut follower = Follower::new(database(self.identities, self.first)?, options.all);
        let (mut parser, mut commands) = (Parser::new(at), 0);
        while let Some(shown) = reader.next(self.log, self.window, TIMELINE, at)? {
            let mut marks = shown.marks.iter().peekable();
            let mut last = self.window.until;
            let mut come = |position: u64| {
                while let Some(mark) = marks.next_if(|mark| mark.position < position) {
                    last = mark.time;
                }
                marks.peek().map_or(last, |mark| mark.time)
            };
            parser.feed(&shown.bytes, &mut |part| {
                commands += u64::from(matches!(part, Part::Ended(Command::Write, _)));
                follower.take(&part, &mut come, found);
                Ok(())
            })?;
            at += shown.bytes.len() as u64;
        }
        follower.finish(found);
        Ok(commands)
    }

    fn told(&self, source: &SourceName, happened: Happened) -> Told {
        let id = history(self.log, self.first, Some(self.window), happened.position).unwrap_or_default();
        let shown = id.get(..ID_SHOWN).unwrap_or(id);
        let restore =
            format!("blackstart restore {source} --offset {} --history {shown} --before --to DIR", happened.position);
        Told { history: id.to_owned(), restore, happened }
    }
}
