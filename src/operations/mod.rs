//! The operations: one public function each, each returns a report. They print nothing, read no configuration, and take the clock as an argument.

use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge::Store;
use crate::clock::Clock;
use crate::repository::agefile::Identity;
use crate::repository::keys::KeyPair;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::memory;
use crate::repository::trust::Trust;

pub mod ask;
pub mod backup;
pub mod basis;
pub mod bisect;
pub mod canary;
pub mod confirm;
pub mod contents;
pub mod drill;
pub mod evidence;
pub mod group;
pub mod load;
pub mod locks;
pub mod measures;
pub mod proof;
pub mod prune;
pub mod reach;
pub mod receiver;
pub mod reread;
pub mod restore;
pub mod retention;
pub mod retire;
pub mod suspect;
pub mod thaw;
pub mod tiers;
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

    /// The newest commit of each source that this host has seen in the repository.
    pub fn remembered(&self) -> BTreeMap<SourceName, (u64, Hash)> {
        self.memory().map_or_else(BTreeMap::new, |directory| memory::remembered(&directory))
    }

    /// Where index objects of `source` are kept locally.
    pub fn index_cache(&self, source: &SourceName) -> Option<PathBuf> {
        let directory = self.state.as_ref()?.join(&self.trust.id).join("index").join(source.as_str());
        crate::durable::create_directories(&directory).ok()?;
        Some(directory)
    }
}

/// Age identities made shareable between readers.
pub fn shared(identities: &[Identity]) -> Arc<[Identity]> {
    identities.to_vec().into()
}
