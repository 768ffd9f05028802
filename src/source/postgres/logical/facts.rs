//! What a logical snapshot knows of the server, and of each database in the very snapshot that was dumped.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    /// As the server says it: `15.20 (Debian 15.20-0+deb12u1)`.
    pub server: String,
    /// 150020 for 15.20.
    pub version: u32,
    /// The database of the address, where the operator's queries are asked.
    pub asked: Option<String>,
    /// Absent where the role may not ask.
    pub system_identifier: Option<String>,
    /// The major version of the `pg_dump` that wrote the dumps: an older `pg_restore` may not read them.
    pub program: u32,
    /// Whether `globals.sql` has the passwords of roles. Only a superuser may read them.
    pub role_passwords: bool,
    pub databases: Vec<Database>,
    /// What the operator should know, though nothing is missing.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    /// Path in the snapshot.
    pub file: String,
    /// Bytes that the database occupies on the server, and those of its dump.
    pub bytes: u64,
    pub dump_bytes: u64,
    /// Of the dump, in hex.
    pub sha256: String,
    pub seconds: f64,
    /// The server's time of the snapshot that was dumped: to this the database is consistent, alone.
    pub at: String,
    pub owner: String,
    /// The clauses of `CREATE DATABASE` that cannot be changed later: encoding and locale.
    pub create: String,
    pub extensions: Vec<String>,
    /// Schemas that must be there before the dump is taken back: a dump of single tables makes none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
    /// Roles that something in the database belongs to or is granted to.
    pub roles: Vec<String>,
    /// Rows by `schema.table`, counted in the snapshot that was dumped; `None` where they could not be counted.
    pub tables: BTreeMap<String, Option<u64>>,
}
