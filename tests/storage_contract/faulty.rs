//! A memory store of whose answers two in three are lost: one before it acts, one after.

use async_trait::async_trait;
use blackstart::storage::memory::Memory;
use blackstart::storage::{Error, Kept, Key, Kind, Object, Result, Storage, Version, VersionId};
use bytes::Bytes;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub struct Faulty {
    inner: Memory,
    calls: AtomicUsize,
}

impl Faulty {
    pub fn new(inner: Memory) -> Faulty {
        Faulty { inner, calls: AtomicUsize::new(0) }
    }

    async fn lose<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
        let lost = Error::new(Kind::Transient, "lost", "");
        match self.calls.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Err(lost.because("connection reset before the request")),
            1 => {
                drop(act.await);
                Err(lost.because("connection reset before the answer"))
            }
            _ => act.await,
        }
    }
}

#[async_trait]
impl Storage for Faulty {
    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        self.lose(self.inner.get(key)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.lose(self.inner.get_range(key, range)).await
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        self.lose(self.inner.create(key, body, sha256)).await
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        self.lose(self.inner.replace(key, seen, body)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.lose(self.inner.list(prefix)).await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        self.lose(self.inner.list_versions(prefix)).await
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.lose(self.inner.get_version(key, id)).await
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.lose(self.inner.delete_version(key, id)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.lose(self.inner.delete(key)).await
    }
}
