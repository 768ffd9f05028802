//! What the agent shows of itself: figures for the page of metrics and for node_exporter's file.

use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Agent;
use super::canaries::Beat;
use super::observe::{Drilled, Seen};
use super::receivers::Standing;
use super::work::Ran;
use crate::catalog::Run;
use crate::durable;
use crate::job::{Job, Rhythm};
use crate::metrics::{self, CanaryFigures, DrillFigures, LevelFigures, LogFigures, SourceFigures};
use crate::operations::evidence::Level;
use crate::operations::receiver::Event;
use crate::repository::layout::SourceName;
use crate::scheduler::{self, Decision, State};

type Standings = BTreeMap<SourceName, Standing>;

/// The metrics file is written this often.
const METRICS_FILE: Duration = Duration::from_secs(15);

impl Agent {
    /// Counts a run that has ended.
    pub(super) fn count(&mut self, ran: &Ran) {
        let run = &ran.run;
        let (source, task) = (run.source.to_string(), run.task.name());
        *self.figures.runs.entry((source.clone(), task, run.result.clone())).or_default() += 1;
        self.figures.durations.insert((source.clone(), task), run.seconds);
        let read = if run.task.is_drill() { "fetched" } else { "read" };
        *self.figures.bytes.entry((source.clone(), read)).or_default() += ran.bytes_read;
        *self.figures.bytes.entry((source, "stored")).or_default() += ran.bytes_stored;
    }

    /// Shows what is known to those who watch: the page of metrics, the file, systemd's status.
    pub(super) fn show(
        &mut self,
        decisions: &[Decision],
        history: &scheduler::History,
        (standings, beats): (&Standings, &BTreeMap<SourceName, Beat>),
        now: Timestamp,
    ) {
        let figures = &mut self.figures;
        figures.tick = Some(now);
        figures.running = self.running.len() as u64;
        figures.repository_up = self.repository.as_ref().map(Result::is_ok);
        figures.configuration_ok = self.configuration.is_ok();
        figures.alarms = self.teller.standing();
        // A counter that begins at one has not risen: all begin at nought.
        for (job, task) in self.jobs.iter().flat_map(|job| job.tasks.keys().map(move |task| (job, task))) {
            for result in Run::RESULTS {
                figures.runs.entry((job.source.to_string(), task.name(), result.to_owned())).or_default();
            }
        }
        let nought = || self.config.notify.iter().map(|channel| (channel.name.clone(), 0));
        figures.notices_failed = nought().chain(self.teller.failed.clone()).collect();
        figures.notices_sent = nought().chain(self.teller.sent.clone()).collect();
        figures.sources = self
            .jobs
            .iter()
            .map(|job| {
                let figures = figures_of(job, history, &self.seen, decisions);
                let log = standings.get(&job.source).map(of_log);
                (job.source.to_string(), SourceFigures { log, ..figures })
            })
            .collect();
        figures.canaries = beats
            .iter()
            .map(|(source, beat)| {
                (source.to_string(), CanaryFigures { written: beat.written, up: beat.failing.is_none() })
            })
            .collect();
        *self.shared.figures() = figures.clone();
        let Some(path) = &self.config.agent.metrics_file else { return };
        if self.metrics_file_at.is_some_and(|at| at.elapsed() < METRICS_FILE) {
            return;
        }
        self.metrics_file_at = Some(Instant::now());
        let path = self.config.base().join(path);
        let written =
            metrics::textfile(figures).and_then(|page| Ok(durable::publish_over(&path, page.as_bytes(), 0o644)?));
        if let Err(error) = written {
            tracing::warn!(error = format!("{error:#}"), path = %path.display(), "the metrics file cannot be written");
        }
    }
}

fn figures_of(
    job: &Job,
    history: &scheduler::History,
    seen: &BTreeMap<SourceName, Seen>,
    decisions: &[Decision],
) -> SourceFigures {
    let past = history.get(&job.source).cloned().unwrap_or_default();
    let seen = seen.get(&job.source).cloned().unwrap_or_default();
    let done = past.tasks.iter().filter_map(|(task, p)| Some((task.name(), p.last.filter(|l| l.done)?.finished)));
    let engine = seen.drills.get(&Level::Engine).cloned();
    let own = decisions.iter().filter(|d| d.source == job.source && d.state != State::Running);
    if seen.retired.is_some() {
        // What is given up has no targets, and nothing that could be late.
        return SourceFigures { newest: past.newest, head: seen.head.map(|(seq, _)| seq), ..SourceFigures::default() };
    }
    SourceFigures {
        // A plan has no recovery points of its own.
        newest: past.newest.filter(|_| job.plan.is_none()),
        reaches: past.reaches.max(past.newest).filter(|_| job.plan.is_none()),
        looked: seen.looked,
        verified: seen.verified.newest,
        plan_verified: job
            .plan
            .as_ref()
            .map(|plan| seen.plan == Some(plan.hash) && engine.as_ref().is_some_and(|drill| drill.passed)),
        head: seen.head.map(|(seq, _)| seq),
        rpo_seconds: job.rpo.map(|d| d.as_secs_f64()),
        rto_seconds: job.rto.map(|d| d.as_secs_f64()),
        expected_interval_seconds: scheduler::expected_interval(job, past.usual).map(|d| d.as_secs_f64()),
        drill: engine.as_ref().map(of_drill),
        levels: job
            .drills()
            .map(|(level, rhythm)| (level.name(), level_figures(seen.drills.get(&level), rhythm)))
            .collect(),
        last_success: done.collect(),
        log: None,
        next: own.map(|d| (d.task.name(), d.at)).collect(),
    }
}

fn level_figures(last: Option<&Drilled>, rhythm: &Rhythm) -> LevelFigures {
    LevelFigures {
        last: last.map(|drill| (drill.span.finished, drill.passed)),
        interval_seconds: rhythm.gaps().1.as_secs_f64(),
    }
}

pub fn of_drill(drill: &Drilled) -> DrillFigures {
    let Drilled { span, passed, seconds, phases, canary_age, .. } = drill;
    let (passed, seconds, canary_age) = (*passed, *seconds, *canary_age);
    DrillFigures { passed, finished: span.finished, seconds, phases: phases.clone(), canary_age }
}

fn of_log(standing: &Standing) -> LogFigures {
    LogFigures {
        up: standing.down.is_none(),
        current: standing.current,
        behind_bytes: standing.behind,
        retained_bytes: standing.slot.as_ref().map(|(bytes, _)| *bytes),
        endangered: standing.slot.as_ref().is_some_and(|(_, status)| Event::is_endangered(status)),
        stored_bytes: standing.bytes,
        gaps: standing.gaps,
        restarts: standing.restarts,
    }
}
