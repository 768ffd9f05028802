//! `[source.postgres.select]`: which databases, schemas and tables a logical backup takes. Names are exact; nothing is a pattern.

use serde::Deserialize;

use crate::source::postgres::programs::identifier;

/// All of what the role may read, where nothing is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    pub databases: Vec<String>,
    pub exclude_databases: Vec<String>,
    /// Of each database.
    pub schemas: Vec<String>,
    pub exclude_schemas: Vec<String>,
    /// `schema.table`.
    pub tables: Vec<String>,
    pub exclude_tables: Vec<String>,
}

impl Selection {
    pub fn takes_database(&self, name: &str) -> bool {
        let named = |list: &[String]| list.iter().any(|other| other == name);
        (self.databases.is_empty() || named(&self.databases)) && !named(&self.exclude_databases)
    }

    /// Whether a table with its rows is in the dump.
    pub fn takes_table(&self, schema: &str, table: &str) -> bool {
        let whole = format!("{schema}.{table}");
        let schema_named = |list: &[String]| list.iter().any(|other| other == schema);
        let table_named = |list: &[String]| list.contains(&whole);
        let wanted = if self.tables.is_empty() {
            self.schemas.is_empty() || schema_named(&self.schemas)
        } else {
            // As pg_dump has it: with --table, --schema and --exclude-schema count no more.
            return table_named(&self.tables) && !table_named(&self.exclude_tables);
        };
        wanted && !schema_named(&self.exclude_schemas) && !table_named(&self.exclude_tables)
    }

    /// Arguments of `pg_dump`. It takes patterns, so every name is quoted.
    pub fn arguments(&self) -> Vec<String> {
        let schema = |name: &String| identifier(name);
        let table = |name: &String| match name.split_once('.') {
            Some((schema, table)) => format!("{}.{}", identifier(schema), identifier(table)),
            None => identifier(name),
        };
        let mut arguments = Vec::new();
        let mut add = |option: &str, names: &[String], quote: &dyn Fn(&String) -> String| {
            arguments.extend(names.iter().map(|name| format!("--{option}={}", quote(name))));
        };
        add("schema", &self.schemas, &schema);
        add("exclude-schema", &self.exclude_schemas, &schema);
        add("table", &self.tables, &table);
        add("exclude-table", &self.exclude_tables, &table);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(text: &str) -> Selection {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_is_counted_is_what_is_dumped() {
        let all = Selection::default();
        assert!(all.takes_database("a") && all.takes_table("public", "t") && all.arguments().is_empty());
        let some = selection("schemas = [\"a\", \"b c\"]\nexclude_tables = [\"a.secret\"]\n");
        assert!(some.takes_table("b c", "t") && !some.takes_table("d", "t") && !some.takes_table("a", "secret"));
        assert_eq!(some.arguments(), ["--schema=\"a\"", "--schema=\"b c\"", "--exclude-table=\"a\".\"secret\""]);
        let tables = selection("tables = [\"a.t\"]\nexclude_schemas = [\"a\"]\n");
        assert!(tables.takes_table("a", "t") && !tables.takes_table("a", "u"));
        let databases = selection("exclude_databases = [\"rdsadmin\"]\n");
        assert!(databases.takes_database("x") && !databases.takes_database("rdsadmin"));
    }
}
