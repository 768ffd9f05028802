//! The executor of plans: the same for a drill and for the real thing.
//!
//! A real run keeps a journal, so that it goes on behind its last good stage. A drill restores into scratch, signs a report for each source, and
//! one for the plan after scratch is gone.

use anyhow::Result;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::check::{Case, Copy, Engines, Secrets};
use super::report::{Ended, PlanReport, StageReport};
use super::{Action, InDrill, Journal, OnFailure, Plan, Stage, Variables, stage, subject};
use crate::child::watch::Watch;
use crate::config::Config;
use crate::error::{Kind, kind_of};
use crate::operations::drill::{Drilled, Scratch, scratch, signer};
use crate::operations::evidence::{self, Environment, Keys};
use crate::operations::measures::implausible;
use crate::operations::{Open, place};
use crate::report::{Check, Phase};
use crate::repository::keys::KeyFile;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::repository::{FORMAT, PROGRAM};

mod expected;
mod group;
mod restore;
mod undo;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Drill,
    Real,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Drill => "drill",
            Mode::Real => "real",
        }
    }
}

/// How a plan is to be run.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub mode: Mode,
    /// Go on behind the last good stage of a real run that stopped.
    pub resume: bool,
    pub keep_failed: bool,
    pub trigger: String,
    pub configuration: Option<Hash>,
}

/// One run of one plan.
pub struct Run<'a> {
    pub config: &'a Config,
    pub open: &'a Open,
    pub keys: &'a KeyFile,
    pub plan: &'a Plan,
    pub wanted: Wanted,
    /// Called before each stage with its number from 0, and after it with the report.
    pub tell: &'a dyn Fn(usize, Option<&StageReport>),
}

/// What a run has come to.
struct Progress {
    variables: Variables,
    copies: BTreeMap<SourceName, Copy>,
    stages: Vec<StageReport>,
    scratch: Option<Scratch>,
    journal: Option<Journal>,
    /// Drills of sources, to be signed once scratch is gone.
    drilled: Vec<(Drilled, Commit, Snapshot, String)>,
    deviations: Vec<String>,
    /// Scratch that killed drills had left, and that is gone now.
    leftovers: u64,
}

impl Run<'_> {
    /// Runs the plan to its end and stores the report. `Err`: it could not be begun, or a drill could not be carried out here.
    pub fn go(&self) -> Result<PlanReport> {
        if self.wanted.mode == Mode::Drill {
            signer(self.open, self.keys, &self.plan.sources())?;
        }
        let started = self.open.now();
        let mut progress = self.begin(started)?;
        let clock = Instant::now();
        let mut watch = self.watch(&progress)?;
        let mut stopped = None;
        for (n, stage) in self.plan.stages.iter().enumerate() {
            if progress.stages.iter().any(|s| s.name == stage.name) {
                continue;
            }
            let report = match &stopped {
                Some(why) => stage_report(stage, Ended::NotReached, format!("the plan stopped at {why:?}")),
                None => {
                    (self.tell)(n, None);
                    let ended = self.one(stage, &mut progress);
                    // What was ended from outside tells nothing of the backup.
                    let ended = watch.as_ref().map_or(Ok(()), Watch::check).and(ended);
                    match ended {
                        Ok(report) => report,
                        Err(e) => {
                            // What is undone now has time of its own.
                            drop(watch.take());
                            self.leave(&mut progress);
                            return Err(e);
                        }
                    }
                }
            };
            (self.tell)(n, Some(&report));
            let failed = report.outcome == Ended::Failed;
            if let Some(journal) = progress.journal.as_mut().filter(|_| report.outcome == Ended::Done) {
                journal.note(&report)?;
            }
            progress.stages.push(report);
            if failed && stopped.is_none() && stage.on_failure != OnFailure::Continue {
                stopped = Some(stage.name.clone());
                if stage.on_failure == OnFailure::Stop {
                    self.leave(&mut progress);
                } else {
                    self.undo(&mut progress);
                    // What was undone is not done: the next run begins anew.
                    progress.journal.take().map_or(Ok(()), Journal::finish)?;
                }
            }
        }
        drop(watch);
        self.end(progress, started, clock.elapsed().as_secs_f64())
    }

    /// Over what a drill starts.
    fn watch(&self, progress: &Progress) -> Result<Option<Watch>> {
        let scratch = progress.scratch.as_ref().filter(|_| self.wanted.mode == Mode::Drill);
        scratch.map(|scratch| Watch::begin(scratch.notes(), self.config.drill_bounds())).transpose()
    }

    /// A drill that stops early leaves nothing running of what it has started.
    fn leave(&self, progress: &mut Progress) {
        if self.wanted.mode == Mode::Drill {
            self.undo(progress);
        }
    }

    fn begin(&self, started: Timestamp) -> Result<Progress> {
        let mut progress = Progress {
            variables: Variables::new(&self.plan.variables),
            copies: BTreeMap::new(),
            stages: Vec::new(),
            scratch: None,
            journal: None,
            drilled: Vec::new(),
            deviations: Vec::new(),
            leftovers: scratch::sweep(&self.config.scratch(), started),
        };
        // Programs of a plan get a directory of their own in both modes.
        let scratch = Scratch::make(&self.config.scratch())?;
        progress.variables.set("scratch", scratch.path());
        progress.scratch = Some(scratch);
        if self.wanted.mode == Mode::Real {
            let state = self.config.state();
            let (repository, name) = (&self.open.trust.id, &self.plan.name);
            let left = Journal::unfinished(&state, repository, name)?.filter(|_| self.wanted.resume);
            let journal = match left {
                Some(journal) => journal,
                None => Journal::begin(&state, repository, name, self.plan.hash, started)?,
            };
            for done in &journal.stages {
                self.take_up(&mut progress, done);
            }
            progress.journal = Some(journal);
        }
        Ok(progress)
    }

    /// Runs one stage. What goes wrong in it is its outcome.
    fn one(&self, stage: &Stage, progress: &mut Progress) -> Result<StageReport> {
        let missing = stage.after.iter().find(|name| {
            let ended = progress.stages.iter().find(|s| s.name == **name).map(|s| s.outcome);
            !matches!(ended, Some(Ended::Done | Ended::DoneBefore | Ended::Skipped))
        });
        if let Some(missing) = missing {
            return Ok(stage_report(stage, Ended::NotReached, format!("it needs {missing:?}, which is not done")));
        }
        let drill = self.wanted.mode == Mode::Drill;
        if drill && (stage.in_drill == InDrill::Skip || self.untouched(stage)) {
            return Ok(stage_report(stage, Ended::Skipped, "left out in a drill".into()));
        }
        let begun = Instant::now();
        let mut report = stage_report(stage, Ended::Done, String::new());
        match self.act(stage, progress, &mut report) {
            Ok(detail) => {
                report.detail = detail;
                if report.checks.iter().any(|c| !c.passed) {
                    report.outcome = Ended::Failed;
                }
            }
            // It says nothing of the backup: another try may succeed.
            Err(e) if drill && (place::is_to_blame(&e) || kind_of(&e) == Kind::WrongKey) => return Err(e),
            Err(e) => (report.outcome, report.detail) = (Ended::Failed, format!("{e:#}")),
        }
        report.seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    /// What by itself would reach for live systems, and was not asked to in a drill.
    fn untouched(&self, stage: &Stage) -> bool {
        if stage.in_drill != InDrill::Usual {
            return false;
        }
        match &stage.action {
            Action::Restore(_) | Action::RestoreGroup(_) => false,
            Action::Check(checks) => checks.iter().all(|c| c.is_live()),
            Action::Run(_) | Action::WaitFor(_) | Action::Notify(_) => true,
        }
    }

    fn act(&self, stage: &Stage, progress: &mut Progress, report: &mut StageReport) -> Result<String> {
        let secrets = self.secrets(stage)?;
        if let (Mode::Drill, InDrill::Replace(argv)) = (self.wanted.mode, &stage.in_drill) {
            return stage::program(argv, &progress.variables, &secrets, stage.timeout);
        }
        match &stage.action {
            Action::Run(argv) => stage::program(argv, &progress.variables, &secrets, stage.timeout),
            Action::Restore(restore) => match self.wanted.mode {
                Mode::Drill => self.restore_into_scratch(restore, progress, report),
                Mode::Real => self.restore_for_real(restore, progress, report),
            },
            Action::RestoreGroup(restore) => self.restore_group(restore, progress, report),
            Action::Check(checks) => {
                let usual = self.wanted.mode == Mode::Drill && stage.in_drill == InDrill::Usual;
                let engines = Engines::default();
                let case = Case {
                    variables: &progress.variables,
                    copies: &progress.copies,
                    engines: &engines,
                    environment: Vec::new(),
                    secrets,
                    timeout: stage.timeout,
                };
                let (left_out, made): (Vec<_>, Vec<_>) = checks.iter().partition(|c| usual && c.is_live());
                for check in &made {
                    report.checks.push(check.make(&case)?);
                }
                engines.stop()?;
                progress
                    .deviations
                    .extend(left_out.iter().map(|c| format!("{:?} was not checked in a drill", c.name())));
                Ok(format!("{} checks", made.len()))
            }
            Action::WaitFor(what) => stage::wait(what, &progress.variables, stage.timeout),
            Action::Notify(notify) => stage::notify(notify, &progress.variables, &secrets, self.config.base()),
        }
    }

    /// The stage's secrets, for the environment of its programs alone.
    fn secrets(&self, stage: &Stage) -> Result<Secrets> {
        let base = self.config.base();
        stage.secrets.iter().map(|(name, secret)| Ok((name.into(), secret.read(base)?))).collect()
    }

    /// Removes scratch, then signs: a report says whether anything is left.
    fn end(&self, mut progress: Progress, started: Timestamp, seconds: f64) -> Result<PlanReport> {
        let good = |s: &StageReport| matches!(s.outcome, Ended::Done | Ended::DoneBefore | Ended::Skipped);
        let passed = progress.stages.iter().all(good);
        let place: PathBuf = progress.scratch.as_ref().map(|s| s.path().to_owned()).unwrap_or_default();
        let isolation = match self.wanted.mode {
            Mode::Drill => "restores go to a new directory that only this user may enter",
            Mode::Real => "none: this was a real run",
        };
        let environment = Environment::here(&place, isolation);
        let kept = self.wanted.keep_failed && !passed;
        let scratch_removed = match progress.scratch.take() {
            Some(scratch) if kept => {
                drop(scratch.keep());
                false
            }
            Some(scratch) => scratch.remove(),
            None => true,
        };
        self.sign_drills(&mut progress, scratch_removed)?;
        let report = self.report(&progress, (started, seconds), passed, environment, scratch_removed);
        let report = match &self.keys.signing {
            Some(signer) => {
                let make = |n, previous| PlanReport { n, previous, ..report.clone() };
                evidence::append(self.open, signer, &subject(&self.plan.name), make)
                    .map(|(report, _)| report)
                    // A real run is over, whatever the store says.
                    .or_else(|e| if self.wanted.mode == Mode::Real { Ok(report) } else { Err(e) })?
            }
            None => report,
        };
        if let Some(journal) = progress.journal.filter(|_| passed) {
            journal.finish()?;
        }
        Ok(report)
    }

    fn report(
        &self,
        progress: &Progress,
        (started, seconds): (Timestamp, f64),
        passed: bool,
        environment: Environment,
        scratch_removed: bool,
    ) -> PlanReport {
        let finished = self.open.now();
        let before: f64 = progress.stages.iter().filter(|s| s.outcome == Ended::DoneBefore).map(|s| s.seconds).sum();
        let achieved = seconds + before;
        let points: Vec<_> = progress.stages.iter().flat_map(|s| s.points().cloned()).collect();
        let oldest = points.iter().map(|p| p.data_time).min();
        let exposure = oldest.map_or(0.0, |at| started.duration_since(at).as_secs_f64());
        let (rpo, rto) = (self.plan.rpo.map(|t| t.as_secs_f64()), self.plan.rto.map(|t| t.as_secs_f64()));
        let mut deviations = progress.deviations.clone();
        let wall = finished.duration_since(started).as_secs_f64();
        deviations.extend(implausible(seconds, 0, wall));
        deviations.extend(progress.stages.iter().filter(|s| s.over_budget()).map(|s| {
            format!("stage {:?} took {:.0} s of its {:.0} s", s.name, s.seconds, s.budget_seconds.unwrap_or_default())
        }));
        if before > 0.0 {
            deviations.push("a run that had stopped was resumed: the pause between is not counted".into());
        }
        let named = |s: &StageReport| format!("{} ({})", s.name, s.action);
        let of = |wanted: &[Ended]| progress.stages.iter().filter(|s| wanted.contains(&s.outcome)).map(named).collect();
        let signer = self.keys.signing.as_ref().map(|k| k.public().id()).unwrap_or_default();
        let checks = progress
            .stages
            .iter()
            .flat_map(|s| s.checks.iter().map(|c| Check { name: format!("{}: {}", s.name, c.name), ..c.clone() }));
        PlanReport {
            r#type: "plan".into(),
            format: FORMAT,
            repository: self.open.trust.id.clone(),
            subject: subject(&self.plan.name),
            n: 0,
            previous: None,
            plan: self.plan.name.clone(),
            hash: self.plan.hash,
            mode: self.wanted.mode.name().into(),
            trigger: self.wanted.trigger.clone(),
            started,
            finished,
            passed,
            sources: self.plan.sources(),
            points,
            checks: checks.collect(),
            tested: of(&[Ended::Done, Ended::DoneBefore, Ended::Failed]),
            not_tested: of(&[Ended::Skipped, Ended::NotReached]),
            timeline: progress.stages.iter().map(|s| Phase { name: s.name.clone(), seconds: s.seconds }).collect(),
            stages: progress.stages.clone(),
            rpo_exposure_seconds: exposure,
            rpo_target_seconds: rpo,
            rpo_met: rpo.filter(|_| oldest.is_some()).map(|t| exposure <= t),
            achieved_rto_seconds: achieved,
            rto_target_seconds: rto,
            rto_met: rto.map(|t| achieved <= t),
            deviations,
            environment,
            keys: Keys {
                root: self.open.trust.root.id(),
                epoch: self.open.trust.epoch,
                recipients: self.open.trust.recipients.clone(),
                commit: String::new(),
                report: signer,
            },
            configuration: self.wanted.configuration,
            scratch_removed,
            agent: PROGRAM.into(),
        }
    }
}

fn stage_report(stage: &Stage, outcome: Ended, detail: String) -> StageReport {
    StageReport {
        name: stage.name.clone(),
        action: stage.action.name().into(),
        outcome,
        seconds: 0.0,
        budget_seconds: stage.budget.map(|b| b.as_secs_f64()),
        checks: Vec::new(),
        detail,
        kept: None,
        point: None,
        group: None,
    }
}
