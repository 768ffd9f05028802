//! The proof of a physical snapshot: a real server of the same major version recovers the restored copy, every table is read, `pg_amcheck` looks at
//! tables and indexes where it is installed, and the operator's queries are asked.

mod at_end;

pub use at_end::at_end;

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

use super::client::Client;
use super::engine::{self, Engine, Start, environment};
use super::server::Facts;
use super::tables::{Counted, Reading};
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
    let facts: Facts = serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
    engine::programs(facts.version, options.bin.as_deref()).map(drop)
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
    /// The stored log was put behind it: it goes on from where the backup ended, and [`at_end`] has looked at it before.
    pub replayed: bool,
}

/// Checks a copy, which it changes. `also` is done while the server runs. `Kind::Environment`: it could not be carried out here.
pub fn prove(
    copy: &Copy,
    facts: &serde_json::Value,
    options: &Options,
    times: &Stopwatch,
    also: &mut dyn FnMut(&Engine),
) -> Result<Proof> {
    let Copy { data, scratch, replayed } = *copy;
    let facts: Facts = serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
    if !replayed {
        restored::settle(data, data)?;
    }
    let engine = match times.time("engine start and replay", || start(data, scratch, &facts, options)) {
        Ok(engine) => engine,
        Err(e) if kind_of(&e) == Kind::Environment => return Err(e),
        Err(e) => {
            let checks = vec![Check::compare("server", "recovers the copy", format!("{e:#}"))];
            return Ok(Proof { checks, ..Proof::default() });
        }
    };
    let mut facts = facts;
    if replayed {
        facts.counted = Counted::default();
    }
    let mut proof = examine(&engine, &facts, options)?;
    proof.checks.insert(0, Check::compare("server", "recovers the copy", "recovers the copy"));
    also(&engine);
    engine.stop()?;
    Ok(proof)
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
    checks.extend(amcheck(engine)?);
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
fn amcheck(engine: &Engine) -> Result<Option<Check>> {
    let available = "select count(*) from pg_available_extensions where name = 'amcheck'";
    let installed = engine.client("template1")?.value(available)?.as_deref() == Some("1");
    let Some(mut spec) = engine.program("pg_amcheck").filter(|_| installed) else { return Ok(None) };
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
    Ok(Some(Check::compare("pg_amcheck", "nothing wrong", actual.trim())))
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
