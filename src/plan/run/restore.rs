//! The restore of a source as a stage of a plan: into scratch in a drill, to its place for real.

use anyhow::{Context, Result};
use std::path::PathBuf;

use super::super::check::{Copy, Live, Who};
use super::super::report::{Ended, PointReport, StageReport};
use super::super::{PointOf, Restore};
use super::{Progress, Run, expected};
use crate::durable;
use crate::limits;
use crate::operations::ask::Restored;
use crate::operations::drill::{self, Drilled, Level, Options, Point, signer};
use crate::operations::evidence::restored::{self, Circumstances};
use crate::operations::restore::{self, Pick, Request};
use crate::operations::verified;
use crate::repository::layout::SourceName;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::{Commit, Snapshot};

impl Run<'_> {
    /// The recovery point of a stage. A drill of `latest` takes a suspect one too, and says so; a real restore passes it over.
    fn point(&self, restore: &Restore, pick: bool) -> Result<(Commit, Snapshot, String)> {
        let source = &restore.source;
        match restore.point {
            PointOf::Latest if pick => {
                let (commit, snapshot) = restore::find(self.open, source, &Pick::Latest)?;
                Ok((commit, snapshot, "the newest complete snapshot that is not suspect".into()))
            }
            PointOf::Latest => self.drilled_point(source, Point::Latest),
            PointOf::Seq(seq) => self.drilled_point(source, Point::Seq(seq)),
            PointOf::Verified => {
                let proven = verified::proven(self.open, source)?;
                let (commit, snapshot) = restore::find(self.open, source, &Pick::LatestVerified(proven))?;
                Ok((commit, snapshot, "the newest snapshot that a drill has proven".into()))
            }
        }
    }

    fn drilled_point(&self, source: &SourceName, point: Point) -> Result<(Commit, Snapshot, String)> {
        let chosen = drill::choose(self.open, &self.keys.identities, source, (point, Level::Engine))?;
        Ok((chosen.commit, chosen.snapshot, chosen.why))
    }

    pub(super) fn restore_into_scratch(
        &self,
        restore: &Restore,
        progress: &mut Progress,
        report: &mut StageReport,
    ) -> Result<String> {
        let (commit, snapshot, why) = self.point(restore, false)?;
        if let Some(wrong) = expected::compare(restore, &snapshot, &self.keys.identities, report)? {
            return Ok(wrong);
        }
        let arrived = self.drill_one(progress, (commit, snapshot), &why, report)?;
        report.point = Some(arrived);
        Ok(format!("into scratch; in a real run to {}", restore.to))
    }

    /// Drills one source; gives where its copy lies.
    pub(super) fn drill_one(
        &self,
        progress: &mut Progress,
        (commit, snapshot): (Commit, Snapshot),
        why: &str,
        report: &mut StageReport,
    ) -> Result<PointReport> {
        let source = &snapshot.source;
        let scratch = progress.scratch.as_ref().context("a drill needs scratch")?.path().join(source.as_str());
        std::fs::create_dir(&scratch).with_context(|| format!("make {}", scratch.display()))?;
        let options = self.options(source, why.to_owned());
        let drilled = Drilled::carry_out(self.open, &self.keys.identities, (&commit, &snapshot), &scratch, &options)?;
        report.checks.extend(drilled.checks.iter().cloned());
        let restored = Restored {
            kind: snapshot.kind.clone(),
            copy: drilled.copy.clone(),
            scratch,
            facts: SealedPart::open(&snapshot, &self.keys.identities)?.facts,
            settings: options.settings.clone(),
        };
        let (to, who) = (drilled.copy.clone(), Who::Engine(Box::new(restored)));
        let arrived = arrived(progress, Arrival { point: (&commit, &snapshot), why, to, kept: None, who });
        progress.drilled.push((drilled, commit, snapshot, why.to_owned()));
        Ok(arrived)
    }

    fn options(&self, source: &SourceName, point: String) -> Options {
        let configured = self.config.source.iter().find(|s| s.name == *source);
        Options {
            rpo: configured.and_then(|s| s.rpo),
            rto: configured.and_then(|s| s.rto),
            point,
            trigger: self.wanted.trigger.clone(),
            plan: Some(self.plan.name.clone()),
            configuration: self.wanted.configuration,
            settings: configured.map(|s| self.config.settings(s)).unwrap_or_default(),
            bounds: self.config.drill_bounds(),
            ..Options::new(self.config.scratch())
        }
    }

    pub(super) fn restore_for_real(
        &self,
        restore: &Restore,
        progress: &mut Progress,
        report: &mut StageReport,
    ) -> Result<String> {
        let (commit, snapshot, why) = self.point(restore, true)?;
        if let Some(wrong) = expected::compare(restore, &snapshot, &self.keys.identities, report)? {
            return Ok(wrong);
        }
        let point = self.to_its_place(progress, (&commit, &snapshot), &why, (&restore.to, restore.replace))?;
        report.kept.clone_from(&point.kept);
        let to = point.to.clone();
        report.point = Some(PointReport { kept: None, ..point });
        if restore.point == PointOf::Latest {
            // The data is in its place: a look that fails now takes nothing of that back.
            match restore::passed_over(self.open, &restore.source, snapshot.seq, &Pick::Latest) {
                Ok(newer) if newer.is_empty() => {}
                Ok(newer) => progress
                    .deviations
                    .push(format!("suspect snapshots of {} were passed over: {newer:?}", restore.source)),
                Err(e) => progress.deviations.push(format!(
                    "whether newer snapshots of {} were passed over is not known: {e:#}",
                    restore.source
                )),
            }
        }
        let kept = report.kept.as_ref().map_or(String::new(), |kept| format!("; what was there is at {kept}"));
        Ok(format!("snapshot {} to {to}{kept}", snapshot.seq))
    }

    /// Restores one source to `to`, where something may lie that is kept beside if `replace`.
    pub(super) fn to_its_place(
        &self,
        progress: &mut Progress,
        (commit, snapshot): (&Commit, &Snapshot),
        why: &str,
        (to, replace): (&str, bool),
    ) -> Result<PointReport> {
        let started = self.open.now();
        let source = &snapshot.source;
        let to: PathBuf = self.config.base().join(progress.variables.fill(to)?);
        let to: PathBuf = std::path::absolute(&to)?.components().collect();
        // On a machine that is new nothing is there yet.
        if let Some(above) = to.parent() {
            durable::create_directories(above).with_context(|| format!("make {}", above.display()))?;
        }
        let request = Request {
            in_place: replace,
            finish: restore::finish_of(snapshot, &self.keys.identities, &to, &[])?,
            ..Request::new(to.clone(), limits::workers())
        };
        let done = restore::restore(self.open, &self.keys.identities, commit, snapshot, &request)?;
        let who = self.live(progress, source).map_or(Who::Files, |(who, _)| who);
        let kept = done.kept.as_ref().map(|kept| kept.display().to_string());
        let arrived = arrived(progress, Arrival { point: (commit, snapshot), why, to, kept, who });
        if let Some(signer) = &self.keys.signing {
            let how = Circumstances {
                started,
                point: why.to_owned(),
                trigger: self.wanted.trigger.clone(),
                plan: Some(self.plan.name.clone()),
                partial: false,
                configuration: self.wanted.configuration,
            };
            // The restore counts; that its record could not be stored is said.
            if let Err(e) = restored::record(self.open, signer, (commit, snapshot), &done, &how) {
                progress.deviations.push(format!("the record of {source} could not be stored: {e:#}"));
            }
        }
        Ok(arrived)
    }

    /// The reports of the sources that were drilled.
    pub(super) fn sign_drills(&self, progress: &mut Progress, scratch_removed: bool) -> Result<()> {
        for (drilled, commit, snapshot, why) in progress.drilled.drain(..) {
            let options = self.options(&snapshot.source, why);
            let signer = signer(self.open, self.keys, &self.plan.sources())?;
            drilled.sign(self.open, signer, (&commit, &snapshot), &options, (scratch_removed, progress.leftovers))?;
        }
        Ok(())
    }

    /// Who is asked about a copy that lies in its place: what runs there.
    fn live(&self, progress: &Progress, source: &SourceName) -> Option<(Who, &'static str)> {
        let source = self.config.source.iter().find(|s| s.name == *source)?;
        let scratch = progress.scratch.as_ref()?.path().to_owned();
        let live = Live { source: source.clone(), base: self.config.base().to_owned(), scratch };
        Some((Who::Running(Box::new(live)), source.kind.name()))
    }

    /// A source that an earlier part of this run has restored.
    pub(super) fn is_there(&self, progress: &mut Progress, point: &PointReport) {
        let path = PathBuf::from(&point.to);
        progress.variables.set(format!("copy.{}", point.source), &path);
        if let Some((who, kind)) = self.live(progress, &point.source) {
            let copy = Copy { path, data_time: point.data_time, kind: kind.into(), who };
            progress.copies.insert(point.source.clone(), copy);
        }
    }

    /// A stage that an earlier part of this run has done.
    pub(super) fn take_up(&self, progress: &mut Progress, done: &StageReport) {
        done.points().for_each(|point| self.is_there(progress, point));
        progress.stages.push(StageReport { outcome: Ended::DoneBefore, ..done.clone() });
    }
}

/// How a source has come back.
struct Arrival<'a> {
    point: (&'a Commit, &'a Snapshot),
    why: &'a str,
    to: PathBuf,
    kept: Option<String>,
    who: Who,
}

/// A source has arrived: what later stages may ask of it.
fn arrived(progress: &mut Progress, how: Arrival) -> PointReport {
    let Arrival { point: (commit, snapshot), why, to, kept, who } = how;
    let source = &snapshot.source;
    let report = PointReport {
        source: source.clone(),
        seq: snapshot.seq,
        commit: commit.hash,
        data_time: snapshot.data_time,
        why: why.into(),
        to: to.display().to_string(),
        kept,
    };
    progress.variables.set(format!("copy.{source}"), &to);
    let copy = Copy { path: to, data_time: snapshot.data_time, kind: snapshot.kind.clone(), who };
    progress.copies.insert(source.clone(), copy);
    report
}
