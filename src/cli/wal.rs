//! The command line of what engines' own restores need: points in time, the undo finder, the commands that a server calls, tablespaces.

use clap::Args;
use jiff::Timestamp;
use std::path::PathBuf;

use super::{Place, source, time};
use crate::repository::layout::SourceName;
use crate::source::postgres::wal::Lsn;

// Where a source with a stored log is brought to. No doc comment: clap would make it the help of the verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Aim {
    /// PostgreSQL, with a stored log: this position, such as 0/1A2B3C
    #[arg(long, value_name = "POSITION", group = "which")]
    pub lsn: Option<Lsn>,
    /// PostgreSQL, with a stored log: the end of this transaction
    #[arg(long, value_name = "N", group = "which")]
    pub xid: Option<u32>,
    /// PostgreSQL, with a stored log: this restore point
    #[arg(long, value_name = "NAME", group = "which")]
    pub name: Option<String>,
    /// Redis, with a stored log: after so many bytes of the replication stream (`master_repl_offset`)
    #[arg(long, value_name = "N", group = "which")]
    pub offset: Option<u64>,
    /// With --offset: on which history it counts, by its replication ID or how that begins; after a gap, two may have the same offsets
    #[arg(long, value_name = "ID", requires = "offset")]
    pub history: Option<String>,
    /// With a stored log: the end of the newest snapshot
    #[arg(long, group = "which")]
    pub immediate: bool,
    /// Stop just before the position, offset, transaction or time
    #[arg(long)]
    pub before: bool,
    /// PostgreSQL: open for reading at the target, so that one can look first; `select pg_wal_replay_resume()` then opens for writing
    #[arg(long)]
    pub pause: bool,
    /// The server's timeline to follow, instead of the newest
    #[arg(long, value_name = "N")]
    pub timeline: Option<u32>,
}

/// Stream a server's log into the repository until stopped: every moment can then be reached (PostgreSQL, Redis, Valkey)
///
/// PostgreSQL keeps its log in a replication slot until it is stored. With `synchronous_standby_names = 'blackstart'` a commit returns only when it
/// lies in the repository. Redis and Valkey keep what their backlog holds; `WAIT 1` returns once the write lies in the repository, and a first
/// snapshot is made where the log has none to go on from. The receiver may be killed at any time, and goes on where the repository ends.
///
/// Example: blackstart wal-receive orders
#[derive(Debug, Args)]
pub struct WalReceive {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// Stop once everything is stored that the server has now
    #[arg(long)]
    pub once: bool,
    /// Begin a new stretch of the log, although the server is another, was set back, or another host wrote before; a new snapshot is needed then
    #[arg(long)]
    pub anew: bool,
}

/// List what happened to a server, from its stored log, and how to go back to just before it (PostgreSQL, Redis, Valkey)
///
/// PostgreSQL: dropped and emptied tables, mass deletes, restore points; names of tables as far as the stored log itself has them.
/// Redis and Valkey: emptied and swapped databases, deleted, renamed, moved and replaced keys, keys that were given an expiry. A key that expires or is
/// evicted is deleted in the stream as any other; neighbours are told of as one. Times are those of the receiver.
///
/// Example: blackstart timeline orders --from "2026-01-31 03:00" --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Timeline {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// Nothing before this time (of the server's clock; of the receiver's for Redis)
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<Timestamp>,
    /// Nothing after this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<Timestamp>,
    /// Every commit; every command
    #[arg(long)]
    pub all: bool,
    /// At most the last N
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
}

/// Store one file of PostgreSQL's log: the server's archive_command
///
/// Example, in postgresql.conf: archive_command = 'blackstart wal-push orders %p'
#[derive(Debug, Args)]
pub struct WalPush {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// The server's %p
    pub path: PathBuf,
}

/// Get one file of PostgreSQL's log: the server's restore_command
///
/// Exit codes: 0 written, 1 the log ends before that file, 200 anything else, at which the server ends recovery instead of opening too early.
///
/// Example, in postgresql.conf: restore_command = 'blackstart wal-get orders %f %p --identity /etc/blackstart/recovery.key'
#[derive(Debug, Args)]
pub struct WalGet {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// The server's %f
    pub file: String,
    /// The server's %p
    pub to: PathBuf,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
}

/// OLD=DIR of `--tablespace`.
pub fn moved(text: &str) -> Result<(String, PathBuf), String> {
    // A path may hold `=`; an absolute one begins after the last `=/`.
    let split = text.rsplit_once("=/").map(|(old, place)| (old, format!("/{place}")));
    match split.or_else(|| text.split_once('=').map(|(old, place)| (old, place.to_owned()))) {
        Some((old, place)) if !old.is_empty() && !place.is_empty() => {
            let place = std::path::absolute(place).map_err(|e| e.to_string())?;
            Ok((old.to_owned(), place.components().collect()))
        }
        _ => Err("write OLD=DIR, such as 16385=/mnt/fast/shop".into()),
    }
}
