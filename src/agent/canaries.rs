//! Canaries of all sources that have one: written by the agent while it runs, each by a thread of its own, since an engine may let it wait.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::{Config, SourceConfig};
use crate::error::help_of;
use crate::repository::layout::SourceName;

/// How the canary of a source stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beat {
    pub every: Duration,
    /// The last that this host has written, also before the agent was started.
    pub written: Option<Timestamp>,
    /// Since when it cannot be written, in how many tries, and why.
    pub failing: Option<Failing>,
    /// When it last could not be written because the source was being read: that is no failure.
    pub excused: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    pub since: Timestamp,
    pub tries: u32,
    pub why: String,
}

struct Canary {
    /// What it was configured with.
    made_of: String,
    beat: Beat,
    thread: Option<JoinHandle<Result<Timestamp>>>,
    begun: Option<Instant>,
}

/// All canaries of one agent.
#[derive(Default)]
pub struct Canaries(BTreeMap<SourceName, Canary>);

impl Canaries {
    /// Writes those that are due. A failure while its source is read is none: some engines let nobody write then.
    pub fn tend(&mut self, config: &Arc<Config>, clock: &Arc<dyn Clock>, read: &BTreeSet<SourceName>) {
        let wanted = |name: &SourceName| config.source.iter().find(|s| s.name == *name && s.canary.is_some());
        self.0.retain(|name, canary| {
            wanted(name).is_some_and(|source| made_of(source) == canary.made_of) || canary.thread.is_some()
        });
        for source in config.source.iter().filter(|source| source.canary.is_some()) {
            let name = &source.name;
            let canary = self.0.entry(name.clone()).or_insert_with(|| Canary::new(config, source));
            canary.look(name, clock.now(), read.contains(name));
            let due = canary.begun.is_none_or(|begun| begun.elapsed() >= canary.beat.every);
            if due && canary.thread.is_none() && canary.made_of == made_of(source) {
                canary.begin(config, clock, name);
            }
        }
        // One that was under way when it was taken out of the configuration.
        for (name, canary) in self.0.iter_mut().filter(|(name, _)| wanted(name).is_none()) {
            canary.look(name, clock.now(), true);
        }
    }

    /// Whether none is being written.
    pub fn is_idle(&self) -> bool {
        self.0.values().all(|canary| canary.thread.as_ref().is_none_or(JoinHandle::is_finished))
    }

    pub fn beats(&self) -> BTreeMap<SourceName, Beat> {
        self.0.iter().map(|(name, canary)| (name.clone(), canary.beat.clone())).collect()
    }
}

/// Secrets are named in it, not contained.
fn made_of(source: &SourceConfig) -> String {
    format!("{:?} {:?} {:?} {:?} {:?}", source.canary, source.kind, source.path, source.url, source.password)
}

impl Canary {
    fn new(config: &Config, source: &SourceConfig) -> Canary {
        let every = config.canary(source).ok().flatten().map_or(Duration::from_secs(60), |canary| canary.every);
        let beat = Beat { every, written: config.canary_written(&source.name), failing: None, excused: None };
        Canary { made_of: made_of(source), beat, thread: None, begun: None }
    }

    fn begin(&mut self, config: &Arc<Config>, clock: &Arc<dyn Clock>, source: &SourceName) {
        let (config, clock, name) = (Arc::clone(config), Arc::clone(clock), source.clone());
        let work = move || {
            let source = config.source.iter().find(|s| s.name == name).context("it is no source any more")?;
            let canary = config.canary(source)?.context("it has no canary any more")?;
            config.write_canary(&name, &canary, clock.now())
        };
        self.begun = Some(Instant::now());
        match std::thread::Builder::new().name(format!("canary of {source}")).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::error!(%error, source = %source, "a canary could not be begun"),
        }
    }

    /// Takes note if a writing has ended.
    fn look(&mut self, source: &SourceName, now: Timestamp, excused: bool) {
        let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) else { return };
        let why = match thread.join() {
            Ok(Ok(written)) => {
                if self.beat.failing.take().is_some() {
                    tracing::info!(source = %source, "the canary is written again");
                }
                self.beat.written = Some(written);
                return;
            }
            Ok(Err(error)) => match help_of(&error) {
                Some(help) => format!("{error:#}. {help}"),
                None => format!("{error:#}"),
            },
            Err(_) => "its thread panicked; this is a bug in blackstart, please report it".to_owned(),
        };
        if excused {
            self.beat.excused = Some(now);
            return;
        }
        tracing::warn!(source = %source, "the canary could not be written: {why}");
        let before = self.beat.failing.take();
        let (since, tries) = before.map_or((now, 0), |failing| (failing.since, failing.tries));
        self.beat.failing = Some(Failing { since, tries: tries.saturating_add(1), why });
    }
}
