//! Expiry: a pure plan, then a sweep. The sweep commits what it removes before it removes anything (FORMAT.md §3-6).

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::retention::{Decision, Point, Policy, decide};
use super::wal::keep::{self, Anchor};
use super::{Host, Open, drill};
use crate::error::{Failure, Kind};
use crate::report::Outcome;
use crate::repository::FORMAT;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::lease::Lease;
use crate::repository::log::{Gone, Log};
use crate::repository::series::{self, Series, Whole};
use crate::repository::snapshot::{Commit, Line, Prune, Removed, Snapshot};
use crate::repository::trust::Role;
use crate::storage::{self, Key};

/// A commit whose time the store contradicts by more than this is suspect.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_hours(1);

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
    /// What of the log is needed no more; its objects are among the unnamed.
    pub log: Vec<Gone>,
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
            suspect: whole.stored_at.get(&s.seq).is_none_or(|at| at.duration_since(s.finished).abs() > CLOCK_SLACK),
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
        log: Vec::new(),
    };
    // An interrupted sweep left these behind; its record has them removed already.
    plan.unnamed.extend(whole.leftover.iter().map(|seq| layout::snapshot(source, *seq)));
    plan.unnamed_count = whole.leftover.len() as u64;
    for area in ["packs", "index"] {
        for object in open.store.list(&layout::content_prefix(area, source)).context("list objects")? {
            if named.contains(&object.key) {
                continue;
            }
            if object.modified + grace > now {
                plan.young_count += 1;
                continue;
            }
            plan.unnamed_count += 1;
            plan.unnamed_bytes += object.size;
            plan.unnamed.push(object.key);
        }
    }
    let horizon = policy.reachable_from(now);
    prune_log(open, &mut plan, &whole, horizon, now - grace)?;
    Ok(plan)
}

/// Adds what the kept snapshots need no more of the log, of what was stored before `old`.
fn prune_log(open: &Open, plan: &mut Plan, whole: &Whole, horizon: Option<Timestamp>, old: Timestamp) -> Result<()> {
    let log = Log::list(&open.store, &open.trust, &plan.source)?;
    if log.is_empty() {
        return Ok(());
    }
    let stays = |s: &&Snapshot| !plan.remove.iter().any(|r| r.seq == s.seq);
    let anchor = |s: &Snapshot| Some(Anchor { range: s.log.clone()?, data_time: s.data_time });
    let kept: Vec<Anchor> = whole.snapshots().map(|(_, s)| s).filter(stays).filter_map(anchor).collect();
    let spare = keep::spare(open, &log, &kept, horizon, old)?;
    plan.unnamed_count += spare.objects.len() as u64;
    plan.unnamed_bytes += spare.objects.iter().map(|o| o.size).sum::<u64>();
    plan.unnamed.extend(spare.objects.into_iter().map(|o| o.key));
    plan.log = spare.gone;
    Ok(())
}

/// Carries `plan` out. Fails without deleting anything if the series has grown since.
pub fn sweep(host: &Host, plan: Plan) -> Result<PruneReport> {
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
    // Also where no commit goes: a writer that has stalled for longer than the grace period may be about to name one of the objects.
    if !plan.remove.is_empty() || !plan.unnamed.is_empty() {
        commit(host, &plan, now)?;
    }
    let mut report = PruneReport {
        source: plan.source.clone(),
        removed: plan.remove.iter().map(|r| r.seq).collect(),
        objects_deleted: 0,
        bytes_freed: plan.unnamed_bytes,
        refused: Vec::new(),
    };
    let commits = plan.remove.iter().map(|r| layout::snapshot(&plan.source, r.seq));
    for key in commits.chain(plan.unnamed) {
        match open.store.delete(&key) {
            Ok(()) => report.objects_deleted += 1,
            Err(e) if e.kind == storage::Kind::Denied => report.refused.push(key.to_string()),
            Err(e) => {
                return Err(e).context(
                    "delete what no snapshot names any more: run prune again; no snapshot that is kept is touched",
                );
            }
        }
    }
    Ok(report)
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
        log: plan.log.clone(),
    };
    let body = host.keys.signing.sign_line(&Line::Prune(Box::new(record)))?;
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
