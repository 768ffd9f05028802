//! Archived packs: found before a restore, with time and cost told, asked for, and waited for. What was asked for stays asked for, so an
//! interrupted thaw goes on where it was.

use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Open;
use super::restore::{self, Request};
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::repository::agefile::Identity;
use crate::repository::history;
use crate::repository::layout;
use crate::repository::snapshot::Snapshot;
use crate::storage::{Class, Haste, Ice, Key, VersionId};

/// Between two looks at what is still frozen.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What lies in the ice of all that a restore needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Frozen {
    /// Neither readable nor asked for.
    pub frozen: u64,
    /// Asked for.
    pub thawing: u64,
    /// Stored bytes of both.
    pub bytes: u64,
    #[serde(skip)]
    keys: Vec<(Key, Class, Ice)>,
    /// By class: packs and bytes that have not been asked for yet.
    pub by_class: BTreeMap<Class, (u64, u64)>,
}

impl Frozen {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What thawing takes, as a rule and by list price; the store's own terms decide.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// At most, as a rule (S3 User Guide, archive retrieval options).
    pub hours: f64,
    /// US dollars, by the list prices of AWS for us-east-1 in 2025: requests and bytes retrieved, without transfer.
    pub dollars: f64,
}

/// Looks for archived packs among those that the restore of `snapshot` needs. A repository without any costs one listing.
pub fn look(open: &Open, identities: &[Identity], snapshot: &Snapshot, request: &Request) -> Result<Frozen> {
    let source = &snapshot.source;
    let listed = history::list(&open.store, &layout::content_prefix("packs", source)).context("list packs")?;
    let archived: BTreeMap<Key, (Class, u64)> = listed
        .into_iter()
        .filter_map(|written| {
            let first = written.versions.first()?;
            first.class.is_archive().then(|| (first.key.clone(), (first.class, first.size)))
        })
        .collect();
    let mut found = Frozen::default();
    if archived.is_empty() {
        return Ok(found);
    }
    for hash in restore::packs_needed(open, identities, snapshot, request)? {
        let key = layout::pack(source, &hash);
        let Some((class, size)) = archived.get(&key) else { continue };
        let details = open.store.describe(&key, &VersionId::default());
        let ice = details.with_context(|| format!("look at {key}"))?.ice;
        match ice {
            Ice::None | Ice::Thawed => continue,
            Ice::Thawing => found.thawing += 1,
            Ice::Frozen => {
                found.frozen += 1;
                let (packs, bytes) = found.by_class.entry(*class).or_default();
                (*packs, *bytes) = (*packs + 1, *bytes + size);
            }
        }
        found.bytes += size;
        found.keys.push((key, *class, ice));
    }
    // Servers that know the names of the classes, but freeze nothing, read what they call archived.
    if let Some((key, ..)) = found.keys.iter().find(|(.., ice)| *ice == Ice::Frozen)
        && open.store.get_range(key, 0..1).is_ok()
    {
        return Ok(Frozen::default());
    }
    Ok(found)
}

/// What it takes to thaw what has not been asked for yet; `None` where a class cannot be thawed in that haste.
pub fn estimate(frozen: &Frozen, haste: Haste) -> Option<Estimate> {
    let mut sum = Estimate { hours: 0.0, dollars: 0.0 };
    for (class, (packs, bytes)) in &frozen.by_class {
        // Hours, dollars for 1000 requests, dollars for a GB. Hours: S3 User Guide, "Archive retrieval options". GLACIER's prices: the calculation
        // in <https://repost.aws/knowledge-center/s3-manage-data-retrieval> (standard 0.05 and 0.01, expedited 10 a thousand); the rest from
        // <https://aws.amazon.com/s3/pricing/>, us-east-1. A GB of DEEP_ARCHIVE (0.02, bulk 0.0025) and of expedited (0.03) agrees with price
        // lists that others published in 2026; what DEEP_ARCHIVE charges for a request (0.10, bulk 0.025) was not found a second time.
        let (hours, per_1000, per_gb) = match (class, haste) {
            (Class::Glacier, Haste::Expedited) => (5.0 / 60.0, 10.0, 0.03),
            (Class::Glacier, Haste::Standard) => (5.0, 0.05, 0.01),
            (Class::Glacier, Haste::Bulk) => (12.0, 0.0, 0.0),
            (Class::DeepArchive, Haste::Standard) => (12.0, 0.10, 0.02),
            (Class::DeepArchive, Haste::Bulk) => (48.0, 0.025, 0.0025),
            _ => return None,
        };
        sum.hours = f64::max(sum.hours, hours);
        sum.dollars += *packs as f64 / 1000.0 * per_1000 + *bytes as f64 / 1e9 * per_gb;
    }
    Some(sum)
}

/// How to thaw.
#[derive(Debug, Clone, Copy)]
pub struct Thaw {
    pub haste: Haste,
    /// For how many days the readable copies stay.
    pub days: u32,
    /// How long to wait for them.
    pub wait: Duration,
}

/// Asks for everything in `frozen` and waits until it can be read. What is not ready in time is an error; the same again goes on.
pub fn thaw(open: &Open, frozen: &Frozen, how: Thaw) -> Result<()> {
    for (key, _, ice) in &frozen.keys {
        if *ice == Ice::Frozen {
            open.store.thaw(key, how.days, how.haste).with_context(|| format!("ask for {key} to be thawed"))?;
        }
    }
    let begun = Instant::now();
    let mut pause = PAUSE;
    let mut waiting: Vec<&Key> = frozen.keys.iter().map(|(key, ..)| key).collect();
    loop {
        let mut cold = Vec::new();
        for key in waiting {
            let details = open.store.describe(key, &VersionId::default());
            if matches!(details.with_context(|| format!("look at {key}"))?.ice, Ice::Frozen | Ice::Thawing) {
                cold.push(key);
            }
        }
        if cold.is_empty() {
            return Ok(());
        }
        if begun.elapsed() + pause > how.wait {
            return Err(Failure::new(
                Kind::Failed,
                format!("{} of {} packs are still being thawed", cold.len(), frozen.keys.len()),
                "Nothing was restored yet, and nothing is lost: the store goes on with what was asked for. Give the same command again later; it waits for the rest.",
            ));
        }
        interrupt::pause(
            pause,
            "Nothing was restored yet. The store goes on with what was asked for; the same command again waits for the rest.",
        )?;
        pause = (pause * 2).min(PAUSE_MAX);
        waiting = cold;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_by_class() {
        let by_class =
            BTreeMap::from([(Class::Glacier, (1000, 100_000_000_000)), (Class::DeepArchive, (2000, 50_000_000_000))]);
        let frozen = Frozen { by_class, ..Frozen::default() };
        let standard = estimate(&frozen, Haste::Standard).unwrap();
        assert_eq!(standard.hours, 12.0);
        assert!((standard.dollars - (0.05 + 1.0 + 0.20 + 1.0)).abs() < 1e-9, "{standard:?}");
        assert_eq!(estimate(&frozen, Haste::Expedited), None, "not for the deep archive");
        assert_eq!(estimate(&frozen, Haste::Bulk).unwrap().hours, 48.0);
    }
}
