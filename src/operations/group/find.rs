//! Which common point of a group is meant, and whether all of it is there. What is not whole is never taken in silence.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Failure, Kind};
use crate::operations::{Open, verified};
use crate::report::Outcome;
use crate::repository::group::{self, Group, Member, Point, Points};
use crate::repository::layout::{GroupName, Hash, SourceName};
use crate::repository::series::{Series, Tail};
use crate::repository::snapshot::{Commit, Mode, Removed, Snapshot};

/// Which common point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The newest that is whole and complete and of which no member is suspect.
    Latest,
    /// The newest of which drills have proven every member.
    LatestVerified,
    /// The newest whose data is not younger.
    At(Timestamp),
    Number(u64),
}

/// A common point with the snapshots of all its members.
pub struct Found {
    pub point: Point,
    pub members: Vec<(Commit, Snapshot)>,
    /// Newer ones that were not taken: (n, why).
    pub passed_over: Vec<(u64, String)>,
}

impl Found {
    /// The snapshot of one member.
    pub fn of(&self, source: &SourceName) -> Option<&(Commit, Snapshot)> {
        self.members.iter().find(|(_, snapshot)| snapshot.source == *source)
    }
}

/// What can be said of a common point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Wholeness {
    /// Members whose snapshot is gone, damaged or another one: why. Where there are any, the point is not whole.
    pub missing: BTreeMap<SourceName, String>,
    /// Members whose snapshot looks wrong.
    pub suspect: BTreeSet<SourceName>,
}

/// Points of each group that are looked at for what a prune does to them.
const LOOKED_AT: u64 = 200;

/// The newest points of all groups that name one of the snapshots `removed` of `source`: without it they are not whole any more.
pub fn broken_by(open: &Open, source: &SourceName, removed: &[Removed]) -> Result<Vec<(GroupName, u64)>> {
    let mut broken = Vec::new();
    for name in group::names(&open.store)? {
        let names_one = |group: &Group| {
            let members = || group.members.iter().filter(|member| member.source == *source);
            members().any(|member| removed.iter().any(|gone| gone.hash == member.commit))
        };
        let recent = Points::list(&open.store, &open.trust, &name)?.recent(LOOKED_AT)?;
        let hit = recent.points.iter().filter(|point| names_one(&point.group));
        broken.extend(hit.map(|point| (name.clone(), point.group.n)));
    }
    Ok(broken)
}

/// The series of the members, each read as far back as it is asked for.
pub struct Standing<'a> {
    open: &'a Open,
    series: BTreeMap<SourceName, Tail<'a>>,
    proofs: BTreeMap<SourceName, BTreeSet<Hash>>,
}

impl<'a> Standing<'a> {
    pub fn new(open: &'a Open) -> Standing<'a> {
        Standing { open, series: BTreeMap::new(), proofs: BTreeMap::new() }
    }

    fn of(&mut self, source: &SourceName) -> Result<&mut Tail<'a>> {
        Ok(match self.series.entry(source.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Tail::of(Series::list(&self.open.store, &self.open.trust, source)?)),
        })
    }

    /// Looks at every member of `group`.
    pub fn look(&mut self, group: &Group) -> Result<Wholeness> {
        let mut found = Wholeness::default();
        for member in &group.members {
            match self.of(&member.source)?.snapshot(member.seq)? {
                Ok((commit, _, looks_wrong)) if commit.hash == member.commit => {
                    if looks_wrong {
                        found.suspect.insert(member.source.clone());
                    }
                }
                Ok(_) => {
                    let why = format!("snapshot {} is another one than the point names", member.seq);
                    found.missing.insert(member.source.clone(), why);
                }
                Err(why) => {
                    found.missing.insert(member.source.clone(), format!("snapshot {}: {why}", member.seq));
                }
            }
        }
        Ok(found)
    }

    /// Whether drills have proven every member.
    pub fn verified(&mut self, group: &Group) -> Result<bool> {
        for member in &group.members {
            if !self.proofs.contains_key(&member.source) {
                let proofs = verified::of(self.open, &member.source)?.into_iter().map(|proof| proof.commit);
                self.proofs.insert(member.source.clone(), proofs.collect());
            }
            if !self.proofs[&member.source].contains(&member.commit) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all members are given up on purpose. Where that cannot be read, what is missing is missed.
    pub fn is_retired(&mut self, group: &Group) -> bool {
        let retired = |member: &Member| self.of(&member.source).and_then(|tail| tail.retired()).unwrap_or(false);
        group.members.iter().all(retired)
    }

    /// Whether the run that made `group` read everything: every member's snapshot that is still there is a full.
    pub fn all_full(&mut self, group: &Group) -> Result<bool> {
        let mut any = false;
        for member in &group.members {
            if let Ok((_, snapshot, _)) = self.of(&member.source)?.snapshot(member.seq)? {
                if snapshot.mode != Mode::Full {
                    return Ok(false);
                }
                any = true;
            }
        }
        Ok(any)
    }

    /// The snapshots of a point that is whole.
    fn snapshots(&mut self, group: &Group) -> Result<Vec<(Commit, Snapshot)>> {
        let mut all = Vec::new();
        for member in &group.members {
            if let Ok((commit, snapshot, _)) = self.of(&member.source)?.snapshot(member.seq)?
                && commit.hash == member.commit
            {
                all.push((commit.clone(), snapshot.clone()));
            }
        }
        anyhow::ensure!(all.len() == group.members.len(), "a point that is not whole (this is a bug)");
        Ok(all)
    }
}

impl Wholeness {
    /// Why this is no point to restore without being asked for it; `None` for a good one.
    pub(super) fn objection(&self, group: &Group) -> Option<String> {
        let names =
            |sources: &BTreeSet<SourceName>| sources.iter().map(SourceName::to_string).collect::<Vec<_>>().join(", ");
        if !self.missing.is_empty() {
            return Some(format!("it is not whole: {}", self.losses()));
        }
        if !self.suspect.is_empty() {
            return Some(format!("{} looks wrong in it", names(&self.suspect)));
        }
        (group.outcome == Outcome::Partial).then(|| "it is partial: something could not be read".into())
    }

    /// What is missing, in words.
    pub fn losses(&self) -> String {
        let all = self.missing.iter().map(|(source, why)| format!("{source}: {why}"));
        all.collect::<Vec<_>>().join("; ")
    }
}

/// Finds the point that `pick` means. Nothing that does not verify is passed over, unless a number or a time is given.
pub fn find(open: &Open, name: &GroupName, pick: Pick) -> Result<Found> {
    let points = Points::list(&open.store, &open.trust, name)?;
    let mut standing = Standing::new(open);
    let mut passed_over = Vec::new();
    if let Pick::Number(n) = pick {
        if n == 0 || n > points.last() {
            return Err(nothing(open, name, &format!("no point {n}"), &[]));
        }
        let point = points.read(n).map_err(|e| unsound(name, n, &e))?;
        let wholeness = standing.look(&point.group)?;
        if !wholeness.missing.is_empty() {
            return Err(incomplete(name, &point.group, &wholeness));
        }
        return Ok(Found { members: standing.snapshots(&point.group)?, point, passed_over });
    }
    for n in (1..=points.last()).rev() {
        let point = match points.read(n) {
            Ok(point) => point,
            Err(e) => return Err(unsound(name, n, &e)),
        };
        if let Pick::At(time) = pick
            && point.group.until() > time
        {
            continue;
        }
        let wholeness = standing.look(&point.group)?;
        let objection = match pick {
            Pick::LatestVerified if wholeness.missing.is_empty() && standing.verified(&point.group)? => None,
            Pick::LatestVerified => Some("drills have not proven all of it".to_owned()),
            _ => wholeness.objection(&point.group),
        };
        match objection {
            None => return Ok(Found { members: standing.snapshots(&point.group)?, point, passed_over }),
            Some(why) => passed_over.push((n, why)),
        }
    }
    let what = match pick {
        Pick::LatestVerified => "no point of which drills have proven all members".to_owned(),
        Pick::At(time) => format!("no good point with data of {time:.0} or before"),
        _ => "no good point".into(),
    };
    Err(nothing(open, name, &what, &passed_over))
}

fn nothing(open: &Open, name: &GroupName, what: &str, passed_over: &[(u64, String)]) -> anyhow::Error {
    let all: Vec<String> = passed_over.iter().take(5).map(|(n, why)| format!("{n}: {why}")).collect();
    let why = if all.is_empty() { String::new() } else { format!(" Not taken were {}.", all.join("; ")) };
    // Where there are points, and none of them is good, that is what was found; otherwise there was nothing to find.
    let kind = if passed_over.is_empty() { Kind::Usage } else { Kind::CheckFailed };
    Failure::new(
        kind,
        format!("there is {what} of group {name} in {}", open.store.place()),
        format!("Nothing was changed. `snapshots` lists the groups and their points.{why}"),
    )
}

fn unsound(name: &GroupName, n: u64, why: &anyhow::Error) -> anyhow::Error {
    Failure::new(
        Kind::CheckFailed,
        format!("point {n} of group {name} does not verify: {why:#}"),
        "Nothing was changed. Somebody has removed, changed or forged it; the snapshots of its members are as they were. `snapshots` lists the other points: \
         say --snapshot N to take one; `restore SOURCE --snapshot N` restores a member alone.",
    )
}

fn incomplete(name: &GroupName, group: &Group, wholeness: &Wholeness) -> anyhow::Error {
    Failure::new(
        Kind::CheckFailed,
        format!("point {} of group {name} is not whole: {}", group.n, wholeness.losses()),
        "Nothing was changed. `snapshots` lists the points that are whole; `restore SOURCE --snapshot N` restores a member alone, and then what fits together \
         is for you to judge.",
    )
}
