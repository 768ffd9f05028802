//! The storage seam: a flat store of write-once objects. Objects are bounded by `limits::OBJECT_MAX`, so nothing streams.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::fmt;
use std::ops::Range;

mod bounds;
mod kept;
pub mod local;
pub mod location;
pub mod memory;
pub mod probe;
pub mod retry;
pub mod s3;
pub mod terms;

pub use kept::{Class, Details, Haste, Ice, Kept, Lock, LockMode, Page, Rule, Setup, Terms, VersionId};

pub type Result<T> = std::result::Result<T, Error>;

/// The tag by which lifecycle rules know the class that an object is to be moved to.
pub const CLASS_TAG: &str = "blackstart-class";

#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Where this is, for people: a path or `s3://bucket/prefix`. No secret.
    fn place(&self) -> String;

    /// The whole object, and the version that `replace` compares with.
    async fn get(&self, key: &Key) -> Result<(Bytes, Version)>;

    /// Exactly the bytes `range` of the object; an object that is shorter is `Kind::Truncated`.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes>;

    /// Makes `key` visible, whole and durable, or fails with `AlreadyExists`; never overwrites where the store can refuse (see `probe`).
    /// `sha256` is that of `body`; a store that can check it does.
    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version>;

    /// [`Storage::create`], in a storage class and with a lock. Stores that have neither refuse both.
    async fn create_on(&self, key: &Key, body: Bytes, sha256: &[u8; 32], terms: Terms) -> Result<Version> {
        if terms != Terms::default() {
            return Err(Error::new(Kind::Unsupported, "create", key).because("no storage classes and no locks here"));
        }
        self.create(key, body, sha256).await
    }

    /// Size, class, lock of one version; of the current one where the id is empty.
    async fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        let size = self.get_version(key, id).await?.len() as u64;
        Ok(Details { size, class: Class::Standard, lock: None, ice: Ice::None })
    }

    /// Locks a version, or makes its lock last longer. To shorten one is `Denied`.
    async fn lock(&self, key: &Key, _id: &VersionId, _lock: Lock) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "lock", key))
    }

    /// Marks an object for a move to `class`, which a lifecycle rule of the bucket carries out (see [`CLASS_TAG`]).
    async fn mark(&self, key: &Key, _class: Class) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "mark", key))
    }

    /// Asks for a copy of an archived object that can be read for `days` days. One that is asked for already is no error.
    async fn thaw(&self, key: &Key, _days: u32, _haste: Haste) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "thaw", key))
    }

    /// What is set up on the bucket.
    async fn setup(&self) -> Result<Setup> {
        Ok(Setup { versioning: Some(false), locks: Some(false), rules: Some(Vec::new()) })
    }

    /// Swaps the body only if `key` is still at `seen`; otherwise `Conflict`, also when the key is gone. Used for leases and by nothing else.
    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version>;

    /// All objects whose key begins with `prefix`, in byte order of their keys. An error anywhere is an error of the whole.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>>;

    /// Every version of those objects, and every delete marker, by key, and for one key the oldest first. A store that keeps no
    /// versions has one of each object, which is this default; one that does, and one that wraps another, *must* say what there is.
    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        Ok(self.list(prefix).await?.into_iter().map(Kept::only).collect())
    }

    /// Of [`Storage::list_versions`] the first `most` keys that come after `after` (which need not be a key), or some fewer, each whole: what
    /// there is behind a place of a listing, however much comes before it.
    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        Ok(Page::of(self.list_versions(prefix).await?, after, most))
    }

    /// The bytes of one version.
    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        if id.0.is_empty() { Ok(self.get(key).await?.0) } else { Err(Error::new(Kind::NotFound, "get", key)) }
    }

    /// Removes one version for good, or takes a delete marker away. A missing one is no error. A lock or a missing right is `Denied`.
    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        if id.0.is_empty() { self.delete(key).await } else { Ok(()) }
    }

    /// Removes `key`, every version and delete marker of it where the store keeps versions. A missing key is no error. A lock or a missing right is `Denied`.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Removes what writers that died have left unfinished before `before`: no objects, and never visible. How many there were.
    async fn sweep_unfinished(&self, before: Timestamp) -> Result<u64> {
        let _nothing_is_ever_left = before;
        Ok(0)
    }
}

/// A key: `/`-separated components of `[A-Za-z0-9._-]`, none of them `.` or `..` or empty or beginning with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Panics on a malformed key: keys are built by `repository::layout` alone, never from input that was not checked.
    pub fn new(key: impl Into<String>) -> Key {
        let key = key.into();
        assert!(Key::is_valid(&key), "malformed key {key:?}");
        Key(key)
    }

    pub fn is_valid(key: &str) -> bool {
        !key.is_empty()
            && key.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An opaque version of one key (an ETag; a hash of the bytes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// The store's own clock.
    pub modified: Timestamp,
}

/// The one error callers branch on, by `kind`, never by text.
#[derive(Debug, thiserror::Error)]
#[error("{kind} ({operation} {key})")]
pub struct Error {
    pub kind: Kind,
    /// `get`, `create`, …
    pub operation: &'static str,
    pub key: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    AlreadyExists,
    Conflict,
    /// No right to do this, or a lock forbids it. Trying again will not help.
    Denied,
    /// In an archive class: it must be thawed before it can be read.
    Archived,
    /// Shorter than recorded.
    Truncated,
    /// The bucket itself is not there.
    NoStore,
    /// No space left.
    Full,
    /// The store does not know the operation (501): a missing capability.
    Unsupported,
    /// Worth another try: timeouts, resets, 5xx, 429, 409.
    Transient,
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::NotFound => "no such object",
            Kind::AlreadyExists => "object exists already",
            Kind::Conflict => "object has changed meanwhile",
            Kind::Denied => "access denied by the store",
            Kind::Archived => "object is archived and must be thawed first",
            Kind::Truncated => "object is shorter than recorded",
            Kind::NoStore => "there is no such bucket",
            Kind::Full => "no space left in the store",
            Kind::Unsupported => "the store does not support this",
            Kind::Transient => "the store did not answer properly",
            Kind::Other => "storage error",
        })
    }
}

/// Why a store did not give what it was asked for, if that is what `error` comes of.
pub fn kind_of(error: &anyhow::Error) -> Option<Kind> {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>()).map(|error| error.kind)
}

/// Whether `error` comes of a store that did not give what it was asked for: then nothing is known of it, least of all that it is not there. Of
/// what is not there, or is too short, that is known.
pub fn is_silence(error: &anyhow::Error) -> bool {
    kind_of(error).is_some_and(|kind| !matches!(kind, Kind::NotFound | Kind::Truncated))
}

/// Whether `error` comes of something that is not there.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    kind_of(error) == Some(Kind::NotFound)
}

/// Whether `error` comes of something that lies in an archive class and must be thawed before it can be read.
pub fn is_archived(error: &anyhow::Error) -> bool {
    kind_of(error) == Some(Kind::Archived)
}

/// Whether the bucket is gone, or not even a listing came, after all tries: most likely the whole store is out of reach.
pub fn is_outage(error: &anyhow::Error) -> bool {
    let of_store = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    of_store.is_some_and(|e| e.kind == Kind::NoStore || (e.kind == Kind::Transient && e.operation == "list"))
}

impl Error {
    pub fn new(kind: Kind, operation: &'static str, key: impl fmt::Display) -> Error {
        Error { kind, operation, key: key.to_string(), source: None }
    }

    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_that_the_whole_store_is_out_of_reach() {
        for (kind, operation, outage, silence) in [
            (Kind::NoStore, "get", true, true),
            (Kind::NoStore, "list", true, true),
            (Kind::Transient, "list", true, true),
            // One object that does not come is no sign that none would.
            (Kind::Transient, "get", false, true),
            (Kind::Denied, "list", false, true),
            (Kind::Archived, "get", false, true),
            (Kind::NotFound, "get", false, false),
            (Kind::Truncated, "get", false, false),
        ] {
            let error = anyhow::Error::from(Error::new(kind, operation, "snapshots/a/1")).context("look at a");
            assert_eq!((is_outage(&error), is_silence(&error)), (outage, silence), "{kind:?} of {operation}");
        }
        let other = anyhow::anyhow!("the index does not match");
        assert!(!is_outage(&other) && !is_silence(&other), "what is wrong with the data is no matter of the store");
    }
}
