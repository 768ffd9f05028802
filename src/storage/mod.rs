//! The storage seam: a flat store of write-once objects. Objects are bounded by `limits::OBJECT_MAX`, so nothing streams.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::fmt;
use std::ops::Range;

mod bounds;
pub mod local;
pub mod location;
pub mod memory;
pub mod probe;
pub mod retry;
pub mod s3;

pub type Result<T> = std::result::Result<T, Error>;

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

    /// Swaps the body only if `key` is still at `seen`; otherwise `Conflict`, also when the key is gone. Used for leases and by nothing else.
    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version>;

    /// All objects whose key begins with `prefix`, in byte order of their keys. An error anywhere is an error of the whole.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>>;

    /// Removes `key`, every version of it where the store keeps versions. A missing key is no error. A lock or a missing right is `Denied`.
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
    /// Shorter than recorded.
    Truncated,
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
            Kind::Truncated => "object is shorter than recorded",
            Kind::Full => "no space left in the store",
            Kind::Unsupported => "the store does not support this",
            Kind::Transient => "the store did not answer properly",
            Kind::Other => "storage error",
        })
    }
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
