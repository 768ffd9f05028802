//! What a database says of itself, so that a restored copy can be held against it.

use anyhow::Context;
use rusqlite::{Connection, Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Counting rows holds the read transaction open. In WAL mode that costs a longer WAL; …
const COUNT_AT_MOST: Duration = Duration::from_secs(20);
/// … in rollback mode writers wait meanwhile, and many give up after 5 s.
const COUNT_AT_MOST_BLOCKING: Duration = Duration::from_secs(2);

/// Facts of one database at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub journal_mode: String,
    /// Bytes.
    pub page_size: u64,
    pub page_count: u64,
    pub encoding: String,
    pub user_version: i64,
    pub application_id: i64,
    pub schema_version: i64,
    /// The version of the SQLite that wrote last, e.g. `3.40.1`: a hint at what the application uses.
    pub written_by: String,
    /// Rows of each ordinary table.
    pub tables: BTreeMap<String, u64>,
    /// Tables that exist but were not counted: virtual ones, and those that time did not suffice for.
    pub uncounted: Vec<String>,
    /// [`foreign_keys`], or [`NOT_IN_TIME`].
    pub foreign_keys: String,
    /// How long the read transaction was held.
    pub transaction_seconds: f64,
}

pub const NOT_IN_TIME: &str = "not checked in time";

/// Collects the facts inside the caller's read transaction. The second value says what is wrong with the database, if counting found out.
pub fn collect(connection: &Connection) -> Result<(Facts, Option<String>)> {
    let journal_mode = text(connection, "journal_mode")?;
    let limit = if journal_mode == "wal" { COUNT_AT_MOST } else { COUNT_AT_MOST_BLOCKING };
    collect_within(connection, journal_mode, limit)
}

fn collect_within(connection: &Connection, journal_mode: String, limit: Duration) -> Result<(Facts, Option<String>)> {
    let mut facts = Facts {
        journal_mode,
        page_size: super::open::pragma(connection, "page_size")?,
        page_count: super::open::pragma(connection, "page_count")?,
        encoding: text(connection, "encoding")?,
        user_version: number(connection, "user_version")?,
        application_id: number(connection, "application_id")?,
        schema_version: number(connection, "schema_version")?,
        written_by: written_by(connection)?,
        tables: BTreeMap::new(),
        uncounted: Vec::new(),
        foreign_keys: NOT_IN_TIME.to_owned(),
        transaction_seconds: 0.0,
    };
    let mut damage = None;
    let mut note = |what: &str, error: &Error| {
        if is_damage(error) {
            damage.get_or_insert_with(|| {
                format!("the database itself is damaged ({what}: {error}): it was stored as it is")
            });
        }
    };
    let tables = tables(connection)?;
    within(connection, limit, |in_time| {
        for (name, ordinary) in tables {
            let counted = (ordinary && in_time()).then(|| count(connection, &name));
            match counted {
                Some(Ok(rows)) => {
                    facts.tables.insert(name, rows);
                    continue;
                }
                Some(Err(error)) => note(&name, &error),
                None => {}
            }
            facts.uncounted.push(name);
        }
        match in_time().then(|| foreign_keys(connection)) {
            Some(Ok(found)) => facts.foreign_keys = found,
            Some(Err(error)) => note("foreign keys", &error),
            None => {}
        }
    });
    Ok((facts, damage))
}

/// Runs `work`, whose queries are interrupted once `limit` is over; `work` is told whether time is left.
fn within<T>(connection: &Connection, limit: Duration, work: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
    let deadline = Instant::now() + limit;
    let handle = connection.get_interrupt_handle();
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = limit;
            // More than once: an interrupt that falls between two queries is forgotten by SQLite.
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
                wait = Duration::from_millis(50);
            }
        });
        let result = work(&|| Instant::now() < deadline);
        drop(done);
        result
    })
}

fn is_damage(error: &Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SystemIoFailure)
    )
}

/// Names of the tables in order, each with whether its rows can be counted: those of virtual tables lie in other (shadow) tables.
pub fn tables(connection: &Connection) -> Result<Vec<(String, bool)>> {
    let query = "SELECT name, type FROM pragma_table_list \
                 WHERE schema = 'main' AND type IN ('table', 'virtual') AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| {
        let name = String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned();
        Ok((name, row.get::<_, String>(1)? == "table"))
    })?;
    rows.collect()
}

pub fn count(connection: &Connection, table: &str) -> Result<u64> {
    let query = format!("SELECT count(*) FROM main.{}", quoted(table));
    connection.query_row(&query, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// A name as SQL takes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `ok`, or how many rows refer to nothing, or why that cannot be told (a foreign key that fits no unique index).
/// Violations are no damage by themselves: SQLite does not enforce foreign keys unless asked.
pub fn foreign_keys(connection: &Connection) -> Result<String> {
    match connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get::<_, i64>(0)) {
        Ok(0) => Ok("ok".to_owned()),
        Ok(n) => Ok(format!("{n} violations")),
        Err(Error::SqliteFailure(failure, Some(why))) if failure.extended_code == rusqlite::ffi::SQLITE_ERROR => {
            Ok(format!("cannot be checked: {why}"))
        }
        Err(error) => Err(error),
    }
}

fn text(connection: &Connection, pragma: &str) -> Result<String> {
    connection.query_row(&format!("PRAGMA main.{pragma}"), [], |row| row.get(0))
}

fn number(connection: &Connection, pragma: &str) -> Result<i64> {
    connection.query_row(&format!("PRAGMA main.{pragma}"), [], |row| row.get(0))
}

fn written_by(connection: &Connection) -> Result<String> {
    let query = "SELECT substr(data, 97, 4) FROM sqlite_dbpage WHERE pgno = 1";
    let bytes: [u8; 4] = connection.query_row(query, [], |row| row.get(0))?;
    let n = u32::from_be_bytes(bytes);
    Ok(format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000))
}

impl Facts {
    /// Reads the facts of a snapshot back.
    pub fn from_json(facts: &serde_json::Value) -> anyhow::Result<Facts> {
        Facts::deserialize(facts).context("read the facts that the snapshot holds of its database")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_ends_in_time_and_keeps_the_transaction() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE big(x); INSERT INTO big WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 1000000) SELECT i FROM n;
                 BEGIN; SELECT 1 FROM big LIMIT 1;",
            )
            .unwrap();
        let (facts, damage) = collect_within(&connection, "memory".to_owned(), Duration::ZERO).unwrap();
        assert_eq!((facts.uncounted, facts.foreign_keys.as_str(), damage), (vec!["big".to_owned()], NOT_IN_TIME, None));
        // An interrupted query must not end the transaction either.
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n";
        let began = Instant::now();
        let result = within(&connection, Duration::from_millis(30), |_| {
            connection.query_row(endless, [], |row| row.get::<_, i64>(0))
        });
        assert_eq!(result.unwrap_err().sqlite_error_code(), Some(ErrorCode::OperationInterrupted));
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(!connection.is_autocommit());
        assert_eq!(count(&connection, "big").unwrap(), 1_000_000);
    }
}
