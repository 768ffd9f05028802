//! The proof of a restored copy: the checks of its kind, with the real engine where there is one.

mod log;

use anyhow::{Context, Result};
use std::path::Path;

use super::drill::Moment;
use super::{Open, contents};
use crate::report::{Check, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::{Settings, chroma, command, files, postgres, redis, sqlite};

/// A restored copy to be proven.
pub struct Case<'a> {
    pub open: &'a Open,
    pub identities: &'a [Identity],
    pub snapshot: &'a Snapshot,
    /// Up to where the log after it is replayed; without it, as far as it goes.
    pub moment: Option<Moment>,
    /// What was restored. Checked against the snapshot before any engine may touch it.
    pub copy: &'a Path,
    /// A directory for sockets, logs and further copies; it is removed with the copy.
    pub scratch: &'a Path,
    /// Engines note here what is not a check: `engine start`, `replay`. The rest of the proof counts as `checks`.
    pub times: &'a Stopwatch,
    /// The operator's checks, programs and the like; empty where the configuration is not at hand.
    pub settings: &'a Settings,
}

/// What a person who has restored a snapshot of this kind needs to know, for the terminal.
pub fn advice(kind: &str, facts: &serde_json::Value) -> Vec<String> {
    match kind {
        "chroma" => chroma::proof::advice(),
        "files" => files::advice(facts),
        "sqlite" => sqlite::advice(),
        "redis" => redis::proof::advice(facts),
        postgres::PHYSICAL => postgres::restored::advice(facts),
        _ => Vec::new(),
    }
}

/// Whether what the proof needs is on this machine, as far as can be told before anything is fetched. `Kind::Environment`: it is not.
pub fn ready(snapshot: &Snapshot, identities: &[Identity], settings: &Settings) -> Result<()> {
    let facts = SealedPart::open(snapshot, identities)?.facts;
    let postgres = settings.postgres.clone().unwrap_or_default();
    match snapshot.kind.as_str() {
        "redis" => redis::proof::ready(&facts, &settings.redis.clone().unwrap_or_default().below(&settings.base)),
        postgres::PHYSICAL => postgres::proof::ready(&facts, &postgres),
        postgres::LOGICAL => postgres::logical::proof::ready(&facts, &postgres),
        "command" => command::check::ready(&facts, settings.command.as_ref(), &settings.base),
        _ => Ok(()),
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
        // A copy that is not what was stored is no matter for an engine.
        "chroma" if checks.iter().all(|check| check.passed) => {
            let options = case.settings.chroma.clone().unwrap_or_default().below(&case.settings.base);
            checks.extend(chroma::proof::prove(case.copy, case.scratch, &sealed.facts, &options)?);
        }
        "redis" if checks.iter().all(|check| check.passed) => {
            let options = case.settings.redis.clone().unwrap_or_default().below(&case.settings.base);
            checks.extend(redis::proof::prove(case.copy, &sealed.facts, &options)?);
            checks.extend(log::as_append_only_file(case, &sealed.facts, &options)?);
        }
        postgres::PHYSICAL if checks.iter().all(|check| check.passed) => {
            let mut options = case.settings.postgres.clone().unwrap_or_default();
            let (replayed, stop) = log::into_data_directory(case, &mut options)?;
            let whole = replayed.as_ref().is_none_or(|check| check.passed);
            checks.extend(replayed);
            // Without the log up to the point a server would show another one.
            if whole || case.moment.is_none() {
                let (copy, scratch) = (case.copy, case.scratch);
                checks.extend(postgres::proof::prove(
                    (copy, scratch),
                    &sealed.facts,
                    &options,
                    stop.as_ref(),
                    case.times,
                )?);
            }
        }
        "command" => {
            let Settings { base, command: options, .. } = case.settings;
            checks.extend(command::check::check(case.copy, &sealed.facts, options.as_ref(), base)?);
        }
        postgres::LOGICAL if checks.iter().all(|check| check.passed) => {
            let options = case.settings.postgres.clone().unwrap_or_default();
            checks.extend(postgres::logical::proof::prove(case.copy, case.scratch, &sealed.facts, &options)?);
        }
        _ => {}
    }
    Ok(checks)
}
