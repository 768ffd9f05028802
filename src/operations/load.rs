//! A restore that goes on into the engine: the files are restored and checked as always, then loaded.
//!
//! Nothing is loaded before every byte of every file has been checked. The restored files stay where they are: what becomes of them is the
//! caller's business, and after a failure they are what one goes on from.

use anyhow::Result;
use serde::Serialize;

use super::Open;
use super::restore::{self, Request, RestoreReport};
use crate::error::{Failure, Kind};
use crate::report::{Check, Loaded};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres::client::Address;
use crate::source::postgres::{self, logical};
use crate::source::{Settings, command};

/// What is to be loaded.
pub struct Wish<'a> {
    pub snapshot: &'a Snapshot,
    pub request: &'a Request,
    pub settings: &'a Settings,
    /// A server, and the name of a new database or none.
    pub address: Option<&'a Address>,
    /// Roles and tablespaces, too.
    pub globals: bool,
}

/// How it will be loaded, once it is certain that it can be.
pub enum Plan {
    Command(Box<command::Options>),
    Postgres(Box<logical::load::Plan>),
}

#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    pub restored: RestoreReport,
    pub loaded: Vec<Loaded>,
    /// What was looked at afterwards.
    pub checks: Vec<Check>,
}

impl LoadReport {
    /// Whether each program read all that it was given.
    pub fn is_whole(&self) -> bool {
        self.loaded.iter().all(|loaded| loaded.bytes_unread == 0)
    }
}

/// Finds out, before anything is fetched, whether it can be loaded.
pub fn prepare(identities: &[Identity], wish: &Wish) -> Result<Plan> {
    let (snapshot, settings) = (wish.snapshot, wish.settings);
    let usage =
        |message: String, help: &str| Err(Failure::new(Kind::Usage, message, format!("Nothing was restored. {help}")));
    match (snapshot.kind.as_str(), wish.address) {
        ("command", _) => {
            let Some(options) = &settings.command else {
                let message =
                    format!("how {} is loaded stands in its configuration, and there is none here", snapshot.source);
                return Err(Failure::new(
                    Kind::Config,
                    message,
                    "Nothing was restored. Give the configuration, or restore the files: --to DIR.",
                ));
            };
            if !wish.request.paths.is_empty() {
                return usage(
                    "a command is loaded as a whole".into(),
                    "Leave --path out, or restore the files: --to DIR.",
                );
            }
            command::load::prepare(options, &settings.base)?;
            Ok(Plan::Command(Box::new(options.clone())))
        }
        (postgres::LOGICAL, Some(address)) => {
            let facts = SealedPart::open(snapshot, identities)?.facts;
            let bin = settings.postgres.as_ref().and_then(|options| options.bin.as_deref());
            let plan = logical::load::prepare(address, &facts, &wish.request.paths, wish.globals, bin)?;
            Ok(Plan::Postgres(Box::new(plan)))
        }
        (postgres::LOGICAL, None) => usage(
            format!("{} is loaded into a server", snapshot.source),
            "Give its address, and the name of a database that does not exist yet: --into postgres://user@host/newname",
        ),
        (kind, _) => {
            usage(format!("a source of kind {kind} is not loaded into anything"), "Restore the files: --to DIR.")
        }
    }
}

/// Restores to `request.to`, then loads it as planned.
pub fn load(open: &Open, identities: &[Identity], commit: &Commit, wish: &Wish, plan: &Plan) -> Result<LoadReport> {
    let restored = restore::restore(open, identities, commit, wish.snapshot, wish.request)?;
    let copy = &wish.request.to;
    let (loaded, checks) = match plan {
        Plan::Postgres(plan) => logical::load::load(plan, copy)?,
        Plan::Command(options) => (command::load::load(options, &wish.settings.base, copy)?, Vec::new()),
    };
    Ok(LoadReport { restored, loaded, checks })
}
