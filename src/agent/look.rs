//! When the agent looks at the repository, and at what in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Agent;
use super::daemon::Signal;
use super::observe::observe;
use super::work::open;
use crate::job::Job;
use crate::repository::layout::SourceName;

impl Agent {
    pub(super) fn look_at_the_repository(&mut self) {
        let interval = Duration::try_from(self.config.agent.observe).unwrap_or_default();
        // What cannot be reached is looked at more often: one wants to know when it is back.
        let interval = if self.repository.is_err() { interval.min(Duration::from_secs(30)) } else { interval };
        if self.observed.is_none_or(|at| at.elapsed() >= interval) && !self.observing {
            self.to_observe.extend(self.observed_sources());
            self.observed = self.observed.map(|_| Instant::now());
            self.start_observing();
        } else if !self.to_observe.is_empty() && !self.observing {
            self.start_observing();
        }
    }

    fn start_observing(&mut self) {
        let sources: Vec<SourceName> = std::mem::take(&mut self.to_observe).into_iter().collect();
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

    /// What jobs are for, and what their plans restore.
    pub(super) fn observed_sources(&self) -> BTreeSet<SourceName> {
        let jobs = self.config.jobs.iter().filter(|job| job.enabled);
        let planned = |job: &Job| job.plan.iter().flat_map(|plan| plan.sources.clone()).collect::<Vec<_>>();
        jobs.flat_map(|job| [vec![job.source.clone()], planned(job)].concat()).collect()
    }
}
