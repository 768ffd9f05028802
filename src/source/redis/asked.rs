//! Questions to a server: to one that is started on a restored copy, or to one that runs. Only commands that the server itself calls harmless
//! are sent: a check changes nothing.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

use super::Options;
use super::connection::{Connection, Reply};
use super::engine;
use super::running::Running;
use super::server::Facts;
use crate::error::{Failure, Kind};

/// Harmless, though not flagged as `readonly` (<https://redis.io/docs/latest/commands/command/>).
const HARMLESS: [&str; 6] = ["echo", "info", "lastsave", "object", "ping", "time"];

/// Starts a server on the restored `copy`. `Kind::Environment`: none here can.
pub fn start(copy: &Path, facts: &serde_json::Value, options: &Options) -> Result<Running> {
    let facts = Facts::deserialize(facts).context("read the facts that the snapshot holds of its server")?;
    let program = engine::find(options.server.as_deref(), facts.flavour, &facts.rdb)?;
    Running::start(&program, copy, &facts.rdb, None).map_err(|e| {
        if !facts.modules {
            return e;
        }
        let help =
            "Install the modules of the server here too, and name a server that loads them: [source.redis] server = \"…\".";
        Failure::new(Kind::Environment, format!("the data needs modules that the server here lacks: {e:#}"), help)
    })
}

/// The answer to a command in one database: a list has a line for each of its members, and nothing is `null`.
pub fn answer(connection: &mut Connection, database: u32, words: &[String]) -> Result<String> {
    let name = words.first().context("there is no command to ask")?;
    anyhow::ensure!(
        changes_nothing(connection, name)?,
        "{name} is no command that only reads: a check changes nothing"
    );
    if database > 0 {
        connection.command(&["SELECT", &database.to_string()])?;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(text(&connection.command(&words)?))
}

fn changes_nothing(connection: &mut Connection, name: &str) -> Result<bool> {
    let name = name.to_ascii_lowercase();
    if HARMLESS.contains(&name.as_str()) {
        return Ok(true);
    }
    let Reply::List(known) = connection.command(&["COMMAND", "INFO", &name])? else { return Ok(false) };
    // Name, number of words, flags, …
    let Some(Reply::List(about)) = known.first() else { return Ok(false) };
    let Some(Reply::List(flags)) = about.get(2) else { return Ok(false) };
    Ok(flags.iter().any(|flag| flag.text() == Some("readonly")))
}

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Text(text) => text.clone(),
        Reply::Nothing => "null".to_owned(),
        Reply::List(members) => members.iter().map(text).collect::<Vec<_>>().join("\n"),
    }
}
