//! From what is stored to the server: the same log, compared; or a new stretch, with the reason said.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::time::Duration;

use super::{Event, ReceiveReport, Task};
use crate::error::{Failure, Kind};
use crate::limits::LOG_UNIT_MAX;
use crate::operations::wal::lag::Lag;
use crate::repository::log::{Begin, Log, SealedStretch, StretchLine, Tail, Writer};
use crate::source::postgres::client::ServerError;
use crate::source::postgres::wal::Lsn;
use crate::source::postgres::wal::stream::{Identity, Received, Refused, Stream};

/// How long the server may take to show bytes that it has.
const SHOW: Duration = Duration::from_secs(60);

/// A writer, streaming begun, and the first bytes that are to follow its head; with what the server has said of the end of its log meanwhile.
pub struct Opened<'a> {
    pub writer: Writer<'a>,
    pub pending: Vec<u8>,
    pub sent: Lag,
}

pub fn open<'a>(
    task: &Task<'a>,
    stream: &mut Stream,
    server: &Identity,
    report: &mut ReceiveReport,
) -> Result<Opened<'a>> {
    let log = task.log(server.end)?;
    let tail = log.tail(&task.host.open.store, &task.host.open.trust)?;
    let Some(newest) = log.stretches.last() else {
        return match tail {
            Tail::Lost(why) => gap(task, stream, server, &why, report),
            _ => begin(task, stream, server, &log, "the log begins"),
        };
    };
    if task.options.anew {
        return gap(task, stream, server, "begun anew by the operator", report);
    }
    if task.host.keys.signing.public() != newest.signer {
        return Err(Failure::new(
            Kind::Busy,
            format!("{} wrote the newest part of the log of {}, with another key", newest.line.host, task.source),
            "Nothing was written. If that host no longer receives this log, run wal-receive once with --anew here: a new stretch begins, \
             and points in time after it need a new snapshot first.",
        ));
    }
    same_server(task, &newest.line, server)?;
    if let Tail::Lost(why) = tail {
        return gap(task, stream, server, &why, report);
    }
    let mut writer = Writer::resume(task.author(), &log)?;
    if let Some(timeline) = log.owes_history() {
        let history = stream.history(timeline)?;
        let (_, at) = history.left.last().with_context(|| format!("the history of timeline {timeline} is empty"))?;
        writer.keep_history(timeline, at.0, &history.text)?;
    }
    let mut sent = Lag::default();
    match go_on(task, stream, server, &mut writer, &mut sent)? {
        Some(pending) => Ok(Opened { writer: to_go_on_with(task, server, writer)?, pending, sent }),
        None => {
            let (end, slot) = (Lsn(writer.head().end), &task.options.slot);
            let why = format!(
                "the server no longer has its log from {end} on: the replication slot {slot} was lost or dropped"
            );
            stream.renew_slot(slot)?;
            gap(task, stream, server, &why, report)
        }
    }
}

fn same_server(task: &Task, newest: &StretchLine, server: &Identity) -> Result<()> {
    let sealed = SealedStretch::open(newest, std::slice::from_ref(&task.host.keys.identity))?;
    let known = sealed.facts["system_identifier"].as_str().unwrap_or_default();
    if known == server.system && newest.kind == "postgres" {
        return Ok(());
    }
    Err(Failure::new(
        Kind::CheckFailed,
        format!(
            "{} has the system identifier {}, and the stored log is of the server {known}",
            task.address, server.system
        ),
        "Nothing was written. Check the address. If the database was made anew, give it a source of its own; \
         wal-receive --anew begins a new stretch in this one.",
    ))
}

fn forked(what: &str) -> anyhow::Error {
    Failure::new(
        Kind::CheckFailed,
        format!("the server and the stored log have gone different ways: {what}"),
        "Nothing was written, and what is stored is untouched. Either the server has lost what it once had (a crash without fsync, a machine \
         that was set back), or this is a copy of it. To go on with this server all the same: wal-receive --anew, and a new snapshot.",
    )
}

/// Begins to stream where the log ends. `None`: the server has not got it any more.
fn go_on(
    task: &Task,
    stream: &mut Stream,
    server: &Identity,
    writer: &mut Writer,
    sent: &mut Lag,
) -> Result<Option<Vec<u8>>> {
    loop {
        let head = writer.head();
        let (ends, at) = (Lsn(server.end), Lsn(head.end));
        if server.timeline < head.timeline {
            return Err(forked(&format!("it is on timeline {}, the log on {}", server.timeline, head.timeline)));
        }
        if server.timeline == head.timeline && server.end < head.end {
            return Err(forked(&format!("its log ends at {ends}, and everything up to {at} is stored already")));
        }
        if server.timeline > head.timeline && left_before(task, stream, server, writer)? {
            continue;
        }
        match show(task, stream, server, writer, sent)? {
            Shown::Bytes { start, bytes, ended } => {
                let stored = usize::try_from(head.end - start)?;
                if stored > 0 && !writer.compare(&bytes[..stored])? {
                    return Err(forked(&format!("what it has shortly before {at} is not what is stored")));
                }
                match ended {
                    Some((next, left)) => follow(task, stream, writer, next, left)?,
                    None => return Ok(Some(bytes[stored..].to_vec())),
                }
            }
            Shown::Removed => return Ok(None),
            Shown::OtherHistory => {
                return Err(forked(&format!("{at} of timeline {} is not in its history", head.timeline)));
            }
        }
    }
}

enum Shown {
    /// From `start` up to the head at least; and the timeline that follows, if this one ends there, with its beginning.
    Bytes {
        start: u64,
        bytes: Vec<u8>,
        ended: Option<(u32, u64)>,
    },
    Removed,
    OtherHistory,
}

/// Lets the server stream from the unit in which the log ends, so that both can be compared; from the log's end, where it has no more.
fn show(task: &Task, stream: &mut Stream, server: &Identity, writer: &Writer, sent: &mut Lag) -> Result<Shown> {
    let (from, head) = (writer.show_from(), writer.head());
    let shown = first(task, stream, server, (head.timeline, from), head.end, sent)?;
    if from < head.end && matches!(shown, Shown::Removed) {
        return first(task, stream, server, (head.timeline, head.end), head.end, sent);
    }
    Ok(shown)
}

/// Begins to stream at `from`, and receives until `until` is reached. Where the server has more, the first of it is awaited as well:
/// only then is it certain that it is still there.
fn first(
    task: &Task,
    stream: &mut Stream,
    server: &Identity,
    from: (u32, u64),
    until: u64,
    sent: &mut Lag,
) -> Result<Shown> {
    let (timeline, start) = from;
    match stream.start(&task.options.slot, timeline, start)? {
        Ok(None) => {}
        Ok(Some(Received::Ended { next, at })) => {
            return Ok(Shown::Bytes { start, bytes: Vec::new(), ended: Some((next, at)) });
        }
        Ok(Some(other)) => bail!("the server began to stream with {other:?}"),
        Err(Refused::Removed) => return Ok(Shown::Removed),
        Err(Refused::Ahead | Refused::OtherHistory) => return Ok(Shown::OtherHistory),
    }
    let mut bytes = Vec::new();
    let more = timeline < server.timeline || server.end > until;
    while start + (bytes.len() as u64) < until || more && start + bytes.len() as u64 == until {
        match stream.receive(SHOW) {
            Ok(Received::Wal { start: at, end, time }) => {
                ensure!(at == start + bytes.len() as u64, "the server sent another position than was asked for");
                bytes.extend_from_slice(stream.bytes());
                if timeline == server.timeline {
                    sent.said(end, time);
                }
            }
            Ok(Received::Alive { .. }) => {}
            Ok(Received::Ended { next, at }) => {
                ensure!(start + bytes.len() as u64 >= until, "the server's timeline ends before what is stored of it");
                return Ok(Shown::Bytes { start, bytes, ended: Some((next, at)) });
            }
            Ok(Received::Nothing) => bail!("the server does not show its log from {} on", Lsn(start)),
            // Found out only when it read the first segment; the connection is in the middle of a copy then.
            Err(e) if ServerError::of(&e).is_some_and(|said| said.code == "58P01") => {
                *stream = Stream::connect(task.address)?;
                return Ok(Shown::Removed);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Shown::Bytes { start, bytes, ended: None })
}

/// Whether the server's history left the log's timeline before the log ends; then the log goes on with the one that followed.
fn left_before(task: &Task, stream: &mut Stream, server: &Identity, writer: &mut Writer) -> Result<bool> {
    let head = writer.head();
    let left = stream.history(server.timeline)?.left;
    let Some(place) = left.iter().position(|(timeline, _)| *timeline == head.timeline) else {
        return Err(forked(&format!("timeline {} is not in its history", head.timeline)));
    };
    let (at, next) = (left[place].1, left.get(place + 1).map_or(server.timeline, |(timeline, _)| *timeline));
    if at.0 >= head.end {
        return Ok(false);
    }
    let text = format!(
        "timeline {next} began at {at}, and timeline {} is stored up to {}: what came after {at} there is not part of the server's data any more; \
         it stays readable with the older timeline as target",
        head.timeline,
        Lsn(head.end)
    );
    (task.tell)(&Event::Note { text });
    follow(task, stream, writer, next, at.0)?;
    Ok(true)
}

/// Stores the history of timeline `next` and lets the log go on with it.
pub fn follow(task: &Task, stream: &mut Stream, writer: &mut Writer, next: u32, at: u64) -> Result<()> {
    let text = stream.history(next)?.text;
    writer.switch(next, at, &text)?;
    (task.tell)(&Event::Timeline { timeline: next, position: Lsn(at).to_string() });
    Ok(())
}

/// The writer; or one of a stretch that follows without a gap: to the recipients now in force, or beside what does not verify.
fn to_go_on_with<'a>(task: &Task<'a>, server: &Identity, writer: Writer<'a>) -> Result<Writer<'a>> {
    let head = writer.head();
    let why = if writer.stretch.epoch != task.host.open.trust.epoch {
        "the recipients have changed".to_owned()
    } else if writer.goes_on_beside() {
        format!("what was stored after {} does not verify; it is stored again", Lsn(head.end))
    } else {
        return Ok(writer);
    };
    (task.tell)(&Event::Note { text: format!("{why}: nothing is missing") });
    Writer::begin(task.author(), &task.log(server.end)?, how(server, (head.timeline, head.end), true, &why))
}

fn gap<'a>(
    task: &Task<'a>,
    stream: &mut Stream,
    server: &Identity,
    why: &str,
    report: &mut ReceiveReport,
) -> Result<Opened<'a>> {
    let opened = begin(task, stream, server, &task.log(server.end)?, why)?;
    report.gaps.push(why.to_owned());
    (task.tell)(&Event::Gap { why: why.to_owned() });
    Ok(opened)
}

/// Begins a stretch: as early as is of use and the server can.
fn begin<'a>(task: &Task<'a>, stream: &mut Stream, server: &Identity, log: &Log, why: &str) -> Result<Opened<'a>> {
    let segment = |position: u64| position / server.segment_size * server.segment_size;
    let wanted = task.options.from.filter(|(timeline, at)| *timeline == server.timeline && *at <= server.end);
    let mut starts: Vec<u64> = wanted.into_iter().map(|(_, at)| segment(at)).collect();
    starts.push(segment(server.end));
    let born = match server.timeline {
        1 => None,
        timeline => {
            let history = stream.history(timeline)?;
            history.left.last().map(|(_, at)| (at.0, history.text))
        }
    };
    let mut sent = Lag::default();
    for start in starts {
        match first(task, stream, server, (server.timeline, start), start, &mut sent)? {
            Shown::Bytes { bytes, ended: None, .. } => {
                let begin = how(server, (server.timeline, start), false, why);
                let writer = Writer::begin(task.author(), log, begin)?;
                if let Some((from, text)) = &born {
                    writer.keep_history(server.timeline, *from, text)?;
                }
                return Ok(Opened { writer, pending: bytes, sent });
            }
            Shown::Bytes { .. } => bail!("the server has just gone on to another timeline"),
            Shown::Removed => {}
            Shown::OtherHistory => bail!("the server does not stream its own log from {}", Lsn(start)),
        }
    }
    Err(Failure::new(
        Kind::Failed,
        format!("the server does not stream its log: the replication slot {} is unusable", task.options.slot),
        format!(
            "Nothing was written. Drop the slot on the server (select pg_drop_replication_slot('{}')) and begin again.",
            task.options.slot
        ),
    ))
    .context("begin to receive the log")
}

fn how(server: &Identity, start: (u32, u64), continues: bool, why: &str) -> Begin {
    Begin {
        kind: "postgres".into(),
        timeline: start.0,
        start: start.1,
        unit: server.segment_size.min(LOG_UNIT_MAX as u64),
        continues,
        id: None,
        facts: json!({
            "system_identifier": server.system,
            "segment_size": server.segment_size,
            "server_version": server.version,
        }),
        why: why.to_owned(),
    }
}
