//! The restore of a group as a stage of a plan: all members from one common point, each into scratch in a drill, each to its place for real.
//!
//! What is there of a real restore is noted in the journal, member by member: a run that is resumed goes on with the same common point.

use anyhow::{Context, Result};

use super::super::report::{CommonPoint, StageReport};
use super::super::{PointOf, RestoreGroup};
use super::{Mode, Progress, Run};
use crate::error::{Failure, Kind};
use crate::operations::group::{Found, Pick, find};

impl Run<'_> {
    pub(super) fn restore_group(
        &self,
        restore: &RestoreGroup,
        progress: &mut Progress,
        report: &mut StageReport,
    ) -> Result<String> {
        let part = progress.journal.as_ref().and_then(|journal| journal.part.clone());
        let part = part.filter(|part| part.name == report.name).and_then(|part| part.group);
        let pick = match (&part, restore.point) {
            (Some(begun), _) => Pick::Number(begun.n),
            (None, PointOf::Latest) => Pick::Latest,
            (None, PointOf::Verified) => Pick::LatestVerified,
            (None, PointOf::Seq(n)) => Pick::Number(n),
        };
        let found = find(self.open, &restore.group, pick)?;
        let point = &found.point.group;
        fits(restore, &found)?;
        let passed_over = found.passed_over.iter();
        progress
            .deviations
            .extend(passed_over.map(|(n, why)| format!("point {n} of group {} was passed over: {why}", restore.group)));
        report.group = Some(part.clone().unwrap_or_else(|| CommonPoint {
            group: restore.group.clone(),
            n: point.n,
            point: found.point.hash,
            skew_ms: point.skew.skew_ms,
            spread_ms: point.skew.spread_ms,
            members: Vec::new(),
        }));
        let why = format!("point {} of group {}", point.n, restore.group);
        let mut said = Vec::new();
        for (source, to) in &restore.to {
            let (commit, snapshot) =
                found.of(source).context("a member of the point has no snapshot (this is a bug)")?;
            let there = part.iter().flat_map(|part| &part.members).find(|member| member.source == *source);
            if let Some(member) = there.filter(|member| member.commit == commit.hash) {
                self.is_there(progress, member);
                said.push(format!("{source} {} was restored before", snapshot.seq));
                continue;
            }
            let member = match self.wanted.mode {
                Mode::Drill => self.drill_one(progress, (commit.clone(), snapshot.clone()), &why, report)?,
                Mode::Real => self.to_its_place(progress, (commit, snapshot), &why, (to, restore.replace))?,
            };
            let kept = member.kept.as_ref().map_or(String::new(), |kept| format!(" (what was there is at {kept})"));
            said.push(format!("{source} {} to {}{kept}", snapshot.seq, member.to));
            if let Some(group) = &mut report.group {
                group.members.push(member);
            }
            if let Some(journal) = &mut progress.journal {
                journal.note_part(report)?;
            }
        }
        let apart = point.skew.skew_ms.unwrap_or(point.skew.spread_ms);
        Ok(format!("{why}, within {apart} ms: {}", said.join(", ")))
    }
}

/// That the point has all that the plan restores from it: the group may have been another one then.
fn fits(restore: &RestoreGroup, found: &Found) -> Result<()> {
    let missing: Vec<&str> =
        restore.to.keys().filter(|source| found.of(source).is_none()).map(|source| source.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (n, group, missing) = (found.point.group.n, &restore.group, missing.join(", "));
    Err(Failure::new(
        Kind::CheckFailed,
        format!(
            "point {n} of group {group} was made without {missing}: `blackstart backup --group {group}` makes one with all members"
        ),
        "Nothing of it was restored. `point = N` in the stage takes another one.",
    ))
}
