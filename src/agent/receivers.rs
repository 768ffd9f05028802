//! Receivers of logs: a thread for each source that is continuous. One that ends is started again, after ever longer pauses; the repository alone
//! knows how far it came, so that it may end at any moment. What a receiver says is kept as its [`Standing`], which others look at: there is no queue.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::work::host;
use crate::clock::Clock;
use crate::config::{Config, SourceConfig, SourceKind};
use crate::error::help_of;
use crate::limits::LEVEL;
use crate::operations::receiver::Event;
use crate::operations::wal::replicate::{self, replicate};
use crate::operations::wal::{receive, recover};
use crate::repository::layout::SourceName;
use crate::source::postgres;

/// Before a receiver that has ended is started again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a receiver stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// The stretch of the log that it writes, and since when.
    pub stretch: Option<(u64, Timestamp)>,
    /// Since when it does not stream, and why, as far as it has said; none while it does.
    pub down: Option<(Timestamp, String)>,
    /// The last moment, by the engine's clock, at which all that the engine had was stored.
    pub current: Option<Timestamp>,
    /// Bytes of the engine's log that are not stored.
    pub behind: u64,
    /// Bytes that the engine keeps for it, and the engine's word for how sure that is.
    pub slot: Option<(u64, String)>,
    /// Why the last gap came to be.
    pub gap: Option<String>,
    /// Since the start of the agent.
    pub bytes: u64,
    pub gaps: u64,
    pub restarts: u64,
}

struct Receiver {
    stop: Arc<AtomicBool>,
    standing: Arc<Mutex<Standing>>,
    /// What it was started with: when that changes, it is started anew.
    made_of: String,
    thread: Option<JoinHandle<Result<()>>>,
    begun: Instant,
    pause: Duration,
}

/// All receivers of one agent.
#[derive(Default)]
pub struct Receivers(BTreeMap<SourceName, Receiver>);

impl Receivers {
    /// Starts those that are to run and do not, and stops those that are to run no more, or otherwise.
    /// None runs for what is `given_up`.
    pub fn tend(&mut self, config: &Arc<Config>, given_up: &BTreeSet<&SourceName>, clock: &Arc<dyn Clock>) {
        let wanted = wanted(config).filter(|source| !given_up.contains(&source.name));
        let wanted: BTreeMap<&SourceName, String> = wanted.map(|s| (&s.name, made_of(config, s))).collect();
        for (source, receiver) in &mut self.0 {
            receiver.look(source, clock.now());
            if wanted.get(source) != Some(&receiver.made_of) {
                receiver.stop.store(true, Ordering::SeqCst);
            }
        }
        self.0.retain(|source, receiver| {
            receiver.thread.is_some() || wanted.get(source).is_some_and(|made_of| *made_of == receiver.made_of)
        });
        for (source, made_of) in wanted {
            let receiver = self.0.entry(source.clone()).or_insert_with(|| Receiver::new(made_of, clock.now()));
            if receiver.thread.is_none() && receiver.begun.elapsed() >= receiver.pause {
                receiver.start(source, config, clock);
            }
        }
    }

    /// Asks all of them to end. What has come is stored first.
    pub fn stop(&self) {
        self.0.values().for_each(|receiver| receiver.stop.store(true, Ordering::SeqCst));
    }

    /// Those that have not ended.
    pub fn running(&self) -> impl Iterator<Item = &SourceName> {
        let running = |r: &Receiver| r.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        self.0.iter().filter(move |(_, receiver)| running(receiver)).map(|(source, _)| source)
    }

    pub fn standings(&self) -> BTreeMap<SourceName, Standing> {
        self.0.iter().map(|(source, receiver)| (source.clone(), locked(&receiver.standing).clone())).collect()
    }
}

/// Continuous sources with a job that is switched on.
fn wanted(config: &Config) -> impl Iterator<Item = &SourceConfig> {
    let on = |source: &SourceConfig| config.jobs.iter().any(|job| job.enabled && job.source == source.name);
    config.source.iter().filter(move |source| source.continuous && on(source))
}

/// Secrets are named in it, not contained.
fn made_of(config: &Config, source: &SourceConfig) -> String {
    let Config { repository, root, host, host_key, level, .. } = config;
    format!(
        "{repository} {root:?} {host:?} {host_key:?} {level:?} {:?} {:?} {:?} {:?}",
        source.url, source.password, source.postgres, source.redis
    )
}

fn locked(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    fn new(made_of: String, now: Timestamp) -> Receiver {
        let standing = Standing { down: Some((now, "it has only just been started".into())), ..Standing::default() };
        Receiver {
            stop: Arc::default(),
            standing: Arc::new(Mutex::new(standing)),
            made_of,
            thread: None,
            begun: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    fn start(&mut self, source: &SourceName, config: &Arc<Config>, clock: &Arc<dyn Clock>) {
        let (config, clock, name) = (Arc::clone(config), Arc::clone(clock), source.clone());
        let (stop, standing) = (Arc::clone(&self.stop), Arc::clone(&self.standing));
        let work = move || {
            let tell = |event: &Event| {
                log(&name, event);
                locked(&standing).take(event, clock.now());
            };
            carry_out(&config, &clock, &name, &stop, &tell)
        };
        self.begun = Instant::now();
        match std::thread::Builder::new().name(format!("log of {source}")).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::error!(%error, source = %source, "a receiver could not be started"),
        }
    }

    /// Takes note if it has ended.
    fn look(&mut self, source: &SourceName, now: Timestamp) {
        let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) else { return };
        let why = match thread.join() {
            Ok(Ok(())) => "it was stopped".to_owned(),
            Ok(Err(error)) => match help_of(&error) {
                Some(help) => format!("{error:#}. {help}"),
                None => format!("{error:#}"),
            },
            Err(_) => "it panicked; this is a bug in blackstart, please report it".to_owned(),
        };
        let mut standing = locked(&self.standing);
        standing.restarts += 1;
        let since = standing.down.as_ref().map_or(now, |(since, _)| *since);
        // One that has worked for a while begins with a short pause again.
        self.pause =
            if self.begun.elapsed() > PAUSE_MAX { PAUSE_MIN } else { (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX) };
        if !self.stop.load(Ordering::SeqCst) {
            tracing::error!(source = %source, seconds = self.pause.as_secs_f64(), "the receiver ended and is started again: {why}");
        }
        standing.down = Some((since, why));
    }
}

impl Standing {
    /// Takes note of what the receiver says.
    pub fn take(&mut self, event: &Event, now: Timestamp) {
        match event {
            Event::Streaming { stretch, .. } => {
                self.down = None;
                if self.stretch.is_none_or(|(known, _)| known != *stretch) {
                    (self.stretch, self.current) = (Some((*stretch, now)), None);
                }
            }
            Event::Stored { bytes, .. } => self.bytes += bytes,
            Event::Lag { bytes, current } => {
                self.behind = *bytes;
                // What was said while the clock was ahead says nothing.
                let known = self.current.filter(|at| *at <= now);
                self.current = known.max(current.map(|at| at.min(now)));
            }
            Event::Gap { why } => {
                self.gap = Some(why.clone());
                self.gaps += 1;
            }
            Event::Slot { retained, status } => self.slot = Some((*retained, status.clone())),
            Event::Waiting { why, .. } => {
                let since = self.down.as_ref().map_or(now, |(since, _)| *since);
                self.down = Some((since, why.clone()));
            }
            Event::Timeline { .. } | Event::Note { .. } => {}
        }
    }
}

fn log(source: &SourceName, event: &Event) {
    match event {
        Event::Streaming { stretch, timeline, position } => {
            tracing::info!(source = %source, stretch, timeline, position, "the log is received");
        }
        Event::Timeline { timeline, position } => {
            tracing::info!(source = %source, timeline, position, "the log goes on with another timeline");
        }
        Event::Gap { why } => tracing::error!(source = %source, why, "a gap in the log"),
        Event::Waiting { why, seconds } => tracing::warn!(source = %source, why, seconds, "the log is not received"),
        Event::Note { text } => tracing::warn!(source = %source, "{text}"),
        Event::Slot { retained, status } if Event::is_endangered(status) => {
            tracing::error!(source = %source, retained, status, "the server may remove what is not stored yet");
        }
        Event::Slot { .. } | Event::Stored { .. } | Event::Lag { .. } => {}
    }
}

/// Receives until told to stop. `Err`: what does not pass by itself, or not here.
fn carry_out(
    config: &Config,
    clock: &Arc<dyn Clock>,
    source: &SourceName,
    stop: &AtomicBool,
    tell: &dyn Fn(&Event),
) -> Result<()> {
    let source = config.source.iter().find(|s| s.name == *source).context("it is no source any more")?;
    let host = host(config, clock)?;
    match source.kind {
        SourceKind::Postgres => {
            let url = source.url.as_ref().with_context(|| format!("source {} has no url", source.name))?;
            let address = postgres::address(url, source.password.as_ref(), config.base())?;
            let from = recover::newest_end(&host.open, &source.name)?.map(|range| (range.timeline, range.end.0));
            let options = receive::Options { from, ..options(config, source) };
            receive::receive(&host, &source.name, &address, &options, stop, tell).map(drop)
        }
        SourceKind::Redis => {
            let place = config.open_redis(source, clock)?.place();
            let from = recover::newest_end(&host.open, &source.name)?;
            let from = from.and_then(|range| Some((range.id?, range.end.0)));
            let options = replicate::Options { from, ..stream_options(config, source) };
            // Snapshots are the scheduler's: it sees that the log needs one.
            let name = &source.name;
            let task =
                replicate::Task { host: &host, source: name, place: &place, options: &options, stop, tell, base: None };
            replicate(&task).map(drop)
        }
        kind => anyhow::bail!("a source of kind {} has no log", kind.name()),
    }
}

/// How the log of a PostgreSQL source is received.
pub fn options(config: &Config, source: &SourceConfig) -> receive::Options {
    let settings = source.postgres.clone().unwrap_or_default();
    let named = || format!("blackstart_{}", source.name.as_str().replace('-', "_")).chars().take(63).collect();
    let mut options = receive::Options {
        level: config.level.unwrap_or(LEVEL),
        ..receive::Options::new(settings.slot.unwrap_or_else(named))
    };
    if let Some(wait) = settings.seal_every {
        options.seal_every = wait.unsigned_abs();
    }
    options
}

/// How the replication stream of a Redis source is received.
pub fn stream_options(config: &Config, source: &SourceConfig) -> replicate::Options {
    let mut options = replicate::Options { level: config.level.unwrap_or(LEVEL), ..replicate::Options::default() };
    if let Some(wait) = source.redis.as_ref().and_then(|settings| settings.seal_every) {
        options.seal_every = wait.unsigned_abs();
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::path::Path;

    /// A continuous source with a job that says so much more.
    fn config(at: &Path, job: &str) -> Arc<Config> {
        let put = |name: &str, text: String| {
            crate::durable::publish_over(&at.join(name), text.as_bytes(), 0o600).unwrap();
        };
        crate::durable::create_directories(&at.join("schedules")).unwrap();
        let source =
            "[[source]]\nname = \"db\"\nkind = \"postgres\"\nurl = \"postgres://u@127.0.0.1:1/d\"\ncontinuous = true\n";
        put("blackstart.toml", format!("repository = \"./nowhere\"\n{source}"));
        put("schedules/db.toml", format!("source = \"db\"\nrpo = \"1h\"\n{job}"));
        Arc::new(Config::load(Some(&at.join("blackstart.toml"))).unwrap())
    }

    #[test]
    fn a_receiver_runs_for_a_source_whose_job_is_on_and_that_is_not_given_up() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let home = tempfile::tempdir().unwrap();
        let name = SourceName::new("db").unwrap();
        let mut receivers = Receivers::default();
        let mut tend = |job: &str, given_up: BTreeSet<&SourceName>| {
            receivers.tend(&config(home.path(), job), &given_up, &clock);
            receivers.0.values().map(|receiver| receiver.stop.load(Ordering::SeqCst)).collect::<Vec<_>>()
        };
        let none = BTreeSet::new;
        assert!(tend("enabled = false\n", none()).is_empty(), "its job is switched off");
        assert!(tend("", BTreeSet::from([&name])).is_empty(), "it is given up");
        assert_eq!(tend("", none()), [false], "it is to run");
        // One that runs, or has just ended for want of a repository, is stopped or gone.
        assert!(tend("enabled = false\n", none()).iter().all(|stopped| *stopped), "its job was switched off");
    }
}
