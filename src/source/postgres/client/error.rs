//! What the server said went wrong, and what the operator can do about it.

use std::fmt;

use super::Address;
use crate::error::{Failure, Kind};

/// An `ErrorResponse` or `NoticeResponse` (protocol chapter "Error and Notice Message Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`, …, never translated.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl ServerError {
    pub fn parse(body: &[u8]) -> ServerError {
        let mut error = ServerError::default();
        for field in body.split(|b| *b == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
        error
    }

    /// Whether the server closes the connection after it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// The server's error in an error chain, if it came from there.
    pub fn of(error: &anyhow::Error) -> Option<&ServerError> {
        error.chain().find_map(|cause| cause.downcast_ref())
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server says: {} ({})", self.message, self.code)?;
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                write!(f, " {more}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// An error with the cure in its help, where the server's words tell of one.
pub fn explain(error: anyhow::Error, address: &Address) -> anyhow::Error {
    if crate::error::help_of(&error).is_some() {
        return error;
    }
    let Some(said) = ServerError::of(&error) else { return error };
    let Some(cure) = cure(said, address) else { return error };
    Failure::new(Kind::Failed, format!("{error:#}"), format!("Nothing was lost; the earlier snapshots stand. {cure}"))
}

/// What the operator can do about it, where that is known.
pub fn cure(said: &ServerError, address: &Address) -> Option<String> {
    let user = &address.user;
    let has = |words: &str| said.message.contains(words);
    Some(match said.code.as_str() {
        "28P01" => format!(
            "The password for {user} is wrong. Set the right one where `password` in the configuration says it is (`protect`: in PGPASSWORD)."
        ),
        "28000" if has("pg_hba.conf") => format!(
            "pg_hba.conf of the server has no line that lets {user} in from here. Add one, for example \
             `host replication {user} ADDRESS/32 scram-sha-256` (and one with `all` in place of `replication`), and reload: `select pg_reload_conf()`."
        ),
        "28000" if has("does not exist") => {
            format!("Make the role on the server: create role {user} login replication password '…'.")
        }
        "28000" => format!("The server does not accept {user} this way; look at its pg_hba.conf."),
        "42501" if has("replication") || has("WAL sender") || has("walsender") => {
            format!("The role lacks the right to replicate. On the server: alter role {user} replication;")
        }
        "42501" => format!(
            "The role lacks a right. On the server: grant pg_monitor to {user}; and for the copy of files: grant execute on function \
             pg_backup_start(text, boolean), pg_backup_stop(boolean) to {user} (pg_start_backup and pg_stop_backup before version 15)."
        ),
        "53300" if has("max_wal_senders") && has("currently 0") => {
            "Nobody may replicate from this server: alter system set wal_level = replica; alter system set max_wal_senders = 10; then restart it; \
             or back up with mode = \"logical\"."
                .to_owned()
        }
        "53300" if has("max_wal_senders") => {
            "All places for replication are taken: raise max_wal_senders on the server and restart it, or end what uses them \
             (`select * from pg_stat_replication`)."
                .to_owned()
        }
        "53300" => "The server has no free connection: raise max_connections, or run again later.".to_owned(),
        "53400" => "All replication slots are taken: raise max_replication_slots on the server, or drop one that nobody uses.".to_owned(),
        "55000" if has("WAL level") || has("wal_level") || has("max_wal_senders") => {
            "The server writes too little WAL for a physical backup: set wal_level = replica and restart it; or back up with mode = \"logical\"."
                .to_owned()
        }
        "3D000" => "Name a database that exists at the end of the address, or `postgres`.".to_owned(),
        "57P03" => "The server is starting or in recovery: run again when it accepts connections.".to_owned(),
        "57P01" | "57P02" => "The server was shut down meanwhile: run again when it is up.".to_owned(),
        _ => return None,
    })
}
