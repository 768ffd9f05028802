//! Finds out what a store really guarantees, by trying. Some servers refuse conditional writes, some ignore the condition
//! and overwrite; documentation and version numbers tell neither.

use super::{Key, Kind, Result, Storage, Version, VersionId};
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// How a store treats a guarantee that blackstart asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    Works,
    /// It says that it cannot (501): nothing happens by mistake.
    Refused,
    /// It says yes and does not do it: two writers would overwrite each other unnoticed.
    Ignored,
}

/// What [`probe`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `create` fails where the key exists. Without it a source must have one writer only (FORMAT.md §3-7).
    pub conditional_create: Support,
    /// `replace` fails at a stale version and on a missing key. Without it leases protect nothing.
    pub conditional_replace: Support,
    /// This credential may delete. A host should not be able to; a keeper must.
    pub delete: bool,
}

/// Where the trials write, always the same: a credential that may not delete leaves no more than these behind.
const TRIAL: &str = "probe/trial";
const MISSING: &str = "probe/missing";
const DELETED: &str = "probe/deleted";
/// Another host may be trying out the same keys at this moment.
const TRIES: u32 = 3;

/// Tries out `storage` on keys under `probe/`, and deletes them if it may. Probe the bare store: a fallback that
/// checks before it writes (`conditional=false`) looks like the real thing when nobody else writes.
pub async fn probe(storage: &dyn Storage) -> Result<Capabilities> {
    let mut found = guarantees(storage).await;
    for _ in 1..TRIES {
        if matches!(found, Ok((Support::Works, Support::Works))) {
            break;
        }
        found = guarantees(storage).await;
    }
    let mut delete = true;
    for key in [TRIAL, MISSING] {
        delete &= deleted(storage, &Key::new(key)).await?;
    }
    let (conditional_create, conditional_replace) = found?;
    Ok(Capabilities { conditional_create, conditional_replace, delete })
}

/// Whether this credential may delete: by deleting an object made for that.
pub async fn may_delete(storage: &dyn Storage) -> Result<bool> {
    let key = Key::new(DELETED);
    match create(storage, &key, "delete me").await {
        Err(error) if error.kind != Kind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Where the bucket locks everything, the lock refuses, and the right may be there.
    Ok(deleted(storage, &key).await? || storage.describe(&key, &VersionId::default()).await?.lock.is_some())
}

async fn deleted(storage: &dyn Storage, key: &Key) -> Result<bool> {
    match storage.delete(key).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind == Kind::Denied => Ok(false),
        Err(error) => Err(error),
    }
}

async fn guarantees(storage: &dyn Storage) -> Result<(Support, Support)> {
    let key = &Key::new(TRIAL);
    // A key that does not exist has no version; the one of another object will do, so the missing key is tried afterwards.
    let version = match create(storage, key, "first").await {
        Ok(version) => version,
        // An earlier trial, which could not delete, has left it.
        Err(error) if error.kind == Kind::AlreadyExists => storage.get(key).await?.1,
        // Not even a plain first write: this store takes no conditional writes at all, so `replace` would not either.
        Err(error) if error.kind == Kind::Unsupported => return Ok((Support::Refused, Support::Refused)),
        Err(error) => return Err(error),
    };
    let conditional_create = support(create(storage, key, "second").await, Kind::AlreadyExists)?;
    Ok((conditional_create, replacing(storage, key, version).await?))
}

async fn replacing(storage: &dyn Storage, key: &Key, version: Version) -> Result<Support> {
    // After an ignored condition the object is at another version than `version`: ask again.
    let current = storage.get(key).await.map(|(_, version)| version).unwrap_or(version);
    match storage.replace(key, &current, Bytes::from_static(b"third")).await {
        Ok(_) => {}
        Err(error) if error.kind == Kind::Unsupported => return Ok(Support::Refused),
        // The right version is refused: a lease could never be renewed.
        Err(error) if error.kind == Kind::Conflict => return Ok(Support::Refused),
        Err(error) => return Err(error),
    }
    let stale = support(storage.replace(key, &current, Bytes::from_static(b"fourth")).await, Kind::Conflict)?;
    let on_missing = storage.replace(&Key::new(MISSING), &current, Bytes::from_static(b"fifth")).await;
    let on_missing = support(on_missing, Kind::Conflict);
    Ok(if stale == Support::Works { on_missing? } else { stale })
}

/// What a write says that `refusal` should have met.
fn support(result: Result<Version>, refusal: Kind) -> Result<Support> {
    match result {
        Ok(_) => Ok(Support::Ignored),
        Err(error) if error.kind == refusal => Ok(Support::Works),
        Err(error) if error.kind == Kind::Unsupported => Ok(Support::Refused),
        Err(error) => Err(error),
    }
}

async fn create(storage: &dyn Storage, key: &Key, body: &'static str) -> Result<Version> {
    storage.create(key, Bytes::from_static(body.as_bytes()), &Sha256::digest(body).into()).await
}
