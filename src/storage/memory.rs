//! A store in memory, for tests. The strictest of all: what it allows, every store allows. Clones share one store.

use super::bounds::{check_range, check_replaced, check_size};
use super::{Error, Key, Kind, Object, Result, Storage, Version};
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
    objects: Arc<Mutex<BTreeMap<String, Stored>>>,
    clock: Arc<dyn Clock>,
}

struct Stored {
    body: Bytes,
    /// Unique in the store's life, so that a body that comes back is another version.
    version: u64,
    modified: Timestamp,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(Arc::new(SystemClock))
    }
}

impl Memory {
    /// An empty store whose `modified` times come from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Memory {
        Memory { objects: Arc::default(), clock }
    }

    /// Moves an object in time. Panics if there is none.
    pub fn set_modified(&self, key: &Key, modified: Timestamp) {
        self.stored(key, |stored| stored.modified = modified);
    }

    /// Damages an object behind the program's back. Panics if there is none.
    pub fn tamper(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        self.stored(key, |stored| {
            let mut body = stored.body.to_vec();
            change(&mut body);
            stored.body = body.into();
        });
    }

    fn stored(&self, key: &Key, change: impl FnOnce(&mut Stored)) {
        let mut objects = self.objects();
        change(objects.get_mut(key.as_str()).unwrap_or_else(|| panic!("no object {key}")));
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        // Every change is a single insertion or removal: a panic elsewhere leaves the map whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
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
        let objects = self.objects();
        let stored = objects.get(key.as_str()).ok_or_else(|| Error::new(Kind::NotFound, "get", key))?;
        Ok((stored.body.clone(), version(stored.version)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let length = check_range(key, &range)?;
        let objects = self.objects();
        let stored = objects.get(key.as_str()).ok_or_else(|| Error::new(Kind::NotFound, "get", key))?;
        if range.end > stored.body.len() as u64 {
            return Err(Error::new(Kind::Truncated, "get", key));
        }
        // No larger than the body, which is in memory.
        let start = range.start as usize;
        Ok(stored.body.slice(start..start + length))
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        check_size("create", key, body.len() as u64)?;
        if Sha256::digest(&body).as_slice() != sha256 {
            return Err(Error::new(Kind::Other, "create", key).because("the body does not have the SHA-256 given"));
        }
        let mut objects = self.objects();
        if objects.contains_key(key.as_str()) {
            return Err(Error::new(Kind::AlreadyExists, "create", key));
        }
        let number = next_version();
        objects.insert(key.to_string(), Stored { body, version: number, modified: self.clock.now() });
        Ok(version(number))
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        check_replaced(key, body.len())?;
        let mut objects = self.objects();
        match objects.get_mut(key.as_str()) {
            Some(stored) if version(stored.version) == *seen => {
                *stored = Stored { body, version: next_version(), modified: self.clock.now() };
                Ok(version(stored.version))
            }
            _ => Err(Error::new(Kind::Conflict, "replace", key)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let objects = self.objects();
        let matching = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(matching
            .map(|(key, stored)| Object {
                key: Key::new(key.clone()),
                size: stored.body.len() as u64,
                modified: stored.modified,
            })
            .collect())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.objects().remove(key.as_str());
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
