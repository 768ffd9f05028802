//! A look at a server that is to be protected: whether it can be backed up physically, and if not, what that lacks.

use anyhow::Result;
use zeroize::Zeroizing;

use super::client::{Address, Client, Session};
use super::files::Reach;
use crate::error::{Failure, Kind, help_of};

/// The variable that libpq takes a password from.
pub const PASSWORD: &str = "PGPASSWORD";

/// Connects as a backup would, with the password of `$PGPASSWORD`. Says how the server will be backed up, why, and what would allow a better
/// way; an `Err` names the cure.
pub fn look(url: &str) -> Result<Vec<String>> {
    let mut address = Address::parse(url)?;
    if address.password.is_some() {
        return Err(Failure::new(
            Kind::Usage,
            "the address has a password in it, which every user of this machine can see",
            format!(
                "Nothing was done. Take it out, and give it by the environment: {PASSWORD}=… blackstart protect {}",
                Address::without_password(url)
            ),
        ));
    }
    address.password = std::env::var(PASSWORD).ok().map(Zeroizing::new);
    let mut notes = match Reach::find(&address) {
        Ok(reach) => vec![format!(
            "{address}: mode physical, the whole cluster by its files, since this process can read {}, and {} may begin and end a backup",
            reach.data.display(),
            address.user
        )],
        Err(why) => vec![
            by_stream(&address)?,
            format!("{address}: it would be faster beside the server, by its files, but {why:#}"),
        ],
    };
    match Client::connect(&address, Session::Plain) {
        Err(_) => notes.push(format!(
            "{} is let in for replication only: names of databases are not noted, and a drill cannot tell whether one is missing; \
             a line for a database in pg_hba.conf cures that",
            address.user
        )),
        Ok(mut sql) => {
            let checksums = sql.value("show data_checksums")?.unwrap_or_default();
            if checksums == "off" {
                notes.push("the cluster has no data checksums: damage by disks goes unnoticed until it is read (pg_checksums --enable, with the server stopped)".to_owned());
            }
        }
    }
    Ok(notes)
}

fn by_stream(address: &Address) -> Result<String> {
    let mut walsender = match Client::connect(address, Session::Replication) {
        Ok(client) => client,
        Err(refused) => return Err(instead(refused, address)),
    };
    let level = walsender.value("SHOW wal_level")?.unwrap_or_default();
    if level == "minimal" {
        return Err(Failure::new(
            Kind::Failed,
            format!("the server at {address} writes too little WAL for a physical backup: wal_level = minimal"),
            "Nothing was done. On the server: alter system set wal_level = replica; then restart it.",
        ));
    }
    let version = walsender.parameter("server_version").unwrap_or("of an unknown version").to_owned();
    Ok(format!(
        "PostgreSQL {version} at {address}: mode physical, the whole cluster over the connection, since {} may replicate and wal_level is {level}",
        address.user
    ))
}

/// Why there is no physical backup, and whether the server can be reached at all.
fn instead(refused: anyhow::Error, address: &Address) -> anyhow::Error {
    let help = help_of(&refused).unwrap_or_default().to_owned();
    match Client::connect(address, Session::Plain) {
        Err(_) => refused,
        Ok(_) => Failure::new(
            Kind::Failed,
            format!(
                "{address} lets {} in, but not for replication, which a physical backup needs: {refused:#}",
                address.user
            ),
            format!(
                "{help} Where the server does not allow it (managed services), dump it with pg_dump through a source of kind `command`."
            ),
        ),
    }
}
