//! Questions to what was restored: the engine of its kind is started on the copy in scratch, asked, and stopped; or what runs is asked where it runs.
//!
//! An `Err` for which [`super::place::is_to_blame`] says nothing of the backup: the engine's program is missing, there is no room, …

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::Roots;
use crate::source::postgres::client::Address;
use crate::source::redis::address::Address as RedisAddress;
use crate::source::redis::connection::Connection;
use crate::source::redis::running::Running;
use crate::source::{Settings, chroma, postgres, redis};

/// A restored copy in scratch, which its engine may change.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The `kind` of its commit.
    pub kind: String,
    pub copy: PathBuf,
    /// For sockets and further copies. What a proof of this copy has left there is used.
    pub scratch: PathBuf,
    /// What the snapshot knows of its source.
    pub facts: Value,
    pub settings: Settings,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Question<'a> {
    /// The first value of the first row.
    Sql {
        database: Option<&'a str>,
        sql: &'a str,
    },
    Redis {
        database: u32,
        words: &'a [String],
    },
    Chroma {
        database: Option<&'a str>,
        collection: &'a str,
        asked: &'a chroma::asked::Question,
    },
}

/// An engine that answers.
pub enum Engine {
    Postgres(postgres::asked::Server),
    PostgresAt(Box<Address>),
    Redis(Running),
    RedisAt(Box<RedisAddress>, Roots),
    Chroma(chroma::asked::Directory),
}

impl Engine {
    /// Starts the engine of a copy's kind on it.
    pub fn start(restored: &Restored) -> Result<Engine> {
        let Restored { kind, copy, scratch, facts, settings } = restored;
        let postgres = || settings.postgres.clone().unwrap_or_default();
        Ok(match kind.as_str() {
            postgres::PHYSICAL => {
                Engine::Postgres(postgres::asked::Server::on_data(copy, scratch, facts, &postgres())?)
            }
            postgres::LOGICAL => {
                Engine::Postgres(postgres::asked::Server::on_dumps(copy, scratch, facts, &postgres())?)
            }
            "redis" => {
                let options = settings.redis.clone().unwrap_or_default().below(&settings.base);
                Engine::Redis(redis::asked::start(copy, facts, &options)?)
            }
            "chroma" => {
                let options = settings.chroma.clone().unwrap_or_default().below(&settings.base);
                Engine::Chroma(chroma::asked::Directory::open(copy, scratch, &options))
            }
            kind => bail!("a copy of kind {kind} has no engine that could be asked"),
        })
    }

    /// The answer as text: one value, or ids, the nearest first.
    pub fn ask(&self, question: &Question, patience: Duration) -> Result<Vec<String>> {
        let one = |value: Option<String>| vec![value.unwrap_or_else(|| "null".to_owned())];
        match (self, question) {
            (Engine::Postgres(server), Question::Sql { database, sql }) => {
                postgres::asked::value(&server.address(*database), sql, patience).map(one)
            }
            (Engine::PostgresAt(address), Question::Sql { database, sql }) => {
                let mut address = (**address).clone();
                address.database = database.map(str::to_owned).or(address.database);
                postgres::asked::value(&address, sql, patience).map(one)
            }
            (Engine::Redis(server), Question::Redis { database, words }) => {
                redis::asked::answer(&mut server.connect()?, *database, words).map(|text| vec![text])
            }
            (Engine::RedisAt(address, roots), Question::Redis { database, words }) => {
                let mut connection = Connection::open(address, roots)
                    .with_context(|| format!("ask {}; has the plan started it?", address.endpoint))?;
                redis::asked::answer(&mut connection, *database, words).map(|text| vec![text])
            }
            (Engine::Chroma(directory), Question::Chroma { database, collection, asked }) => {
                directory.ask(collection, *database, asked, patience)
            }
            _ => bail!("this engine is not asked that way"),
        }
    }

    /// Stops what was started, in an orderly way.
    pub fn stop(self) -> Result<()> {
        match self {
            Engine::Postgres(server) => server.stop(),
            Engine::Redis(server) => server.stop(),
            Engine::PostgresAt(_) | Engine::RedisAt(..) | Engine::Chroma(_) => Ok(()),
        }
    }
}
