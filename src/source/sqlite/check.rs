//! The proof of a restored database: SQLite itself reads every page, and the rows are as many as they were.

use super::facts::{self, Facts, NOT_IN_TIME};
use super::{beside, open};
use crate::report::Check;
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::path::Path;

/// Checks a restored copy that nobody has open against the facts of its snapshot. The copy and its directory are not changed.
/// `Err` only if the check itself was impossible (no such file, unreadable facts); a damaged copy is a check that did not pass.
pub fn check(path: &Path, facts: &serde_json::Value) -> Result<Vec<Check>> {
    let facts = Facts::from_json(facts)?;
    let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
    let mut checks = vec![no_leftovers(&path)];
    let size = std::fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?.len();
    checks.push(Check::compare("file_size", facts.page_size * facts.page_count, size));
    match open::open_immutable(&path).and_then(|connection| open::begin(&connection).map(|()| connection)) {
        Ok(connection) => contents(&connection, &facts, &mut checks),
        Err(error) => checks.push(compare("readable", "yes", Err::<String, _>(error))),
    }
    Ok(checks)
}

/// A check of its own for everything, so that one error hides nothing else.
fn compare(name: impl Into<String>, expected: impl ToString, actual: rusqlite::Result<impl ToString>) -> Check {
    match actual {
        Ok(actual) => Check::compare(name, expected, actual),
        Err(error) => Check::compare(name, expected, format!("error: {error}")),
    }
}

/// A `-wal` or `-journal` of another database would be replayed into this one as soon as somebody opens it.
fn no_leftovers(path: &Path) -> Check {
    let found: Vec<&str> =
        ["-wal", "-shm", "-journal"].into_iter().filter(|s| beside(path, s).symlink_metadata().is_ok()).collect();
    let actual = if found.is_empty() { "none".to_owned() } else { found.join(" ") };
    Check::compare("leftovers", "none", actual)
}

fn contents(connection: &Connection, facts: &Facts, checks: &mut Vec<Check>) {
    checks.push(compare("page_size", facts.page_size, open::pragma(connection, "page_size")));
    checks.push(compare("page_count", facts.page_count, open::pragma(connection, "page_count")));
    checks.push(integrity(connection));
    checks.push(foreign_keys(facts, facts::foreign_keys(connection)));

    let expected: BTreeSet<String> = facts.tables.keys().chain(&facts.uncounted).cloned().collect();
    let actual: BTreeSet<String> = match facts::tables(connection) {
        Ok(present) => present.into_iter().map(|(name, _)| name).collect(),
        Err(error) => {
            return checks.push(compare("tables", format!("{} tables", expected.len()), Err::<String, _>(error)));
        }
    };
    checks.push(tables(&expected, &actual));
    for (name, &rows) in facts.tables.iter().filter(|(name, _)| actual.contains(*name)) {
        checks.push(compare(format!("rows of {name}"), rows, facts::count(connection, name)));
    }
}

fn integrity(connection: &Connection) -> Check {
    match integrity_check(connection, "10") {
        Err(error) if needs_application(&error) => {
            let result = table_by_table(connection);
            let passed = result.as_ref().is_ok_and(|(problems, _)| problems.is_empty());
            let words = result
                .map(|(problems, unknown)| format!("{} but for {unknown}", if passed { "ok" } else { &problems }));
            Check { passed, ..compare("integrity_check", "ok", words) }
        }
        result => compare("integrity_check", "ok", result),
    }
}

/// `ok`, or up to ten problems. `argument` is their number, or a table in quotes.
fn integrity_check(connection: &Connection, argument: &str) -> rusqlite::Result<String> {
    let mut statement = connection.prepare(&format!("PRAGMA main.integrity_check({argument})"))?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(lines.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("; "))
}

/// A collation or function that only the application has is no damage.
fn needs_application(error: &rusqlite::Error) -> bool {
    let error = error.to_string();
    error.contains("no such collation") || error.contains("no such function")
}

/// The problems, and the tables that cannot be checked without the application. Their rows are counted all the same.
fn table_by_table(connection: &Connection) -> rusqlite::Result<(String, String)> {
    let (mut problems, mut unknown) = (Vec::new(), Vec::new());
    for (name, _) in facts::tables(connection)?.into_iter().filter(|(_, ordinary)| *ordinary) {
        match integrity_check(connection, &facts::quoted(&name)) {
            Ok(found) if found == "ok" => {}
            Ok(found) => problems.push(found),
            Err(error) if needs_application(&error) => unknown.push(format!("{name} ({error})")),
            Err(error) => return Err(error),
        }
    }
    Ok((problems.join("; "), unknown.join(", ")))
}

fn foreign_keys(facts: &Facts, actual: rusqlite::Result<String>) -> Check {
    let mut check = compare("foreign_key_check", facts.foreign_keys.as_str(), actual);
    // Nothing to compare with: broken references count as damage then.
    check.passed |= facts.foreign_keys == NOT_IN_TIME && check.actual == "ok";
    check
}

fn tables(expected: &BTreeSet<String>, actual: &BTreeSet<String>) -> Check {
    let missing = expected.difference(actual).map(|name| format!("missing: {name}"));
    let extra = actual.difference(expected).map(|name| format!("extra: {name}"));
    let wrong: Vec<String> = missing.chain(extra).collect();
    let found = if wrong.is_empty() { format!("{} tables", actual.len()) } else { wrong.join(", ") };
    Check::compare("tables", format!("{} tables", expected.len()), found)
}
