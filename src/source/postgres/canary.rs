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
            ensure_not_published(client, table)?;
            client.query(&format!("create table {table} {COLUMNS}"))?;
            client.query(&insert)?;
        }
        other => drop(other?),
    }
    client.query(end).map(drop)
}

/// A table that is published by itself breaks subscribers that do not have it: they stop, and their slots keep log without end.
fn ensure_not_published(client: &mut Client, table: &str) -> Result<()> {
    let all = client.value("select count(*) from pg_publication where puballtables")?;
    // Publications of schemas came with 15.
    let of_schemas = client.value("select to_regclass('pg_catalog.pg_publication_namespace') is not null")?;
    let of_schemas = match of_schemas.as_deref() {
        Some("t") => client.value("select count(*) from pg_publication_namespace")?,
        _ => None,
    };
    if [all, of_schemas].iter().flatten().any(|count| count != "0") {
        let help = format!(
            "Backups go on, and nothing was changed. Make it by hand, on the subscribers first: create table {table} {COLUMNS}; then the canary is written."
        );
        let message = "the server publishes new tables to subscribers, which stop at one that they do not have";
        return Err(Failure::new(Kind::Failed, message, help));
    }
    Ok(())
}

/// A table that is not as this program makes it is somebody else's.
fn is_ours(client: &mut Client, table: &str) -> Result<bool> {
    let columns = "select string_agg(attname || ' ' || atttypid::regtype, ', ' order by attnum) from pg_attribute";
    let sql = format!("{columns} where attrelid = {}::regclass and attnum > 0 and not attisdropped", literal(table));
    Ok(client.value(&sql)?.as_deref() == Some("source text, at timestamp with time zone"))
}

fn remove(client: &mut Client, table: &str, name: &str) -> Result<()> {
    match client.query(&format!("delete from {table} where source = {}", literal(name))) {
        Err(e) if ServerError::of(&e).is_some_and(|said| said.code == NO_TABLE) => return Ok(()),
        other => drop(other?),
    }
    let rest = client.value(&format!("select count(*) from {table}"))?;
    if rest.as_deref() == Some("0") && is_ours(client, table)? {
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
