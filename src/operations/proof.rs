//! The proof of a restored copy: the checks of its kind, with the real engine where there is one.

use anyhow::{Context, Result};
use std::path::Path;

use super::wal::recover::{self, Route, Target};
use super::wal::replay::{self, Aim};
use super::{Open, contents};
use crate::report::{Check, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::canary::{CHROMA_FILE, Found, Stated};
use crate::source::redis::connection::Connection;
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

/// What a proof finds.
#[derive(Debug, Default)]
pub struct Proven {
    pub checks: Vec<Check>,
    /// The canary that was due in the copy, and what is there.
    pub canary: Option<(Stated, Found)>,
    /// What is not as it should be, though no check fails by it.
    pub remarks: Vec<String>,
}

/// Checks the copy. An `Err` of `Kind::Environment` says nothing of the backup: the engine's program is missing, a port is taken, …
pub fn prove(case: &Case) -> Result<Proven> {
    let SealedPart { facts, secrets, .. } = SealedPart::open(case.snapshot, case.identities)?;
    let stated = Stated::of(&facts);
    let sought = stated.as_ref().map(|stated| (stated, case.snapshot.source.as_str()));
    let mut proven = Proven {
        checks: contents::compare(case.open, case.identities, case.snapshot, &secrets, case.copy)?,
        ..Proven::default()
    };
    let sound = proven.checks.iter().all(|check| check.passed);
    let mut found = None;
    match case.snapshot.kind.as_str() {
        "sqlite" => {
            let file = std::fs::read_dir(case.copy)?.next().context("nothing was restored")??.path();
            proven.checks.extend(sqlite::check::check(&file, &facts)?);
            found = sought.map(|(canary, name)| sqlite::canary::look(&file, &canary.at, name));
        }
        "command" => {
            let Settings { base, command: options, .. } = case.settings;
            proven.checks.extend(command::check::check(case.copy, &facts, options.as_ref(), base)?);
        }
        "files" => found = sought.map(|(canary, _)| files::canary::look(case.copy, &canary.at)),
        // A copy that is not what was stored is no matter for an engine.
        _ if sound => by_engine(case, &facts, sought, &mut proven, &mut found)?,
        _ => {}
    }
    proven.canary = stated.zip(found);
    Ok(proven)
}

/// The proof of a kind that has a server of its own, or Python.
fn by_engine(
    case: &Case,
    facts: &serde_json::Value,
    sought: Option<(&Stated, &str)>,
    proven: &mut Proven,
    found: &mut Option<Found>,
) -> Result<()> {
    let mut in_postgres = |engine: &postgres::engine::Engine| {
        let look = |(c, name): (&Stated, &str)| postgres::canary::look(engine, c.database.as_deref(), &c.at, name);
        *found = sought.map(look);
    };
    let of_postgres = || case.settings.postgres.clone().unwrap_or_default();
    match case.snapshot.kind.as_str() {
        "chroma" => {
            let options = case.settings.chroma.clone().unwrap_or_default().below(&case.settings.base);
            // Before Chroma itself opens it, and may leave a journal beside it.
            let file = case.copy.join(CHROMA_FILE);
            *found = sought.map(|(canary, name)| sqlite::canary::look(&file, &canary.at, name));
            proven.checks.extend(chroma::proof::prove(case.copy, case.scratch, facts, &options)?);
        }
        "redis" => {
            let options = case.settings.redis.clone().unwrap_or_default().below(&case.settings.base);
            let mut also = |connection: &mut Connection| {
                let look = |(c, _): (&Stated, &str)| {
                    redis::canary::look(connection, c.database.as_deref().unwrap_or("0"), &c.at)
                };
                *found = sought.map(look);
            };
            proven.checks.extend(redis::proof::prove(case.copy, facts, &options, &mut also)?);
            proven.checks.extend(replay_stream(case, facts, &options)?);
        }
        postgres::PHYSICAL => {
            let mut options = of_postgres();
            let mut copy = postgres::proof::Copy { data: case.copy, scratch: case.scratch, replayed: false };
            if let Some(route) = recover::route_on(case.open, case.identities, case.snapshot)? {
                proven.checks.extend(postgres::proof::at_end(&copy, facts, &options, case.times)?);
                proven.checks.push(replay_log(case, &route, &mut options));
                copy.replayed = true;
            }
            let proof = postgres::proof::prove(&copy, facts, &options, case.times, &mut in_postgres)?;
            proven.checks.extend(proof.checks);
            proven.remarks = proof.remarks;
        }
        postgres::LOGICAL => {
            let options = of_postgres();
            let checks = postgres::logical::proof::prove(case.copy, case.scratch, facts, &options, &mut in_postgres)?;
            proven.checks.extend(checks);
        }
        _ => {}
    }
    Ok(())
}

/// Puts the stored replication stream that follows the snapshot behind a second copy, and has a server load both.
fn replay_stream(case: &Case, facts: &serde_json::Value, options: &redis::Options) -> Result<Vec<Check>> {
    let Some(route) = replay::route_on(case.open, case.identities, case.snapshot)? else { return Ok(Vec::new()) };
    let copy = case.scratch.join("replayed");
    std::fs::create_dir(&copy).context("make a directory for the replay")?;
    let (from, to) = (case.copy.join(redis::DUMP), copy.join(redis::DUMP));
    std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).context("copy the data set")?;
    let aim = Aim { target: replay::Target::Latest, before: false };
    match replay::write(case.open, case.identities, &route, &aim, &copy) {
        Ok(replayed) => redis::proof::replayed(&copy, facts, options, &replayed.written),
        Err(e) if e.chain().any(|cause| cause.is::<storage::Error>()) => Err(e),
        Err(e) => Ok(vec![Check::compare("log after the snapshot", "whole", format!("{e:#}"))]),
    }
}

/// Puts the stored log that follows the snapshot into the copy, so that the server replays it, and adds the question whether it did.
fn replay_log(case: &Case, route: &Route, options: &mut postgres::Options) -> Check {
    let filled = recover::fill(case.open, case.identities, route, &Target::Latest, case.copy);
    let whole = |actual: String, name: String| Check::compare(name, "whole", actual);
    match filled {
        Ok((prepared, _)) => {
            if let Some(last) = &prepared.last {
                options.check.push(format!("select pg_current_wal_insert_lsn() > '{}'", last.position));
            }
            whole("whole".to_owned(), format!("log replayed, {} files after the snapshot", prepared.segments))
        }
        Err(e) => whole(format!("{e:#}"), "log after the snapshot".to_owned()),
    }
}
