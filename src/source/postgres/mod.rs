//! PostgreSQL servers: the client, and what is built on it.
//!
//! * [`client`]: the protocol.
//! * [`asked`]: questions to a server, on a restored copy or live.
//! * [`base`]: a physical snapshot over the replication protocol; [`files`]: the same beside the server, by its files.
//! * [`engine`]: a server on a restored copy; [`proof`]: what it is asked.
//! * [`logical`]: dumps of databases; [`programs`]: PostgreSQL's own programs, which make and take them.
//! * [`outside`]: configuration that lies elsewhere.
//! * [`restored`]: from a restored snapshot to a data directory.
//! * [`server`]: what a server says of itself.
//! * [`tables`]: rows of tables, then and now; [`canary`]: the heartbeat.
//! * [`wal`]: the log: streaming it, and reading what it says.

pub mod asked;
pub mod base;
pub mod canary;
pub mod client;
pub mod detect;
pub mod engine;
pub mod files;
pub mod logical;
mod options;
pub mod outside;
pub mod programs;
pub mod proof;
pub mod restored;
pub mod server;
pub mod tables;
pub mod wal;

pub use options::{Mode, Options, Transport};
pub use server::Facts;

use anyhow::Result;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Source;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::secret::{Secret, Text};
use client::Address;

/// The server's checkpoint at the beginning of a backup may take this long, and as long it may be silent later.
const CHECKPOINT_MAX: Duration = Duration::from_secs(3600);
/// The `kind` of commits of physical snapshots.
pub const PHYSICAL: &str = "postgres";
/// … and of logical ones, which share nothing with them.
pub const LOGICAL: &str = "postgres-logical";

/// Opens a server for one run.
pub fn open(address: Address, options: Options, clock: &Arc<dyn Clock>) -> Result<Box<dyn Source>> {
    match options.mode {
        Some(Mode::Logical) => Ok(Box::new(logical::Logical::open(address, &options, Arc::clone(clock)))),
        Some(Mode::Physical) | None => physical(address, &options, clock),
    }
}

fn physical(address: Address, options: &Options, clock: &Arc<dyn Clock>) -> Result<Box<dyn Source>> {
    let count = options.count.unwrap_or(true);
    let stream = || base::BaseBackup::open(address.clone(), count, Arc::clone(clock));
    let files = || files::FileCopy::open(address.clone(), count, Arc::clone(clock));
    Ok(match options.transport {
        Some(Transport::Stream) => Box::new(stream()?),
        Some(Transport::Files) => Box::new(files().map_err(|e| {
            let help = "Nothing was done; the earlier snapshots stand. Run as the server's user or as root, on its machine; or leave `transport` out.";
            Failure::new(Kind::Failed, format!("transport = \"files\" cannot be had: {e:#}"), help)
        })?),
        None => match files() {
            Ok(files) => Box::new(files),
            Err(_) => Box::new(stream()?),
        },
    })
}

/// The address of a source. `base` is the configuration's directory.
pub fn address(url: &Text, password: Option<&Secret>, base: &Path) -> Result<Address> {
    let mut address = Address::parse(&url.read(base)?)?;
    if let (Text::Plain(_), Some(_)) = (url, &address.password) {
        return Err(Failure::new(
            Kind::Config,
            "the address has a password in plain text",
            "Nothing was done. Take it out, and give the source `password = { file = \"…\" }`, { env = … } or { credential = … }.",
        ));
    }
    if let Some(password) = password {
        address.password = Some(password.read(base)?);
    }
    Ok(address)
}

/// The first number of a relation that is not the server's own (`FirstNormalObjectId` of `access/transam.h`).
const FIRST_OF_USERS: u32 = 16_384;

/// Whether a path is that of a main file of a relation which users have made: [`is_relation`], without the catalogs that came with `initdb`.
pub fn is_users_relation(path: &[u8]) -> bool {
    let file = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let node = file.split(|b| *b == b'.').next().unwrap_or_default();
    let number: Option<u32> = std::str::from_utf8(node).ok().and_then(|n| n.parse().ok());
    is_relation(path) && number.is_some_and(|n| n >= FIRST_OF_USERS)
}

/// Whether a path relative to the data directory is a file of a relation: `base/5/1259`, `global/1260_fsm`,
/// `pg_tblspc/16384/PG_15_202209061/5/16385.1`.
pub fn is_relation(path: &[u8]) -> bool {
    let Ok(path) = std::str::from_utf8(path) else { return false };
    let parts: Vec<&str> = path.split('/').collect();
    let (numbers, file) = match parts.as_slice() {
        ["global", file] => (Vec::new(), file),
        ["base", database, file] => (vec![database], file),
        ["pg_tblspc", oid, version, database, file] if version.starts_with("PG_") => (vec![oid, database], file),
        _ => return false,
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (file, segment) = file.split_once('.').map_or((*file, None), |(file, segment)| (file, Some(segment)));
    let (node, fork) = file.split_once('_').map_or((file, None), |(node, fork)| (node, Some(fork)));
    numbers.into_iter().all(|n| number(n))
        && number(node)
        && segment.is_none_or(number)
        && fork.is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init"))
}

#[cfg(test)]
mod tests {
    use super::{is_relation, is_users_relation};

    #[test]
    fn relations_of_users_are_told_from_the_servers_own() {
        let users = |path: &str| is_users_relation(path.as_bytes());
        assert!(users("base/5/16384") && users("base/5/99999.2") && users("pg_tblspc/16384/PG_15_202209061/5/16390"));
        assert!(
            !users("base/5/16383") && !users("base/16384/1259") && !users("base/5/16384_fsm") && !users("global/1260")
        );
    }

    #[test]
    fn relations_are_told_from_other_files() {
        for path in [
            "base/5/1259",
            "base/5/1259.12",
            "base/5/1259_fsm",
            "base/5/1259_vm.1",
            "global/1260",
            "pg_tblspc/16384/PG_15_202209061/5/16385_init",
        ] {
            assert!(is_relation(path.as_bytes()), "{path}");
        }
        for path in [
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "global/pg_control",
            "pg_wal/000000010000000000000001",
            "base/5/t3_16400",
            "base/5/",
            "pg_xact/0000",
            "base/5/1_x",
            "base/x/1",
        ] {
            assert!(!is_relation(path.as_bytes()), "{path}");
        }
    }
}
