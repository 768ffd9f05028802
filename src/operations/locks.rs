//! Locks on everything that a snapshot names, and classes for packs that colder tiers may have: what a keeper settles after each prune.
//!
//! The commit is locked last, so that its lock tells that everything which it names is locked as long.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

use super::tiers::{self, Tiering};
use super::{Open, retained, verified};
use crate::bridge::Store;
use crate::error::{Failure, Kind};
use crate::repository::history;
use crate::repository::layout::{self, SourceName};
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Named, Snapshot};
use crate::storage::{self, Class, Key, Lock, Terms, VersionId};

/// Requests under way at once.
const WORKERS: usize = 8;

/// Each object that `snapshot` names, but not its commit, with the first version that the store has of it.
pub fn named_by(store: &Store, snapshot: &Snapshot) -> Result<BTreeMap<Key, VersionId>> {
    let there = history::of_content(store, &snapshot.source).context("list objects")?;
    // What is missing is said elsewhere, and cannot be locked.
    let first = |(key, (_, size)): (Key, Named)| {
        let id = there.get(&key)?.versions.iter().find(|kept| kept.size == size)?.id.clone();
        Some((key, id))
    };
    Ok(series::objects_of(store, snapshot)?.into_iter().filter_map(first).collect())
}

/// Until when a lock holds the first version of `key`, if one still does.
pub fn held_until(open: &Open, key: &Key) -> Result<Option<Timestamp>> {
    let written = history::of(&open.store, key).context("look at what is to go")?;
    let Some(first) = written.versions.first() else { return Ok(None) };
    let details = match open.store.describe(key, &first.id) {
        // Then there is no knowing; a lock that is there will refuse.
        Err(e) if e.kind == storage::Kind::Denied => return Ok(None),
        details => details.with_context(|| format!("look at the lock of {key}"))?,
    };
    Ok(details.lock.map(|lock| lock.until).filter(|until| *until > open.now()))
}

/// Makes sure that each of `objects` is locked at least as `lock` says.
pub fn extend(store: &Store, objects: &[(Key, VersionId)], lock: Lock) -> Result<()> {
    let share = objects.len().div_ceil(WORKERS).max(1);
    std::thread::scope(|scope| {
        let all = |part: &[(Key, VersionId)]| part.iter().try_for_each(|(key, id)| extend_one(store, key, id, lock));
        let handles: Vec<_> = objects.chunks(share).map(|part| scope.spawn(move || all(part))).collect();
        handles.into_iter().try_for_each(|handle| match handle.join() {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("a thread panicked; this is a bug in blackstart, please report it")),
        })
    })
}

fn extend_one(store: &Store, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
    match store.lock(key, id, lock) {
        Ok(()) => Ok(()),
        // To shorten a lock is refused, as is what this credential may not do: which of them, the lock itself tells.
        Err(e) if e.kind == storage::Kind::Denied => require(store, key, id, lock).with_context(|| format!("{e:#}")),
        Err(e) => Err(no_lock(key, lock, &format!("{:#}", anyhow::Error::new(e)))),
    }
}

/// Fails unless the store says that `key` is locked so.
pub fn require(store: &Store, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
    let details = store.describe(key, id).with_context(|| format!("look at the lock of {key}"))?;
    if tiers::holds(details.lock, lock) {
        return Ok(());
    }
    let why = match details.lock {
        None => "the store shows no lock on it".to_owned(),
        Some(held) => format!("it is locked until {:.0} only", held.until),
    };
    Err(no_lock(key, lock, &why))
}

fn no_lock(key: &Key, lock: Lock, why: &str) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!("{key} could not be locked until {:.0}: {why}", lock.until),
        "Nothing was committed; snapshots that exist are as they were. The bucket must have Object Lock, and this credential the rights \
         s3:PutObjectRetention and s3:GetObjectRetention (`check` says what the bucket has, `kit` prints the policies). A governance \
         lock cannot be turned into a compliance one: `backup --baseline` then begins with objects of its own. Or take `lock` out of the tiers.",
    )
}

/// What was settled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Snapshots that now have a longer lock.
    pub locked: Vec<u64>,
    /// Packs that were marked for a colder class, by class.
    pub marked: BTreeMap<Class, u64>,
    /// Packs in a slower class than the tiers want. They restore, after a thaw where it is an archive.
    pub too_cold: u64,
}

/// Gives every snapshot the lock that its tiers ask for by now, and marks packs that may be moved to a colder class.
pub fn settle(open: &Open, source: &SourceName, tiering: Tiering) -> Result<Settled> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    whole.require_sound(source)?;
    let proven = verified::proven(open, source)?;
    let decisions = retained::decisions(open, source, &whole, &proven, tiering.policy)?;
    let needs = tiers::needs(&retained::points(&whole, &proven.proofs), &decisions, tiering, open.now());
    let mut settled = Settled::default();
    let mut packs: BTreeMap<Key, Terms> = BTreeMap::new();
    for (_, snapshot) in whole.snapshots() {
        // What a lock alone keeps asks for no class; its packs go with it.
        let Some(need) = needs.get(&snapshot.seq) else { continue };
        if let Some(lock) = need.lock
            && lock_snapshot(&open.store, snapshot, lock)?
        {
            settled.locked.push(snapshot.seq);
        }
        for hash in series::packs_of(&open.store, snapshot)?.keys() {
            let key = layout::pack(source, hash);
            packs.entry(key).and_modify(|terms| *terms = tiers::together(*terms, *need)).or_insert(*need);
        }
    }
    for written in history::list(&open.store, &layout::content_prefix("packs", source)).context("list packs")? {
        let (Some(wanted), Some(first)) = (packs.get(&written.key), written.versions.first()) else { continue };
        if first.class < wanted.class {
            open.store.mark(&written.key, wanted.class).with_context(|| format!("mark {}", written.key))?;
            *settled.marked.entry(wanted.class).or_default() += 1;
        } else if first.class > wanted.class {
            settled.too_cold += 1;
        }
    }
    Ok(settled)
}

/// Whether anything had to be done.
fn lock_snapshot(store: &Store, snapshot: &Snapshot, lock: Lock) -> Result<bool> {
    let key = layout::snapshot(&snapshot.source, snapshot.seq);
    let written = history::of(store, &key).context("look at a commit")?;
    let Some(first) = written.versions.first() else { return Ok(false) };
    if tiers::holds(store.describe(&key, &first.id).context("look at the lock of a commit")?.lock, lock) {
        return Ok(false);
    }
    let objects: Vec<_> = named_by(store, snapshot)?.into_iter().collect();
    extend(store, &objects, lock)?;
    extend_one(store, &key, &first.id, lock)?;
    Ok(true)
}
