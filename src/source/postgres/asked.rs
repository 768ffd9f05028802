//! Questions to a server by SQL: to one that is started on a restored copy, or to one that runs. A question changes nothing: its transactions are
//! read-only.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

use super::client::{Address, Client, Session};
use super::engine::{Engine, environment};
use super::logical::{self, proof::rebuild_in, proof::start_again};
use super::proof::{NO_LIBRARY, start};
use super::server::Facts;
use super::{Options, restored};
use crate::error::{Failure, Kind};

/// Written by a server when it starts, and never part of a backup.
const STARTED: &str = "postmaster.opts";
/// Beyond the time that the server itself allows.
const GRACE: Duration = Duration::from_secs(10);

/// A server on a restored copy, until [`Server::stop`].
pub struct Server {
    engine: Engine,
    database: Option<String>,
    _directory: TempDir,
}

impl Server {
    /// On the data directory of a physical snapshot; one that a proof has started before is started again. Nothing else may use `data`.
    pub fn on_data(data: &Path, scratch: &Path, facts: &serde_json::Value, options: &Options) -> Result<Server> {
        let facts = Facts::of(facts)?;
        if !data.join(STARTED).exists() {
            restored::settle(data, data, &[])?;
        }
        let directory = beside(scratch)?;
        let engine = start(data, directory.path(), &facts, options)?;
        Ok(Server { engine, database: facts.database, _directory: directory })
    }

    /// With the databases of the dumps in `copy`; those that a proof has rebuilt in `scratch` are not rebuilt again.
    pub fn on_dumps(copy: &Path, scratch: &Path, facts: &serde_json::Value, options: &Options) -> Result<Server> {
        let facts: logical::Facts =
            serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
        let directory = beside(scratch)?;
        let engine = match start_again(scratch, directory.path(), &facts, options)? {
            Some(engine) => engine,
            None => {
                let (engine, checks) = rebuild_in(copy, scratch, &facts, options)?;
                if let Some(wrong) = checks.iter().find(|check| !check.passed) {
                    let help = "The snapshot cannot be relied on; drill an older one.";
                    let message = format!("{}: expected {}, found {}", wrong.name, wrong.expected, wrong.actual);
                    return Err(Failure::new(Kind::CheckFailed, message, help));
                }
                engine
            }
        };
        Ok(Server { engine, database: facts.asked, _directory: directory })
    }

    /// The database of the source's address, unless another is named.
    pub fn address(&self, database: Option<&str>) -> Address {
        let named = database.or(self.database.as_deref()).unwrap_or(logical::ANY_DATABASE);
        self.engine.address(named)
    }

    pub fn stop(self) -> Result<()> {
        self.engine.stop()
    }
}

/// A directory for the socket: each start of a server needs one of its own.
fn beside(scratch: &Path) -> Result<TempDir> {
    tempfile::Builder::new().prefix("q").tempdir_in(scratch).context("make a directory for a socket")
}

/// The first value of the first row as text; `None` for NULL or no row.
pub fn value(address: &Address, sql: &str, patience: Duration) -> Result<Option<String>> {
    let mut client = Client::connect(address, Session::Plain)?;
    client.patience = patience.saturating_add(GRACE);
    let most = patience.as_millis().clamp(1, 0x7fff_ffff);
    client.query(&format!("set default_transaction_read_only = on; set statement_timeout = {most}"))?;
    client.value(sql).map_err(|e| {
        let text = format!("{e:#}");
        if text.contains(NO_LIBRARY) {
            return environment(format!("an extension's library is missing on this machine: {text}"));
        }
        e
    })
}
