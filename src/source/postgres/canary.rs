//! The canary of a PostgreSQL server: one row in one database.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::time::Duration;

use super::client::{Address, Client, ServerError, Session, literal};
use super::engine::Engine;
use super::logical::ANY_DATABASE;
use super::programs::identifier;
use crate::error::{Failure, Kind, help_of};
use crate::source::canary::{Act, Found};

/// How long the server may take. A commit waits for no standby: what a canary tells must not depend on the receiver of its own log.
const PATIENCE: Duration = Duration::from_secs(15);
const SESSION: &str = "set synchronous_commit = local; set statement_timeout = '10s'; set lock_timeout = '5s'";
const NO_TABLE: &str = "42P01";
const COLUMNS: &str = "(source text primary key, at timestamptz not null)";

/// Writes, tries or removes the row `name` of `table`.
pub fn carry_out(address: &Address, table: &str, name: &str, act: Act) -> Result<()> {
    let named = table;
    let table = quoted(table);
    let work = || {
        let mut client = Client::connect(address, Session::Plain)?;
        client.patience = PATIENCE;
        client.query(SESSION)?;
        match act {
            Act::Remove => remove(&mut client, &table, name),
            Act::Write(at) => write(&mut client, &table, name, at, "commit"),
            Act::Try => write(&mut client, &table, name, Timestamp::UNIX_EPOCH, "rollback"),
        }
    };
    work().map_err(|e| explain(e, address, named))
}

fn write(client: &mut Client, table: &str, name: &str, at: Timestamp, end: &str) -> Result<()> {
    let insert = format!(
        "insert into {table} (source, at) values ({}, {}) on conflict (source) do update set at = excluded.at",
        literal(name),
        literal(&at.to_string())
    );
    client.query("begin")?;
    match client.query(&insert) {
        Err(e) if ServerError::of(&e).is_some_and(|said| said.code == NO_TABLE) => {
            client.query("rollback")?;
            client.query("begin")?;
            client.query(&format!("create table {table} {COLUMNS}"))?;
            client.query(&insert)?;
        }
        other => drop(other?),
    }
    client.query(end).map(drop)
}

fn remove(client: &mut Client, table: &str, name: &str) -> Result<()> {
    match client.query(&format!("delete from {table} where source = {}", literal(name))) {
        Err(e) if ServerError::of(&e).is_some_and(|said| said.code == NO_TABLE) => return Ok(()),
        other => drop(other?),
    }
    let rest = client.value(&format!("select count(*) from {table}"))?;
    if rest.as_deref() == Some("0") {
        client.query(&format!("drop table {table}"))?;
    }
    Ok(())
}

/// What a server on a restored copy has.
pub fn look(engine: &Engine, database: Option<&str>, table: &str, name: &str) -> Found {
    let code = |e: &anyhow::Error| ServerError::of(e).map(|said| said.code.clone()).unwrap_or_default();
    let database = database.unwrap_or(ANY_DATABASE);
    let read = || -> Result<Option<Timestamp>> {
        let mut client = engine.client(database)?;
        let sql = format!(
            "select (extract(epoch from at) * 1000000)::bigint from {} where source = {}",
            quoted(table),
            literal(name)
        );
        let micros = client.value(&sql)?.map(|micros| micros.parse::<i64>().context("read its time")).transpose()?;
        Ok(micros.map(Timestamp::from_microsecond).transpose()?)
    };
    match read() {
        Err(e) if code(&e) == "3D000" => Found::Missing(format!("there is no database {database}")),
        Err(e) if code(&e) == NO_TABLE => Found::Missing(format!("there is no table {table} in {database}")),
        answer => Found::from_answer(answer),
    }
}

/// `schema.table`, each part quoted.
fn quoted(table: &str) -> String {
    table.splitn(2, '.').map(identifier).collect::<Vec<_>>().join(".")
}

/// With the statements that give the rights.
fn explain(error: anyhow::Error, address: &Address, table: &str) -> anyhow::Error {
    let database = address.database.as_deref().unwrap_or(ANY_DATABASE);
    let user = identifier(&address.user);
    let known = ServerError::of(&error).map(|said| said.code.clone());
    let table = quoted(table);
    let help = match known.as_deref() {
        Some("42501") => format!(
            "Backups go on. The role may not write there. As an owner of the database {database}: create table if not exists {table} {COLUMNS}; \
             grant select, insert, update, delete on {table} to {user}. Or give a role that may: url and password in [source.canary]."
        ),
        Some("25006") => {
            "Backups go on. The server is a standby, which takes no writes. Name its primary: url in [source.canary]."
                .to_owned()
        }
        Some("3F000") => format!(
            "Backups go on. Make the schema first, or name another table: `at` in [source.canary] (now {table})."
        ),
        _ => help_of(&error).map_or_else(|| "Backups go on. Look at the server's log.".to_owned(), str::to_owned),
    };
    Failure::new(Kind::Failed, format!("write the canary into {address}: {error:#}"), help)
}
