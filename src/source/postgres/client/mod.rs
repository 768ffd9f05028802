//! A blocking client of the PostgreSQL protocol (version 3), as far as backups need it: simple queries, copies in both directions, and the
//! replication commands. (PostgreSQL manual, part "Frontend/Backend Protocol": "Message Formats", "Streaming Replication Protocol".)
//!
//! One thread talks on one connection. Messages are framed here, because `postgres-protocol` does not know `CopyBothResponse`. Every message
//! has a bound, and every wait has one, too: [`Client::patience`].

mod address;
mod binding;
mod error;
mod received;
mod rows;
mod startup;

pub use address::{Address, Binding, Host, TlsMode};
pub use error::{ServerError, cure, explain};
pub use rows::{Row, Rows, literal};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use crate::net::Stream;
use received::Received;

/// Bytes of rows that one query may bring.
const ROWS_MAX: usize = 256 << 20;
/// Notices that are kept until they are asked for.
const NOTICES_MAX: usize = 100;
/// How long an answer may take, where nothing else is set.
const PATIENCE: Duration = Duration::from_secs(120);

/// The kind of the connection: `replication` of the startup message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// SQL.
    Plain,
    /// Replication commands only; needs no database.
    Replication,
    /// Replication commands and SQL in one database.
    ReplicationAndSql,
}

/// A connection that has been let in.
pub struct Client {
    stream: Stream,
    received: Received,
    output: BytesMut,
    columns: Vec<String>,
    parameters: HashMap<String, String>,
    notices: Vec<ServerError>,
    /// Process and secret for a cancel request.
    key: Option<(i32, i32)>,
    address: Address,
    /// How long the server may be silent while something is awaited.
    pub patience: Duration,
}

/// What the server has sent, beside notices and parameters. The contents are in [`Client::body`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Columns of rows to come.
    Columns,
    Row,
    CopyIn,
    CopyOut,
    CopyBoth,
    /// Bytes of a copy.
    Data,
    CopyDone,
    /// A command has been carried out.
    Complete,
    /// The server awaits a command.
    Ready,
    /// Messages of the authentication: `R`.
    Authentication,
}

impl Client {
    /// Connects and authenticates. Errors name the cure where one is known.
    pub fn connect(address: &Address, session: Session) -> Result<Client> {
        Client::connect_unexplained(address, session).map_err(|e| explain(e, address))
    }

    /// As [`Client::connect`], for a caller that goes by what the server says: its [`ServerError`] is in the chain.
    pub fn connect_unexplained(address: &Address, session: Session) -> Result<Client> {
        startup::connect(address, session).with_context(|| format!("connect to {address}"))
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The server's version as `server_version_num` has it: 150004 for 15.4. Zero if it does not tell.
    pub fn version(&self) -> u32 {
        let text = self.parameters.get("server_version").map_or("", String::as_str);
        let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        numbers.next().unwrap_or(0) * 10_000 + numbers.next().unwrap_or(0)
    }

    /// The server's process for this session.
    pub fn process(&self) -> Option<i32> {
        self.key.map(|(process, _)| process)
    }

    /// A parameter that the server reported, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Takes the warnings that have come so far.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// Runs one or several statements and gives the rows of each that has columns.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Rows>> {
        self.begin(sql)?;
        let mut sets: Vec<Rows> = Vec::new();
        let (mut bytes, mut failed) = (0, None);
        loop {
            match self.next() {
                Ok(Event::Columns) => sets.push(Rows { columns: self.columns.clone(), rows: Vec::new() }),
                Ok(Event::Row) => {
                    bytes += self.body().len();
                    ensure!(bytes <= ROWS_MAX, "a query brought more than {ROWS_MAX} bytes");
                    let row = rows::row(self.body())?;
                    sets.last_mut().context("rows without columns")?.rows.push(row);
                }
                Ok(Event::Complete) => {}
                Ok(Event::Ready) => return failed.map_or(Ok(sets), Err),
                Ok(other) => bail!("the server answers a query with {other:?}"),
                // After an error the server says when it is ready again; until then the connection is in between.
                Err(e) if ServerError::of(&e).is_some_and(|said| !said.is_fatal()) => failed = failed.or(Some(e)),
                Err(e) => return Err(failed.unwrap_or(e)),
            }
        }
    }

    /// Runs one statement; its rows.
    pub fn rows(&mut self, sql: &str) -> Result<Rows> {
        Ok(self.query(sql)?.pop().unwrap_or_default())
    }

    /// Runs one statement that gives one value, as text; `None` for NULL or no row.
    pub fn value(&mut self, sql: &str) -> Result<Option<String>> {
        let rows = self.rows(sql)?;
        rows.rows.first().map_or(Ok(None), |row| Ok(row.text(0)?.map(str::to_owned)))
    }

    /// Sends a command without awaiting anything: for commands that copy. Then call [`Client::next`].
    pub fn begin(&mut self, command: &str) -> Result<()> {
        frontend::query(command, &mut self.output).context("write a command")?;
        self.flush()
    }

    /// The next event; waits at most [`Client::patience`]. What the server calls an error is a [`ServerError`].
    #[expect(clippy::should_implement_trait, reason = "an event borrows its contents from the client")]
    pub fn next(&mut self) -> Result<Event> {
        let patience = self.patience;
        match self.poll(patience)? {
            Some(event) => Ok(event),
            None => bail!("the server {} has been silent for {} s", self.address, patience.as_secs()),
        }
    }

    /// The next event, or `None` if none has come after `wait`. Nothing is lost by that: call again.
    pub fn poll(&mut self, wait: Duration) -> Result<Option<Event>> {
        let until = Instant::now() + wait;
        loop {
            let Some(tag) = self.take(until)? else { return Ok(None) };
            let event = match tag {
                b'T' => {
                    self.columns = rows::columns(self.body())?;
                    Event::Columns
                }
                b'D' => Event::Row,
                b'G' => Event::CopyIn,
                b'H' => Event::CopyOut,
                b'W' => Event::CopyBoth,
                b'd' => Event::Data,
                b'c' => Event::CopyDone,
                b'C' | b'I' => Event::Complete,
                b'Z' => Event::Ready,
                b'R' => Event::Authentication,
                b'E' => return Err(anyhow!(ServerError::parse(self.body()))),
                b'N' => {
                    let notice = ServerError::parse(self.body());
                    if self.notices.len() < NOTICES_MAX {
                        self.notices.push(notice);
                    }
                    continue;
                }
                b'S' => {
                    self.note_parameter();
                    continue;
                }
                b'K' => {
                    let number = |bytes: &[u8]| bytes.try_into().ok().map(i32::from_be_bytes);
                    let body = self.body();
                    self.key = body.get(..4).and_then(number).zip(body.get(4..8).and_then(number));
                    continue;
                }
                b'A' | b'v' => continue,
                other => bail!("the server sent a message of unknown type {:?}", char::from(other)),
            };
            return Ok(Some(event));
        }
    }

    /// The contents of the last event's message.
    pub fn body(&self) -> &[u8] {
        self.received.body()
    }

    /// The row of an [`Event::Row`].
    pub fn row(&self) -> Result<Row> {
        rows::row(self.body())
    }

    /// Sends bytes of a copy to the server.
    pub fn send(&mut self, data: &[u8]) -> Result<()> {
        frontend::CopyData::new(data).context("write data")?.write(&mut self.output);
        self.flush()
    }

    /// Ends a copy to the server.
    pub fn send_done(&mut self) -> Result<()> {
        frontend::copy_done(&mut self.output);
        self.flush()
    }

    /// Asks the server, on a connection of its own, to stop what this one is doing.
    pub fn cancel(&self) -> Result<()> {
        let Some((process, secret)) = self.key else { return Ok(()) };
        startup::cancel(&self.address, process, secret).context("cancel a command")
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.stream.write_all(&self.output).and_then(|()| self.stream.flush());
        self.output.clear();
        written.with_context(|| format!("send to {}", self.address))
    }

    /// Takes the next whole message; gives its type.
    fn take(&mut self, until: Instant) -> Result<Option<u8>> {
        loop {
            if let Some(tag) = self.received.take()? {
                return Ok(Some(tag));
            }
            if !self.fill(until)? {
                return Ok(None);
            }
        }
    }

    /// Reads more; false if nothing came in time.
    fn fill(&mut self, until: Instant) -> Result<bool> {
        match self.received.fill(&mut self.stream, until.saturating_duration_since(Instant::now())) {
            Ok(0) => bail!("the server {} closed the connection", self.address),
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                Ok(Instant::now() < until)
            }
            Err(e) => Err(e).with_context(|| format!("receive from {}", self.address)),
        }
    }

    fn note_parameter(&mut self) {
        let mut fields = self.body().split(|b| *b == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        if let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            self.parameters.insert(name, value);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.output.clear();
        frontend::terminate(&mut self.output);
        // The server notices a closed connection as well.
        let _gone = self.flush();
    }
}
