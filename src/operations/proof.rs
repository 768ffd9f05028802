//! The proof of a restored copy: the checks of its kind, with the real engine where there is one.

use anyhow::{Context, Result};
use std::path::Path;

use super::wal::recover::{self, Target};
use super::wal::replay::{self, Aim};
use super::{Open, contents};
use crate::report::{Check, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::{Settings, chroma, command, files, postgres, redis, sqlite};
use crate::storage;

/// A restored copy to be proven.
pub struct Case<'a> {
    pub open: &'a Open,
    pub identities: &'a [Identity],
    pub snapshot: &'a Snapshot,
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
            checks.extend(replay_stream(case, &sealed.facts, &options)?);
        }
        postgres::PHYSICAL if checks.iter().all(|check| check.passed) => {
            let mut options = case.settings.postgres.clone().unwrap_or_default();
            checks.extend(replay_log(case, &mut options)?);
            checks.extend(postgres::proof::prove(case.copy, case.scratch, &sealed.facts, &options, case.times)?);
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

/// Puts the stored replication stream that follows the snapshot behind a second copy, and has a server load both.
fn replay_stream(case: &Case, facts: &serde_json::Value, options: &redis::Options) -> Result<Vec<Check>> {
    let Some(route) = replay::route_on(case.open, case.identities, case.snapshot)? else { return Ok(Vec::new()) };
    let copy = case.scratch.join("replayed");
    std::fs::create_dir(&copy).context("make a directory for the replay")?;
    let (from, to) = (case.copy.join(redis::DUMP), copy.join(redis::DUMP));
    std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).context("copy the data set")?;
    let aim = Aim { target: replay::Target::Latest, before: false, history: None };
    match replay::write(case.open, case.identities, &route, &aim, &copy) {
        Ok(replayed) => redis::proof::replayed(&copy, facts, options, &replayed.written),
        Err(e) if e.chain().any(|cause| cause.is::<storage::Error>()) => Err(e),
        Err(e) => Ok(vec![Check::compare("log after the snapshot", "whole", format!("{e:#}"))]),
    }
}

/// Puts the stored log that follows the snapshot into the copy, so that the server replays it, and adds the question whether it did.
fn replay_log(case: &Case, options: &mut postgres::Options) -> Result<Option<Check>> {
    let Some(route) = recover::route_on(case.open, case.identities, case.snapshot)? else { return Ok(None) };
    let filled = recover::fill(case.open, case.identities, &route, &Target::Latest, case.copy);
    let whole = |actual: String, name: String| Some(Check::compare(name, "whole", actual));
    Ok(match filled {
        Ok((prepared, _)) => {
            if let Some(last) = &prepared.last {
                options.check.push(format!("select pg_current_wal_insert_lsn() > '{}'", last.position));
            }
            whole("whole".to_owned(), format!("log replayed, {} files after the snapshot", prepared.segments))
        }
        Err(e) => whole(format!("{e:#}"), "log after the snapshot".to_owned()),
    })
}
