//! A rollback: what the stages did is taken back, the last first. A restored copy goes aside and what it replaced comes back.

use anyhow::{Context, Result};
use rustix::fs::RenameFlags;
use std::path::Path;

use super::super::report::{Ended, StageReport};
use super::super::stage::program;
use super::super::{Action, InDrill, Stage};
use super::{Mode, Progress, Run};

impl Run<'_> {
    pub(super) fn undo(&self, progress: &mut Progress) {
        for n in (0..progress.stages.len()).rev() {
            let done = progress.stages[n].clone();
            let Some(stage) = self.plan.stages.iter().find(|s| s.name == done.name) else { continue };
            // A stage that failed may have done a part.
            let acted = matches!(done.outcome, Ended::Done | Ended::DoneBefore | Ended::Failed);
            let in_drill = self.wanted.mode == Mode::Drill;
            if !acted || in_drill && matches!(stage.action, Action::Restore(_) | Action::RestoreGroup(_)) {
                continue;
            }
            // What a drill left out or replaced was not done, and must not be taken back from the live system.
            if in_drill && stage.in_drill != InDrill::Run {
                if !stage.undo.is_empty() {
                    let what = format!("the undo of stage {:?} was left out, as the stage itself", stage.name);
                    progress.deviations.push(what);
                }
                continue;
            }
            match self.take_back(stage, progress, &done) {
                Ok(None) => {}
                Ok(Some(what)) => {
                    let report = &mut progress.stages[n];
                    report.detail = format!("{}; undone: {what}", report.detail);
                    if report.outcome != Ended::Failed {
                        report.outcome = Ended::Undone;
                    }
                }
                Err(e) => progress.deviations.push(format!("stage {:?} could not be undone: {e:#}", stage.name)),
            }
        }
    }

    fn take_back(&self, stage: &Stage, progress: &Progress, report: &StageReport) -> Result<Option<String>> {
        let mut done = Vec::new();
        for point in report.points() {
            let (to, kept) = (&point.to, point.kept.as_ref().or(report.kept.as_ref()));
            if let Some(kept) = kept {
                exchange(Path::new(kept), Path::new(to))?;
                done.push(format!("{to} is as it was, and the restored copy at {kept}"));
            }
        }
        if !stage.undo.is_empty() {
            let argv = progress.variables.fill_all(&stage.undo)?;
            program(&argv, &progress.variables, &self.secrets(stage)?, stage.timeout)?;
            done.push(argv.join(" "));
        }
        Ok((!done.is_empty()).then(|| done.join("; ")))
    }
}

/// Swaps two names in one step: at no moment is there nothing.
fn exchange(a: &Path, b: &Path) -> Result<()> {
    let (at, flags) = (rustix::fs::CWD, RenameFlags::EXCHANGE);
    rustix::fs::renameat_with(at, a, at, b, flags).with_context(|| format!("swap {} and {}", a.display(), b.display()))
}
