//! One connection of a receiver: the stream, and pieces on their way to the store.

mod open;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use std::sync::atomic::AtomicBool;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::{End, Event, Options, ReceiveReport, is_to_end};
use crate::limits::{LOG_UNIT_MAX, MIB};
use crate::operations::Host;
use crate::operations::wal::lag::Lag;
use crate::repository::layout::SourceName;
use crate::repository::log::{Author, Log, Writer, unit_end};
use crate::source::postgres::client::{Address, Client, Session, literal};
use crate::source::postgres::wal::Lsn;
use crate::source::postgres::wal::stream::{Received, Stream};
use open::Opened;

/// Bytes received and not yet stored; beyond, the connection is not read.
const PENDING_MAX: usize = 32 * MIB;
/// The server hears of us at least this often, and tells how far it is; its own limit is a minute by default.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// Whoever watches hears at most so often how far behind the log is.
const LAG_EVERY: Duration = Duration::from_secs(1);
/// How often the slot is looked at.
const SLOT_EVERY: Duration = Duration::from_secs(30);
/// While a piece is on its way to the store: it is to be acknowledged at once.
const BRIEF: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
pub struct Task<'a> {
    pub host: &'a Host,
    pub source: &'a SourceName,
    pub address: &'a Address,
    pub options: &'a Options,
    pub stop: &'a AtomicBool,
    pub tell: &'a dyn Fn(&Event),
}

impl<'a> Task<'a> {
    fn author(&self) -> Author<'a> {
        let open = &self.host.open;
        let (keys, host) = (&self.host.keys, self.host.name.as_str());
        Author { store: &open.store, trust: &open.trust, keys, host, clock: &*open.clock, level: self.options.level }
    }

    /// What there is of the log's end. `near`: where the server's ends.
    fn log(&self, near: u64) -> Result<Log> {
        Log::list_end(&self.host.open.store, &self.host.open.trust, self.source, near)
    }
}

/// Streams until the task is to stop or has caught up, or the server goes on to another timeline.
pub fn run(task: &Task, report: &mut ReceiveReport) -> Result<End> {
    let mut stream = Stream::connect(task.address)?;
    let server = stream.identify()?;
    stream.ensure_slot(&task.options.slot)?;
    let Opened { writer, pending, sent } = open::open(task, &mut stream, &server, report)?;
    let head = writer.head();
    (report.timeline, report.position) = (head.timeline, Lsn(head.end).to_string());
    let stretch = writer.stretch.n;
    (task.tell)(&Event::Streaming { stretch, timeline: head.timeline, position: Lsn(head.end).to_string() });
    std::thread::scope(|scope| {
        let now = Instant::now();
        let mut flow = Flow {
            task,
            report,
            stream,
            time: writer.time().unwrap_or(Timestamp::UNIX_EPOCH),
            sent,
            newest: head.timeline == server.timeline,
            desk: Desk::Here(Box::new(writer)),
            oldest: (!pending.is_empty()).then_some(now),
            pending,
            hurry: false,
            stored: head.end,
            told: None,
            goal: server.end,
            lag: Lag::default(),
            lag_told: None,
            looked: None,
        };
        flow.run(scope)
    })
}

/// The writer is here, or away with a piece.
enum Desk<'scope, 'a> {
    Here(Box<Writer<'a>>),
    Away(ScopedJoinHandle<'scope, (Box<Writer<'a>>, usize, Result<()>)>),
    /// Between two states; after an error for good.
    Empty,
}

/// A stream under way.
struct Flow<'r, 't, 'scope> {
    task: &'r Task<'t>,
    report: &'r mut ReceiveReport,
    stream: Stream,
    desk: Desk<'scope, 't>,
    /// Bytes from the end of what is stored on; the first of them may be on their way to the store.
    pending: Vec<u8>,
    /// A moment at which the server had no more than what has been handed over: what is sent late is as old as before. Where nobody knows one, the
    /// beginning of all time.
    time: Timestamp,
    /// What the server has said of the end of its log, held against what is handed over.
    sent: Lag,
    /// The server's own timeline is streamed: of an older one it says where that ends, and not how far it is itself.
    newest: bool,
    /// When the first of them that is not on its way came.
    oldest: Option<Instant>,
    /// The server wants an answer: a shutdown waits for everything to be stored.
    hurry: bool,
    stored: u64,
    /// What the server was told last, and when.
    told: Option<(u64, Instant)>,
    /// With `once`: what is to be stored before the end.
    goal: u64,
    /// What the server has said of the end of its log.
    lag: Lag,
    lag_told: Option<Instant>,
    looked: Option<Instant>,
}

impl<'t, 'scope> Flow<'_, 't, 'scope> {
    fn run<'env>(&mut self, scope: &'scope Scope<'scope, 'env>) -> Result<End>
    where
        't: 'scope,
    {
        loop {
            self.collect()?;
            self.hand_over(scope)?;
            self.tell_server()?;
            self.look_at_slot();
            let stopping = is_to_end(self.task.stop);
            // What has come is stored first.
            let drained = stopping && self.pending.is_empty();
            let done = drained || self.task.options.once && self.stored >= self.goal;
            if done && matches!(self.desk, Desk::Here(_)) {
                return self.finish();
            }
            // A server that never pauses would otherwise have something new for each time that the desk comes back.
            if stopping || self.pending.len() >= PENDING_MAX {
                std::thread::sleep(BRIEF);
                continue;
            }
            let wait = match self.desk {
                Desk::Away(_) => BRIEF,
                _ => self.until_due().min(IDLE),
            };
            match self.stream.receive(wait)? {
                Received::Wal { start, end, time } => {
                    let expected = self.stored + self.pending.len() as u64;
                    ensure!(
                        start == expected,
                        "the server sent position {} where {} was due",
                        Lsn(start),
                        Lsn(expected)
                    );
                    self.pending.extend_from_slice(self.stream.bytes());
                    if self.newest {
                        self.sent.said(end, time);
                    }
                    self.oldest.get_or_insert_with(Instant::now);
                    self.lag(end, time);
                }
                Received::Alive { end, time, reply } => {
                    self.lag(end, time);
                    self.hurry |= reply;
                    if reply {
                        self.told = None;
                    }
                }
                Received::Ended { next, at } => return self.switch(scope, next, at),
                Received::Nothing => {}
            }
        }
    }

    /// Says how much of what the server has is not stored, now and then while it changes.
    fn lag(&mut self, end: u64, at: Timestamp) {
        if self.lag_told.is_some_and(|told| told.elapsed() < LAG_EVERY) {
            return;
        }
        self.lag_told = Some(Instant::now());
        self.lag.said(end, at);
        (self.task.tell)(&self.lag.stand(self.stored));
    }

    fn until_due(&self) -> Duration {
        let every = self.task.options.seal_every;
        match self.oldest {
            Some(_) if self.hurry || self.pending.len() >= self.task.options.seal_bytes => Duration::ZERO,
            Some(since) => every.saturating_sub(since.elapsed()),
            None => IDLE,
        }
    }

    /// Takes the writer back if it has stored its piece.
    fn collect(&mut self) -> Result<()> {
        let finished = matches!(&self.desk, Desk::Away(handle) if handle.is_finished());
        if !finished {
            return Ok(());
        }
        let Desk::Away(handle) = std::mem::replace(&mut self.desk, Desk::Empty) else { return Ok(()) };
        let (writer, length, result) = handle.join().map_err(|_| anyhow::anyhow!("the writer of the log panicked"))?;
        result?;
        self.pending.drain(..length);
        let head = writer.head();
        self.stored = head.end;
        self.report.pieces += 1;
        self.report.bytes += length as u64;
        (self.report.timeline, self.report.position) = (head.timeline, Lsn(head.end).to_string());
        self.report.time = writer.time();
        let position = Lsn(head.end).to_string();
        let (timeline, time) = (head.timeline, writer.time().unwrap_or_default());
        (self.task.tell)(&Event::Stored { timeline, position, time, bytes: length as u64 });
        self.desk = Desk::Here(writer);
        if self.pending.is_empty() {
            (self.oldest, self.hurry) = (None, false);
        } else {
            self.oldest = Some(Instant::now());
        }
        Ok(())
    }

    /// Sends the writer off with what is due.
    fn hand_over<'env>(&mut self, scope: &'scope Scope<'scope, 'env>) -> Result<()>
    where
        't: 'scope,
    {
        let draining = is_to_end(self.task.stop);
        let due = draining || self.until_due().is_zero();
        if self.pending.is_empty() || !due || !matches!(self.desk, Desk::Here(_)) {
            return Ok(());
        }
        let Desk::Here(mut writer) = std::mem::replace(&mut self.desk, Desk::Empty) else {
            bail!("the writer of the log is away");
        };
        let room = unit_end(writer.head().end, writer.stretch.unit) - writer.head().end;
        let length = self.pending.len().min(LOG_UNIT_MAX).min(usize::try_from(room)?);
        let bytes = self.pending[..length].to_vec();
        // Of its own end: more may have come since.
        let end = writer.head().end + length as u64;
        self.time = self.sent.current(end).unwrap_or(self.time);
        let time = self.time;
        let handle = std::thread::Builder::new()
            .name("log".into())
            .spawn_scoped(scope, move || {
                let result = writer.append(&bytes, time);
                (writer, bytes.len(), result)
            })
            .context("start a thread that stores the log")?;
        self.desk = Desk::Away(handle);
        Ok(())
    }

    /// Confirms what is stored: at once when that has grown, and now and then to stay connected.
    fn tell_server(&mut self) -> Result<()> {
        let due = self.told.is_none_or(|(stored, at)| stored != self.stored || at.elapsed() > STATUS_EVERY);
        if due {
            self.stream.confirm_and_ask(self.stored, self.task.host.open.now())?;
            self.told = Some((self.stored, Instant::now()));
        }
        Ok(())
    }

    fn look_at_slot(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < SLOT_EVERY) {
            return;
        }
        let first = self.looked.is_none();
        self.looked = Some(Instant::now());
        match slot(self.task.address, &self.task.options.slot) {
            Ok(event) => (self.task.tell)(&event),
            // A role that may only replicate cannot look; the stream itself shows when the slot is lost.
            Err(e) if first => (self.task.tell)(&Event::Note { text: format!("the slot cannot be watched: {e:#}") }),
            Err(_) => {}
        }
    }

    /// Stores what has come and goes on with the timeline that follows, in a session of its own.
    fn switch<'env>(&mut self, scope: &'scope Scope<'scope, 'env>, next: u32, at: u64) -> Result<End>
    where
        't: 'scope,
    {
        self.sent.left_at(at);
        while !self.pending.is_empty() || !matches!(self.desk, Desk::Here(_)) {
            self.collect()?;
            if matches!(self.desk, Desk::Here(_)) && !self.pending.is_empty() {
                self.hurry = true;
                self.oldest.get_or_insert_with(Instant::now);
                self.hand_over(scope)?;
            }
            std::thread::sleep(BRIEF);
        }
        let Desk::Here(writer) = &mut self.desk else { bail!("the writer of the log is away") };
        open::follow(self.task, &mut self.stream, writer, next, at)?;
        Ok(End::Anew)
    }

    fn finish(&mut self) -> Result<End> {
        self.stream.confirm(self.stored, self.task.host.open.now())?;
        if let Desk::Here(writer) = &self.desk {
            self.report.time = self.report.time.or(writer.time());
        }
        Ok(End::Done)
    }
}

/// What the server keeps for the slot.
fn slot(address: &Address, name: &str) -> Result<Event> {
    let mut address = address.clone();
    address.database.get_or_insert_with(|| "postgres".to_owned());
    let mut client = Client::connect(&address, Session::Plain)?;
    let sql = format!(
        "select coalesce(wal_status, 'unknown'), coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() \
         else pg_current_wal_flush_lsn() end, restart_lsn), 0)::bigint from pg_replication_slots where slot_name = {}",
        literal(name)
    );
    let rows = client.rows(&sql).context("look at the replication slot")?;
    let row = rows.one().context("the replication slot is gone")?;
    Ok(Event::Slot { status: row.required(0)?.to_owned(), retained: row.parse::<i64>(1)?.max(0).unsigned_abs() })
}
