//! From the command line to an open repository: with the configuration, or with an address and a fingerprint alone.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::Shell;
use crate::bridge::Store;
use crate::cli::Place;
use crate::config::{Config, resolve_location};
use crate::durable;
use crate::error::{self, Failure, Kind};
use crate::operations::{Host, Open};
use crate::repository::agefile::Identity;
use crate::repository::keys::{KeyFile, KeyPair};
use crate::repository::layout::SourceName;
use crate::repository::trust::Trust;
use crate::storage;

/// A repository to read, and the configuration that named it.
pub struct Reader {
    pub config: Option<Config>,
    pub open: Open,
}

impl Reader {
    /// The sources that the configuration names.
    pub fn expected(&self) -> Vec<SourceName> {
        self.config.iter().flat_map(|config| &config.source).map(|source| source.name.clone()).collect()
    }
}

impl Shell {
    pub fn config(&self) -> Result<Config> {
        Config::load(self.config.as_deref())
    }

    /// The configuration for verbs that only read the repository: what is wrong with a job must not stand in the way of a restore.
    fn config_to_read(&self) -> Result<Config> {
        let config = Config::load_alone(self.config.as_deref())?;
        Ok(config.clone().with_jobs().unwrap_or_else(|error| {
            self.warn(format!("{error:#}\n  The jobs are left aside for this."));
            config
        }))
    }

    /// The repository that the command line names, or the configuration's.
    pub fn reader(&self, place: &Place) -> Result<Reader> {
        let Some(repo) = &place.repo else {
            let config = self.config_to_read()?;
            let open = self.open(&config)?;
            return Ok(Reader { config: Some(config), open });
        };
        let location = resolve_location(repo, &std::env::current_dir().context("find the current directory")?)?;
        let open = self.open_at(&location, place.root.as_deref(), None)?;
        Ok(Reader { config: None, open })
    }

    pub fn open(&self, config: &Config) -> Result<Open> {
        self.open_at(&config.location()?, config.root.as_deref(), Some(config.state()))
    }

    fn open_at(&self, location: &str, root: Option<&str>, state: Option<PathBuf>) -> Result<Open> {
        let store = Store::open(location)?;
        let trust = Trust::load(&store, root).map_err(|e| match error::kind_of(&e) {
            Kind::Failed if no_bucket(&e) => Failure::new(
                Kind::NoRepository,
                format!("there is no repository at {}: there is no such bucket", store.place()),
                "Nothing was done. Is the bucket's name right, and the endpoint? If it has held backups before, make no new one: find out where it went.",
            ),
            Kind::Failed => e.context(format!("open the repository {}", store.place())),
            _ => e,
        })?;
        if root.is_none() {
            self.warn(format!(
                "no root key is pinned, so whoever controls {} decides what you restore.\n  Compare this fingerprint with the one in your kit: {}\n  \
                 Then give it: --root {1} (or root = … in the configuration).",
                store.place(),
                trust.root.id()
            ));
        }
        Ok(Open { store, trust, clock: Arc::clone(&self.clock), state })
    }

    /// This host with its keys, ready to write.
    pub fn host(&self, config: &Config) -> Result<Host> {
        let open = self.open(config)?;
        let keys = KeyPair::read(&config.host_key())?;
        Ok(Host { open, keys, name: config.host_name() })
    }
}

fn no_bucket(error: &anyhow::Error) -> bool {
    let of_store = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<storage::Error>().is_some_and(|e| e.kind == storage::Kind::NoStore)
    };
    error.chain().any(of_store)
}

/// The recovery key file given, or the one that still lies beside the host key.
pub fn recovery_key(config: Option<&Config>, given: Option<&Path>) -> Result<KeyFile> {
    if let Some(path) = given {
        return KeyFile::read(path);
    }
    let beside = config.map(Config::recovery_key).filter(|path| path.exists());
    let Some(path) = beside else {
        return Err(Failure::new(
            Kind::WrongKey,
            "the recovery key is needed for this, and it is not on this machine",
            "Nothing was read or written. Give the recovery key file: --identity FILE. It lies with the break-glass kit.",
        ));
    };
    KeyFile::read(&path)
}

/// The host's identity, for what it may read without the recovery key; none if it cannot be read.
pub fn host_identity(config: Option<&Config>) -> Vec<Identity> {
    let keys = config.and_then(|c| KeyPair::read(&c.host_key()).ok());
    keys.map(|k| k.identity).into_iter().collect()
}

/// That the recovery key has once decrypted something sealed to the recipients now in force.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyCanary {
    repository: String,
    epoch: u64,
    pub at: jiff::Timestamp,
}

impl KeyCanary {
    /// Seals a few bytes to the recipients in force and opens them with `identities`.
    pub fn fly(open: &Open, identities: &[Identity]) -> Result<()> {
        open.trust.require_reader(identities)?;
        KeyCanary::remember(open)
    }

    /// Notes a success in the state directory.
    pub fn remember(open: &Open) -> Result<()> {
        let Some(state) = &open.state else { return Ok(()) };
        let canary = KeyCanary { repository: open.trust.id.clone(), epoch: open.trust.epoch, at: open.now() };
        let path = state.join("canary.json");
        durable::publish_over(&path, &serde_json::to_vec(&canary)?, 0o600)
            .with_context(|| format!("write {}", path.display()))
    }

    /// The last success with these recipients.
    pub fn recall(open: &Open) -> Option<KeyCanary> {
        let text = std::fs::read(open.state.as_ref()?.join("canary.json")).ok()?;
        let canary: KeyCanary = serde_json::from_slice(&text).ok()?;
        (canary.repository == open.trust.id && canary.epoch == open.trust.epoch).then_some(canary)
    }
}
