//! The canary of a Redis server: one key.

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::address::Address;
use super::connection::{Connection, Reply};
use crate::error::{Failure, Kind};
use crate::net::Roots;
use crate::source::canary::{Act, Found};

/// Writes, tries or removes `key` in the database with this number.
pub fn carry_out((address, roots): (&Address, &Roots), database: &str, key: &str, act: Act) -> Result<()> {
    let mut connection = Connection::open(address, roots)?;
    let at = if let Act::Write(at) = act { at } else { Timestamp::UNIX_EPOCH };
    let set = ["SET", key, &at.to_string()].map(str::to_owned).to_vec();
    let commands: Vec<Vec<String>> = match act {
        Act::Write(_) => vec![set],
        // What a user may do is looked at when a command is queued.
        Act::Try => vec![vec!["MULTI".into()], set, vec!["DISCARD".into()]],
        Act::Remove => vec![vec!["DEL".into(), key.to_owned()]],
    };
    let select = (database != "0").then(|| vec!["SELECT".to_owned(), database.to_owned()]);
    for command in select.into_iter().chain(commands) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        connection.attempt(&words)?.map_err(|said| refused(address, key, &said))?;
    }
    Ok(())
}

fn refused(address: &Address, key: &str, said: &str) -> anyhow::Error {
    let help = match said.split(' ').next().unwrap_or_default() {
        "NOPERM" => format!(
            "Backups go on. The user may not write it. On the server: ACL SETUSER {} ~{key} +set +get +del +select +multi +discard. Or give a user \
             that may: url and password in [source.canary].",
            address.user.as_deref().unwrap_or("default")
        ),
        "READONLY" => {
            "Backups go on. The server is a replica, which takes no writes. Name its master: url in [source.canary]."
                .to_owned()
        }
        _ => "Backups go on. Look at the server's log.".to_owned(),
    };
    Failure::new(Kind::Failed, format!("write the canary into {}: {said}", address.endpoint), help)
}

/// What a server on a restored copy has.
pub fn look(connection: &mut Connection, database: &str, key: &str) -> Found {
    let mut read = || -> Result<Option<Timestamp>> {
        connection.command(&["SELECT", database])?;
        let found = match connection.command(&["GET", key])? {
            Reply::Text(text) => Some(text.parse().with_context(|| format!("{text:?} is no time"))?),
            _ => None,
        };
        connection.command(&["SELECT", "0"])?;
        Ok(found)
    };
    Found::from_answer(read())
}
