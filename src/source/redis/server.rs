//! What a server says of itself (`INFO`), and whether it is fit to be backed up.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

use super::connection::Connection;
use super::refusal::unusable;

/// Which line of servers a version number belongs to: each has RDB versions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    Redis,
    Valkey,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Redis => "Redis",
            Flavour::Valkey => "Valkey",
        })
    }
}

/// The answer to `INFO`: `name:value` lines.
pub struct Info(BTreeMap<String, String>);

impl Info {
    pub fn ask(connection: &mut Connection) -> Result<Info> {
        let reply = connection.command(&["INFO"])?;
        Ok(Info::parse(reply.text().unwrap_or_default()))
    }

    pub fn parse(text: &str) -> Info {
        let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Info(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name).parse().ok()
    }

    /// Flavour and version. Valkey calls itself Redis 7.2.4 as well, for old clients.
    pub fn version(&self) -> (Flavour, String) {
        match self.get("valkey_version") {
            "" => (Flavour::Redis, self.get("redis_version").to_owned()),
            version => (Flavour::Valkey, version.to_owned()),
        }
    }

    /// Keys of all databases; they may change while this is read.
    pub fn keys(&self) -> u64 {
        let counts = self.0.iter().filter(|(name, _)| name.starts_with("db")).filter_map(|(_, value)| {
            let count = value.split(',').find_map(|part| part.strip_prefix("keys="))?;
            count.parse::<u64>().ok()
        });
        counts.sum()
    }

    /// `module:name=…,ver=…`: the names. Only one of several modules shows, since lines have the same name.
    pub fn has_modules(&self) -> bool {
        self.0.contains_key("module")
    }
}

/// Refuses what a backup of would mislead.
pub fn refuse_unfit(info: &Info, connection: &Connection, from_replica: bool) -> Result<()> {
    let endpoint = &connection.endpoint;
    if info.get("loading") == "1" {
        return Err(super::refusal::refused(endpoint, "LOADING Redis is loading the dataset in memory"));
    }
    let (_, version) = info.version();
    if version.is_empty() {
        return Err(unusable(
            endpoint,
            "it does not tell its version",
            "Check that the address is that of a Redis or Valkey server.",
        ));
    }
    if info.get("role") == "slave" {
        if info.get("master_link_status") != "up" {
            return Err(super::refusal::refused(endpoint, "MASTERDOWN the link to the master is down"));
        }
        if !from_replica {
            let master = format!("{}:{}", info.get("master_host"), info.get("master_port"));
            return Err(unusable(
                endpoint,
                format!("it is a replica of {master}: what it has may be older than the master's data"),
                "Back up the master, or allow the replica: [source.redis] from_replica = true.",
            ));
        }
    }
    Ok(())
}

/// What the snapshot keeps of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub flavour: Flavour,
    pub version: String,
    /// `master` or `slave`, as the server says it.
    pub role: String,
    pub run_id: String,
    /// `standalone`, `cluster` or `sentinel`. Of a cluster this is one node's part.
    pub mode: String,
    /// Whether the server writes an append-only file, and then starts from that alone.
    pub aof: bool,
    pub modules: bool,
    /// How the file came: `sync` or `bgsave`.
    pub by: String,
    pub rdb: super::rdb::Summary,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.1.2\r\n# Keyspace\r\ndb0:keys=3,expires=1\r\ndb12:keys=4,expires=0\r\n",
        );
        assert_eq!(info.version(), (Flavour::Valkey, "9.1.2".to_owned()));
        assert_eq!((info.keys(), info.number("loading"), info.has_modules()), (7, None, false));
        assert_eq!(Info::parse("redis_version:7.0.15\r\n").version(), (Flavour::Redis, "7.0.15".to_owned()));
    }
}
