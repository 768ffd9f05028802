//! From what is stored to the server: the same history, compared where that can be; or a new stretch, with the reason said.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::time::{Duration, Instant};

use super::{Event, ReceiveReport, Task, UNIT};
use crate::error::{Failure, Kind};
use crate::repository::log::{Begin, Log, Tail, Writer};
use crate::source::redis::KIND;
use crate::source::redis::replication::{Followed, Replica, Stream};

/// How long the server may take to show bytes that it has.
const SHOW: Duration = Duration::from_secs(60);
/// The place to begin at moves while it is asked for.
const TRIES: usize = 10;
/// Clocks that differ by more are worth a word, in seconds.
const SKEW: i64 = 2;

/// A writer, and the stream from its head on; the first bytes of it have come already.
pub struct Opened<'a> {
    pub writer: Writer<'a>,
    pub replica: Replica,
    pub pending: Vec<u8>,
    /// Up to where the server's stream went.
    pub end: u64,
}

pub fn open<'a>(task: &Task<'a>, report: &mut ReceiveReport) -> Result<Opened<'a>> {
    let server = task.place.ask()?;
    compare_clocks(task, &server);
    let store = &task.host.open.store;
    let log = Log::list_end(store, &task.host.open.trust, task.source, server.end)?;
    let tail = log.tail(store, &task.host.open.trust)?;
    let Some(newest) = log.stretches.last() else {
        return match tail {
            Tail::Lost(why) => gap(task, &why, report),
            _ => begin(task, "the log begins"),
        };
    };
    if task.options.anew {
        return gap(task, "begun anew by the operator", report);
    }
    if task.host.keys.signing.public() != newest.signer {
        return Err(Failure::new(
            Kind::Busy,
            format!("{} wrote the newest part of the log of {}, with another key", newest.line.host, task.source),
            "Nothing was written. If that host no longer receives this log, run wal-receive once with --anew here: a new stretch begins, \
             and points in time after it need a new snapshot first.",
        ));
    }
    if newest.line.kind != KIND {
        bail!("the stored log of {} is of kind {}", task.source, newest.line.kind);
    }
    if let Tail::Lost(why) = tail {
        return gap(task, &why, report);
    }
    let mut writer = Writer::resume(task.author(), &log)?;
    let id = writer.stretch.id.clone().context("the stored log does not say which history it is of")?;
    let head = writer.head().end;
    if let Some(why) = server.lacks(&id, head) {
        return gap(task, &why, report);
    }
    let Some((now, replica, pending)) = take_up(task, &server, &mut writer, &id)? else {
        return gap(task, "the server would have to send its whole data set", report);
    };
    let why = if now != id {
        "the server goes on under another replication ID"
    } else if writer.stretch.epoch != task.host.open.trust.epoch {
        "the recipients have changed"
    } else if writer.goes_on_beside() {
        "the last of what was stored does not verify, and is stored again"
    } else {
        return Ok(Opened { writer, replica, pending, end: server.end });
    };
    let server = Stream { id: now, ..server };
    let writer = Writer::begin(task.author(), &log, how(&server, head, true, why))?;
    (task.tell)(&Event::Note { text: format!("{why}: nothing is missing") });
    Ok(Opened { writer, replica, pending, end: server.end })
}

/// Follows the stream from the writer's head on, having compared what the server still has of what is stored before it. Gives the ID that the
/// history has now, and what has come after the head. `None`: the server refuses.
fn take_up(task: &Task, server: &Stream, writer: &mut Writer, id: &str) -> Result<Option<(String, Replica, Vec<u8>)>> {
    let head = writer.head().end;
    let (mut now, mut from) = (id.to_owned(), writer.show_from_at_least(server.backlog.unwrap_or(head)));
    for _ in 0..TRIES {
        let mut replica = match task.place.follow(&now, from)? {
            Followed::Same(replica) => replica,
            Followed::Renamed(new) => {
                now = new;
                continue;
            }
            Followed::Refused if from < head => {
                from = writer.show_from_at_least(head);
                continue;
            }
            Followed::Refused => return Ok(None),
        };
        let until = Instant::now() + SHOW;
        let (stored, mut bytes) = (usize::try_from(head - from)?, Vec::new());
        while bytes.len() < stored {
            bytes.extend_from_slice(replica.receive(SHOW)?);
            anyhow::ensure!(Instant::now() < until, "the server does not show its stream from {from} on");
        }
        if stored > 0 && !writer.compare(&bytes[..stored])? {
            return Err(forked(&format!("what it has shortly before offset {head} is not what is stored")));
        }
        return Ok(Some((now, replica, bytes[stored..].to_vec())));
    }
    bail!("the server's replication ID changes all the time")
}

fn forked(what: &str) -> anyhow::Error {
    Failure::new(
        Kind::CheckFailed,
        format!("the server and the stored log have gone different ways under one replication ID: {what}"),
        "Nothing was written, and what is stored is untouched. A machine that was set back to an earlier state, memory and all, looks like this, or a copy \
         of it. Restart the server, so that it takes a new replication ID; then the log goes on in a new stretch.",
    )
}

fn gap<'a>(task: &Task<'a>, why: &str, report: &mut ReceiveReport) -> Result<Opened<'a>> {
    let opened = begin(task, why)?;
    report.gaps.push(why.to_owned());
    (task.tell)(&Event::Gap { why: why.to_owned() });
    Ok(opened)
}

/// Begins a stretch: where the newest snapshot ends, if the server still has its stream from there on; otherwise now.
fn begin<'a>(task: &Task<'a>, why: &str) -> Result<Opened<'a>> {
    let log = &task.log()?;
    for _ in 0..TRIES {
        let server = task.place.ask_with_backlog()?;
        let reachable = |(id, at): &&(String, u64)| *id == server.id && server.lacks(id, *at).is_none();
        let wanted = task.options.from.as_ref().filter(reachable).map(|(_, at)| *at);
        // Another stretch of the same history has its bytes up to its end.
        let reached = reached(task, log, &server.id)?;
        let at = wanted.filter(|at| *at >= reached).unwrap_or(server.end);
        if at < reached {
            return Err(forked(&format!("it is at offset {at}, and everything up to {reached} is stored already")));
        }
        let Followed::Same(replica) = task.place.follow(&server.id, at)? else { continue };
        let writer = Writer::begin(task.author(), log, how(&server, at, false, why))?;
        return Ok(Opened { writer, replica, pending: Vec::new(), end: server.end });
    }
    bail!("the server's replication stream cannot be followed: it moves on faster than it is asked for")
}

/// How far the log has a history.
fn reached(task: &Task, log: &Log, id: &str) -> Result<u64> {
    let mut reached = 0;
    for stretch in log.stretches.iter().filter(|s| s.line.id.as_deref() == Some(id)) {
        let last =
            stretch.last_sound(&task.host.open.store, &task.host.open.trust).context("look how far the log goes")?;
        reached = reached.max(last.map_or(stretch.line.start.0, |(last, _)| last.line.end.0));
    }
    Ok(reached)
}

fn how(server: &Stream, start: u64, continues: bool, why: &str) -> Begin {
    Begin {
        kind: KIND.into(),
        timeline: 1,
        start,
        unit: UNIT,
        continues,
        id: Some(server.id.clone()),
        facts: json!({"flavour": server.flavour, "version": server.version, "run_id": server.run_id}),
        why: why.to_owned(),
    }
}

fn compare_clocks(task: &Task, server: &Stream) {
    let Some(theirs) = server.clock else { return };
    let ahead = theirs.duration_since(task.host.open.now()).as_secs();
    if ahead.abs() > SKEW {
        let text = format!("the server's clock is {ahead} s ahead of this machine's, by which the log's times go");
        (task.tell)(&Event::Note { text });
    }
}
