//! Streaming the log from a server (PostgreSQL manual, "Streaming Replication Protocol": `IDENTIFY_SYSTEM`, `CREATE_REPLICATION_SLOT`,
//! `START_REPLICATION`, `TIMELINE_HISTORY`).
//!
//! A server keeps the log from the slot's position on, and a synchronous commit waits, until it is told that bytes are safe. So
//! [`Stream::confirm`] is only ever given what the repository holds.

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

use super::{Lsn, parse_history, parse_size};
use crate::error::{Failure, Kind};
use crate::source::postgres::client::{Address, Client, Event, ServerError, Session, explain};

/// PostgreSQL counts microseconds from 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub system: String,
    pub timeline: u32,
    /// Up to where its log is flushed.
    pub end: u64,
    pub segment_size: u64,
    pub version: u32,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes of the log from `start` on, in [`Stream::bytes`]; the server has its log up to `end`.
    Wal { start: u64, end: u64, time: Timestamp },
    /// Nothing new; up to here the server has sent its log.
    Alive { end: u64, time: Timestamp, reply: bool },
    /// The timeline has ended; the server goes on with `next`, which left it at `at`.
    Ended { next: u32, at: u64 },
    /// Nothing within the wait.
    Nothing,
}

/// Why streaming could not begin.
#[derive(Debug)]
pub enum Refused {
    /// The server does not have these bytes any more.
    Removed,
    /// It does not have them yet: its log ends before.
    Ahead,
    /// The timeline is not of its history, or was left before.
    OtherHistory,
}

/// What a server knows of a timeline's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The history file.
    pub text: Vec<u8>,
    /// The timelines before, and where each was left.
    pub left: Vec<(u32, Lsn)>,
}

/// A connection for replication.
pub struct Stream {
    client: Client,
}

impl Stream {
    pub fn connect(address: &Address) -> Result<Stream> {
        Ok(Stream { client: Client::connect(address, Session::Replication)? })
    }

    pub fn identify(&mut self) -> Result<Identity> {
        let rows = self.client.rows("IDENTIFY_SYSTEM").context("ask the server who it is")?;
        let row = rows.one()?;
        let size = self.client.rows("SHOW wal_segment_size").context("ask for the size of segments")?;
        Ok(Identity {
            system: row.required(0)?.to_owned(),
            timeline: row.parse(1)?,
            end: row.parse::<Lsn>(2)?.0,
            segment_size: parse_size(size.one()?.required(0)?)?,
            version: self.client.version(),
        })
    }

    /// Makes the slot unless it is there, so that it keeps the log from now on.
    pub fn ensure_slot(&mut self, slot: &str) -> Result<()> {
        let options = if self.client.version() >= 150_000 { "(RESERVE_WAL true)" } else { "RESERVE_WAL" };
        let made = self.client.query(&format!("CREATE_REPLICATION_SLOT {} PHYSICAL {options}", identifier(slot)?));
        match made {
            Err(e) if ServerError::of(&e).is_some_and(|said| said.code == "42710") => Ok(()),
            Err(e) => Err(explain(e.context(format!("make the replication slot {slot}")), self.client.address())),
            Ok(_) => Ok(()),
        }
    }

    /// Makes the slot anew: a slot that has lost what it kept is of no use any more.
    pub fn renew_slot(&mut self, slot: &str) -> Result<()> {
        match self.client.query(&format!("DROP_REPLICATION_SLOT {}", identifier(slot)?)) {
            Err(e) if ServerError::of(&e).is_none_or(ServerError::is_fatal) => return Err(e),
            // One that is gone need not be dropped; one in use refuses the stream, too.
            _ => {}
        }
        self.ensure_slot(slot)
    }

    /// The history file of a timeline, and what it says.
    pub fn history(&mut self, timeline: u32) -> Result<History> {
        let rows = self.client.rows(&format!("TIMELINE_HISTORY {timeline}"));
        let rows = rows.with_context(|| format!("ask for the history of timeline {timeline}"))?;
        let text = rows.one()?.bytes(1).context("the server gave no history")?.to_vec();
        let left = parse_history(&text)?;
        Ok(History { text, left })
    }

    /// Begins to stream. `Ok(Err(_))`: the server refuses, and the connection can be used on.
    pub fn start(
        &mut self,
        slot: &str,
        timeline: u32,
        from: u64,
    ) -> Result<std::result::Result<Option<Received>, Refused>> {
        let slot_name = identifier(slot)?;
        let command = format!("START_REPLICATION SLOT {slot_name} PHYSICAL {} TIMELINE {timeline}", Lsn(from));
        self.client.begin(&command)?;
        let begun = match self.client.next() {
            Ok(Event::CopyBoth) => return Ok(Ok(None)),
            Ok(Event::Columns) => return self.ended(true).map(|ended| Ok(Some(ended))),
            Ok(other) => bail!("the server answers START_REPLICATION with {other:?}"),
            Err(e) => e,
        };
        let Some(said) = ServerError::of(&begun).filter(|said| !said.is_fatal()) else { return Err(begun) };
        let words = said.message.clone();
        let refused = match said.code.as_str() {
            "58P01" => Refused::Removed,
            _ if words.contains("is ahead of the WAL flush position") => Refused::Ahead,
            _ if words.contains("is not in this server's history") => Refused::OtherHistory,
            "55000" if words.contains("slot") => Refused::Removed,
            "55006" => return Err(slot_taken(slot, &words)),
            _ => return Err(explain(begun.context("start streaming the log"), self.client.address())),
        };
        // After an error the server says that it awaits commands again.
        while self.client.next()? != Event::Ready {}
        Ok(Err(refused))
    }

    /// What comes next; waits at most `wait`.
    pub fn receive(&mut self, wait: Duration) -> Result<Received> {
        match self.client.poll(wait) {
            Ok(None) => Ok(Received::Nothing),
            Ok(Some(Event::Data)) => self.data(),
            Ok(Some(Event::CopyDone)) => {
                self.client.send_done()?;
                self.ended(false)
            }
            Ok(Some(Event::Complete)) => bail!("the server shuts down"),
            Ok(Some(other)) => bail!("the server sent {other:?} while streaming"),
            // A segment that is removed while it is streamed: without the slot the server does not keep it.
            Err(e) => Err(explain(e.context("stream the log"), self.client.address())),
        }
    }

    fn data(&self) -> Result<Received> {
        let body = self.client.body();
        let number = |at: usize| -> Result<u64> {
            let bytes = body.get(at..at + 8).context("a message of the stream is cut short")?;
            Ok(u64::from_be_bytes(bytes.try_into()?))
        };
        match body.first() {
            Some(b'w') => Ok(Received::Wal { start: number(1)?, end: number(9)?, time: timestamp(number(17)?)? }),
            Some(b'k') => {
                let reply = body.get(17).is_some_and(|flag| *flag != 0);
                Ok(Received::Alive { end: number(1)?, time: timestamp(number(9)?)?, reply })
            }
            other => bail!("a message of the stream has the unknown type {other:?}"),
        }
    }

    /// The bytes of the last [`Received::Wal`].
    pub fn bytes(&self) -> &[u8] {
        self.client.body().get(25..).unwrap_or_default()
    }

    /// Tells the server that everything before `stored` is safe. The last word before the connection is closed: an answer that nobody reads would
    /// reset the connection, and the server might never see what it was told.
    pub fn confirm(&mut self, stored: u64, now: Timestamp) -> Result<()> {
        self.status(stored, now, 0)
    }

    /// The same, and asks how far the server's log has come: the answer is a [`Received::Alive`].
    pub fn confirm_and_ask(&mut self, stored: u64, now: Timestamp) -> Result<()> {
        self.status(stored, now, 1)
    }

    fn status(&mut self, stored: u64, now: Timestamp, answer: u8) -> Result<()> {
        let since = now.duration_since(epoch()?).as_micros();
        let mut message = vec![b'r'];
        // Written and flushed: stored; applied: never, for nothing is. With `remote_write`, too, a commit waits for the repository.
        for value in [stored, stored, 0, u64::try_from(since).unwrap_or(0)] {
            message.extend_from_slice(&value.to_be_bytes());
        }
        message.push(answer);
        self.client.send(&message)
    }

    /// The result that follows a timeline's end. `columns`: its columns have come already.
    fn ended(&mut self, columns: bool) -> Result<Received> {
        let (mut next, mut columns) = (None, columns);
        loop {
            match self.client.next()? {
                Event::Columns => columns = true,
                Event::Row => {
                    let row = self.client.row()?;
                    next = Some((row.parse::<u32>(0)?, row.parse::<Lsn>(1)?.0));
                }
                Event::Complete | Event::CopyDone => {}
                Event::Ready => break,
                // What was under way when the timeline ended.
                Event::Data => {}
                other => bail!("the server sent {other:?} at the end of a timeline"),
            }
        }
        ensure!(columns, "the server ended the stream without a word: it is shutting down");
        let (next, at) = next.context("the server names no timeline that follows")?;
        Ok(Received::Ended { next, at })
    }
}

fn epoch() -> Result<Timestamp> {
    Timestamp::from_second(EPOCH_SECONDS).context("the year 2000")
}

/// PostgreSQL's microseconds since 2000 as a time.
pub fn timestamp(micros: u64) -> Result<Timestamp> {
    let since = SignedDuration::from_micros(micros.cast_signed());
    epoch()?.checked_add(since).context("a time beyond all years")
}

/// Slots are named by lower-case letters, digits and `_`; nothing else can be quoted into a command.
fn identifier(slot: &str) -> Result<&str> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if slot.is_empty() || slot.len() > 63 || !slot.bytes().all(ok) {
        let help = "Nothing was done. Use lower-case letters, digits and `_`, at most 63.";
        return Err(Failure::new(Kind::Config, format!("{slot:?} cannot name a replication slot"), help));
    }
    Ok(slot)
}

fn slot_taken(slot: &str, words: &str) -> anyhow::Error {
    Failure::new(
        Kind::Busy,
        format!("the replication slot {slot} is in use: {words}"),
        "Nothing was lost. Another receiver of this source is connected, or a broken connection has not timed out yet \
         (wal_sender_timeout of the server, a minute by default).",
    )
}
