//! The proof of a restored copy: the checks of its kind, with the real engine where there is one.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

use super::{Open, contents};
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::{chroma, redis, sqlite};

/// A restored copy to be proven.
pub struct Case<'a> {
    pub open: &'a Open,
    pub identities: &'a [Identity],
    pub snapshot: &'a Snapshot,
    /// What was restored. Checked against the snapshot before any engine may touch it.
    pub copy: &'a Path,
    /// A directory for sockets, logs and further copies; it is removed with the copy.
    pub scratch: &'a Path,
    pub programs: &'a Programs,
}

/// Programs that the operator has named for proofs; what is not named is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programs {
    /// A Python that can import `chromadb`.
    pub python: Option<PathBuf>,
    /// A Redis or Valkey server.
    pub redis: Option<PathBuf>,
}

/// What a person who has restored a snapshot of this kind needs to know, for the terminal.
pub fn advice(kind: &str, facts: &serde_json::Value) -> Vec<String> {
    match kind {
        "chroma" => chroma::proof::advice(),
        "redis" => redis::proof::advice(facts),
        _ => Vec::new(),
    }
}

/// Checks the copy. An `Err` of `Kind::Environment` says nothing of the backup: the engine's program is missing, a port is taken, …
pub fn prove(case: &Case) -> Result<Vec<Check>> {
    let sealed = SealedPart::open(case.snapshot, case.identities)?;
    let mut checks = contents::compare(case.open, case.identities, case.snapshot, &sealed.secrets, case.copy)?;
    match case.snapshot.kind.as_str() {
        "sqlite" => {
            let file = std::fs::read_dir(case.copy)?.next().context("nothing was restored")??.path();
            checks.extend(sqlite::check::check(&file, &sealed.facts)?);
        }
        "chroma" => {
            checks.extend(chroma::proof::prove(
                case.copy,
                case.scratch,
                &sealed.facts,
                case.programs.python.as_deref(),
            )?);
        }
        "redis" => checks.extend(redis::proof::prove(case.copy, &sealed.facts, case.programs.redis.as_deref())?),
        _ => {}
    }
    Ok(checks)
}
