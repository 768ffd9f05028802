//! What a server says of itself before a backup: identity, versions, settings, databases.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::client::{Client, Row, Session};
use super::restored::AT_LEAST;
use super::tables::{Counted, Horizons};
use super::wal::Lsn;
use crate::entry::{Entry, EntryKind};
use crate::error::{Failure, Kind};
use crate::source::Before;

/// Sealed into the commit as `facts`. Absent where the role may not see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Identifies the cluster for its whole life: 64 bits, in decimal.
    pub system: String,
    /// As `server_version_num`: 150004.
    pub version: u32,
    pub timeline: u32,
    /// Bytes of a page, and of a WAL segment.
    pub block_size: u32,
    pub segment_size: u64,
    pub data_checksums: bool,
    pub is_standby: bool,
    /// The WAL that the snapshot contains and needs, as LSNs.
    pub start_lsn: String,
    pub end_lsn: String,
    pub tablespaces: Vec<TablespaceFact>,
    /// A role that may log in and see everything.
    pub superuser: Option<String>,
    /// The database of the address: where the operator's queries are asked.
    pub database: Option<String>,
    /// Databases that accept connections.
    pub databases: Vec<String>,
    pub max_prepared_transactions: Option<u32>,
    /// Settings that a hot standby must have at least: <https://www.postgresql.org/docs/current/hot-standby.html>, "Administrator's Overview".
    pub standby_needs: BTreeMap<String, String>,
    /// Pages whose checksums were wrong when the server read them.
    pub checksum_failures: Option<String>,
    /// `off`, `on` or `always`; absent in snapshots made before it was asked for.
    pub archive_mode: Option<String>,
    /// Files of the configuration outside the data directory that were taken along.
    pub config_files: Vec<String>,
    /// Why such files were not, or not all.
    pub config_missing: Option<String>,
    /// How the files were read: `stream` or `files`.
    pub transport: String,
    /// When the server was started, in seconds since 1970.
    pub server_started: Option<String>,
    /// Of relations that the basis has, only what changed from this LSN on was read; absent if all was.
    pub changes_since: Option<String>,
    /// Why all was read, where changes would have done.
    pub read_whole: Option<String>,
    /// Bytes of the relations that are not the server's own.
    pub table_bytes: u64,
    /// Rows by table when the backup had ended; absent in snapshots made before they were counted.
    pub counted: Counted,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceFact {
    pub oid: u32,
    pub location: String,
}

impl Facts {
    /// As they were sealed into a commit.
    pub fn of(facts: &serde_json::Value) -> Result<Facts> {
        Facts::deserialize(facts).context("read what was noted of the server")
    }

    /// Asks over a replication connection, and over one for SQL, where the role is let in.
    pub fn ask(walsender: &mut Client, sql: Option<&mut Client>) -> Result<Facts> {
        let identity = walsender.rows("IDENTIFY_SYSTEM").context("ask the server who it is")?;
        let identity = identity.one()?;
        let mut facts = Facts {
            system: identity.required(0)?.to_owned(),
            timeline: identity.parse(1)?,
            version: walsender.version(),
            block_size: setting(walsender, "block_size")?.parse().context("read block_size")?,
            segment_size: size(&setting(walsender, "wal_segment_size")?).context("read wal_segment_size")?,
            data_checksums: setting(walsender, "data_checksums")? == "on",
            is_standby: walsender.parameter("in_hot_standby") == Some("on"),
            archive_mode: Some(setting(walsender, "archive_mode")?),
            ..Facts::default()
        };
        match sql {
            Some(sql) => facts.ask_sql(sql)?,
            None => {
                for (name, _) in AT_LEAST {
                    facts.standby_needs.insert(name.to_owned(), setting(walsender, name)?);
                }
            }
        }
        Ok(facts)
    }

    /// As [`Facts::ask`], over SQL alone.
    pub fn ask_by_sql(sql: &mut Client, address: &super::client::Address) -> Result<Facts> {
        let show = |sql: &mut Client, name: &str| {
            sql.value(&format!("show {name}"))?.with_context(|| format!("the server does not tell {name}"))
        };
        let system = sql.value("select system_identifier from pg_control_system()")?;
        let mut facts = Facts {
            system: system.context("the server does not tell its system identifier")?,
            version: sql.version(),
            block_size: show(sql, "block_size")?.parse().context("read block_size")?,
            segment_size: size(&show(sql, "wal_segment_size")?).context("read wal_segment_size")?,
            data_checksums: show(sql, "data_checksums")? == "on",
            archive_mode: Some(show(sql, "archive_mode")?),
            database: address.database.clone(),
            ..Facts::default()
        };
        facts.ask_sql(sql)?;
        Ok(facts)
    }

    fn ask_sql(&mut self, sql: &mut Client) -> Result<()> {
        self.is_standby = sql.value("select pg_is_in_recovery()")?.as_deref() == Some("t");
        self.server_started = sql.value("select extract(epoch from pg_postmaster_start_time())")?;
        self.superuser = sql.value(
            "select rolname from pg_roles where rolsuper and rolcanlogin order by rolname <> 'postgres', oid limit 1",
        )?;
        let databases = sql.rows("select datname from pg_database where datallowconn order by datname")?;
        self.databases = databases.rows.iter().map(|row| Ok(row.required(0)?.to_owned())).collect::<Result<_>>()?;
        let needs = sql.rows(
            "select name, setting from pg_settings where name in ('max_connections', 'max_worker_processes', 'max_wal_senders', \
             'max_prepared_transactions', 'max_locks_per_transaction')",
        )?;
        let need = |row: &Row| Ok((row.required(0)?.to_owned(), row.required(1)?.to_owned()));
        self.standby_needs = needs.rows.iter().map(need).collect::<Result<_>>()?;
        self.max_prepared_transactions = sql.value("show max_prepared_transactions")?.and_then(|n| n.parse().ok());
        Ok(())
    }

    /// For counting rows at the end of a backup, where that is wanted and can be done.
    pub fn horizons(&self, count: bool) -> Horizons {
        match (count, self.is_standby) {
            (false, _) => Horizons::off("it is switched off: count = false in [source.postgres]"),
            (true, true) => Horizons::off("the server is a standby, which does not know which transactions have ended"),
            (true, false) => Horizons::default(),
        }
    }

    /// Counts an entry that was read.
    pub fn tally(&mut self, entry: &Entry) {
        if entry.kind == EntryKind::File && super::is_users_relation(entry.path.as_bytes()) {
            self.table_bytes += entry.size;
        }
    }

    /// As it is sealed into the commit; `log` is the snapshot's place in the log (FORMAT.md §2.5).
    pub fn sealed(&self) -> Result<serde_json::Value> {
        let mut facts = serde_json::to_value(self).context("write the facts")?;
        if let (Ok(start), Ok(end)) = (self.start_lsn.parse::<Lsn>(), self.end_lsn.parse::<Lsn>()) {
            let place = |lsn: Lsn| format!("{:016x}", lsn.0);
            facts["log"] = serde_json::json!({"timeline": self.timeline, "start": place(start), "end": place(end)});
        }
        Ok(facts)
    }

    /// Stops where another cluster answers at the address than the one that the newest snapshot has.
    pub fn compare(&self, before: &Before) -> Result<()> {
        let known = before.facts["system"].as_str().unwrap_or_default();
        if known.is_empty() || known == self.system || before.accept_change {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Failed,
            format!(
                "another cluster answers at this address: its system identifier is {}, and snapshot {} is of {known}",
                self.system, before.seq
            ),
            "Nothing was written; the earlier snapshots stand. If the address is wrong, correct it. If the cluster was made anew (initdb, pg_upgrade, \
             a restore of another one) and takes over this series, say so once: backup --accept-change. Otherwise give it a source name of its own.",
        ))
    }
}

/// An SQL connection beside the replication, if the role is let in.
pub fn sql(address: &super::client::Address) -> Option<Client> {
    Client::connect(address, Session::Plain).ok()
}

fn setting(client: &mut Client, name: &str) -> Result<String> {
    client.value(&format!("SHOW {name}"))?.with_context(|| format!("the server does not tell {name}"))
}

/// `16MB`, `1GB`, `8192` in bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
