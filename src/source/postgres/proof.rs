//! The proof of a physical snapshot: a real server of the same major version recovers the restored copy, every table is read, `pg_amcheck` looks at
//! tables and indexes where it is installed, and the operator's queries are asked.

mod at_end;

pub use at_end::at_end;

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::path::Path;
use std::time::Duration;

use super::client::Client;
use super::engine::{self, Engine, Start, environment};
use super::server::Facts;
use super::tables::{Counted, Reading};
use super::wal::Lsn;
use super::{Options, restored};
use crate::child::Child;
use crate::error::{Kind, kind_of};
use crate::report::{Check, Stopwatch};

/// How long one query or one run of `pg_amcheck` may take.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// What the server says where the library of an extension is not installed.
pub(super) const NO_LIBRARY: &str = "could not access file \"";

/// Whether a server that can recover the data is here. `Kind::Environment`: it is not.
pub fn ready(facts: &serde_json::Value, options: &Options) -> Result<()> {
    let facts = Facts::of(facts)?;
    engine::programs(facts.version, options.bin.as_deref()).map(drop)
}

/// Where recovery had to stop.
#[derive(Debug, Clone)]
pub struct Stop {
    /// No transaction may have ended later, by the server's clock.
    pub until: Option<Timestamp>,
    /// The record of the last one before, as the stored log shows it: recovery must have gone beyond this position.
    pub beyond: Option<String>,
}

/// What a proof finds.
#[derive(Debug, Default)]
pub struct Proof {
    pub checks: Vec<Check>,
    /// What is not as it was, though no check fails by it.
    pub remarks: Vec<String>,
}

/// A restored data directory.
#[derive(Debug, Clone, Copy)]
pub struct Copy<'a> {
    pub data: &'a Path,
    pub scratch: &'a Path,
    /// The stored log goes on behind it, and [`at_end`] has looked at it before.
    pub goes_on: bool,
    pub stop: Option<&'a Stop>,
}

/// Checks a copy, which it changes. `also` is done while the server runs. `Kind::Environment`: it could not be carried out here.
pub fn prove(
    copy: &Copy,
    facts: &serde_json::Value,
    options: &Options,
    times: &Stopwatch,
    also: &mut dyn FnMut(&Engine),
) -> Result<Proof> {
    let Copy { data, scratch, goes_on, stop } = *copy;
    let mut facts = Facts::of(facts)?;
    if goes_on {
        facts.counted = Counted::default();
    } else {
        restored::settle(data, data, &[])?;
    }
    if stop.is_some() {
        facts.counted = Counted::nothing("a later moment was drilled: what is gone may have been deleted since");
    }
    let engine = match times.time("engine start and replay", || start(data, scratch, &facts, options)) {
        Ok(engine) => engine,
        Err(e) if kind_of(&e) == Kind::Environment => return Err(e),
        Err(e) => {
            let checks = vec![Check::compare("server", "recovers the copy", format!("{e:#}"))];
            return Ok(Proof { checks, ..Proof::default() });
        }
    };
    let found = stop.map_or(Ok(Vec::new()), |stop| stopped(&engine, stop)).and_then(|stopped| {
        let mut proof = examine(&engine, &facts, options)?;
        proof.checks.splice(0..0, stopped);
        also(&engine);
        Ok(proof)
    });
    not_killed(&engine)?;
    let mut proof = found?;
    proof.checks.insert(0, Check::compare("server", "recovers the copy", "recovers the copy"));
    engine.stop()?;
    Ok(proof)
}

/// What a server says of which a process was killed tells nothing of the data.
fn not_killed(engine: &Engine) -> Result<()> {
    match engine.was_killed() {
        true => Err(environment("a process of the server was killed from outside, mostly for want of memory".into())),
        false => Ok(()),
    }
}

/// What the server itself says of where its recovery stopped.
fn stopped(engine: &Engine, stop: &Stop) -> Result<Vec<Check>> {
    let mut sql = engine.client("template1")?;
    let mut checks = Vec::new();
    if let Some(until) = stop.until {
        const LAST: &str =
            "select to_char(pg_last_xact_replay_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        let last = sql.value(LAST)?;
        let at = last.as_ref().map(|text| text.parse::<Timestamp>().context("read the server's time")).transpose()?;
        checks.push(Check {
            name: "last transaction that the server replayed".into(),
            expected: format!("not after {until}"),
            actual: last.unwrap_or_else(|| "none after the snapshot".to_owned()),
            passed: at.is_none_or(|at| at <= until),
        });
    }
    if let Some(beyond) = &stop.beyond {
        let reached = sql.value("select pg_last_wal_replay_lsn()")?.unwrap_or_else(|| "nothing".to_owned());
        checks.push(Check {
            name: "last position that the server replayed".into(),
            expected: format!("beyond {beyond}, the last transaction before the point"),
            passed: matches!((reached.parse::<Lsn>(), beyond.parse::<Lsn>()), (Ok(reached), Ok(last)) if reached.0 > last.0),
            actual: reached,
        });
    }
    Ok(checks)
}

/// Starts a server on a copy that is settled.
pub(super) fn start(data: &Path, scratch: &Path, facts: &Facts, options: &Options) -> Result<Engine> {
    let prepared = facts.max_prepared_transactions.unwrap_or(0).max(10);
    Engine::start(&Start {
        data,
        scratch,
        version: facts.version,
        bin: options.bin.as_deref(),
        settings: &[("max_prepared_transactions".to_owned(), prepared.to_string())],
        superuser: facts.superuser.as_deref().unwrap_or("postgres"),
    })
}

/// The checks on a server that runs on a restored copy.
pub fn examine(engine: &Engine, facts: &Facts, options: &Options) -> Result<Proof> {
    let mut sql = engine.client("template1")?;
    let mut checks = Vec::new();
    let system = sql.value("select system_identifier from pg_control_system()")?.unwrap_or_default();
    checks.push(Check::compare("system identifier", &facts.system, system));
    let databases = database_names(&mut sql)?;
    // A database may have come or gone between the question and the end of the backup; those that stayed must be there.
    if !facts.databases.is_empty() {
        let missing: Vec<&str> =
            facts.databases.iter().filter(|d| !databases.contains(d)).map(String::as_str).collect();
        let actual =
            if missing.is_empty() { "all there".to_owned() } else { format!("missing: {}", missing.join(", ")) };
        checks.push(Check::compare(format!("{} databases", facts.databases.len()), "all there", actual));
    }
    let mut reading = Reading::new(&facts.counted);
    for database in &databases {
        reading.read(&mut engine.client(database)?, database, PATIENCE)?;
    }
    checks.push(reading.readable());
    checks.extend(reading.compared());
    checks.push(amcheck(engine)?);
    for query in &options.check {
        checks.push(ask(engine, facts.database.as_deref().unwrap_or("postgres"), query));
    }
    match checks.iter().find(|check| !check.passed && check.actual.contains(NO_LIBRARY)) {
        Some(check) => Err(environment(format!("an extension's library is missing on this machine: {}", check.actual))),
        None => Ok(Proof { checks, remarks: reading.remarks }),
    }
}

fn database_names(sql: &mut Client) -> Result<Vec<String>> {
    let names = sql.rows("select datname from pg_database where datallowconn order by datname")?;
    names.rows.iter().map(|row| Ok(row.required(0)?.to_owned())).collect()
}

/// `pg_amcheck` on all databases: structure of tables and B-trees. Part of the contrib modules, and there from version 14 on.
fn amcheck(engine: &Engine) -> Result<Check> {
    const NAME: &str = "pg_amcheck";
    let Some(mut spec) = engine.program(NAME) else {
        return Ok(Check::not_run(
            NAME,
            "the program is not here: it comes with PostgreSQL from version 14 on, in contrib",
        ));
    };
    let available = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if engine.client("template1")?.value(available)?.as_deref() != Some("1") {
        return Ok(Check::not_run(NAME, "the extension amcheck is not installed here"));
    }
    for argument in ["--all", "--install-missing", "--jobs=2", "--no-password", "--username"] {
        spec.argv.push(argument.into());
    }
    spec.argv.push((&engine.superuser).into());
    spec.output = crate::child::Output::Piped;
    let mut child = Child::spawn(&spec)?;
    let said = child.output().map(|pipe| {
        std::thread::spawn(move || {
            use std::io::Read;
            let mut text = String::new();
            // What is beyond must be read as well, or the child would wait for ever; only the beginning is shown.
            let mut pipe = pipe;
            let begun = pipe.by_ref().take(4096).read_to_string(&mut text);
            let _passed_over = std::io::copy(&mut pipe, &mut std::io::sink());
            begun.map(|_| text).unwrap_or_default()
        })
    });
    let ended = child.wait(PATIENCE)?;
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let actual = match ended.status.success() {
        true => "nothing wrong".to_owned(),
        false => format!("{} {}", said.trim(), ended.stderr.join("; ")),
    };
    Ok(Check::compare(NAME, "nothing wrong", actual.trim()))
}

/// One of the operator's queries: its first value must say yes.
pub(super) fn ask(engine: &Engine, database: &str, query: &str) -> Check {
    let answer = engine.client(database).and_then(|mut sql| {
        sql.patience = PATIENCE;
        sql.value(query)
    });
    let (passed, actual) = match answer {
        Ok(Some(value)) => (!matches!(value.as_str(), "" | "f" | "false" | "0"), value),
        Ok(None) => (false, "no value".to_owned()),
        Err(e) => (false, format!("{e:#}")),
    };
    Check { name: query.to_owned(), expected: "yes".into(), actual, passed }
}
