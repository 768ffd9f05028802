//! The operations: one public function each, each returns a report. They print nothing, read no configuration, and take the clock as an argument.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge::Store;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::repository::agefile::Identity;
use crate::repository::keys::KeyPair;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::lease::{Lease, Writer};
use crate::repository::memory;
use crate::repository::snapshot::{Commit, Line};
use crate::repository::trust::{Role, Trust};
use crate::storage;

pub mod ask;
pub mod backup;
pub mod basis;
pub mod bisect;
pub mod canary;
pub mod confirm;
pub mod contents;
pub mod drill;
pub mod evidence;
pub mod findings;
pub mod group;
pub mod load;
pub mod locks;
pub mod measures;
pub mod moment;
pub mod place;
pub mod proof;
pub mod prune;
pub mod reach;
pub mod receiver;
pub mod reread;
pub mod restore;
pub mod retained;
pub mod retention;
pub mod retire;
pub mod suspect;
pub mod thaw;
pub mod tiers;
pub mod verified;
pub mod verify;
pub mod wal;
pub mod watch;

/// A repository, open for reading.
#[derive(Clone)]
pub struct Open {
    pub store: Store,
    pub trust: Trust,
    pub clock: Arc<dyn Clock>,
    /// Where caches and the host's memory lie. Nothing in it is needed for a restore.
    pub state: Option<PathBuf>,
}

/// A host that may write.
pub struct Host {
    pub open: Open,
    pub keys: KeyPair,
    pub name: String,
}

impl Open {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Where the host's memory of its commits lies.
    pub fn memory(&self) -> Option<PathBuf> {
        Some(self.state.as_ref()?.join(&self.trust.id).join("sources"))
    }

    /// Where the locks lie by which a dead holder of a lease is known.
    fn locks(&self) -> Option<PathBuf> {
        Some(self.state.as_ref()?.join(&self.trust.id).join("leases"))
    }

    /// The newest commit of each source that this host has seen in the repository. To be asked before the series are listed, which may only be newer.
    pub fn remembered(&self) -> Result<BTreeMap<SourceName, (u64, Hash)>> {
        self.memory().map_or_else(|| Ok(BTreeMap::new()), |directory| memory::remembered(&directory))
    }

    /// As [`Open::remembered`], of one source.
    pub fn seen(&self, source: &SourceName) -> Result<Option<(u64, Hash)>> {
        self.memory().map_or(Ok(None), |directory| memory::seen(&directory, source))
    }

    /// Where index objects of `source` are kept locally.
    pub fn index_cache(&self, source: &SourceName) -> Option<PathBuf> {
        let directory = self.state.as_ref()?.join(&self.trust.id).join("index").join(source.as_str());
        crate::durable::create_directories(&directory).ok()?;
        Some(directory)
    }
}

impl Host {
    /// The right to write `source`, until dropped; another's run on it is [`Kind::Busy`].
    pub fn lease(&self, source: &SourceName) -> Result<Lease> {
        let open = &self.open;
        let writer = Writer { key: self.keys.signing.public().id(), host: self.name.clone(), locks: open.locks() };
        Lease::acquire(&open.store, source, writer, Arc::clone(&open.clock))
    }
}

impl Host {
    /// That this host may sign what becomes of the snapshots of `source`: as host or as keeper.
    fn require_any_role(&self, source: &SourceName) -> Result<()> {
        let (key, now) = (self.keys.signing.public(), self.open.now());
        if [Role::Host, Role::Keeper].into_iter().any(|role| self.open.trust.may_sign(&key, role, source, now)) {
            return Ok(());
        }
        let message = format!("this host's key {} is certified neither as host nor as keeper of {source}", key.id());
        Err(Failure::new(Kind::WrongKey, message, "Nothing was changed."))
    }

    /// Signs `line` and commits it as number `seq` of `source`; `None`: somebody else has taken that number.
    fn commit(&self, source: &SourceName, seq: u64, line: &Line) -> Result<Option<Hash>> {
        let body = self.keys.signing.sign_line(line)?;
        // What this program would not accept it must not write.
        Commit::verify(&self.open.trust, source, seq, &body).context("check the record before it is written")?;
        let hash = Hash::of(&body);
        match self.open.store.create(&layout::snapshot(source, seq), body.into(), &hash.0) {
            Ok(_) => Ok(Some(hash)),
            Err(e) if e.kind == storage::Kind::AlreadyExists => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Age identities made shareable between readers.
pub fn shared(identities: &[Identity]) -> Arc<[Identity]> {
    identities.to_vec().into()
}
