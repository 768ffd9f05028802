//! A restore that goes on into the engine: the files are restored and checked as always, then loaded.
//!
//! Nothing is loaded before every byte of every file has been checked. The restored files stay where they are: what becomes of them is the
//! caller's business, and after a failure they are what one goes on from.

use anyhow::Result;
use serde::Serialize;

use super::Open;
use super::restore::{self, Request, RestoreReport};
use crate::error::{Failure, Kind};
use crate::report::Loaded;
use crate::repository::agefile::Identity;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::{Settings, command};

#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    pub restored: RestoreReport,
    pub loaded: Vec<Loaded>,
}

impl LoadReport {
    /// Whether each program read all that it was given.
    pub fn is_whole(&self) -> bool {
        self.loaded.iter().all(|loaded| loaded.bytes_unread == 0)
    }
}

/// Whether `snapshot` can be loaded with these settings, before anything is fetched.
pub fn prepare(snapshot: &Snapshot, settings: &Settings) -> Result<()> {
    match (snapshot.kind.as_str(), &settings.command) {
        ("command", Some(options)) => command::load::prepare(options, &settings.base),
        ("command", None) => {
            let message =
                format!("how {} is loaded stands in its configuration, and there is none here", snapshot.source);
            Err(Failure::new(
                Kind::Config,
                message,
                "Nothing was restored. Give the configuration, or restore the files: --to DIR.",
            ))
        }
        (kind, _) => {
            let message = format!("a source of kind {kind} is not loaded into anything");
            Err(Failure::new(Kind::Usage, message, "Nothing was restored. Restore the files: --to DIR."))
        }
    }
}

/// Restores `snapshot` to `request.to`, then loads it.
pub fn load(
    open: &Open,
    identities: &[Identity],
    commit: &Commit,
    snapshot: &Snapshot,
    request: &Request,
    settings: &Settings,
) -> Result<LoadReport> {
    prepare(snapshot, settings)?;
    let restored = restore::restore(open, identities, commit, snapshot, request)?;
    let loaded = match &settings.command {
        Some(options) => command::load::load(options, &settings.base, &request.to)?,
        None => Vec::new(),
    };
    Ok(LoadReport { restored, loaded })
}
