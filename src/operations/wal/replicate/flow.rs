//! A stream under way: bytes come off the connection, pieces go to the store on a thread, and the server hears how far they are safe.

use anyhow::{Context, Result, bail};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::open::Opened;
use super::pending::Pending;
use super::{End, Event, ReceiveReport, Task};
use crate::limits::{LOG_UNIT_MAX, MIB};
use crate::operations::wal::base;
use crate::operations::wal::lag::Lag;
use crate::operations::wal::receive::{PAUSE_MAX, PAUSE_MIN, is_to_end, lasting};
use crate::repository::log::{Mark, Writer, unit_end};
use crate::repository::series::Series;
use crate::source::redis::replication::{Followed, Replica, Watch};

/// Bytes received and not yet stored; beyond, the connection is not read, and the server keeps what follows as long as it does.
const PENDING_MAX: usize = 32 * MIB;
/// A replica tells how far it is each second.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// While the store does not keep up, or there is no snapshot to go on from, the server is not to count on us (`min-replicas-max-lag` is 10 s by
/// default), and not to give us up either (`repl-timeout`, 60 s).
const ACK_EVERY_UNSAFE: Duration = Duration::from_secs(45);
const UNSAFE: Duration = Duration::from_secs(5);
/// A server sends a sign of life every 10 s by default; ours is taken for dead after this.
const SILENCE: Duration = Duration::from_secs(90);
/// While a piece is on its way to the store: it is to be acknowledged at once.
const BRIEF: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(250);
/// How often to look for a snapshot to go on from, and how long to wait after a try to make one has failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(15);
const BASE_AGAIN: Duration = Duration::from_secs(60);

/// The writer is here, or away with a piece, or was lost with one that could not be stored.
enum Desk<'scope, 'a> {
    Here(Box<Writer<'a>>),
    Away(ScopedJoinHandle<'scope, Result<Box<Writer<'a>>>>),
    Lost,
}

/// A pause that grows from try to try.
struct Pause {
    length: Duration,
    until: Instant,
}

pub struct Flow<'r, 't, 'scope> {
    task: &'r Task<'t>,
    report: &'r mut ReceiveReport,
    /// `None`: it is to be connected anew, after the pause.
    replica: Option<Replica>,
    again: Pause,
    heard: Instant,
    stretch: u64,
    id: String,
    desk: Desk<'scope, 't>,
    repair: Pause,
    pending: Pending,
    /// The server wants to hear how far we are: everything that has come is to be stored now.
    hurry: bool,
    /// What the server was told last, and when.
    told: Option<(u64, Instant)>,
    /// Where the first snapshot ends that this log goes on from.
    base: Option<u64>,
    look: Option<ScopedJoinHandle<'scope, Result<Option<u64>>>>,
    look_again: Pause,
    /// Whether it was said that something passing is in the way.
    waiting: bool,
    watch: Option<Watch>,
    lag: Lag,
    /// The server has gone another way: what has come is stored, and that is the end.
    parted: bool,
    goal: u64,
}

impl<'r, 't, 'scope> Flow<'r, 't, 'scope> {
    pub fn new(task: &'r Task<'t>, report: &'r mut ReceiveReport, opened: Opened<'t>) -> Flow<'r, 't, 'scope> {
        let (now, head) = (Instant::now(), opened.writer.head());
        let mut pending = Pending::new(head.end);
        let hurry = !opened.pending.is_empty() && pending.take(&opened.pending, task.host.open.now());
        let pause = || Pause { length: PAUSE_MIN, until: now };
        Flow {
            task,
            report,
            replica: Some(opened.replica),
            again: pause(),
            heard: now,
            stretch: opened.writer.stretch.n,
            id: opened.writer.stretch.id.clone().unwrap_or_default(),
            desk: Desk::Here(Box::new(opened.writer)),
            repair: pause(),
            pending,
            hurry,
            told: None,
            base: None,
            look: None,
            look_again: Pause { length: LOOK_EVERY, until: now },
            waiting: false,
            watch: None,
            lag: Lag::default(),
            parted: false,
            goal: opened.end,
        }
    }

    pub fn run<'env>(&mut self, scope: &'scope Scope<'scope, 'env>) -> Result<End>
    where
        't: 'scope,
    {
        if !self.task.options.once {
            let clock = std::sync::Arc::clone(&self.task.host.open.clock);
            self.watch = Some(Watch::start(self.task.place.clone(), clock)?);
        }
        loop {
            self.collect()?;
            self.hand_over(scope)?;
            self.look_for_base(scope)?;
            let stopping = is_to_end(self.task.stop);
            let caught_up = self.task.options.once && self.pending.start >= self.goal;
            let here = matches!(self.desk, Desk::Here(_));
            if here && (stopping || self.parted) && self.pending.bytes.is_empty() || here && caught_up {
                return self.finish();
            }
            if stopping && matches!(self.desk, Desk::Lost) {
                bail!("stopped while {} bytes could not be stored", self.pending.bytes.len());
            }
            if self.replica.is_none() && !self.parted && !stopping {
                self.reconnect();
            }
            self.acknowledge();
            self.tell_how_it_stands();
            self.receive(stopping);
        }
    }

    /// Says how far behind the log is, and that it is received again after something passing was in the way.
    fn tell_how_it_stands(&mut self) {
        if self.waiting && self.replica.is_some() && self.repair.length == PAUSE_MIN {
            self.waiting = false;
            let (stretch, position) = (self.stretch, self.pending.end().to_string());
            (self.task.tell)(&Event::Streaming { stretch, timeline: 1, position });
        }
        let said = self.watch.as_ref().and_then(Watch::take).filter(|said| said.id == self.id);
        if let Some(said) = said {
            self.lag.said(said.end, said.at);
            // Talk that waits to be stored is no data.
            let pending = &self.pending;
            let safe = if pending.unsafe_since.is_none() { pending.end() } else { pending.start };
            (self.task.tell)(&self.lag.stand(safe));
        }
    }

    fn wait(&mut self, why: String, seconds: f64) {
        self.waiting = true;
        (self.task.tell)(&Event::Waiting { why, seconds });
    }

    /// Waits briefly for what comes.
    fn receive(&mut self, stopping: bool) {
        let due = self.due_in().unwrap_or(IDLE).min(IDLE);
        let wait = if matches!(self.desk, Desk::Away(_)) { BRIEF } else { due };
        let full = self.pending.bytes.len() >= PENDING_MAX;
        let Some(replica) = self.replica.as_mut().filter(|_| !full && !stopping && !self.parted) else {
            std::thread::sleep(BRIEF.max(wait.min(IDLE / 5)));
            return;
        };
        match replica.receive(wait) {
            Ok([]) if self.heard.elapsed() > SILENCE => self.lost(&anyhow::anyhow!("the server is silent")),
            Ok([]) => {}
            Ok(bytes) => {
                let asked = self.pending.take(bytes, self.task.host.open.now());
                self.heard = Instant::now();
                self.again.length = PAUSE_MIN;
                if asked {
                    // Where all is stored but talk, the answer is known.
                    self.hurry = self.pending.unsafe_since.is_some();
                    self.told = None;
                }
            }
            Err(e) => self.lost(&e),
        }
    }

    /// The connection broke. What has come is stored whatever follows.
    fn lost(&mut self, why: &anyhow::Error) {
        self.replica = None;
        self.told = None;
        // The first try follows at once: the server's backlog moves on.
        let known = self.again.length > PAUSE_MIN;
        self.again.until = Instant::now() + if known { self.again.length } else { Duration::ZERO };
        let seconds = self.again.until.saturating_duration_since(Instant::now()).as_secs_f64();
        self.wait(format!("{why:#}"), seconds);
        self.again.length = (self.again.length * 2).min(PAUSE_MAX);
    }

    /// Takes the stream up where the received bytes end.
    fn reconnect(&mut self) {
        if Instant::now() < self.again.until {
            return;
        }
        let (place, end) = (self.task.place, self.pending.end());
        let followed = place.ask().and_then(|server| match server.lacks(&self.id, end) {
            Some(_) => Ok(Followed::Refused),
            None => place.follow(&self.id, end),
        });
        match followed {
            Ok(Followed::Same(replica)) => {
                (self.replica, self.heard) = (Some(replica), Instant::now());
                self.report.sessions += 1;
            }
            Ok(Followed::Renamed(_) | Followed::Refused) => self.parted = true,
            Err(e) => self.lost(&e),
        }
    }

    fn due_in(&self) -> Option<Duration> {
        let options = self.task.options;
        if self.hurry && self.pending.oldest.is_some() {
            return Some(Duration::ZERO);
        }
        // What a lost connection brought last waits for nothing more.
        let wait = if self.replica.is_none() { Duration::ZERO } else { options.seal_every };
        let quiet = if options.once { wait } else { options.seal_idle };
        self.pending.due_in(wait, quiet, options.seal_bytes)
    }

    /// Takes the writer back if it has stored its piece.
    fn collect(&mut self) -> Result<()> {
        if !matches!(&self.desk, Desk::Away(handle) if handle.is_finished()) {
            return Ok(());
        }
        let Desk::Away(handle) = std::mem::replace(&mut self.desk, Desk::Lost) else { return Ok(()) };
        let writer = match handle.join().map_err(|_| anyhow::anyhow!("the writer of the log panicked"))? {
            Ok(writer) => writer,
            Err(e) if lasting(&e) || self.task.options.once => return Err(e),
            Err(e) => {
                self.pending.come_back();
                self.wait(format!("{e:#}"), self.repair.length.as_secs_f64());
                self.repair.until = Instant::now() + self.repair.length;
                self.repair.length = (self.repair.length * 2).min(PAUSE_MAX);
                return Ok(());
            }
        };
        let (head, before) = (writer.head(), self.pending.start);
        self.pending.stored(head.end);
        if head.end > before {
            // Only what is stored shows that the store takes it.
            self.repair.length = PAUSE_MIN;
            let (time, bytes, position) = (writer.time().unwrap_or_default(), head.end - before, head.end.to_string());
            self.report.pieces += 1;
            self.report.bytes += bytes;
            (self.report.position, self.report.time) = (position.clone(), Some(time));
            (self.task.tell)(&Event::Stored { timeline: 1, position, time, bytes });
        }
        self.hurry &= self.pending.unsafe_since.is_some();
        self.desk = Desk::Here(writer);
        Ok(())
    }

    /// Sends the writer off with what is due; or somebody to find out how far it came, where it was lost.
    fn hand_over<'env>(&mut self, scope: &'scope Scope<'scope, 'env>) -> Result<()>
    where
        't: 'scope,
    {
        let ending = self.parted || is_to_end(self.task.stop);
        let due = ending || self.due_in().is_some_and(|wait| wait.is_zero());
        let task = *self.task;
        let (author, source) = (task.author(), task.source);
        let spawn = |work: Box<dyn FnOnce() -> Result<Box<Writer<'t>>> + Send + 'scope>| {
            std::thread::Builder::new()
                .name("log".into())
                .spawn_scoped(scope, work)
                .context("start a thread that stores the log")
        };
        match std::mem::replace(&mut self.desk, Desk::Lost) {
            Desk::Here(mut writer) if due && !self.pending.bytes.is_empty() => {
                let head = writer.head().end;
                let room = usize::try_from(unit_end(head, writer.stretch.unit) - head)?;
                let (bytes, marks): (Vec<u8>, Vec<Mark>) = self.pending.send(room.min(LOG_UNIT_MAX), writer.now());
                let time = marks.last().map_or_else(|| writer.now(), |mark| mark.time);
                let work = move || writer.append_marked(&bytes, time, &marks).map(|()| writer);
                self.desk = Desk::Away(spawn(Box::new(work))?);
            }
            Desk::Lost if Instant::now() >= self.repair.until => {
                let (start, end, id) = (self.pending.start, self.pending.end(), self.id.clone());
                let (store, trust) = (author.store, author.trust);
                let work = move || {
                    let log = crate::repository::log::Log::list(store, trust, source)?;
                    let writer = Writer::resume(author, &log)?;
                    let same = writer.stretch.id.as_ref() == Some(&id) && (start..=end).contains(&writer.head().end);
                    anyhow::ensure!(
                        same && !writer.goes_on_beside(),
                        "the log does not end where this receiver left it"
                    );
                    Ok(Box::new(writer))
                };
                self.desk = Desk::Away(spawn(Box::new(work))?);
            }
            other => self.desk = other,
        }
        Ok(())
    }

    /// Finds the snapshot that the log goes on from, or has one made. Without one nothing that is stored can be brought back.
    fn look_for_base<'env>(&mut self, scope: &'scope Scope<'scope, 'env>) -> Result<()>
    where
        't: 'scope,
    {
        if self.look.as_ref().is_some_and(ScopedJoinHandle::is_finished)
            && let Some(look) = self.look.take()
        {
            self.look_again.until = Instant::now() + self.look_again.length;
            self.look_again.length = (self.look_again.length * 2).min(LOOK_EVERY_MAX);
            match look.join().map_err(|_| anyhow::anyhow!("the search for a snapshot panicked"))? {
                Ok(found) => self.base = found,
                Err(e) => {
                    self.look_again.until = Instant::now() + BASE_AGAIN;
                    let text = format!("there is no snapshot yet that the log goes on from: {e:#}");
                    (self.task.tell)(&Event::Note { text });
                }
            }
            if self.base.is_some() {
                self.told = None;
            }
        }
        let idle = self.base.is_some() || self.look.is_some() || self.parted || self.task.options.once;
        if idle || Instant::now() < self.look_again.until || is_to_end(self.task.stop) {
            return Ok(());
        }
        let (open, source, make) = (&self.task.host.open, self.task.source, self.task.base);
        let find = move || -> Result<Option<u64>> {
            let log = crate::repository::log::Log::list(&open.store, &open.trust, source)?;
            Ok(base(&log, &Series::list(&open.store, &open.trust, source)?.whole()))
        };
        let work = move || match (find()?, make) {
            (None, Some(make)) => make().and_then(|()| find()),
            (found, _) => Ok(found),
        };
        let thread = std::thread::Builder::new().name("base".into()).spawn_scoped(scope, work);
        self.look = Some(thread.context("start a thread that looks for a snapshot")?);
        Ok(())
    }

    /// How much can be brought back from the repository alone.
    fn safe(&self) -> u64 {
        if self.base.is_some_and(|base| base <= self.pending.start) { self.pending.start } else { 0 }
    }

    /// Tells the server what is safe: at once when that has grown or the server asks, and now and then to stay connected.
    fn acknowledge(&mut self) {
        let safe = self.safe();
        let behind = safe == 0 || self.pending.unsafe_since.is_some_and(|since| since.elapsed() > UNSAFE);
        let every = if behind { ACK_EVERY_UNSAFE } else { ACK_EVERY };
        let due = self.told.is_none_or(|(told, at)| at.elapsed() > every || told != safe);
        let Some(replica) = self.replica.as_mut().filter(|_| due) else { return };
        match replica.acknowledge(safe) {
            Ok(()) => self.told = Some((safe, Instant::now())),
            Err(e) => self.lost(&e),
        }
    }

    fn finish(&mut self) -> Result<End> {
        self.acknowledge();
        if let Desk::Here(writer) = &self.desk {
            self.report.time = self.report.time.or(writer.time());
        }
        let stopping = is_to_end(self.task.stop) || self.task.options.once;
        Ok(if self.parted && !stopping { End::Anew } else { End::Done })
    }
}
