//! What the agent looks at beside the clock: its configuration, and the repository.

use anyhow::Context;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::daemon::{Agent, Signal};
use super::observe::observe;
use super::receivers::Standing;
use super::watch;
use super::work::open;
use crate::config::Config;
use crate::job::Job;
use crate::operations::evidence::Level;
use crate::repository::layout::SourceName;

/// Changed files are looked for this often.
const FILES: Duration = Duration::from_secs(2);
/// What cannot be reached, or read, is looked at this often.
const AGAIN: Duration = Duration::from_secs(30);
/// While the snapshots do not lead into the log that is being written, the repository is looked at this often.
const UNTIL_LED: Duration = Duration::from_secs(5);

impl Agent {
    /// Makes the jobs of the configuration the agent's own.
    pub(super) fn take_up(&mut self, now: Timestamp) {
        let key = self.config.drill_key();
        let before = std::mem::take(&mut self.jobs);
        self.jobs = self.config.jobs.iter().filter(|job| job.enabled).cloned().collect();
        let drills = self.jobs.iter().any(|job| job.drills().next().is_some());
        self.drill_key_missing = (drills && !key.exists()).then(|| key.display().to_string());
        if self.drill_key_missing.is_some() {
            self.jobs.iter_mut().for_each(|job| job.tasks.retain(|task, _| !task.is_drill()));
        }
        self.edited.retain(|source, _| self.jobs.iter().any(|job| job.source == *source));
        for job in &self.jobs {
            if before.iter().any(|old| old.source == job.source && old.tasks != job.tasks) {
                self.edited.insert(job.source.clone(), now);
            }
        }
        for job in &self.config.jobs {
            let tasks: Vec<String> = job.tasks.iter().map(|(task, rhythm)| format!("{task} {rhythm}")).collect();
            let file = job.file.display().to_string();
            tracing::info!(source = %job.source, enabled = job.enabled, file, tasks = tasks.join(", "), "job");
        }
        self.memory.learn(&self.jobs, &self.catalog, now);
        let sources = self.observed_sources();
        self.seen.retain(|source, _| sources.contains(source));
        self.endings.learn(&self.config.jobs, &self.catalog);
        self.observed = None;
    }

    /// A configuration that is written in several steps counts once it has been the same for two looks.
    pub(super) fn look_for_changes(&mut self) {
        if self.files_at.elapsed() < FILES {
            return;
        }
        self.files_at = Instant::now();
        let files = watch::signature(&self.config);
        if files != self.files && files == self.files_before {
            self.reload();
        }
        self.files_before = files;
    }

    /// Reads the configuration again. One that is wrong changes nothing, and is told of.
    pub(super) fn reload(&mut self) {
        self.files = watch::signature(&self.config);
        let loaded = Config::load(Some(&self.config.file)).and_then(|config| {
            self.teller.reload(&config).context("start the threads for notices")?;
            self.config = Arc::new(config);
            self.take_up(self.clock.now());
            Ok(())
        });
        match &loaded {
            Ok(()) => tracing::info!(jobs = self.jobs.len(), "the configuration is read again"),
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the configuration is wrong; the agent goes on with the old one"
                );
            }
        }
        self.configuration = loaded.map_err(|error| format!("{error:#}"));
    }

    pub(super) fn look_at_the_repository(&mut self, standings: &BTreeMap<SourceName, Standing>) {
        let interval = Duration::try_from(self.config.agent.observe).unwrap_or_default();
        // What cannot be reached is looked at more often: one wants to know when it is back.
        let well = matches!(self.repository, Some(Ok(()))) && self.seen.values().all(|seen| seen.unread.is_none());
        let interval = if !well { interval.min(AGAIN) } else { interval };
        if self.observed.is_none_or(|at| at.elapsed() >= interval) && !self.observing {
            self.to_observe.extend(self.observed_sources());
            self.observed = self.observed.map(|_| Instant::now());
            self.start_observing();
            return;
        }
        for (source, (stretch, since)) in standings.iter().filter_map(|(source, s)| Some((source, s.stretch?))) {
            let Some(seen) = self.seen.get(source) else { continue };
            let led = seen.into == Some(stretch);
            let now = self.clock.now();
            let again = seen.looked.is_none_or(|at| at <= since || now.duration_since(at).unsigned_abs() > UNTIL_LED);
            // What the store does not give is asked for again with the rest.
            if !led && again && seen.unread.is_none() {
                self.to_observe.insert(source.clone());
            }
        }
        if !self.to_observe.is_empty() && !self.observing {
            self.start_observing();
        }
    }

    fn start_observing(&mut self) {
        let levels = |source: &SourceName| -> BTreeSet<Level> {
            let jobs = self.jobs.iter().filter(|job| job.source == *source);
            jobs.flat_map(|job| job.drills().map(|(level, _)| level).collect::<Vec<_>>()).collect()
        };
        let sources: BTreeMap<SourceName, BTreeSet<Level>> =
            self.to_observe.iter().map(|source| (source.clone(), levels(source))).collect();
        self.to_observe.clear();
        let (config, clock, sender, before) =
            (Arc::clone(&self.config), Arc::clone(&self.clock), self.sender.clone(), self.seen.clone());
        let look = move || {
            let result = open(&config, &clock).and_then(|open| observe(&open, &sources, &before));
            // The agent may have ended meanwhile.
            drop(sender.send(Signal::Observed(result.map_err(|error| format!("{error:#}")))));
        };
        match std::thread::Builder::new().name("observe".into()).spawn(look) {
            Ok(_) => self.observing = true,
            Err(error) => tracing::error!(%error, "the repository cannot be looked at"),
        }
    }

    /// What jobs are for, what their plans restore, and the groups, with a job or without.
    fn observed_sources(&self) -> BTreeSet<SourceName> {
        let jobs = self.config.jobs.iter().filter(|job| job.enabled);
        let planned = |job: &Job| job.plan.iter().flat_map(|plan| plan.sources.clone()).collect::<Vec<_>>();
        let of_jobs = jobs.flat_map(|job| [vec![job.source.clone()], planned(job)].concat());
        of_jobs.chain(self.config.group.iter().map(|group| SourceName::of_group(&group.name))).collect()
    }
}
