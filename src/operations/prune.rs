//! Expiry: a pure plan, then a sweep. The sweep commits what it removes before it removes anything (FORMAT.md §3-6).

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::retention::{Decision, Point, Policy, decide};
use super::{Host, Open, drill};
use crate::error::{Failure, Kind};
use crate::report::Outcome;
use crate::repository::FORMAT;
use crate::repository::history::{self, Cover, Written};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::lease::Lease;
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Commit, Line, Prune, Removed};
use crate::repository::trust::Role;
use crate::storage::{self, Key, VersionId};

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub source: SourceName,
    /// The head that the plan was made for.
    pub head: u64,
    pub previous: Option<Hash>,
    pub decisions: Vec<Decision>,
    pub remove: Vec<Removed>,
    /// Objects that no remaining snapshot names and that are older than the grace period, and commits that an interrupted sweep left; and their
    /// bytes.
    #[serde(skip)]
    pub unnamed: Vec<Key>,
    pub unnamed_count: u64,
    pub unnamed_bytes: u64,
    /// Objects that nothing names, but that are too young to go.
    pub young_count: u64,
    /// What somebody has put over objects that remain: delete markers and later versions. A sweep refuses because of them.
    pub covers: Vec<Cover>,
    /// Take the covers away instead, so that the first versions are to be seen again. No plan says so of itself.
    pub remove_covers: bool,
    #[serde(skip)]
    uncover: Vec<(Key, VersionId)>,
    /// Versions that the lease has left behind.
    #[serde(skip)]
    stale: Vec<(Key, VersionId)>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PruneReport {
    pub source: SourceName,
    pub removed: Vec<u64>,
    pub objects_deleted: u64,
    pub bytes_freed: u64,
    /// Objects that the store refused to delete (a lock, a missing right).
    pub refused: Vec<String>,
}

/// What may go. If any commit cannot be read, verified or understood, that is an error, and nothing may go.
pub fn plan(open: &Open, source: &SourceName, policy: &Policy, grace: SignedDuration) -> Result<Plan> {
    policy.validate()?;
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    whole.require_sound(source).map_err(|e| {
        Failure::new(
            Kind::CheckFailed,
            format!("prune refuses: {e:#}"),
            "Nothing was deleted. `verify` tells more; put the commit right first.",
        )
    })?;
    let proofs = drill::verified(open, source)?;
    let now = open.now();
    let points: Vec<Point> = whole
        .snapshots()
        .map(|(commit, s)| Point {
            seq: s.seq,
            data_time: s.data_time,
            complete: s.outcome == Outcome::Complete,
            verified: proofs.iter().any(|p| p.commit == commit.hash),
            suspect: whole.is_suspect(s),
        })
        .collect();
    let decisions = decide(&points, policy, now);
    let goes = |seq: u64| decisions.iter().any(|d| d.seq == seq && d.keep.is_empty());
    let mut named = BTreeSet::new();
    let mut remove = Vec::new();
    for (commit, snapshot) in whole.snapshots() {
        if goes(snapshot.seq) {
            remove.push(Removed { seq: snapshot.seq, hash: commit.hash });
            continue;
        }
        named.extend(series::index_objects(snapshot).map(|(hash, _)| layout::index(source, hash)));
        named.extend(series::packs_of(&open.store, snapshot)?.keys().map(|hash| layout::pack(source, hash)));
    }
    let mut plan = Plan {
        source: source.clone(),
        head: series.head(),
        previous: whole.commits.last().map(|c| c.hash),
        decisions,
        remove,
        unnamed: Vec::new(),
        unnamed_count: 0,
        unnamed_bytes: 0,
        young_count: 0,
        covers: Vec::new(),
        remove_covers: false,
        uncover: Vec::new(),
        stale: stale_leases(open, source, grace)?,
    };
    let goes_key = |key: &Key| layout::parse_snapshot(key).is_some_and(|(_, seq)| whole.leftover.contains(&seq));
    let store = &open.store;
    let commits = history::list(store, &layout::snapshots(source)).context("list snapshots")?;
    let reports = history::list(store, &layout::drills(source)).context("list drill reports")?;
    let common = history::of_repository(store).context("list what belongs to no source")?;
    for written in commits.iter().chain(&reports).chain(&common).filter(|w| !goes_key(&w.key)) {
        plan.note_cover(written);
    }
    // An interrupted sweep left these behind; its record has them removed already.
    plan.unnamed.extend(whole.leftover.iter().map(|seq| layout::snapshot(source, *seq)));
    plan.unnamed_count = whole.leftover.len() as u64;
    for area in ["packs", "index"] {
        for written in history::list(&open.store, &layout::content_prefix(area, source)).context("list objects")? {
            if named.contains(&written.key) {
                plan.note_cover(&written);
                continue;
            }
            if written.until() + grace > now {
                plan.young_count += 1;
                continue;
            }
            plan.unnamed_count += 1;
            plan.unnamed_bytes += written.bytes();
            plan.unnamed.push(written.key);
        }
    }
    Ok(plan)
}

/// Versions of the lease that are no longer the lease.
fn stale_leases(open: &Open, source: &SourceName, grace: SignedDuration) -> Result<Vec<(Key, VersionId)>> {
    let lease = history::of(&open.store, &layout::lease(source)).context("look at the lease")?;
    let old = lease.versions.into_iter().filter(|kept| !kept.current && kept.modified + grace <= open.now());
    Ok(old.map(|kept| (kept.key, kept.id)).collect())
}

impl Plan {
    fn note_cover(&mut self, written: &Written) {
        self.covers.extend(written.cover());
        self.uncover.extend(written.over().into_iter().map(|kept| (kept.key.clone(), kept.id.clone())));
    }

    /// Whether a sweep of this plan would delete nothing at all.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.unnamed.is_empty() && self.stale.is_empty() && self.uncover.is_empty()
    }
}

/// Carries `plan` out. Fails without deleting anything if the series has grown since, or if this credential may not delete.
pub fn sweep(host: &Host, mut plan: Plan) -> Result<PruneReport> {
    let open = &host.open;
    let key = host.keys.signing.public();
    let now = open.now();
    let may = |role| open.trust.may_sign(&key, role, &plan.source, now);
    if !may(Role::Host) && !may(Role::Keeper) {
        return Err(Failure::new(
            Kind::WrongKey,
            format!("this host's key {} is certified neither as host nor as keeper of {}", key.id(), plan.source),
            "Nothing was deleted.",
        ));
    }
    let _lease = Lease::acquire(&open.store, &plan.source, &key.id(), &host.name, Arc::clone(&open.clock))?;
    let head = Series::list(&open.store, &open.trust, &plan.source)?.head();
    if head != plan.head {
        return Err(overtaken(&plan, head));
    }
    if !plan.remove_covers
        && let Some(first) = plan.covers.first()
    {
        return Err(covered(&plan, first));
    }
    if plan.is_empty() {
        return Ok(PruneReport::new(&plan));
    }
    if !open.store.may_delete().context("try out whether this credential may delete")? {
        return Err(no_right(&plan));
    }
    // Also where no commit goes: a writer that has stalled for longer than the grace period may be about to name one of the objects.
    if !plan.remove.is_empty() || !plan.unnamed.is_empty() {
        commit(host, &plan, now)?;
    }
    let mut report = PruneReport::new(&plan);
    for (key, id) in plan.uncover.drain(..).chain(plan.stale.drain(..)) {
        report.note(&key, open.store.delete_version(&key, &id))?;
    }
    let commits = plan.remove.iter().map(|r| layout::snapshot(&plan.source, r.seq));
    for key in commits.chain(plan.unnamed) {
        if report.note(&key, open.store.delete(&key))? {
            report.objects_deleted += 1;
        }
    }
    Ok(report)
}

impl PruneReport {
    fn new(plan: &Plan) -> PruneReport {
        PruneReport {
            source: plan.source.clone(),
            removed: plan.remove.iter().map(|r| r.seq).collect(),
            objects_deleted: 0,
            bytes_freed: plan.unnamed_bytes,
            refused: Vec::new(),
        }
    }

    /// Whether `key` is gone. A refusal is noted; any other error ends the sweep.
    fn note(&mut self, key: &Key, deleted: storage::Result<()>) -> Result<bool> {
        match deleted {
            Ok(()) => return Ok(true),
            Err(e) if e.kind == storage::Kind::Denied => self.refused.push(key.to_string()),
            Err(e) => {
                return Err(e).context(
                    "delete what no snapshot names any more: run prune again; no snapshot that is kept is touched",
                );
            }
        }
        Ok(false)
    }
}

fn covered(plan: &Plan, first: &Cover) -> anyhow::Error {
    let what = if first.deleted { "was deleted" } else { "was written over" };
    Failure::new(
        Kind::CheckFailed,
        format!(
            "prune refuses: {} of {} {what} at {:.0} ({} such objects), and snapshots need it",
            first.object,
            plan.source,
            first.at,
            plan.covers.len()
        ),
        "Nothing was deleted. The store keeps versions, so the first one is still there and restores. Find out who did it and change the \
         credentials; `verify` names all of them; `prune --uncover` takes away what was put over them.",
    )
}

fn no_right(plan: &Plan) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!("this credential may not delete in the store, so nothing of {} was removed", plan.source),
        "No record was written either: every snapshot is as it was. That a host cannot delete is as it should be: run `prune` as keeper, with a \
         credential that may (`init --role keeper` makes its key, `kit` prints its policy).",
    )
}

/// The prune record: a commit, so that no writer can build on what is about to go.
fn commit(host: &Host, plan: &Plan, now: Timestamp) -> Result<()> {
    let open = &host.open;
    let record = Prune {
        format: FORMAT,
        repository: open.trust.id.clone(),
        source: plan.source.clone(),
        seq: plan.head + 1,
        previous: plan.previous,
        host: host.name.clone(),
        key: host.keys.signing.public().id(),
        agent: concat!("blackstart ", env!("CARGO_PKG_VERSION")).into(),
        started: now,
        removed: plan.remove.clone(),
    };
    let body = host.keys.signing.sign_line(&Line::Prune(record))?;
    // What this program would not accept it must not write.
    Commit::verify(&open.trust, &plan.source, plan.head + 1, &body)
        .context("check the prune record before it is written")?;
    let hash = Hash::of(&body);
    match open.store.create(&layout::snapshot(&plan.source, plan.head + 1), body.into(), &hash.0) {
        Ok(_) => Ok(()),
        Err(e) if e.kind == storage::Kind::AlreadyExists => Err(overtaken(plan, plan.head + 1)),
        Err(e) => Err(e).context("commit the prune record: nothing was deleted"),
    }
}

fn overtaken(plan: &Plan, head: u64) -> anyhow::Error {
    Failure::new(
        Kind::Busy,
        format!("{} has grown to commit {head} since the plan was made", plan.source),
        "Nothing was deleted. Run prune again.",
    )
}
