//! The proof of a restored copy: the checks of its kind, with the real engine where there is one.

mod case;
mod log;

pub use case::Case;

use anyhow::{Context, Result};

use super::contents;
use super::wal::recover;
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::canary::{CHROMA_FILE, Found, Stated};
use crate::source::postgres::engine::Engine;
use crate::source::redis::connection::Connection;
use crate::source::{Settings, chroma, command, files, postgres, redis, sqlite};

/// What a person who has restored a snapshot of this kind needs to know, for the terminal.
pub fn advice(kind: &str, facts: &serde_json::Value) -> Vec<String> {
    match kind {
        "chroma" => chroma::proof::advice(),
        "files" => files::advice(facts),
        "sqlite" => sqlite::advice(),
        "redis" => redis::proof::advice(facts),
        postgres::PHYSICAL => postgres::restored::advice(facts),
        postgres::LOGICAL => postgres::logical::advice(facts),
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
            proven.checks.extend(log::as_append_only_file(case, facts, &options)?);
        }
        postgres::PHYSICAL => {
            let options = of_postgres();
            data_directory(case, facts, options, proven, &mut |engine| *found = in_postgres(engine, sought))?;
        }
        postgres::LOGICAL => {
            let options = of_postgres();
            let mut also = |engine: &Engine| *found = in_postgres(engine, sought);
            let checks = postgres::logical::proof::prove(case.copy, case.scratch, facts, &options, &mut also)?;
            proven.checks.extend(checks);
        }
        _ => {}
    }
    Ok(())
}

fn in_postgres(engine: &Engine, sought: Option<(&Stated, &str)>) -> Option<Found> {
    sought.map(|(canary, name)| postgres::canary::look(engine, canary.database.as_deref(), &canary.at, name))
}

/// A copy of PostgreSQL's files, with the log that goes on behind it.
fn data_directory(
    case: &Case,
    facts: &serde_json::Value,
    mut options: postgres::Options,
    proven: &mut Proven,
    also: &mut dyn FnMut(&Engine),
) -> Result<()> {
    let (data, scratch) = (case.copy, case.scratch);
    let not_whole = log::not_whole(case)?;
    let goes_on = case.moment.is_none()
        && not_whole.is_none()
        && recover::route_on(case.open, case.identities, case.snapshot)?.is_some();
    if goes_on {
        proven.checks.extend(postgres::proof::at_end((data, scratch), facts, &options, case.times)?);
    }
    // Without the log, what is in the snapshot can be proven all the same.
    let (replayed, stop) = match not_whole {
        Some(check) => (Some(check), None),
        None => log::into_data_directory(case, &mut options)?,
    };
    let whole = replayed.as_ref().is_none_or(|check| check.passed);
    proven.checks.extend(replayed);
    // Without the log up to the point a server would show another one.
    if whole || case.moment.is_none() {
        let copy = postgres::proof::Copy { data, scratch, goes_on, stop: stop.as_ref() };
        let proof = postgres::proof::prove(&copy, facts, &options, case.times, also)?;
        proven.checks.extend(proof.checks);
        proven.remarks = proof.remarks;
    }
    Ok(())
}
