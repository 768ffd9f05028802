//! Canaries: a heartbeat that is written into a source, so that a restored copy tells exactly how old it is.
//!
//! What is written, and where, unless the configuration says otherwise; `<source>` is the source's name in the configuration:
//! * SQLite, PostgreSQL: the row `<source>` of the table `blackstart_canary` (`public.blackstart_canary`): the time of writing;
//! * Redis: the key `blackstart:canary:<source>`;
//! * Chroma: that row in its `chroma.sqlite3`. Not a vector: a second process with `chromadb` would migrate the application's schema to its own version;
//! * files: the file `.blackstart-canary` at the top of the tree.
//!
//! One module for each engine writes, takes away and reads it. A snapshot says itself that a canary is due in it ([`Stated`]), so that whoever
//! restores it needs no configuration to ask for it.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{files, postgres, redis, sqlite};
use crate::net::Roots;
use crate::secret::{Secret, Text};
use crate::time::optional_length;

/// How often one is written if nothing else is said, and at most.
const EVERY: SignedDuration = SignedDuration::from_mins(1);
const EVERY_MIN: SignedDuration = SignedDuration::from_secs(1);
/// Bytes of a name that the configuration gives.
const NAME_MAX: usize = 63;

/// `[source.canary]`; `canary = true` is an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    #[serde(default, deserialize_with = "optional_length")]
    pub every: Option<SignedDuration>,
    /// The table, key, collection or file.
    pub at: Option<String>,
    /// Of PostgreSQL by name, of Redis by number.
    pub database: Option<String>,
    /// Where to write to, if not where is backed up from: another role, or the primary of a standby.
    pub url: Option<Text>,
    pub password: Option<Secret>,
}

/// Reads `canary = true`, or the table. By hand, because an untagged enum would lose the line of an error.
pub fn optional<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Options>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Option<Options>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true, or a [source.canary] table")
        }
        fn visit_bool<E: de::Error>(self, on: bool) -> Result<Option<Options>, E> {
            Ok(on.then(Options::default))
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Options>, A::Error> {
            Options::deserialize(de::value::MapAccessDeserializer::new(map)).map(Some)
        }
    }
    d.deserialize_any(Either)
}

/// What is wrong with the options, for a source of `kind`.
pub fn wrong(options: &Options, kind: &str) -> Option<&'static str> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let good = |name: &String| !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(letters);
    let by_url = matches!(kind, "postgres" | "redis");
    match options {
        _ if kind == "command" => {
            Some("has no place for a canary that is known here: leave `canary` out, and check what its dump holds")
        }
        Options { at: Some(at), .. } if !good(at) || at.chars().all(|c| c == '.') => {
            Some("has a canary with a wrong `at`: letters, digits and _ - . : make it")
        }
        Options { database: Some(_), .. } | Options { url: Some(_), .. } | Options { password: Some(_), .. }
            if !by_url =>
        {
            Some("takes no database, url or password in [source.canary]: its canary lies in its path")
        }
        Options { every: Some(every), .. } if *every < EVERY_MIN => {
            Some("has a canary that is written more often than each second")
        }
        Options { database: Some(n), .. } if kind == "redis" && n.parse::<u32>().is_err() => {
            Some("has a canary in a `database` that is no number in quotes")
        }
        _ => None,
    }
}

/// What a snapshot says of the canary of its source: `canary` of its facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stated {
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    pub every_seconds: u64,
    /// The last one that this host is known to have written when the run began: whatever was read after that has it, or a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Timestamp>,
    /// It was written to another address than was read from, so that it may come there a little later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

impl Stated {
    pub fn of(facts: &serde_json::Value) -> Option<Stated> {
        Stated::deserialize(facts.get("canary")?).ok()
    }
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    At(Timestamp),
    /// It is not there, or cannot be read; why.
    Missing(String),
}

impl Found {
    /// From what an engine answers; an error is a canary that cannot be read.
    pub fn from_answer(answer: Result<Option<Timestamp>>) -> Found {
        match answer {
            Ok(Some(at)) => Found::At(at),
            Ok(None) => Found::Missing("there is none".into()),
            Err(e) => Found::Missing(format!("it cannot be read: {e:#}")),
        }
    }
}

/// Where a canary lives.
#[derive(Debug, Clone)]
pub enum Home {
    Sqlite(PathBuf),
    Files(PathBuf),
    /// With the database that has the table.
    Postgres(Box<postgres::client::Address>),
    Redis(Box<redis::address::Address>),
    /// The directory.
    Chroma(PathBuf),
}

/// What is done with a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Write(Timestamp),
    /// All of a writing but what would stay.
    Try,
    /// Takes away all that was ever written.
    Remove,
}

/// The canary of one source.
#[derive(Debug, Clone)]
pub struct Canary {
    /// The source's: what it is written under.
    pub name: String,
    pub at: String,
    pub database: Option<String>,
    pub every: Duration,
    pub home: Home,
    /// The address was given for the canary alone.
    pub elsewhere: bool,
}

impl Canary {
    pub fn new(name: &str, home: Home, options: &Options) -> Canary {
        let at = options.at.clone().unwrap_or_else(|| match &home {
            Home::Sqlite(_) | Home::Chroma(_) => "blackstart_canary".into(),
            Home::Postgres(_) => "public.blackstart_canary".into(),
            Home::Redis(_) => format!("blackstart:canary:{name}"),
            Home::Files(_) => FILE.into(),
        });
        let database = match &home {
            Home::Postgres(address) => address.database.clone(),
            Home::Redis(_) => options.database.clone(),
            _ => None,
        };
        let every = options.every.unwrap_or(EVERY).unsigned_abs();
        Canary { name: name.to_owned(), at, database, every, home, elsewhere: options.url.is_some() }
    }

    /// Errors name the rights that are missing.
    pub fn carry_out(&self, act: Act) -> Result<()> {
        let Canary { name, at, .. } = self;
        match &self.home {
            Home::Sqlite(path) => sqlite::canary::carry_out(path, at, name, act),
            Home::Files(root) => files::canary::carry_out(root, at, act),
            Home::Postgres(address) => postgres::canary::carry_out(address, at, name, act),
            Home::Redis(address) => {
                let number = self.database.as_deref().unwrap_or("0");
                redis::canary::carry_out((address, &Roots::System), number, at, act)
            }
            Home::Chroma(directory) => sqlite::canary::carry_out(&directory.join(CHROMA_FILE), at, name, act),
        }
    }

    pub fn stated(&self, written: Option<Timestamp>) -> Stated {
        let every_seconds = self.every.as_secs().max(1);
        let (at, database) = (self.at.clone(), self.database.clone());
        Stated { at, database, every_seconds, written, elsewhere: self.elsewhere }
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        let Canary { name, at, .. } = self;
        match &self.home {
            Home::Sqlite(path) => format!("row {name:?} of table {at} in {}", path.display()),
            Home::Files(root) => root.join(at).display().to_string(),
            Home::Postgres(address) => format!("row {name:?} of table {at} in {address}"),
            Home::Redis(address) => {
                format!("key {at} of database {} in {}", self.database.as_deref().unwrap_or("0"), address.endpoint)
            }
            Home::Chroma(directory) => {
                format!("row {name:?} of table {at} in {}", directory.join(CHROMA_FILE).display())
            }
        }
    }
}

/// The usual name of a canary's file.
const FILE: &str = ".blackstart-canary";
/// The SQLite database in a Chroma directory.
pub const CHROMA_FILE: &str = "chroma.sqlite3";

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Source {
        #[serde(default, deserialize_with = "optional")]
        canary: Option<Options>,
    }

    #[test]
    fn it_is_a_word_or_a_table() {
        let read = |text: &str| toml::from_str::<Source>(text).map(|s| s.canary).map_err(|e| e.to_string());
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("canary = false").unwrap(), None);
        assert_eq!(read("canary = true").unwrap(), Some(Options::default()));
        let table = read("[canary]\nevery = \"5m\"\nat = \"beat\"\n").unwrap().unwrap();
        assert_eq!((table.every, table.at.as_deref()), (Some(SignedDuration::from_mins(5)), Some("beat")));
        assert!(read("[canary]\nevry = \"5m\"\n").unwrap_err().contains("line 2"));
        assert!(read("canary = \"yes\"").unwrap_err().contains("true, or a [source.canary] table"));
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        let at = |at: &str| Options { at: Some(at.into()), ..Options::default() };
        for bad in ["../../etc/cron.d/x", "a/b", "..", "", "a b", "a;drop"] {
            assert!(wrong(&at(bad), "files").is_some(), "{bad}");
        }
        assert_eq!(wrong(&at("app.beat"), "postgres"), None);
        assert!(wrong(&Options::default(), "command").is_some());
        let often = Options { every: Some(SignedDuration::from_millis(999)), ..Options::default() };
        assert!(wrong(&often, "sqlite").is_some());
        let numbered = Options { database: Some("x".into()), ..Options::default() };
        assert!(wrong(&numbered, "redis").is_some() && wrong(&numbered, "sqlite").is_some());
        assert_eq!(wrong(&numbered, "postgres"), None);
    }
}
