//! What a drill finds: the restore and the checks of its level in a scratch directory, and the report on them.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::isolation::isolation;
use super::options::Options;
use super::{cold, gameday, key, levels, point, scope};
use crate::operations::evidence::{self, DrillReport, Environment, Keys, Level, Objects};
use crate::operations::measures::implausible;
use crate::operations::proof::{self, Case, Proven};
use crate::operations::restore::{self, Phases, Request};
use crate::operations::{Open, canary, place, suspect};
use crate::report::{Check, Outcome, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::repository::{FORMAT, PROGRAM};
use crate::source::postgres;

/// What was found, before the scratch copy goes.
pub struct Drilled {
    pub checks: Vec<Check>,
    /// Where the restored copy lies, from the level `engine` on.
    pub copy: PathBuf,
    entries: u64,
    bytes: u64,
    bytes_fetched: u64,
    /// Up to where the stored log went on when the drill began.
    log_until: Option<Timestamp>,
    canary: Option<canary::CanaryReport>,
    times: Stopwatch,
    deviations: Vec<String>,
    started: Timestamp,
    ended: Timestamp,
    seconds: f64,
    environment: Environment,
}

impl Drilled {
    /// The drill in `scratch`, which stays as it is afterwards.
    pub fn carry_out(
        open: &Open,
        identities: &[Identity],
        (commit, snapshot): (&Commit, &Snapshot),
        scratch: &Path,
        options: &Options,
    ) -> Result<Drilled> {
        // Without local state: a cached index object would prove nothing about the repository's.
        let open = &Open { state: None, ..open.clone() };
        let started = open.now();
        let clock = Instant::now();
        let mut drilled = Drilled {
            checks: Vec::new(),
            copy: scratch.join("restored"),
            entries: 0,
            bytes: 0,
            bytes_fetched: 0,
            log_until: point::replayed_until(open, snapshot, (options.level, options.moment))?,
            canary: None,
            times: Stopwatch::default(),
            deviations: Vec::new(),
            started,
            ended: started,
            seconds: 0.0,
            environment: Environment::here(scratch, &isolation(options.bounds)),
        };
        drilled.check(open, identities, (commit, snapshot), scratch, options).map_err(place::blamed)?;
        drilled.seconds = clock.elapsed().as_secs_f64();
        drilled.ended = open.now();
        if snapshot.outcome == Outcome::Partial {
            drilled.deviations.push("the snapshot is partial: something could not be read when it was made".into());
        }
        let wall = drilled.ended.duration_since(started).as_secs_f64();
        drilled.deviations.extend(implausible(drilled.seconds, drilled.bytes, wall));
        Ok(drilled)
    }

    fn check(
        &mut self,
        open: &Open,
        identities: &[Identity],
        point: (&Commit, &Snapshot),
        scratch: &Path,
        options: &Options,
    ) -> Result<()> {
        let (commit, snapshot) = point;
        if options.level.proves() {
            match proof::ready(snapshot, identities, &options.settings) {
                Err(e) if place::is_to_blame(&e) => return Err(e.context("nothing was fetched")),
                // What else is wrong the drill will find.
                _ => {}
            }
        }
        self.checks.extend(suspect::check(open, snapshot, identities)?);
        match options.level {
            Level::Existence => self.checks.push(levels::existence(open, snapshot, &self.times)?),
            Level::Hashes => {
                let (check, fetched) = levels::hashes(open, snapshot, &self.times)?;
                self.checks.push(check);
                self.bytes_fetched = fetched;
            }
            Level::Decode => {
                let (checks, fetched) = levels::decode(open, snapshot, identities, &self.times)?;
                self.checks.extend(checks);
                self.bytes_fetched = fetched;
            }
            Level::Engine | Level::Point => {
                self.restore(open, identities, (commit, snapshot), options)?;
                self.prove(open, identities, snapshot, scratch, options)?;
            }
            Level::GameDay => {
                let (checks, fetched) = gameday::play(open, identities, snapshot, scratch, &self.times)?;
                self.checks.extend(checks);
                self.bytes_fetched = fetched;
            }
            Level::ColdStart => {
                let (check, fetched) = cold::restore(open, identities, snapshot, (scratch, &self.copy), &self.times)?;
                self.bytes_fetched = fetched;
                self.checks.push(check);
                self.prove(open, identities, snapshot, scratch, options)?;
            }
        }
        Ok(())
    }

    fn restore(
        &mut self,
        open: &Open,
        identities: &[Identity],
        (commit, snapshot): (&Commit, &Snapshot),
        options: &Options,
    ) -> Result<()> {
        let request = Request::new(self.copy.clone(), options.workers);
        match restore::restore(open, identities, commit, snapshot, &request) {
            Ok(report) => {
                (self.entries, self.bytes, self.bytes_fetched) = (report.entries, report.bytes, report.bytes_fetched);
                note_phases(&self.times, &report.phases);
                self.deviations
                    .extend(report.notes.iter().map(|n| format!("restored with a note: {}: {}", n.path, n.why)));
                self.checks.push(Check::compare("restore", "done", "done"));
                Ok(())
            }
            Err(e) if place::is_to_blame(&e) || key::is_another(open, snapshot, &e) => Err(e),
            Err(e) => {
                self.checks.push(Check::compare("restore", "done", format!("{e:#}")));
                Ok(())
            }
        }
    }

    /// The engine's checks, unless there is nothing to prove.
    fn prove(
        &mut self,
        open: &Open,
        identities: &[Identity],
        snapshot: &Snapshot,
        scratch: &Path,
        options: &Options,
    ) -> Result<()> {
        if self.checks.last().is_some_and(|last| !last.passed) {
            return Ok(());
        }
        let times = Stopwatch::default();
        let begun = Instant::now();
        let (copy, settings, moment) = (&self.copy, &options.settings, options.moment);
        let case = Case { open, identities, snapshot, moment, copy, scratch, times: &times, settings };
        match proof::prove(&case) {
            Ok(proven) => self.take(open, snapshot, proven, options.rpo),
            Err(e) if place::is_to_blame(&e) => {
                return Err(e.context("the copy was restored, but could not be proven here"));
            }
            Err(e) => self.checks.push(Check::compare("checks", "carried out", format!("{e:#}"))),
        }
        let mut rest = begun.elapsed().as_secs_f64();
        for phase in times.phases() {
            rest -= phase.seconds;
            self.times.add(&phase.name, Duration::from_secs_f64(phase.seconds.max(0.0)));
        }
        self.times.add("checks", Duration::from_secs_f64(rest.max(0.0)));
        Ok(())
    }

    fn take(&mut self, open: &Open, snapshot: &Snapshot, proven: Proven, rpo: Option<SignedDuration>) {
        self.checks.extend(proven.checks);
        self.deviations.extend(proven.remarks);
        if let Some((stated, found)) = proven.canary {
            let judged =
                canary::judge(&stated, found, data_time(open, snapshot, self.log_until), rpo, snapshot.kind == "redis");
            self.checks.push(judged.check);
            self.deviations.extend(judged.remark);
            self.canary = judged.report;
        }
    }

    /// The signed report, stored.
    pub fn sign(
        self,
        open: &Open,
        signer: &SigningKey,
        (commit, snapshot): (&Commit, &Snapshot),
        options: &Options,
        (scratch_removed, leftovers_removed): (bool, u64),
    ) -> Result<DrillReport> {
        let reached = self.log_until.map_or(snapshot.data_time, |until| until.max(snapshot.data_time));
        let exposure = self.started.duration_since(reached).as_secs_f64().max(0.0);
        let target = |t: Option<SignedDuration>| t.map(|t| t.as_secs_f64());
        // Cheap levels and stock tools say nothing of how long a restore takes.
        let timed = matches!(options.level, Level::Engine | Level::Point);
        let (tested, not_tested) = scope::scope(options.level, snapshot);
        let objects = Objects::of(open, snapshot)?;
        let make = |n, previous| DrillReport {
            r#type: "drill".into(),
            format: FORMAT,
            repository: open.trust.id.clone(),
            subject: snapshot.source.to_string(),
            n,
            previous,
            source: snapshot.source.clone(),
            kind: snapshot.kind.clone(),
            level: options.level,
            plan: options.plan.clone(),
            trigger: options.trigger.clone(),
            seq: snapshot.seq,
            commit: commit.hash,
            data_time: snapshot.data_time,
            log_until: self.log_until,
            outcome: snapshot.outcome,
            point: options.point.clone(),
            started: self.started,
            finished: self.ended,
            passed: self.checks.iter().all(|c| c.passed),
            checks: self.checks.clone(),
            canary: self.canary,
            tested: tested.clone(),
            not_tested: not_tested.clone(),
            entries: self.entries,
            bytes: self.bytes,
            bytes_fetched: self.bytes_fetched,
            objects: objects.clone(),
            keys: keys(open, commit, signer),
            environment: self.environment.clone(),
            configuration: options.configuration,
            rpo_exposure_seconds: exposure,
            rpo_target_seconds: target(options.rpo),
            rpo_met: target(options.rpo).map(|t| exposure <= t),
            achieved_rto_seconds: self.seconds,
            rto_target_seconds: target(options.rto).filter(|_| timed),
            rto_met: target(options.rto).filter(|_| timed).map(|t| self.seconds <= t),
            timeline: self.times.phases(),
            deviations: self.deviations.clone(),
            scratch_removed,
            leftovers_removed,
            agent: PROGRAM.into(),
        };
        Ok(evidence::append(open, signer, snapshot.source.as_str(), make)?.0)
    }
}

/// When the data of a proven copy is from. Of PostgreSQL the stored log was replayed behind it, up to `log` at least.
fn data_time(open: &Open, snapshot: &Snapshot, log: Option<Timestamp>) -> canary::DataTime {
    let at = snapshot.data_time;
    match (snapshot.kind.as_str(), log) {
        (postgres::PHYSICAL, Some(log)) => canary::DataTime { stated: log.max(at), latest: open.now() },
        // A tree is read for as long as the walk takes.
        ("files", _) => canary::DataTime { stated: at, latest: snapshot.finished },
        _ => canary::DataTime { stated: at, latest: at },
    }
}

pub fn keys(open: &Open, commit: &Commit, signer: &SigningKey) -> Keys {
    Keys {
        root: open.trust.root.id(),
        epoch: open.trust.epoch,
        recipients: open.trust.recipients.clone(),
        commit: commit.signer.id(),
        report: signer.public().id(),
    }
}

/// Adds the phases of a restore.
pub fn note_phases(times: &Stopwatch, phases: &Phases) {
    let all = [
        ("locate", phases.locate),
        ("fetch", phases.fetch),
        ("decrypt", phases.decrypt),
        ("decode", phases.decode),
        ("write", phases.write),
        ("publish", phases.publish),
    ];
    for (name, seconds) in all {
        times.add(name, Duration::from_secs_f64(seconds));
    }
}
