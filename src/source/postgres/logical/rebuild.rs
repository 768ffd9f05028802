//! From a dump to a database: what the drill and `restore --into` have in common.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

use super::catalog;
use super::facts::Database;
use super::selection::Selection;
use crate::child::{Child, Ended, Spec};
use crate::source::postgres::client::{Address, Client};
use crate::source::postgres::programs::{Programs, identifier};

const WAIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Tables named in a difference.
const NAMED: usize = 5;

/// Makes an empty database with the encoding and locale of the one that was dumped.
pub(super) fn create(client: &mut Client, name: &str, facts: &Database) -> Result<()> {
    client.query(&create_sql(name, &facts.create)).map(drop)
}

/// The same with the locale that every server has.
pub(super) fn create_without_locale(client: &mut Client, name: &str, facts: &Database) -> Result<()> {
    let encoding = facts.create.split(" LC_COLLATE ").next().unwrap_or_default();
    client.query(&create_sql(name, &format!("{encoding} LC_COLLATE 'C' LC_CTYPE 'C'"))).map(drop)
}

fn create_sql(name: &str, clauses: &str) -> String {
    format!("create database {} template template0 {clauses}", identifier(name))
}

/// Makes the schemas that the dump takes for granted. `client` is connected to the new database.
pub(super) fn schemas(client: &mut Client, facts: &Database) -> Result<()> {
    for schema in &facts.schemas {
        client.query(&format!("create schema if not exists {}", identifier(schema)))?;
    }
    Ok(())
}

/// Runs `pg_restore` on a dump in the custom format, with several connections. An `Err`: it could not be run.
pub(super) fn pg_restore(
    programs: &Programs,
    address: &Address,
    database: &str,
    dump: &Path,
    more: &[&str],
) -> Result<Ended> {
    let jobs = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let jobs = format!("--jobs={jobs}");
    let to = format!("--dbname={}", connection_string(database));
    let mut spec: Spec = programs.spec("pg_restore", &["--no-password", &jobs, &to], address, database)?;
    spec.argv.extend(more.iter().map(Into::into));
    spec.argv.push(dump.into());
    Child::spawn(&spec)?.wait(WAIT)
}

/// Runs the roles and tablespaces in `file` by `psql`. Statements that fail are passed over, since roles may be there already; gives what failed.
pub(super) fn globals(programs: &Programs, address: &Address, database: &str, file: &Path) -> Result<Vec<String>> {
    let mut spec = programs.spec("psql", &["--no-psqlrc", "--quiet", "--no-password", "--file"], address, database)?;
    spec.argv.push(file.into());
    let ended = Child::spawn(&spec)?.wait(WAIT)?;
    ended.success().context("run the globals")?;
    let serious = |line: &String| line.contains("ERROR:") && !line.contains("already exists");
    Ok(ended.stderr.into_iter().filter(serious).collect())
}

/// A name as libpq reads it in a connection string, so that one with `=` in it stays a name.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Counts the rows of a rebuilt database again, and says how they differ from those of the dump.
pub(super) fn compare(client: &mut Client, facts: &Database) -> Result<(String, String)> {
    let there = catalog::tables(client, &Selection::default())?;
    let (mut expected, mut actual, mut differing) = (0u64, 0u64, Vec::new());
    let counted: Vec<_> = facts.tables.iter().filter_map(|(table, rows)| Some((table, (*rows)?))).collect();
    for (table, rows) in &counted {
        let found = there.iter().find(|(schema, name)| **table == format!("{schema}.{name}"));
        let now = match found {
            Some((schema, name)) => {
                let sql = format!("select count(*) from only {}.{}", identifier(schema), identifier(name));
                client.value(&sql)?.and_then(|n| n.parse::<u64>().ok())
            }
            None => None,
        };
        expected += rows;
        actual += now.unwrap_or(0);
        if now != Some(*rows) {
            let now = now.map_or("missing".to_owned(), |now| format!("{now} rows"));
            differing.push(format!("{table}: {now} instead of {rows}"));
        }
    }
    let say = |rows: u64| format!("{rows} rows in {} tables", counted.len());
    let mut found = say(actual);
    if !differing.is_empty() {
        let named = differing.len().min(NAMED);
        found.push_str(&format!("; {} differ: {}", differing.len(), differing[..named].join(", ")));
    }
    Ok((say(expected), found))
}

/// Roles that the dumps of `databases` speak of and the server does not have.
pub(super) fn missing_roles(client: &mut Client, databases: &[&Database]) -> Result<Vec<String>> {
    let rows = client.rows("select rolname from pg_roles")?;
    let there: Vec<&str> = rows.rows.iter().map(|row| row.required(0)).collect::<Result<_>>()?;
    let mut missing: Vec<String> = databases.iter().flat_map(|d| d.roles.iter().chain([&d.owner])).cloned().collect();
    missing.retain(|role| !there.contains(&role.as_str()));
    missing.sort();
    missing.dedup();
    Ok(missing)
}

/// Extensions that a database needs and the server has not.
pub(super) fn missing_extensions(client: &mut Client, facts: &Database) -> Result<Vec<String>> {
    let rows = client.rows("select name from pg_available_extensions")?;
    let there: Vec<&str> = rows.rows.iter().map(|row| row.required(0)).collect::<Result<_>>()?;
    Ok(facts.extensions.iter().filter(|name| !there.contains(&name.as_str())).cloned().collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_stays_a_name() {
        assert_eq!(super::connection_string("host=x user='y\\"), "dbname='host=x user=\\'y\\\\'");
    }
}
