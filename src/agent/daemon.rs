//! The scheduler's loop. Everything here happens on one thread; what takes time happens on others and reports back.

use anyhow::{Context, Result};
use jiff::Timestamp;
use sd_notify::NotifyState;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::canaries::Canaries;
use super::memory::Memory;
use super::observe::Seen;
use super::page::Page;
use super::problems::{Endings, View, problems};
use super::receivers::Receivers;
use super::serve::Shared;
use super::tell::Teller;
use super::work::{Order, Ran, carry_out, run_id};
use super::{watch, work};
use crate::audit::{AuditLog, Entry, Phase, Who};
use crate::catalog::{Catalog, Run};
use crate::clock::Clock;
use crate::config::Config;
use crate::job::{Job, Task};
use crate::metrics::Figures;
use crate::notify::Delivered;
use crate::repository::layout::SourceName;
use crate::scheduler::{self, Decision, Limits, State};

/// The scheduler looks at the clock at least this often.
const TICK: Duration = Duration::from_secs(1);
/// Drills at the same time: each needs room for a whole source, and the network.
const DRILLS: usize = 1;

/// What the scheduler is told.
pub enum Signal {
    /// End, as soon as what is under way has ended.
    Stop,
    /// Read the configuration again.
    Reload,
    Ran(Box<Ran>),
    Observed(Result<BTreeMap<SourceName, Seen>, String>),
    Delivered(Box<Delivered>),
}

/// How the agent ended: the runs that were still under way. Each is as if it had never begun; its snapshot is not committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    pub abandoned: Vec<String>,
}

type Signature = Vec<(PathBuf, u64, u128)>;

pub struct Agent {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: Arc<Config>,
    /// Of the configuration, those that can run here.
    pub(super) jobs: Vec<Job>,
    pub(super) drill_key_missing: Option<String>,
    /// Jobs whose schedule has changed while the agent ran, and when: nobody can be late with what was not promised yet.
    pub(super) edited: BTreeMap<SourceName, Timestamp>,
    pub(super) catalog: Catalog,
    audit: AuditLog,
    pub(super) memory: Memory,
    pub(super) seen: BTreeMap<SourceName, Seen>,
    pub(super) endings: Endings,
    pub(super) running: BTreeMap<(SourceName, Task), Order>,
    pub(super) receivers: Receivers,
    pub(super) canaries: Canaries,
    /// Sources to be looked at in the repository.
    pub(super) to_observe: BTreeSet<SourceName>,
    pub(super) observing: bool,
    pub(super) observed: Option<Instant>,
    /// Whether it could be read when last looked at; none before the first look.
    pub(super) repository: Option<Result<(), String>>,
    pub(super) configuration: Result<(), String>,
    pub(super) files: Signature,
    pub(super) files_before: Signature,
    pub(super) files_at: Instant,
    pub(super) teller: Teller,
    pub(super) figures: Figures,
    pub(super) shared: Arc<Shared>,
    page: Page,
    pub(super) metrics_file_at: Option<Instant>,
    pub(super) stop: Option<Instant>,
    pub(super) sender: Sender<Signal>,
    pub(super) receiver: Receiver<Signal>,
}

impl Agent {
    /// Starts the agent: its catalog, its channels, its page of metrics. Nothing runs before [`Agent::tick`].
    pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Agent> {
        let (catalog, anew) = Catalog::open(&config.state())?;
        if let Some(anew) = anew {
            tracing::warn!("{anew}");
        }
        let (sender, receiver) = channel();
        let to = sender.clone();
        // The agent may have ended.
        let report = Arc::new(move |delivered| drop(to.send(Signal::Delivered(Box::new(delivered)))));
        let teller = Teller::start(&config, &catalog, report).context("start the threads for notices")?;
        let stalled_after = Duration::try_from(config.agent.stalled_after).unwrap_or(Duration::MAX);
        let shared = Arc::new(Shared::new(stalled_after));
        let now = clock.now();
        let clock_ = Arc::clone(&clock);
        let watched = watch::Watched { host: config.host_name(), state: config.state() };
        watch::scheduler(&shared, Arc::clone(&teller.deliveries), watched, move || clock_.now());
        let page = Page::start(&config.agent, &shared)?;
        let files = watch::signature(&config);
        let mut agent = Agent {
            clock,
            jobs: Vec::new(),
            drill_key_missing: None,
            edited: BTreeMap::new(),
            catalog,
            audit: AuditLog::below(&config.state()),
            memory: Memory::default(),
            seen: BTreeMap::new(),
            endings: Endings::default(),
            running: BTreeMap::new(),
            receivers: Receivers::default(),
            canaries: Canaries::default(),
            to_observe: BTreeSet::new(),
            observing: false,
            observed: None,
            repository: None,
            configuration: Ok(()),
            files_before: files.clone(),
            files,
            files_at: Instant::now(),
            teller,
            figures: Figures { started: Some(now), ..Figures::default() },
            shared,
            page,
            metrics_file_at: None,
            stop: None,
            sender,
            receiver,
            config: Arc::new(config),
        };
        agent.take_up(now);
        if let Some(since) = watch::stalled_before(&agent.config.state()) {
            agent.teller.stalled(since);
        }
        Ok(agent)
    }

    /// What to send signals to.
    pub fn sender(&self) -> Sender<Signal> {
        self.sender.clone()
    }

    /// Runs until a signal stops it.
    pub fn run(mut self) -> Stopped {
        watch::systemd(&[NotifyState::Ready, NotifyState::Status("running")]);
        loop {
            let pause = self.tick();
            if let Some(until) = self.stop
                && (self.is_idle() || Instant::now() >= until)
            {
                let receivers = self.receivers.running().map(|source| format!("the receiver of {source}'s log"));
                let name = |((source, task), order): (&(SourceName, Task), &Order)| {
                    format!("{task} of {source} ({})", order.run)
                };
                return Stopped { abandoned: self.running.iter().map(name).chain(receivers).collect() };
            }
            match self.receiver.recv_timeout(pause) {
                Ok(signal) => self.take(signal),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            while let Ok(signal) = self.receiver.try_recv() {
                self.take(signal);
            }
        }
    }

    /// Whether no run, no receiver and no canary is under way.
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.receivers.running().next().is_none() && self.canaries.is_idle()
    }

    /// Takes what the threads have reported so far, without waiting. True if nothing is under way.
    pub fn settle(&mut self) -> bool {
        while let Ok(signal) = self.receiver.try_recv() {
            self.take(signal);
        }
        self.running.is_empty() && !self.observing && self.to_observe.is_empty() && self.observed.is_some()
    }

    /// Looks at the clock once: starts what is due, tells what is wrong. Gives how long it may sleep.
    pub fn tick(&mut self) -> Duration {
        let now = self.clock.now();
        self.shared.beat();
        watch::systemd(&[NotifyState::Watchdog]);
        self.look_for_changes();
        self.page.tend(&self.config.agent, &self.shared);
        if let Some(since) = self.shared.take_stall() {
            tracing::warn!(%since, "the scheduler goes on");
            self.teller.stalled(since);
        }
        // A source that is given up would get a receiver, and its server a slot, before the first look shows it.
        if self.stop.is_none() && self.observed.is_some() {
            let given_up: BTreeSet<&SourceName> =
                self.seen.iter().filter(|(_, seen)| seen.retired.is_some()).map(|(source, _)| source).collect();
            let read = self.running.keys().filter(|(_, task)| task.is_backup()).map(|(source, _)| source);
            let left_alone = read.chain(given_up.iter().copied()).cloned().collect();
            self.canaries.tend(&self.config, &self.clock, &left_alone);
            self.receivers.tend(&self.config, &given_up, &self.clock);
        }
        let beats = self.canaries.beats();
        let standings = self.receivers.standings();
        self.look_at_the_repository(&standings);
        let history = self.memory.history(&self.jobs, &self.seen, &standings, now);
        // Until the repository has been read once, one cannot know what is due.
        let decisions = if self.observed.is_some() { self.decide(&history, now) } else { Vec::new() };
        if self.observed.is_some() {
            let view = View {
                jobs: &self.jobs,
                edited: &self.edited,
                history: &history,
                seen: &self.seen,
                endings: &self.endings,
                standings: &standings,
                canaries: (&beats, self.figures.started.unwrap_or(now)),
                repository: self.repository.as_ref().and_then(|r| r.as_ref().err()).map(String::as_str),
                configuration: self.configuration.as_ref().err().map(String::as_str),
                drill_key: self.drill_key_missing.as_deref(),
                channels: &self.config.notify,
                wrong_plans: &self.config.wrong_plans,
                groups: &self.config.group,
                page: self.page.wrong.as_deref(),
                mute: &self.teller.mute,
                sent: &self.teller.sent,
            };
            let findings = problems(&view, now);
            self.teller.tell(findings, &self.seen, &mut self.catalog, now);
            watch::forget_stall(&self.config.state());
        }
        self.show(&decisions, &history, (&standings, &beats), now);
        let next = decisions.iter().filter(|d| d.state == State::Waiting).map(|d| d.at).min();
        let until = next.map_or(TICK, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        until.clamp(Duration::from_millis(20), TICK)
    }

    fn decide(&mut self, history: &scheduler::History, now: Timestamp) -> Vec<Decision> {
        let (host, up_since) = (self.config.host_name(), self.figures.started.unwrap_or(now));
        let limits = Limits { host, runs: self.config.agent.runs, drills: DRILLS, up_since };
        let decisions = scheduler::plan(&self.jobs, history, &limits, now);
        if self.stop.is_none() {
            for decision in decisions.iter().filter(|d| d.state == State::Start) {
                self.start_run(decision, now);
            }
        }
        decisions
    }

    fn start_run(&mut self, decision: &Decision, now: Timestamp) {
        let Decision { source, task, why, missed, .. } = decision;
        let order = Order { run: run_id(), source: source.clone(), task: *task, why: why.clone() };
        tracing::info!(run = order.run, source = %source, task = %task, why, missed, "run started");
        if *missed > 0 {
            *self.figures.skipped.entry((source.to_string(), task.name())).or_default() += u64::from(*missed);
        }
        let members = self.jobs.iter().find(|job| job.source == *source).map(|job| job.members.clone());
        self.teller.ping((source, &members.unwrap_or_default()), *task, "/start", &order.run, now);
        self.memory.begin(source, *task, now);
        self.running.insert((source.clone(), *task), order.clone());
        let (config, clock, sender) = (Arc::clone(&self.config), Arc::clone(&self.clock), self.sender.clone());
        let carry = move || {
            let ran = carry_out(&config, &clock, &order);
            // The agent may have ended meanwhile.
            drop(sender.send(Signal::Ran(Box::new(ran))));
        };
        if let Err(error) = std::thread::Builder::new().name(format!("{task} {source}")).spawn(carry) {
            tracing::error!(%error, "a run could not be started");
            self.running.remove(&(source.clone(), *task));
            self.memory.end(&work::not_started(decision, now));
        }
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Stop if self.stop.is_some() => self.stop = Some(Instant::now()),
            Signal::Stop => {
                let patience = Duration::try_from(self.config.agent.stop_within).unwrap_or_default();
                tracing::info!(
                    running = self.running.len(),
                    seconds = patience.as_secs(),
                    "stopping; nothing new is started"
                );
                watch::systemd(&[NotifyState::Stopping]);
                self.receivers.stop();
                self.stop = Some(Instant::now() + patience);
            }
            Signal::Reload => self.reload(),
            Signal::Ran(ran) => self.ran(*ran),
            Signal::Observed(result) => {
                self.observing = false;
                self.observed.get_or_insert_with(Instant::now);
                self.shared.set_ready(result.is_ok());
                for (source, unread) in result.iter().flatten().filter_map(|(s, seen)| Some((s, seen.unread.as_ref()?)))
                {
                    tracing::error!(source = %source, since = %unread.since, error = unread.why, "the repository cannot be read");
                }
                if let Err(error) = &result {
                    tracing::error!(error, "the repository cannot be read");
                }
                self.repository = Some(result.map(|seen| self.seen.extend(seen)));
            }
            Signal::Delivered(delivered) => {
                let now = self.clock.now();
                self.teller.delivered(&delivered, &mut self.catalog, now);
            }
        }
    }

    fn ran(&mut self, ran: Ran) {
        let run = &ran.run;
        let (run_id, result, seconds) = (&run.run, &run.result, run.seconds);
        if run.done() {
            tracing::info!(run = run_id, source = %run.source, task = %run.task, result, seconds, "run ended: {}", run.line);
        } else {
            tracing::error!(run = run_id, source = %run.source, task = %run.task, result, seconds, "run ended: {}", run.line);
        }
        self.running.remove(&(run.source.clone(), run.task));
        self.write_down(run);
        let covered = self.jobs.iter().filter(|job| job.source == run.source).flat_map(|job| job.members.clone());
        let covered: Vec<SourceName> = covered.collect();
        let suffix = match run.result.as_str() {
            "done" => Some(""),
            "busy" => None,
            _ => Some("/fail"),
        };
        if let Some(suffix) = suffix {
            self.teller.ping((&run.source, &covered), run.task, suffix, &run.run, self.clock.now());
        }
        self.keep(&ran);
        // What a group's run was for its members is theirs: none of them is due again at once.
        ran.members.iter().for_each(|member| self.keep(member));
        self.to_observe.extend(covered);
        // A plan has drilled sources, too.
        let planned = self.jobs.iter().filter(|job| job.source == run.source).filter_map(|job| job.plan.as_ref());
        self.to_observe.extend(planned.flat_map(|plan| plan.sources.clone()));
    }

    /// Remembers a run, and looks at what it left in the repository.
    fn keep(&mut self, ran: &Ran) {
        let run = &ran.run;
        self.memory.end(run);
        if let Err(error) = self.catalog.record(run) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the catalog cannot be written; it is a cache, and backups go on"
            );
        }
        self.count(ran);
        self.endings.take(run);
        self.to_observe.insert(run.source.clone());
    }

    /// Notes a run in the audit log.
    fn write_down(&self, run: &Run) {
        let entry = Entry {
            version: 1,
            at: run.finished,
            id: run.run.clone(),
            phase: Phase::Ended,
            by: Who::here(),
            host: self.config.host_name(),
            verb: "agent".into(),
            arguments: vec![run.task.to_string(), run.source.to_string()],
            outcome: Some(run.result.clone()),
            exit: None,
            previous: None,
        };
        if let Err(error) = self.audit.append(entry) {
            tracing::error!(error = format!("{error:#}"), "the run is in no audit log; backups go on");
        }
    }
}
