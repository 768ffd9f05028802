//! A store that makes objects on terms: the one place that says which objects get a class and which a lock (FORMAT.md §3-10).

use super::{Class, Details, Haste, Kept, Key, Lock, Object, Page, Result, Setup, Storage, Terms, Version, VersionId};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug)]
pub struct OnTerms {
    inner: Arc<dyn Storage>,
    terms: Terms,
}

impl OnTerms {
    pub fn new(inner: Arc<dyn Storage>, terms: Terms) -> OnTerms {
        OnTerms { inner, terms }
    }

    /// Packs get class and lock; what is small and needed to find them stays in the fastest class and gets the lock; the rest nothing.
    fn of(&self, key: &Key) -> Terms {
        match key.as_str().split('/').next() {
            Some("packs") => self.terms,
            Some("index" | "snapshots") => Terms { class: Class::Standard, ..self.terms },
            _ => Terms::default(),
        }
    }
}

#[async_trait]
impl Storage for OnTerms {
    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        self.inner.create_on(key, body, sha256, self.of(key)).await
    }

    async fn create_on(&self, key: &Key, body: Bytes, sha256: &[u8; 32], terms: Terms) -> Result<Version> {
        self.inner.create_on(key, body, sha256, terms).await
    }

    async fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        self.inner.describe(key, id).await
    }

    async fn lock(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        self.inner.lock(key, id, lock).await
    }

    async fn mark(&self, key: &Key, class: Class) -> Result<()> {
        self.inner.mark(key, class).await
    }

    async fn thaw(&self, key: &Key, days: u32, haste: Haste) -> Result<()> {
        self.inner.thaw(key, days, haste).await
    }

    async fn setup(&self) -> Result<Setup> {
        self.inner.setup().await
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        self.inner.replace(key, seen, body).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.inner.list(prefix).await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        self.inner.list_versions(prefix).await
    }

    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        self.inner.list_page(prefix, after, most).await
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.inner.get_version(key, id).await
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.inner.delete_version(key, id).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}
