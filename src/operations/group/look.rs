//! How the groups of a repository stand: the newest common point that is whole, and points that have lost a member. It needs no key.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::find::Standing;
use crate::operations::Open;
use crate::repository::group::{self, Member, Point, Points};
use crate::repository::layout::{GroupName, Hash};
use crate::repository::series::Series;
use crate::storage;

/// Points of each group that are looked at, the newest first.
const LOOKED_AT: u64 = 20;

/// What can be seen of one group.
#[derive(Debug, Clone, Serialize)]
pub struct Sight {
    pub group: GroupName,
    /// The newest point that is whole and complete and of which no member is suspect.
    pub n: Option<u64>,
    pub hash: Option<Hash>,
    /// The time of its oldest data; the store's own time where that is earlier, since a clock that is ahead must not make it look fresh.
    pub newest: Option<Timestamp>,
    /// The time of its oldest data, as its host says.
    pub data_time: Option<Timestamp>,
    /// Points of which retention has removed a member: they are not whole any more, and nothing is wrong with that.
    pub expired: Vec<u64>,
    /// Points that do not verify, are missing, or have lost a member that no prune record lists: what and why.
    pub faults: Vec<String>,
    /// Why nothing is known of it: the store does not give it, or a member of it.
    pub unread: Option<String>,
}

impl Sight {
    /// Of a group that has no points.
    pub fn of(group: GroupName) -> Sight {
        Sight {
            group,
            n: None,
            hash: None,
            newest: None,
            data_time: None,
            expired: Vec::new(),
            faults: Vec::new(),
            unread: None,
        }
    }
}

/// Looks at the newest points of every group.
pub fn look(open: &Open) -> Result<Vec<Sight>> {
    let mut standing = Standing::new(open);
    let mut look = |name: GroupName| {
        let points = Points::list(&open.store, &open.trust, &name);
        let looked = points.and_then(|points| look_at(open, &mut standing, &points));
        looked.unwrap_or_else(|error| Sight { unread: Some(format!("{error:#}")), ..Sight::of(name) })
    };
    Ok(group::names(&open.store)?.into_iter().map(&mut look).collect())
}

/// Looks at the newest of the points listed.
pub fn look_at(open: &Open, standing: &mut Standing, points: &Points) -> Result<Sight> {
    let recent = points.recent(LOOKED_AT)?;
    let mut sight = Sight::of(points.name().clone());
    sight.faults.extend(recent.faults.iter().map(|(n, why)| format!("point {n}: {why}")));
    for Point { hash, group, .. } in &recent.points {
        let wholeness = standing.look(group)?;
        if sight.n.is_none() && wholeness.objection(group).is_none() {
            let stored = points.stored_at(group.n);
            (sight.n, sight.hash) = (Some(group.n), Some(*hash));
            sight.data_time = Some(group.data_time());
            sight.newest = Some(stored.map_or(group.data_time(), |at| at.min(group.data_time())));
        }
        let missing = |member: &&Member| wholeness.missing.contains_key(&member.source);
        let mut expired = false;
        for member in group.members.iter().filter(missing) {
            if was_pruned(open, member)? {
                expired = true;
            } else {
                let why = &wholeness.missing[&member.source];
                sight.faults.push(format!("point {} has lost {}: {why}", group.n, member.source));
            }
        }
        if expired {
            sight.expired.push(group.n);
        }
    }
    Ok(sight)
}

/// Whether a prune record lists just this commit. One that is damaged, or is another, was not pruned.
fn was_pruned(open: &Open, member: &Member) -> Result<bool> {
    let series = Series::list(&open.store, &open.trust, &member.source)?;
    match series.has(member.seq, member.commit) {
        Err(error) if storage::is_silence(&error) => Err(error),
        had => Ok(had.unwrap_or(false)),
    }
}
