//! What the server's catalogs say of databases and tables.

use anyhow::{Context, Result};
use std::collections::BTreeSet;

use super::facts::Database;
use super::selection::Selection;
use crate::source::postgres::client::Client;

/// A database that the server has.
pub(super) struct Listed {
    pub name: String,
    pub may_connect: bool,
    pub facts: Database,
}

/// All databases but templates and those that admit nobody.
pub(super) fn databases(client: &mut Client) -> Result<Vec<Listed>> {
    let icu = match client.version() / 10_000 {
        ..15 => "null",
        15 | 16 => "case datlocprovider when 'i' then daticulocale end",
        17.. => "case when datlocprovider in ('i', 'b') then datlocale end",
    };
    let provider = if client.version() < 150_000 { "'c'" } else { "datlocprovider" };
    let rows = client.rows(&format!(
        "select datname, has_database_privilege(datname, 'CONNECT'), pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {icu}, \
         pg_get_userbyid(datdba), case when has_database_privilege(datname, 'CONNECT') then pg_database_size(oid) else 0 end \
         from pg_database where datallowconn and not datistemplate order by datname"
    ))?;
    let mut listed = Vec::new();
    for row in &rows.rows {
        let name = row.required(0)?.to_owned();
        let mut create = format!(
            "ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            literal(row.required(2)?),
            literal(row.required(3)?),
            literal(row.required(4)?)
        );
        if let Some(locale) = row.text(6)? {
            let (provider, key) = match row.required(5)? {
                "b" => ("builtin", "BUILTIN_LOCALE"),
                _ => ("icu", "ICU_LOCALE"),
            };
            create.push_str(&format!(" LOCALE_PROVIDER {provider} {key} {}", literal(locale)));
        }
        let facts = Database {
            file: file(&name),
            name: name.clone(),
            bytes: row.parse(8)?,
            owner: row.required(7)?.to_owned(),
            create,
            ..Database::default()
        };
        listed.push(Listed { name, may_connect: row.required(1)? == "t", facts });
    }
    Ok(listed)
}

fn literal(text: &str) -> String {
    crate::source::postgres::client::literal(text)
}

/// Where the dump of a database lies in the snapshot: its name with what a path cannot have written as `%XX`.
pub(super) fn file(database: &str) -> String {
    let mut name = String::new();
    for c in database.chars() {
        match c {
            '/' | '%' => name.push_str(&format!("%{:02X}", u32::from(c))),
            '.' if name.is_empty() => name.push_str("%2E"),
            _ => name.push(c),
        }
    }
    format!("{}/{name}.dump", super::DIRECTORY)
}

/// Extensions, and roles that something here belongs to.
pub(super) fn describe(client: &mut Client, facts: &mut Database) -> Result<()> {
    let one = |rows: crate::source::postgres::client::Rows| -> Result<Vec<String>> {
        rows.rows.iter().map(|row| Ok(row.required(0)?.to_owned())).collect()
    };
    facts.extensions = one(client.rows("select extname from pg_extension where extname <> 'plpgsql' order by 1")?)?;
    facts.roles = one(client.rows(
        "select distinct rolname from pg_shdepend d join pg_roles r on r.oid = d.refobjid where d.refclassid = 'pg_authid'::regclass \
         and d.dbid = (select oid from pg_database where datname = current_database()) and rolname !~ '^pg_' order by 1",
    )?)?;
    facts.at = client
        .value("select to_char(transaction_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")?
        .context("ask for the time")?;
    Ok(())
}

/// Which of the schemas and tables that a selection names are in this database.
pub(super) fn named(client: &mut Client, selection: &Selection) -> Result<BTreeSet<String>> {
    let tables = among("n.nspname || '.' || c.relname", &selection.tables);
    let schemas = among("nspname", &selection.schemas);
    let rows = client.rows(&format!(
        "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where {tables} \
         union select nspname from pg_namespace where {schemas}"
    ))?;
    rows.rows.iter().map(|row| Ok(row.required(0)?.to_owned())).collect()
}

/// The selection with the partitions of the tables that it names, at every depth: `pg_dump` takes a partitioned table without them, which is
/// without its rows.
pub(super) fn with_partitions(client: &mut Client, selection: &Selection) -> Result<Selection> {
    let mut whole = selection.clone();
    for names in [&mut whole.tables, &mut whole.exclude_tables] {
        let rows = client.rows(&format!(
            "select pn.nspname || '.' || p.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace, \
             pg_partition_tree(c.oid) t join pg_class p on p.oid = t.relid join pg_namespace pn on pn.oid = p.relnamespace \
             where c.relkind = 'p' and {}",
            among("n.nspname || '.' || c.relname", names)
        ))?;
        for row in &rows.rows {
            let name = row.required(0)?.to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(whole)
}

/// The first partition whose table a selection of schemas takes, and not the partition with its rows: table and partition.
pub(super) fn partition_left_out(client: &mut Client, selection: &Selection) -> Result<Option<(String, String)>> {
    if !selection.tables.is_empty() || selection.schemas.is_empty() && selection.exclude_schemas.is_empty() {
        return Ok(None);
    }
    let rows = client.rows(
        "select n.nspname, c.relname, pn.nspname, p.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace, \
         pg_partition_tree(c.oid) t join pg_class p on p.oid = t.relid join pg_namespace pn on pn.oid = p.relnamespace \
         where c.relkind = 'p' and not c.relispartition and pn.nspname <> n.nspname order by 1, 2, 3, 4",
    )?;
    for row in &rows.rows {
        let [schema, table, other, partition] = [0, 1, 2, 3].map(|n| row.required(n));
        let (schema, table, other, partition) = (schema?, table?, other?, partition?);
        let named = format!("{other}.{partition}");
        if selection.takes_table(schema, table)
            && !selection.takes_table(other, partition)
            && !selection.exclude_tables.contains(&named)
        {
            return Ok(Some((format!("{schema}.{table}"), named)));
        }
    }
    Ok(None)
}

/// A condition: the expression is one of `names`.
fn among(expression: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    if names.is_empty() { "false".to_owned() } else { format!("{expression} in ({})", names.join(", ")) }
}

/// Schema and name of the tables whose rows a dump has. Those that belong to extensions are made by `CREATE EXTENSION`.
pub(super) fn tables(client: &mut Client, selection: &Selection) -> Result<Vec<(String, String)>> {
    let rows = client.rows(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.relkind = 'r' and c.relpersistence <> 't' and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast' \
         and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e') order by 1, 2",
    )?;
    let names = rows.rows.iter().map(|row| Ok((row.required(0)?.to_owned(), row.required(1)?.to_owned())));
    let names: Vec<(String, String)> = names.collect::<Result<_>>()?;
    Ok(names.into_iter().filter(|(schema, table)| selection.takes_table(schema, table)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_become_names_of_files() {
        assert_eq!(file("orders"), "databases/orders.dump");
        assert_eq!(file("../etc/x%"), "databases/%2E.%2Fetc%2Fx%25.dump");
    }
}
