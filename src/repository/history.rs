//! Reading write-once objects of a store that may keep versions (FORMAT.md §3-4).
//!
//! Whoever may write and delete, but not delete versions, can hide an object behind a delete marker or cover it with later bytes. The
//! first version is still there, and what blackstart wrote once is the oldest version that verifies: readers look through the rest.

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::iter;

use super::layout::{self, Hash, SourceName};
use crate::bridge::Store;
use crate::storage::{self, Kept, Key};

/// What a store has of one write-once key.
#[derive(Debug, Clone)]
pub struct Written {
    pub key: Key,
    /// The oldest first; none where only delete markers are left.
    pub versions: Vec<Kept>,
    pub markers: Vec<Kept>,
}

/// What hides an object, or a part of its versions. The data is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cover {
    pub object: String,
    /// Deleted, with a delete marker; otherwise covered by later bytes.
    pub deleted: bool,
    /// When that was done, by the store's clock.
    pub at: Timestamp,
}

impl Written {
    /// Bytes of the oldest version; `None` where there is none.
    pub fn size(&self) -> Option<u64> {
        self.versions.first().map(|kept| kept.size)
    }

    /// Whether one of the versions has this size, which is all that a listing can tell of one that is known by its hash.
    pub fn has_size(&self, size: u64) -> bool {
        self.versions.iter().any(|kept| kept.size == size)
    }

    /// The store's own time of the oldest version or marker.
    pub fn since(&self) -> Timestamp {
        let all = self.versions.iter().chain(&self.markers);
        all.map(|kept| kept.modified).min().unwrap_or(Timestamp::MAX)
    }

    /// The store's own time of the newest version; of the newest marker where no version is left.
    pub fn until(&self) -> Timestamp {
        let newest = |of: &[Kept]| of.iter().map(|kept| kept.modified).max();
        newest(&self.versions).or(newest(&self.markers)).unwrap_or(Timestamp::MAX)
    }

    /// The bytes of all versions.
    pub fn bytes(&self) -> u64 {
        self.versions.iter().map(|kept| kept.size).sum()
    }

    /// What was put over the oldest version: the newest of it.
    pub fn cover(&self) -> Option<Cover> {
        let over = self.over();
        let newest = over.iter().find(|kept| kept.current).or(over.last())?;
        Some(Cover { object: self.key.to_string(), deleted: newest.marker, at: newest.modified })
    }

    /// Everything but the oldest version: nothing of it was written by blackstart. Nothing where no version is left.
    pub fn over(&self) -> Vec<&Kept> {
        if self.versions.is_empty() {
            return Vec::new();
        }
        self.versions.iter().skip(1).chain(&self.markers).collect()
    }

    /// The oldest version that `check` takes; the error is the oldest's.
    pub fn read<T>(&self, store: &Store, mut check: impl FnMut(&Bytes) -> Result<T>) -> Result<T> {
        let mut failed = None;
        for kept in &self.versions {
            let read = match store.get_version(&kept.key, &kept.id) {
                Ok(bytes) => check(&bytes),
                Err(e) if e.kind == storage::Kind::NotFound => Err(e.into()),
                // An older one that cannot be read now must not make room for a younger one.
                Err(e) => return Err(e.into()),
            };
            match read {
                Ok(read) => return Ok(read),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        Err(failed.unwrap_or_else(|| anyhow!(storage::Error::new(storage::Kind::NotFound, "get", &self.key))))
    }
}

/// Everything that was ever written below `prefix` and has not been removed for good, by key.
pub fn list(store: &Store, prefix: &str) -> storage::Result<Vec<Written>> {
    Ok(by_key(store.list_versions(prefix)?))
}

/// Of [`list`] the first `most` keys after `after`, or some fewer; and behind what to go on.
pub fn page(store: &Store, prefix: &str, after: &str, most: usize) -> storage::Result<(Vec<Written>, Option<String>)> {
    let page = store.list_page(prefix, after, most)?;
    Ok((by_key(page.rows), page.next))
}

fn by_key(rows: Vec<Kept>) -> Vec<Written> {
    let mut all: Vec<Written> = Vec::new();
    for kept in rows {
        if all.last().is_none_or(|written| written.key != kept.key) {
            all.push(Written { key: kept.key.clone(), versions: Vec::new(), markers: Vec::new() });
        }
        if let Some(written) = all.last_mut() {
            let kind = if kept.marker { &mut written.markers } else { &mut written.versions };
            kind.push(kept);
        }
    }
    all
}

/// All that a store has of `key`; empty where it has nothing.
pub fn of(store: &Store, key: &Key) -> storage::Result<Written> {
    let mut all = list(store, key.as_str())?;
    all.retain(|written| written.key == *key);
    Ok(all.pop().unwrap_or_else(|| Written { key: key.clone(), versions: Vec::new(), markers: Vec::new() }))
}

/// All packs and index objects of `source`, by key.
pub fn of_content(store: &Store, source: &SourceName) -> storage::Result<BTreeMap<Key, Written>> {
    let mut all = BTreeMap::new();
    for area in ["packs", "index"] {
        let listed = list(store, &layout::content_prefix(area, source))?;
        all.extend(listed.into_iter().map(|written| (written.key.clone(), written)));
    }
    Ok(all)
}

/// What belongs to no source: `repository.json`, the trust records, and the help for a restore without blackstart.
pub fn of_repository(store: &Store) -> storage::Result<Vec<Written>> {
    let mut all = list(store, layout::TRUST)?;
    for key in iter::once(layout::repository()).chain(layout::HELP.map(Key::new)) {
        all.push(of(store, &key)?);
    }
    Ok(all)
}

/// The object whose name is the SHA-256 of its bytes. Older versions are looked for only where the plain one is missing or another.
pub fn fetch(store: &Store, key: &Key, hash: &Hash) -> Result<Bytes> {
    let plain = store.get(key);
    if let Ok(bytes) = &plain
        && Hash::of(bytes) == *hash
    {
        return Ok(bytes.clone());
    }
    match plain {
        Err(e) if e.kind != storage::Kind::NotFound && e.kind != storage::Kind::Truncated => return Err(e.into()),
        _ => {}
    }
    let written = of(store, key).with_context(|| format!("look for older versions of {key}"))?;
    written.read(store, |bytes| {
        ensure!(Hash::of(bytes) == *hash, "does not match its SHA-256: its bytes have changed in the store");
        Ok(bytes.clone())
    })
}
