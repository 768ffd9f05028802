//! The `redis` source: the data set of a Redis or Valkey server as an RDB file, taken over the wire as a replica takes it.
//!
//! The server forks to send it, and the child lives until the last byte is taken: a slow store costs the server memory for every page that it
//! changes meanwhile. The checksum of the file is compared before the snapshot counts as complete, and the keys are counted on the way.
//!
//! The snapshot is what a server starts from. One without an append-only file gets `dump.rdb`. One with it reads that alone, and would start
//! empty beside a `dump.rdb`: it gets `appendonlydir/` with the same file as its base (a hard link, so it is stored once) and a manifest.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name};
use crate::error::{Failure, Kind};
use crate::limits::{Grain, LEVEL};
use crate::net::Roots;
use crate::source::barrier::{Member, Moment};
use crate::source::{Before, Finished, Piece, Source, stream_entry};

pub mod address;
mod aof_layout;
pub mod asked;
pub mod canary;
pub mod connection;
pub mod engine;
mod fork;
pub mod proof;
pub mod rdb;
mod refusal;
pub mod replication;
pub mod running;
mod saved;
pub mod server;
mod stream;
pub mod sync;

pub use refusal::RIGHTS;

use address::Address;
use aof_layout::{aof_names, has_manifests, manifest};
use connection::Connection;
use replication::Place;
use server::{Facts, Info};
use stream::RdbStream;

/// What `kind` is in the configuration and in commits.
pub const KIND: &str = "redis";
/// The file that every snapshot has.
pub const DUMP: &str = "dump.rdb";

/// `[source.redis]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The certificates (PEM) that the server's must be signed by; the system's without it.
    pub ca: Option<PathBuf>,
    /// Take what a replica has.
    #[serde(default)]
    pub from_replica: bool,
    /// The server's RDB file: it is made to save it (BGSAVE), and the file is read, where replication is forbidden.
    pub file: Option<PathBuf>,
    /// The server program that drills start; otherwise one of the right kind is looked for.
    pub server: Option<PathBuf>,
    /// What `wal-receive` has received is stored after this long at the latest; a second unless given.
    #[serde(default, deserialize_with = "crate::time::optional_length")]
    pub seal_every: Option<SignedDuration>,
}

impl Options {
    /// With relative paths taken to begin at `base`.
    pub fn below(mut self, base: &std::path::Path) -> Options {
        for path in [&mut self.ca, &mut self.file, &mut self.server].into_iter().flatten() {
            *path = base.join(&*path);
        }
        self
    }
}

/// One run's reading of one server.
pub struct Redis {
    address: Address,
    options: Options,
    clock: Arc<dyn Clock>,
    met: Option<Met>,
    /// What is still to be walked.
    plan: VecDeque<Entry>,
    walked: bool,
    reading: Reading,
    file: Option<RdbStream>,
    begun: Option<Begun>,
    member: Member,
}

/// A server that was found fit.
struct Met {
    connection: Option<Connection>,
    info: Info,
    /// The server's clock less ours.
    ahead: SignedDuration,
}

/// What `read` is to give.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reading {
    Nothing,
    Rdb,
    /// The rest of a small file.
    Text(Vec<u8>),
}

struct Begun {
    at: Timestamp,
    by: &'static str,
    /// The file must not be older, in seconds of the server's clock.
    not_before: Option<i64>,
    /// It may be the file of a fork that another replica had asked for before us.
    shared: bool,
}

impl Redis {
    /// Reads the address; connects to nothing yet. `password` goes before one in the address.
    pub fn open(
        url: &str,
        password: Option<Zeroizing<String>>,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<Redis> {
        let mut address = Address::parse(url)?;
        address.password = password.or(address.password);
        Ok(Redis {
            address,
            options,
            clock,
            met: None,
            plan: VecDeque::new(),
            walked: false,
            reading: Reading::Nothing,
            file: None,
            begun: None,
            member: Member::default(),
        })
    }

    /// Where the server is, for following its replication stream.
    pub fn place(&self) -> Place {
        let roots = self.options.ca.clone().map_or(Roots::System, Roots::File);
        Place { address: self.address.clone(), roots, from_replica: self.options.from_replica }
    }

    /// Connects, once, and refuses a server that is not fit.
    fn meet(&mut self) -> Result<&mut Met> {
        if self.met.is_none() {
            let mut connection = self.connect()?;
            let info = Info::ask(&mut connection)?;
            server::refuse_unfit(&info, &connection, self.options.from_replica)?;
            let theirs = info.number("server_time_usec").and_then(|t| Timestamp::from_microsecond(t).ok());
            let ahead = theirs.map_or(SignedDuration::ZERO, |t| t.duration_since(self.clock.now()));
            self.met = Some(Met { connection: Some(connection), info, ahead });
        }
        self.met.as_mut().context("meet the server")
    }

    fn connect(&self) -> Result<Connection> {
        let roots = self.options.ca.clone().map_or(Roots::System, Roots::File);
        Connection::open(&self.address, &roots).map_err(|e| self.unreachable(e))
    }

    fn unreachable(&self, error: anyhow::Error) -> anyhow::Error {
        if crate::error::help_of(&error).is_some() {
            return error;
        }
        Failure::new(
            Kind::Failed,
            format!("cannot reach {}: {error:#}", self.address.endpoint),
            "Nothing was backed up; the earlier snapshots stand. Check the address, that the server runs, and that this machine may connect; \
             for TLS the address begins with rediss://, and [source.redis] ca names the authority's certificate.",
        )
    }

    /// The entries of the snapshot in order.
    fn walk(&mut self) -> Result<VecDeque<Entry>> {
        let now = self.clock.now();
        let met = self.meet()?;
        let mut files = vec![(Name::new(b""), EntryKind::Dir), (Name::new(DUMP.as_bytes()), EntryKind::File)];
        if met.info.get("aof_enabled") == "1" && has_manifests(&met.info) {
            let (directory, file) = aof_names(met.connection.as_mut())?;
            files.push((Name::new(directory.as_bytes()), EntryKind::Dir));
            files.push((Name::new(format!("{directory}/{file}.1.base.rdb").as_bytes()), EntryKind::File));
            files.push((Name::new(format!("{directory}/{file}.manifest").as_bytes()), EntryKind::File));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        let mut first: Option<Name> = None;
        let entries = files.into_iter().map(|(path, kind)| {
            let mut entry = Entry { path, ..stream_entry("", kind, now) };
            if is_rdb(&entry) {
                match &first {
                    None => first = Some(entry.path.clone()),
                    Some(target) => (entry.kind, entry.target) = (EntryKind::Hardlink, Some(target.clone())),
                }
            } else if kind == EntryKind::File {
                entry.size = manifest(&entry).len() as u64;
            }
            entry
        });
        Ok(entries.collect())
    }

    /// Has the server begin to send its data: the fork is the point.
    fn begin(&mut self) -> Result<RdbStream> {
        let member = std::mem::take(&mut self.member);
        let (file, not_before) = if member.is_alone() {
            (self.begin_at_once()?, None)
        } else {
            member.fix(Moment::Awaited, || {
                // The server may have closed the first one while we waited for the others.
                let fresh = self.connect()?;
                self.meet()?.connection = Some(fresh);
                fork::watch(self.connect().ok(), || self.begin_at_once())
            })?
        };
        if let Some(moment) = not_before {
            member.not_before(moment);
        }
        self.member = member;
        Ok(file)
    }

    fn begin_at_once(&mut self) -> Result<RdbStream> {
        let at = self.clock.now();
        let saved = self.options.file.clone();
        let met = self.meet()?;
        let (_, version) = met.info.version();
        let mut connection = met.connection.take().context("read the data twice")?;
        let Some(path) = saved else {
            let mut payload = sync::begin(connection, &version)?;
            self.begun = Some(Begun { at, by: "sync", not_before: None, shared: !payload.is_diskless() });
            return RdbStream::start(Box::new(move |to, most| payload.read_some(to, most)));
        };
        let (origin, asked) = saved::save(&mut connection, &path)?;
        self.begun = Some(Begun { at, by: "bgsave", not_before: Some(asked), shared: false });
        RdbStream::start(origin)
    }

    /// What went wrong with the file, as an operator can use it.
    fn torn(&self, error: anyhow::Error) -> anyhow::Error {
        if crate::error::help_of(&error).is_some() {
            return error;
        }
        refusal::unusable(
            &self.address.endpoint,
            format!("{error:#}"),
            "Run the backup again. If it fails again, the server's log says why it ended the transfer: client-output-buffer-limit, repl-timeout, \
             no memory to fork.",
        )
    }
}

impl Source for Redis {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn root(&self) -> String {
        self.address.endpoint.to_string()
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        let Ok(facts) = Facts::deserialize(before.facts) else { return Ok(()) };
        let had = facts.rdb.keys();
        let endpoint = self.address.endpoint.clone();
        if had > 0 && self.meet()?.info.keys() == 0 && !before.accept_change {
            return Err(refusal::unusable(
                &endpoint,
                format!("it is empty, and had {had} keys in snapshot {}", before.seq),
                "A server that was restarted without its data, or another one behind the address, looks like this. \
                 Restore that snapshot; if it is meant to be empty, say so once: backup --accept-change.",
            ));
        }
        Ok(())
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    /// An RDB file has its keys in the order of their hashes, which stays while the server runs.
    fn grain(&self) -> Grain {
        Grain::FINE
    }

    /// A server writes its RDB file with one thread, more slowly than this compresses: the smaller snapshot costs no time.
    fn level(&self) -> i32 {
        LEVEL + 1
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if !self.walked {
            self.plan = self.walk()?;
            self.walked = true;
        }
        let Some(entry) = self.plan.pop_front() else { return Ok(None) };
        self.reading = match entry.kind {
            EntryKind::File if is_rdb(&entry) => Reading::Rdb,
            EntryKind::File => Reading::Text(manifest(&entry)),
            _ => Reading::Nothing,
        };
        Ok(Some(entry))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        match &mut self.reading {
            Reading::Nothing => Ok(Piece::End),
            Reading::Text(text) => {
                let n = buffer.len().min(text.len());
                buffer[..n].copy_from_slice(&text[..n]);
                text.drain(..n);
                Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
            }
            Reading::Rdb => {
                if self.file.is_none() {
                    self.file = Some(self.begin()?);
                }
                let file = self.file.as_mut().context("read the RDB file")?;
                match file.read(buffer) {
                    Ok(0) => Ok(Piece::StreamEnd),
                    Ok(n) => Ok(Piece::Data(n)),
                    Err(e) => Err(self.torn(e)),
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Finished> {
        let rdb = self.file.as_ref().context("the RDB file was never read")?.summary()?.clone();
        let begun = self.begun.take().context("the RDB file was never read")?;
        let met = self.met.as_ref().context("the server was never met")?;
        if let (Some(least), Some(ctime)) = (begun.not_before, rdb.ctime)
            && ctime < least
        {
            return Err(refusal::unusable(
                &self.address.endpoint,
                "the file is older than the save that the server was asked for",
                "[source.redis] file names another server's file, or dbfilename has changed: CONFIG GET dir and dbfilename tell.",
            ));
        }
        // The server may give us a fork that another replica has asked for before us.
        let forked = rdb.ctime.and_then(|seconds| Timestamp::from_second(seconds).ok()).map(|t| t - met.ahead);
        let lag = SignedDuration::from_secs(met.info.number("master_last_io_seconds_ago").unwrap_or(0).max(0));
        let data_time = forked.map_or(begun.at, |t| t.min(begun.at)) - lag;
        if begun.shared || lag.is_positive() {
            self.member.may_be_as_early_as(data_time);
        }
        let (flavour, version) = met.info.version();
        let mode = [met.info.get("server_mode"), met.info.get("redis_mode")].into_iter().find(|m| !m.is_empty());
        let facts = Facts {
            flavour,
            version,
            role: met.info.get("role").to_owned(),
            run_id: met.info.get("run_id").to_owned(),
            mode: mode.unwrap_or("standalone").to_owned(),
            aof: met.info.get("aof_enabled") == "1",
            modules: met.info.has_modules(),
            by: begun.by.to_owned(),
            rdb,
        };
        let place = facts.rdb.place().map(|(id, offset)| (id.to_owned(), offset));
        let mut facts = serde_json::to_value(facts)?;
        if let Some((id, offset)) = place {
            let at = format!("{offset:016x}");
            facts["log"] = serde_json::json!({"timeline": 1, "id": id, "start": at, "end": at});
        }
        Ok(Finished { data_time, skipped: Vec::new(), facts })
    }
}

fn is_rdb(entry: &Entry) -> bool {
    entry.kind != EntryKind::Dir && entry.path.as_bytes().ends_with(b".rdb")
}
