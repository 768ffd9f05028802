//! The replication stream of a server: a replica that takes no data set, only what follows an offset
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/replication/>; `replication.c`).
//!
//! ```text
//! REPLCONF capa eof capa psync2      we understand a new replication ID in the answer
//! PSYNC <id> <offset + 1>            the first byte that we lack; offsets count from 1 there, from 0 here
//! +CONTINUE [id]                     the stream follows; the server has another ID now, and its history is the old one up to here
//! +FULLRESYNC <id> <offset>          it has not got that any more, or its history is another: we leave
//! REPLCONF ACK <offset>              so much is safe: what `WAIT` and `min-replicas-to-write` count
//! ```
//! Stream and data set meet by the offset that each RDB file carries. So no full sync is needed here, and none is asked for: a backup's file
//! is the base, and the stream goes on from it.

pub mod aof;
pub mod commands;
pub mod happened;
mod watch;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use super::address::{Address, Endpoint};
use super::connection::Connection;
use super::engine::major_minor;
use super::refusal::{refused, unusable};
use super::server::{self, Flavour, Info};
use crate::net::Roots;

pub use watch::{Said, Watch};

/// Bytes taken off the connection at once.
const READ: usize = 64 << 10;
/// Signs of life before the answer to PSYNC.
const EMPTY_LINES_MAX: usize = 600;
/// How long a server may take to begin its backlog.
const BACKLOG: Duration = Duration::from_secs(10);

/// Where a server is and how it is to be reached.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: Address,
    pub roots: Roots,
    pub from_replica: bool,
}

/// What a server says of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub id: String,
    /// The ID before a failover, and up to where it was the same history.
    pub before: Option<(String, u64)>,
    /// Bytes written so far.
    pub end: u64,
    /// From where on the server still has it; `None`: it keeps nothing, having no replica.
    pub backlog: Option<u64>,
    pub flavour: Flavour,
    pub version: String,
    pub run_id: String,
    pub clock: Option<Timestamp>,
}

impl Stream {
    fn parse(info: &Info) -> Result<Stream> {
        let number = |name: &str| info.number(name).and_then(|n| u64::try_from(n).ok());
        let (flavour, version) = info.version();
        let second = number("second_repl_offset").and_then(|first| first.checked_sub(1));
        let active = info.get("repl_backlog_active") == "1";
        Ok(Stream {
            id: info.get("master_replid").to_owned(),
            before: second.map(|end| (info.get("master_replid2").to_owned(), end)),
            end: number("master_repl_offset").context("the server does not tell its replication offset")?,
            backlog: number("repl_backlog_first_byte_offset").filter(|_| active).map(|first| first.saturating_sub(1)),
            flavour,
            version,
            run_id: info.get("run_id").to_owned(),
            clock: info.number("server_time_usec").and_then(|t| Timestamp::from_microsecond(t).ok()),
        })
    }

    /// Why the server cannot go on from there; `None`: it probably can.
    pub fn lacks(&self, id: &str, position: u64) -> Option<String> {
        let reaches = match &self.before {
            _ if id == self.id => self.end,
            Some((before, end)) if id == before => *end,
            _ => return Some(format!("its replication ID is {}, which does not follow {id}", self.id)),
        };
        if position > reaches {
            return Some(format!(
                "it has that history up to offset {reaches} only, and {position} is stored: it lost what came after"
            ));
        }
        match self.backlog {
            None => Some("it has kept no backlog: it had no replica for a while, or was restarted".into()),
            Some(first) if position < first => Some(format!(
                "its backlog begins at offset {first}, and {position} was due: repl-backlog-size is too small for the time that was missed"
            )),
            Some(_) => None,
        }
    }
}

impl Place {
    fn connect(&self) -> Result<Connection> {
        Connection::open(&self.address, &self.roots)
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.address.endpoint
    }

    /// Asks a server, and refuses one that cannot be followed.
    pub fn ask(&self) -> Result<Stream> {
        let mut connection = self.connect()?;
        let info = Info::ask(&mut connection)?;
        server::refuse_unfit(&info, &connection, self.from_replica)?;
        let stream = Stream::parse(&info)?;
        if stream.flavour == Flavour::Redis && major_minor(&stream.version).is_none_or(|v| v < (7, 0)) {
            return Err(unusable(
                self.endpoint(),
                format!("it is Redis {}, whose stream has times relative to when it is read", stream.version),
                "The log needs Redis 7.0 or newer, or Valkey. Backups work without it.",
            ));
        }
        Ok(stream)
    }

    /// As [`Place::ask`], and has the server keep its stream from now on, as it does once it has had a replica.
    pub fn ask_with_backlog(&self) -> Result<Stream> {
        let stream = self.ask()?;
        if stream.backlog.is_some() {
            return Ok(stream);
        }
        // The request alone makes the backlog. Nothing is waited for, so that the server need not fork.
        let mut connection = self.connect()?;
        connection.try_command(&["REPLCONF", "capa", "eof", "capa", "psync2"])?;
        connection.send(&[b"PSYNC", b"?", b"-1"])?;
        let until = Instant::now() + BACKLOG;
        loop {
            let stream = self.ask()?;
            if stream.backlog.is_some() {
                return Ok(stream);
            }
            if Instant::now() > until {
                let line = connection.line().unwrap_or_default();
                return match line.strip_prefix('-') {
                    Some(said) => Err(refused(self.endpoint(), said)),
                    None => bail!("{} does not begin to keep its replication stream", self.endpoint()),
                };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether this user may follow the stream, tried without doing so. Gives how many bytes of it the server keeps for whoever was away.
    pub fn try_rights(&self) -> Result<Option<u64>> {
        self.ask()?;
        let mut connection = self.connect()?;
        connection.command(&["REPLCONF", "capa", "eof", "capa", "psync2"])?;
        // Rights are looked at first, then the offset, which is none: the server begins nothing.
        connection.send(&[b"PSYNC", b"?", b"none"])?;
        let line = connection.line()?;
        match line.strip_prefix('-') {
            Some(said) if !said.contains("not an integer") => return Err(refused(self.endpoint(), said)),
            _ => {}
        }
        let info = Info::ask(&mut self.connect()?)?;
        Ok(info.number("repl_backlog_size").and_then(|n| u64::try_from(n).ok()))
    }

    /// Follows the stream from `position` of history `id` on.
    pub fn follow(&self, id: &str, position: u64) -> Result<Followed> {
        let mut connection = self.connect()?;
        // Whoever may not say REPLCONF cannot acknowledge either, and would be taken for dead after a minute.
        connection.command(&["REPLCONF", "capa", "eof", "capa", "psync2"])?;
        connection.send(&[b"PSYNC", id.as_bytes(), (position + 1).to_string().as_bytes()])?;
        for _ in 0..EMPTY_LINES_MAX {
            let line = connection.line()?;
            if line.is_empty() {
                continue;
            }
            if let Some(said) = line.strip_prefix('-') {
                return Err(refused(self.endpoint(), said));
            }
            let words: Vec<&str> = line.split(' ').collect();
            return Ok(match words.as_slice() {
                ["+CONTINUE"] => Followed::Same(Replica { connection, buffer: vec![0; READ] }),
                ["+CONTINUE", new] if *new == id => Followed::Same(Replica { connection, buffer: vec![0; READ] }),
                ["+CONTINUE", new] => Followed::Renamed((*new).to_owned()),
                ["+FULLRESYNC", ..] => Followed::Refused,
                _ => bail!("{} answers PSYNC with {line:?}", self.endpoint()),
            });
        }
        bail!("{} does not answer PSYNC", self.endpoint())
    }
}

/// The answer to [`Place::follow`].
pub enum Followed {
    Same(Replica),
    /// The stream goes on under another ID; follow that.
    Renamed(String),
    /// The server would have to send its whole data set.
    Refused,
}

/// A connection on which the stream comes.
pub struct Replica {
    connection: Connection,
    buffer: Vec<u8>,
}

impl Replica {
    /// What has come; nothing after `wait` without any.
    pub fn receive(&mut self, wait: Duration) -> Result<&[u8]> {
        self.connection.set_wait(wait)?;
        match self.connection.read(&mut self.buffer) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(n) => Ok(&self.buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                Ok(&[])
            }
            Err(e) => Err(e).context("receive the replication stream"),
        }
    }

    /// Tells the server that so many bytes of the stream are safe. 0 only keeps the connection.
    pub fn acknowledge(&mut self, position: u64) -> Result<()> {
        self.connection.send(&[b"REPLCONF", b"ACK", position.to_string().as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_can_go_on_from() {
        let info = "redis_version:7.0.15\r\nmaster_replid:aaa\r\nmaster_replid2:bbb\r\nmaster_repl_offset:500\r\nsecond_repl_offset:301\r\n\
                    repl_backlog_active:1\r\nrepl_backlog_first_byte_offset:101\r\n";
        let stream = Stream::parse(&Info::parse(info)).unwrap();
        assert_eq!((stream.end, stream.backlog, stream.before.as_ref().map(|b| b.1)), (500, Some(100), Some(300)));
        let lacks = |id: &str, at| stream.lacks(id, at).unwrap_or_default();
        assert_eq!((lacks("aaa", 100), lacks("aaa", 500), lacks("bbb", 300)), Default::default());
        assert!(lacks("aaa", 99).contains("backlog begins") && lacks("aaa", 501).contains("lost what came after"));
        assert!(
            lacks("bbb", 301).contains("lost what came after") && lacks("ccc", 200).contains("does not follow ccc")
        );
        let fresh = Stream::parse(&Info::parse(
            "valkey_version:8.1.0\r\nmaster_replid:aaa\r\nmaster_replid2:000\r\nmaster_repl_offset:0\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:0\r\n",
        ))
        .unwrap();
        assert!(fresh.before.is_none() && fresh.lacks("aaa", 0).unwrap().contains("no backlog"));
    }
}
