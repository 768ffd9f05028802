//! Expiry: a pure plan, then a sweep. The sweep commits what it removes before it removes anything (FORMAT.md §3-6).

mod fold;
mod gone;

pub use fold::{Folded, LISTED_MAX, RECORDS};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeSet;

use super::retention::{Decision, Policy, Reason};
use super::wal::keep::{self, Anchor};
use super::{Host, Open, findings, locks, retained, verified};
use crate::error::{Failure, Kind};
use crate::report::Outcome;
use crate::repository::history::{self, Cover, Written};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::log::{Gone, Log};
use crate::repository::series::{self, CLOCK_SLACK, Series, Whole};
use crate::repository::snapshot::{Line, Prune, Removed, Snapshot};
use crate::repository::{FORMAT, PROGRAM};
use crate::storage::{self, Key, VersionId};

/// Objects that no snapshot names stay for this long, unless the operator says otherwise.
pub const GRACE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub source: SourceName,
    /// The head that the plan was made for.
    pub head: u64,
    pub previous: Option<Hash>,
    pub decisions: Vec<Decision>,
    pub remove: Vec<Removed>,
    /// Earlier prune records that the new one stands for.
    pub folded: Folded,
    /// Objects that no remaining snapshot names and that are older than the grace period, and commits that an interrupted sweep left; and their
    /// bytes.
    #[serde(skip)]
    pub unnamed: Vec<Key>,
    pub unnamed_count: u64,
    pub unnamed_bytes: u64,
    /// Objects that nothing names, but that are too young to go.
    pub young_count: u64,
    /// What is younger than this stays.
    #[serde(skip)]
    pub before: Timestamp,
    /// What of the log is needed no more; its objects are among the unnamed.
    pub log: Vec<Gone>,
    /// Snapshots that retention would let go, but a lock holds until then.
    pub locked: Vec<(u64, Timestamp)>,
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
    /// Earlier prune records that the new one stands for; among the objects.
    pub folded: u64,
    pub bytes_freed: u64,
    /// Objects that the store refused to delete (a lock, a missing right).
    pub refused: Vec<String>,
    /// Files that killed writers have left in a local repository.
    pub unfinished_deleted: u64,
}

/// What may go. If any commit cannot be read, verified or understood, that is an error, and nothing may go.
pub fn plan(open: &Open, source: &SourceName, policy: &Policy, grace: SignedDuration) -> Result<Plan> {
    policy.validate()?;
    // Looked up before the listing, which may only be newer.
    let known = gone::known(open, source)?;
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    whole.require_sound(source).map_err(|e| {
        Failure::new(
            Kind::CheckFailed,
            format!("prune refuses: {e:#}"),
            "Nothing was deleted. `verify` tells more; put the commit right first.",
        )
    })?;
    gone::nothing_is_missed(open, &series, &known)?;
    let proven = verified::proven(open, source)?;
    let now = open.now();
    let mut decisions = retained::decisions(open, source, &whole, &proven, policy)?;
    let mut locked = Vec::new();
    for decision in decisions.iter_mut().filter(|d| d.keep.is_empty()) {
        // What is locked could not be deleted, and stays a snapshot as long as that is so.
        if let Some(until) = locks::held_until(open, &layout::snapshot(source, decision.seq))? {
            decision.keep.push(Reason::Locked);
            locked.push((decision.seq, until));
        }
    }
    let goes = |seq: u64| decisions.iter().any(|d| d.seq == seq && d.keep.is_empty());
    let (named, remove) = sort_out(open, &whole, goes)?;
    let mut plan = Plan {
        source: source.clone(),
        head: series.head(),
        previous: whole.commits.last().map(|c| c.hash),
        decisions,
        remove,
        folded: fold::of(open, source, &whole, now - grace)?,
        unnamed: Vec::new(),
        unnamed_count: 0,
        unnamed_bytes: 0,
        young_count: 0,
        before: now - grace,
        log: Vec::new(),
        locked,
        covers: Vec::new(),
        remove_covers: false,
        uncover: Vec::new(),
        stale: stale_leases(open, source, grace)?,
    };
    // An interrupted sweep left these behind; its record has them removed already.
    plan.unnamed.extend(whole.leftover.iter().map(|seq| layout::snapshot(source, *seq)));
    plan.unnamed_count = whole.leftover.len() as u64;
    plan.find_covers(open, &whole)?;
    plan.find_unnamed(open, &named, grace)?;
    gone::not_without_any_commit(&plan)?;
    plan.find_log(open, &whole, policy, grace)?;
    Ok(plan)
}

/// The keys that remaining snapshots name, and the snapshots that go.
fn sort_out(open: &Open, whole: &Whole, goes: impl Fn(u64) -> bool) -> Result<(BTreeSet<Key>, Vec<Removed>)> {
    let (mut named, mut remove) = (BTreeSet::new(), Vec::new());
    for (commit, snapshot) in whole.snapshots() {
        if goes(snapshot.seq) {
            remove.push(Removed { seq: snapshot.seq, hash: commit.hash });
            continue;
        }
        named.extend(series::objects_of(&open.store, snapshot)?.into_keys());
    }
    Ok((named, remove))
}

/// Versions of the lease that are no longer the lease.
fn stale_leases(open: &Open, source: &SourceName, grace: SignedDuration) -> Result<Vec<(Key, VersionId)>> {
    let lease = history::of(&open.store, &layout::lease(source)).context("look at the lease")?;
    let old = lease.versions.into_iter().filter(|kept| !kept.current && kept.modified + grace <= open.now());
    Ok(old.map(|kept| (kept.key, kept.id)).collect())
}

impl Plan {
    /// Covers over commits, drill reports and what belongs to no source.
    fn find_covers(&mut self, open: &Open, whole: &Whole) -> Result<()> {
        let goes = |key: &Key| layout::parse_snapshot(key).is_some_and(|(_, seq)| whole.leftover.contains(&seq));
        let store = &open.store;
        let commits = history::list(store, &layout::snapshots(&self.source)).context("list snapshots")?;
        let reports = history::list(store, &layout::drills(self.source.as_str())).context("list drill reports")?;
        let log = history::list(store, &layout::log(&self.source)).context("list the log")?;
        let common = history::of_repository(store).context("list what belongs to no source")?;
        let all = commits.iter().chain(&reports).chain(&log).chain(&common);
        all.filter(|w| !goes(&w.key)).for_each(|written| self.note_cover(written));
        Ok(())
    }

    /// Packs and index objects that nothing names, and covers over those that something does.
    fn find_unnamed(&mut self, open: &Open, named: &BTreeSet<Key>, grace: SignedDuration) -> Result<()> {
        for area in ["packs", "index"] {
            let prefix = layout::content_prefix(area, &self.source);
            for written in history::list(&open.store, &prefix).context("list objects")? {
                if named.contains(&written.key) {
                    self.note_cover(&written);
                } else if written.until() + grace > open.now() {
                    self.young_count += 1;
                } else {
                    self.unnamed_count += 1;
                    self.unnamed_bytes += written.bytes();
                    self.unnamed.push(written.key);
                }
            }
        }
        Ok(())
    }

    /// What the kept snapshots need no more of the log.
    fn find_log(&mut self, open: &Open, whole: &Whole, policy: &Policy, grace: SignedDuration) -> Result<()> {
        let stays = |s: &&Snapshot| !self.remove.iter().any(|r| r.seq == s.seq);
        let anchor = |s: &Snapshot| {
            let good = s.outcome == Outcome::Complete && !whole.is_suspect(s);
            Some(Anchor { range: s.log.clone()?, reaches_from: s.finished, good })
        };
        let kept: Vec<Anchor> = whole.snapshots().map(|(_, s)| s).filter(stays).filter_map(anchor).collect();
        let log = Log::list(&open.store, &open.trust, &self.source)?;
        let spare = keep::spare(open, &log, &kept, policy.reachable_from(open.now()), open.now() - grace)?;
        self.unnamed_count += spare.objects.len() as u64;
        self.unnamed_bytes += spare.objects.iter().map(|o| o.size).sum::<u64>();
        self.unnamed.extend(spare.objects.into_iter().map(|o| o.key));
        self.log = spare.gone;
        Ok(())
    }

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
    let now = open.now();
    host.require_any_role(&plan.source)?;
    let _lease = host.lease(&plan.source)?;
    clock_agrees(open, &plan.source)?;
    let known = gone::known(open, &plan.source)?;
    let series = Series::list(&open.store, &open.trust, &plan.source)?;
    if series.head() != plan.head {
        return Err(overtaken(&plan, series.head()));
    }
    gone::nothing_is_missed(open, &series, &known)?;
    if let Some(head) = plan.previous {
        gone::remember(open, &plan.source, plan.head, head);
    }
    if !plan.remove_covers
        && let Some(first) = plan.covers.first()
    {
        return Err(covered(&plan, first));
    }
    if plan.is_empty() {
        findings::note(open, &plan.source, |known| known.take_prune(now, &[]));
        return Ok(PruneReport::new(&plan));
    }
    if !open.store.may_delete().context("try out whether this credential may delete")? {
        return Err(no_right(&plan));
    }
    // Also where no commit goes: a writer that has stalled for longer than the grace period may be about to name one of the objects.
    if !plan.remove.is_empty() || !plan.unnamed.is_empty() {
        commit(host, &plan, now)?;
    }
    let before = plan.before;
    let mut report = PruneReport::new(&plan);
    for (key, id) in plan.uncover.drain(..).chain(plan.stale.drain(..)) {
        report.note(open, &key, open.store.delete_version(&key, &id))?;
    }
    let commits = plan.remove.iter().chain(&plan.folded.records).map(|r| layout::snapshot(&plan.source, r.seq));
    for key in commits.chain(plan.unnamed) {
        if report.note(open, &key, open.store.delete(&key))? {
            report.objects_deleted += 1;
        }
    }
    report.unfinished_deleted = open.store.sweep_unfinished(before).context("remove what killed runs have left")?;
    findings::note(open, &report.source, |known| known.take_prune(now, &report.refused));
    Ok(report)
}

/// The lease has just been written: the store's time of it is the store's clock. A clock that runs ahead makes everything look old.
fn clock_agrees(open: &Open, source: &SourceName) -> Result<()> {
    let lease = layout::lease(source);
    let listed = open.store.list(lease.as_str()).context("look at the lease")?;
    let Some(written) = listed.into_iter().find(|object| object.key == lease).map(|object| object.modified) else {
        return Ok(());
    };
    let ahead = open.now().duration_since(written);
    if ahead <= CLOCK_SLACK {
        return Ok(());
    }
    Err(Failure::new(
        Kind::CheckFailed,
        format!("this machine's clock is {ahead:#} ahead of the store's"),
        "Nothing was deleted: by this clock, snapshots and objects would look older than they are. Set the clock.",
    ))
}

impl PruneReport {
    fn new(plan: &Plan) -> PruneReport {
        PruneReport {
            source: plan.source.clone(),
            removed: plan.remove.iter().map(|r| r.seq).collect(),
            objects_deleted: 0,
            folded: plan.folded.records.len() as u64,
            bytes_freed: plan.unnamed_bytes,
            refused: Vec::new(),
            unfinished_deleted: 0,
        }
    }

    /// Whether `key` is gone. A refusal is noted; any other error ends the sweep.
    fn note(&mut self, open: &Open, key: &Key, deleted: storage::Result<()>) -> Result<bool> {
        match deleted {
            Ok(()) => return Ok(true),
            Err(e) if e.kind == storage::Kind::Denied => self.refused.push(match locks::held_until(open, key)? {
                Some(until) => format!("{key} is locked until {until:.0}"),
                None => format!("{key}: access denied"),
            }),
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
        agent: PROGRAM.into(),
        started: now,
        removed: plan.folded.with_removed(&plan.remove),
        log: plan.folded.with_log(&plan.log),
    };
    let committed = host.commit(&plan.source, plan.head + 1, &Line::Prune(Box::new(record)));
    match committed.context("commit the prune record: nothing was deleted")? {
        Some(record) => {
            gone::remember(open, &plan.source, plan.head + 1, record);
            Ok(())
        }
        None => Err(overtaken(plan, plan.head + 1)),
    }
}

fn overtaken(plan: &Plan, head: u64) -> anyhow::Error {
    Failure::new(
        Kind::Busy,
        format!("{} has grown to commit {head} since the plan was made", plan.source),
        "Nothing was deleted. Run prune again.",
    )
}
