//! A look at a server that is to be protected: the best way to back it up that its settings and the role allow, and what would allow a better one.

use anyhow::{Result, ensure};
use zeroize::Zeroizing;

use super::Mode;
use super::client::{Address, Client, ServerError, Session, cure, explain};
use super::files::Reach;
use super::logical::programs_for;
use crate::error::{Failure, Kind};

/// The variable that libpq takes a password from.
pub const PASSWORD: &str = "PGPASSWORD";
/// The first version that tells what has changed.
const TELLS_CHANGES: u32 = 170_000;

/// How a server will be backed up, and what people should know of that.
#[derive(Debug)]
pub struct Look {
    pub mode: Mode,
    pub notes: Vec<String>,
}

impl Look {
    /// Lines for the configuration: physical is what a source is that says nothing.
    pub fn settings(&self) -> &'static str {
        match self.mode {
            Mode::Physical => "",
            Mode::Logical => "[source.postgres]\nmode = \"logical\"\n",
        }
    }
}

/// Connects as a backup would, with the password of `$PGPASSWORD`. Says how the server will be backed up, why, and what would allow a better
/// way; an `Err` names the cure.
pub fn look(url: &str) -> Result<Look> {
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
    let mut notes = match beside(&address) {
        Ok(reach) => vec![format!(
            "{address}: mode physical, the whole cluster by its files, since this process can read {}, and {} may begin and end a backup",
            reach.data.display(),
            address.user
        )],
        Err(why) => match by_stream(&address) {
            Ok(notes) => {
                let faster = format!("{address}: it would be faster beside the server, by its files, but {why:#}");
                notes.into_iter().chain([faster]).collect()
            }
            Err(refused) => return by_dump(&address, refused, &why),
        },
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
    Ok(Look { mode: Mode::Physical, notes })
}

fn beside(address: &Address) -> Result<Reach> {
    let mut reach = Reach::find(address)?;
    let level = reach.session.value("show wal_level")?;
    ensure!(level.as_deref() != Some("minimal"), "they are of no use without enough WAL: wal_level is minimal");
    Ok(reach)
}

fn by_stream(address: &Address) -> Result<Vec<String>> {
    let mut walsender = Client::connect_unexplained(address, Session::Replication)?;
    let level = walsender.value("SHOW wal_level")?.unwrap_or_default();
    if level == "minimal" {
        return Err(Failure::new(
            Kind::Failed,
            "wal_level = minimal on the server, which is too little for a physical backup",
            "On the server: alter system set wal_level = replica; then restart it.",
        ));
    }
    let version = walsender.parameter("server_version").unwrap_or("of an unknown version").to_owned();
    let mut notes = vec![format!(
        "PostgreSQL {version} at {address}: mode physical, the whole cluster over the connection, since {} may replicate and wal_level is {level}",
        address.user
    )];
    if walsender.version() >= TELLS_CHANGES && walsender.value("SHOW summarize_wal")?.as_deref() == Some("off") {
        notes.push(
            "the server could tell later backups what has changed, so that they need not read the rest: alter system set summarize_wal = on; \
             select pg_reload_conf()"
                .to_owned(),
        );
    }
    Ok(notes)
}

/// Dumps, where the server or its `pg_hba.conf` allows no physical backup. What only stands in the way for now is an error: the choice is made for good.
fn by_dump(address: &Address, refused: anyhow::Error, no_files: &anyhow::Error) -> Result<Look> {
    let not_allowed = |said: &&ServerError| matches!(said.code.as_str(), "28000" | "42501");
    let refusal = ServerError::of(&refused).filter(not_allowed).cloned();
    let refused = explain(refused, address);
    let Ok(mut sql) = Client::connect(address, Session::Plain) else { return Err(refused) };
    let settings = sql.rows("select current_setting('wal_level'), current_setting('max_wal_senders')")?;
    let settings = settings.one()?;
    let (level, senders) = (settings.required(0)?, settings.parse::<u32>(1)?);
    let (why, better) = match (level, senders, refusal) {
        ("minimal", ..) | (_, 0, _) => (
            format!("wal_level is {level} and max_wal_senders is {senders}"),
            "alter system set wal_level = replica; alter system set max_wal_senders = 10; then restart it".to_owned(),
        ),
        (_, _, Some(said)) => {
            let cure = cure(&said, address).unwrap_or_else(|| format!("let {} replicate", address.user));
            (said.message, cure)
        }
        _ => return Err(refused),
    };
    let user = &address.user;
    programs_for(None, sql.version() / 10_000)?;
    let version = sql.parameter("server_version").unwrap_or("of an unknown version").to_owned();
    let mut notes = vec![
        format!(
            "PostgreSQL {version} at {address}: mode logical, each database dumped by pg_dump, since there can be no physical backup: {why}"
        ),
        format!(
            "physical backups are incremental and reach any second (with wal-receive). What would allow them: {better}"
        ),
        format!("its files cannot be copied either: {no_files:#}"),
    ];
    let reads_all = sql.value(
        "select rolsuper or pg_has_role('pg_read_all_data', 'member') from pg_roles where rolname = current_user",
    );
    if reads_all.ok().flatten().as_deref() != Some("t") {
        // The role came with version 14.
        let cure = match sql.version() >= 140_000 {
            true => format!("grant pg_read_all_data to {user}"),
            false => format!(
                "in each database and for each schema: grant usage on schema public to {user}; grant select on all tables in schema public to {user}"
            ),
        };
        notes
            .push(format!("{user} may not read all tables: {cure}; a table that cannot be read makes the backup fail"));
    }
    Ok(Look { mode: Mode::Logical, notes })
}
