//! What the server's catalogs say of databases and tables.

use anyhow::{Context, Result};

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
