//! A store in memory, for tests. The strictest of all: what it allows, every store allows. Clones share one store.

use super::bounds::{check_range, check_replaced, check_size};
use super::{
    Class, Details, Error, Haste, Ice, Kept, Key, Kind, Lock, Object, Result, Setup, Storage, Terms, Version, VersionId,
};
use crate::clock::{Clock, SystemClock};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone)]
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Vec<Stored>>>>,
    clock: Arc<dyn Clock>,
    /// Whether older versions stay, and deletions leave markers.
    versioned: bool,
}

/// One version.
struct Stored {
    /// `None`: a delete marker.
    body: Option<Bytes>,
    /// Unique in the store's life, so that a body that comes back is another version.
    version: u64,
    modified: Timestamp,
    terms: Terms,
    /// The class that it is marked for.
    marked: Option<Class>,
    thawed: bool,
}

impl Stored {
    /// The body, unless it is archived.
    fn readable(&self, key: &Key) -> Result<Bytes> {
        if self.terms.class.is_archive() && !self.thawed {
            return Err(Error::new(Kind::Archived, "get", key));
        }
        self.body.clone().ok_or_else(|| Error::new(Kind::NotFound, "get", key))
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(Arc::new(SystemClock))
    }
}

impl Memory {
    /// An empty store whose `modified` times come from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Memory {
        Memory { objects: Arc::default(), clock, versioned: false }
    }

    /// As a bucket with versioning.
    pub fn versioned(clock: Arc<dyn Clock>) -> Memory {
        Memory { versioned: true, ..Memory::new(clock) }
    }

    /// Moves the newest version of an object in time. Panics if there is none.
    pub fn set_modified(&self, key: &Key, modified: Timestamp) {
        self.stored(key, |stored| stored.modified = modified);
    }

    /// Damages the newest version of an object behind the program's back. Panics if there is none.
    pub fn tamper(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        self.stored(key, |stored| {
            let mut body = stored.body.clone().unwrap_or_default().to_vec();
            change(&mut body);
            stored.body = Some(body.into());
        });
    }

    /// What somebody does who may write and delete, but not delete versions: puts `body`, or for `None` a delete marker, over an object.
    pub fn cover(&self, key: &Key, body: Option<&[u8]>) {
        assert!(self.versioned, "without versions there is nothing below");
        let body = body.map(Bytes::copy_from_slice);
        self.objects().entry(key.to_string()).or_default().push(self.new_version(body, Terms::default()));
    }

    /// What a lifecycle rule of the bucket does: moves what is marked. Returns how many objects.
    pub fn carry_out_marks(&self) -> usize {
        let mut objects = self.objects();
        let marked = objects.values_mut().flatten().filter_map(|stored| Some((stored.marked.take()?, stored)));
        marked.map(|(class, stored)| stored.terms.class = class).count()
    }

    fn new_version(&self, body: Option<Bytes>, terms: Terms) -> Stored {
        Stored { body, version: next_version(), modified: self.clock.now(), terms, marked: None, thawed: false }
    }

    /// Whether a lock keeps this version from being deleted.
    fn holds(&self, stored: &Stored) -> bool {
        stored.terms.lock.is_some_and(|lock| lock.until > self.clock.now())
    }

    /// Calls `change` for one version.
    fn at<T>(
        &self,
        operation: &'static str,
        key: &Key,
        id: &VersionId,
        change: impl FnOnce(&mut Stored) -> T,
    ) -> Result<T> {
        let mut objects = self.objects();
        let versions = objects.get_mut(key.as_str()).into_iter().flatten();
        let found = versions.rev().find(|stored| id.0.is_empty() || self.id(stored) == *id);
        Ok(change(found.ok_or_else(|| Error::new(Kind::NotFound, operation, key))?))
    }

    fn stored(&self, key: &Key, change: impl FnOnce(&mut Stored)) {
        let mut objects = self.objects();
        let versions = objects.get_mut(key.as_str());
        change(versions.and_then(|v| v.last_mut()).unwrap_or_else(|| panic!("no object {key}")));
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Stored>>> {
        // Every change is a single insertion or removal: a panic elsewhere leaves the map whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current body of `key` and its version.
    fn current(&self, key: &Key) -> Result<(Bytes, u64)> {
        let objects = self.objects();
        let newest = objects.get(key.as_str()).and_then(|versions| versions.last());
        let newest = newest.ok_or_else(|| Error::new(Kind::NotFound, "get", key))?;
        Ok((newest.readable(key)?, newest.version))
    }

    fn id(&self, stored: &Stored) -> VersionId {
        if self.versioned { VersionId(stored.version.to_string()) } else { VersionId::default() }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

fn version(number: u64) -> Version {
    Version(number.to_string())
}

/// A number that no version has had before, those of deleted objects included.
fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[async_trait]
impl Storage for Memory {
    fn place(&self) -> String {
        "memory".into()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        let (body, number) = self.current(key)?;
        Ok((body, version(number)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let length = check_range(key, &range)?;
        let (body, _) = self.current(key)?;
        if range.end > body.len() as u64 {
            return Err(Error::new(Kind::Truncated, "get", key));
        }
        // No larger than the body, which is in memory.
        let start = range.start as usize;
        Ok(body.slice(start..start + length))
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        self.create_on(key, body, sha256, Terms::default()).await
    }

    async fn create_on(&self, key: &Key, body: Bytes, sha256: &[u8; 32], terms: Terms) -> Result<Version> {
        if terms.lock.is_some() && !self.versioned {
            return Err(Error::new(Kind::Unsupported, "create", key).because("locks need versions"));
        }
        check_size("create", key, body.len() as u64)?;
        if Sha256::digest(&body).as_slice() != sha256 {
            return Err(Error::new(Kind::Other, "create", key).because("the body does not have the SHA-256 given"));
        }
        let mut objects = self.objects();
        let versions = objects.entry(key.to_string()).or_default();
        // As on S3, what is below a delete marker does not count as existing.
        if versions.last().is_some_and(|newest| newest.body.is_some()) {
            return Err(Error::new(Kind::AlreadyExists, "create", key));
        }
        let new = self.new_version(Some(body), terms);
        let number = new.version;
        versions.push(new);
        Ok(version(number))
    }

    async fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        self.at("describe", key, id, |stored| {
            let ice = match (stored.terms.class.is_archive(), stored.thawed) {
                (false, _) => Ice::None,
                (true, false) => Ice::Frozen,
                (true, true) => Ice::Thawed,
            };
            let size = stored.body.as_ref().map_or(0, |body| body.len() as u64);
            Details { size, class: stored.terms.class, lock: stored.terms.lock, ice }
        })
    }

    async fn lock(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        if !self.versioned {
            return Err(Error::new(Kind::Unsupported, "lock", key));
        }
        let now = self.clock.now();
        let longer = self.at("lock", key, id, |stored| {
            let held = stored.terms.lock.filter(|held| held.until > now);
            let longer = held.is_none_or(|held| held.until <= lock.until && held.mode <= lock.mode);
            if longer {
                stored.terms.lock = Some(lock);
            }
            longer
        })?;
        if longer { Ok(()) } else { Err(Error::new(Kind::Denied, "lock", key)) }
    }

    async fn mark(&self, key: &Key, class: Class) -> Result<()> {
        let newest = self.list_versions(key.as_str()).await?.into_iter().rfind(|kept| kept.key == *key);
        let newest = newest.ok_or_else(|| Error::new(Kind::NotFound, "mark", key))?;
        self.at("mark", key, &newest.id, |stored| stored.marked = Some(class))
    }

    async fn thaw(&self, key: &Key, _days: u32, _haste: Haste) -> Result<()> {
        let newest = self.list_versions(key.as_str()).await?.into_iter().rfind(|kept| kept.key == *key);
        let newest = newest.ok_or_else(|| Error::new(Kind::NotFound, "thaw", key))?;
        self.at("thaw", key, &newest.id, |stored| stored.thawed = true)
    }

    async fn setup(&self) -> Result<Setup> {
        Ok(Setup { versioning: Some(self.versioned), locks: Some(self.versioned), rules: Some(Vec::new()) })
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        check_replaced(key, body.len())?;
        let mut objects = self.objects();
        let conflict = || Error::new(Kind::Conflict, "replace", key);
        let versions = objects.get_mut(key.as_str()).ok_or_else(conflict)?;
        let fits = |newest: &Stored| newest.body.is_some() && version(newest.version) == *seen;
        if !versions.last().is_some_and(fits) {
            return Err(conflict());
        }
        if !self.versioned {
            versions.clear();
        }
        let new = self.new_version(Some(body), Terms::default());
        let number = new.version;
        versions.push(new);
        Ok(version(number))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let all = self.list_versions(prefix).await?;
        let shown = all.into_iter().filter(|kept| kept.current && !kept.marker);
        Ok(shown.map(|kept| Object { key: kept.key, size: kept.size, modified: kept.modified }).collect())
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        let objects = self.objects();
        let matching = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let mut all = Vec::new();
        for (key, versions) in matching {
            let newest = versions.last().map(|stored| stored.version);
            all.extend(versions.iter().map(|stored| Kept {
                key: Key::new(key.clone()),
                id: self.id(stored),
                size: stored.body.as_ref().map_or(0, |body| body.len() as u64),
                modified: stored.modified,
                class: stored.terms.class,
                marker: stored.body.is_none(),
                current: Some(stored.version) == newest,
            }));
        }
        Ok(all)
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        let objects = self.objects();
        let versions = objects.get(key.as_str()).into_iter().flatten();
        let found = versions.into_iter().find(|stored| self.id(stored) == *id);
        found.ok_or_else(|| Error::new(Kind::NotFound, "get", key))?.readable(key)
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        let mut objects = self.objects();
        if let Some(versions) = objects.get_mut(key.as_str()) {
            if versions.iter().any(|stored| self.id(stored) == *id && self.holds(stored)) {
                return Err(Error::new(Kind::Denied, "delete", key).because("it is locked"));
            }
            versions.retain(|stored| self.id(stored) != *id);
            if versions.is_empty() {
                objects.remove(key.as_str());
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let mut objects = self.objects();
        if objects.get(key.as_str()).is_some_and(|versions| versions.iter().any(|stored| self.holds(stored))) {
            return Err(Error::new(Kind::Denied, "delete", key).because("it is locked"));
        }
        objects.remove(key.as_str());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Store;

    #[test]
    fn tests_can_move_and_damage_objects() {
        let memory = Memory::default();
        let store = Store::new(Arc::new(memory.clone())).unwrap();
        let key = Key::new("packs/a");
        store.create(&key, "body".into(), &Sha256::digest("body").into()).unwrap();
        memory.set_modified(&key, Timestamp::UNIX_EPOCH);
        memory.tamper(&key, |body| body[0] ^= 1);
        assert_eq!(store.list("").unwrap()[0].modified, Timestamp::UNIX_EPOCH);
        assert_eq!(store.get(&key).unwrap(), "cody");
        store.create(&Key::new("packs/b"), "body".into(), &[0; 32]).unwrap_err();
    }
}
