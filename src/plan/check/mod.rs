//! What a plan can check on a restored copy, and on the systems that run on it.
//!
//! Questions go to whoever understands the copy ([`Who`]): SQLite files are read as they lie; on copies of PostgreSQL, Redis and Chroma the real
//! engine is started in scratch; in a real run what the plan has started is asked where it runs.

use anyhow::{Context, Result};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

use super::Variables;
use crate::child::{self, Spec};
use crate::operations::ask::Question;
use crate::operations::place;
use crate::report::Check;
use crate::repository::layout::SourceName;
use crate::secret::Text;
use crate::source::chroma::asked::Question as Search;
use crate::time::optional_length as duration;

mod ask;
mod files;
mod grammar;
mod sqlite;

pub use ask::{Copy, Engines, Live, Who};
pub use grammar::Kinds;

/// Variables of programs that are never shown.
pub type Secrets = Vec<(OsString, Zeroizing<String>)>;

/// Bytes of an answer that are looked at.
const ANSWER_MAX: u64 = 1 << 20;
/// How long what the plan has just started may take until it answers at all: `redis-server --daemonize` returns before it listens.
/// For what takes longer there is a stage that waits.
const STARTING: Duration = Duration::from_secs(15);
/// Between two attempts to be answered.
const PAUSE: Duration = Duration::from_millis(200);
/// Answers that mean no, where nothing else is asked for. PostgreSQL writes `f`.
const NO: [&str; 6] = ["", "0", "0.0", "null", "f", "false"];

/// One check, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckOf {
    pub name: Option<String>,
    /// The first value of the first row counts. Without a bound it must be neither null, 0, false, nor empty.
    sql: Option<String>,
    /// SQL for the time of the newest data; needs `within`.
    newest: Option<String>,
    /// A command that only reads, and its words.
    redis: Option<Vec<String>>,
    /// A collection: its ids are counted, or it is searched.
    chroma: Option<String>,
    /// The vector to search for, or the id whose vector it is.
    nearest: Option<Vec<f32>>,
    nearest_to: Option<String>,
    http: Option<String>,
    command: Option<Vec<String>>,
    /// In hex, of `file`.
    sha256: Option<String>,
    /// A directory whose entries, all of them below it, are counted; with `within`, its newest file is looked at.
    files: Option<String>,
    /// The copy that is asked; the only one that fits if absent.
    source: Option<SourceName>,
    /// Of PostgreSQL and Chroma by name, of Redis by number; otherwise that of the source's address, or the first.
    database: Option<String>,
    /// In a real run: the address to ask instead of the source's own.
    at: Option<Text>,
    /// A SQLite file instead of the copy's own, or the file to hash.
    file: Option<String>,
    at_least: Option<i64>,
    at_most: Option<i64>,
    equals: Option<String>,
    /// How much older than the snapshot's data time the newest data may be.
    #[serde(default, deserialize_with = "duration")]
    within: Option<SignedDuration>,
    status: Option<u16>,
    /// What the answer or output must contain.
    contains: Option<String>,
}

/// Where checks are made.
pub struct Case<'a> {
    pub variables: &'a Variables,
    pub copies: &'a BTreeMap<SourceName, Copy>,
    pub engines: &'a Engines,
    pub environment: Vec<(OsString, OsString)>,
    pub secrets: Secrets,
    pub timeout: Duration,
}

impl Case<'_> {
    fn kinds(&self) -> Vec<Kinds<'_>> {
        self.copies.iter().map(|(name, copy)| (name, copy.kind.as_str())).collect()
    }
}

impl CheckOf {
    /// A check of a copy by SQL, for `bisect`.
    pub fn of_sql(sql: &str) -> CheckOf {
        CheckOf { sql: Some(sql.to_owned()), ..CheckOf::default() }
    }

    /// A check of a copy by a command of Redis.
    pub fn of_redis(words: Vec<String>) -> CheckOf {
        CheckOf { redis: Some(words), ..CheckOf::default() }
    }

    /// A program that exits with 0 if the copy is good.
    pub fn of_command(argv: Vec<String>) -> CheckOf {
        CheckOf { command: Some(argv), ..CheckOf::default() }
    }

    /// Every text in which variables stand.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let words = self.command.iter().chain(&self.redis).flatten();
        let at = self.at.iter().filter_map(|at| if let Text::Plain(text) = at { Some(text) } else { None });
        [&self.http, &self.file, &self.files].into_iter().flatten().chain(words).chain(at)
    }

    /// Whether it speaks to what runs here, and not to a copy alone.
    pub fn is_live(&self) -> bool {
        self.http.is_some() || self.command.is_some()
    }

    pub fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        if let Some(collection) = &self.chroma {
            return match (&self.nearest, &self.nearest_to) {
                (None, None) => format!("ids in {collection}"),
                (_, Some(id)) => format!("search in {collection} for {id}"),
                _ => format!("search in {collection}"),
            };
        }
        let what = [&self.sql, &self.newest, &self.http, &self.files].into_iter().flatten().next().cloned();
        let what = what.or_else(|| self.command.as_ref().or(self.redis.as_ref()).map(|c| c.join(" ")));
        what.unwrap_or_else(|| format!("SHA-256 of {}", self.file.as_deref().unwrap_or_default()))
    }

    /// Makes the check. What cannot be asked is a check that did not pass; an `Err` speaks of this place and not of the copy.
    pub fn make(&self, case: &Case) -> Result<Check> {
        let until =
            Instant::now() + if self.asks_what_starts(case) { STARTING.min(case.timeout) } else { Duration::ZERO };
        let made = loop {
            match self.carry_out(case) {
                Err(e) if !place::is_to_blame(&e) && Instant::now() < until => std::thread::sleep(PAUSE),
                made => break made,
            }
        };
        match made {
            Err(e) if place::is_to_blame(&e) => Err(e.context(format!("check {:?}", self.name()))),
            Err(e) => {
                Ok(Check { passed: false, ..Check::compare(self.name(), self.expected(), format!("error: {e:#}")) })
            }
            made => made,
        }
    }

    /// Whether it speaks to a server that may be about to listen. An error is then no answer yet; an answer is final, whatever it says.
    fn asks_what_starts(&self, case: &Case) -> bool {
        let copy = || self.about(&case.kinds()).ok().and_then(|source| case.copies.get(&source));
        let runs = || copy().is_some_and(|copy| matches!(copy.who, Who::Running(_)));
        self.http.is_some() || (self.is_asked() && self.file.is_none() && self.chroma.is_none() && runs())
    }

    fn carry_out(&self, case: &Case) -> Result<Check> {
        if self.is_asked() {
            let found = self.ask(case)?;
            return if self.within.is_some() { self.newest(&found[0], case) } else { Ok(self.held(&found)) };
        }
        if let Some(url) = &self.http {
            let (status, body) = super::stage::get(&case.variables.fill(url)?, case.timeout)?;
            let expected = self.status.unwrap_or(200);
            let has = self.contains.as_ref().is_none_or(|text| body.contains(text.as_str()));
            let missing = if has { "" } else { ", without the text" };
            let check = Check::compare(self.name(), self.expected(), format!("{status}{missing}"));
            return Ok(Check { passed: status == expected && has, ..check });
        }
        if let Some(argv) = &self.command {
            let spec = Spec {
                set: case.environment.clone(),
                secret: case.secrets.clone(),
                ..Spec::new(case.variables.fill_all(argv)?)
            };
            let out = child::run(&spec, case.timeout, ANSWER_MAX)?;
            let out = String::from_utf8_lossy(&out);
            let has = self.contains.as_ref().is_none_or(|text| out.contains(text.as_str()));
            let actual = if has { "exit 0" } else { "exit 0, without the text" };
            return Ok(Check { passed: has, ..Check::compare(self.name(), self.expected(), actual) });
        }
        if let Some(directory) = &self.files {
            let directory = case.variables.fill(directory)?;
            if self.within.is_some() {
                let newest = files::newest(Path::new(&directory))?;
                return self.newest(&newest.map_or_else(|| "null".to_owned(), |at| at.to_string()), case);
            }
            let found =
                files::entries(Path::new(&directory)).with_context(|| format!("count what is in {directory}"))?;
            return Ok(self.held(&[found.to_string()]));
        }
        let file = case.variables.fill(self.file.as_deref().context("`sha256` needs the `file`")?)?;
        let found = files::hash(Path::new(&file)).with_context(|| format!("hash {file}"))?;
        Ok(Check::compare(self.name(), self.sha256.as_deref().unwrap_or_default().to_ascii_lowercase(), found))
    }

    /// What the copy, or the engine on it, answers: at least one value.
    fn ask(&self, case: &Case) -> Result<Vec<String>> {
        let sql = self.sql.as_ref().or(self.newest.as_ref());
        if let (Some(sql), Some(file)) = (sql, &self.file) {
            return Ok(vec![sqlite::query(Path::new(&case.variables.fill(file)?), sql, case.timeout)?]);
        }
        let source = self.about(&case.kinds()).map_err(anyhow::Error::msg)?;
        let copy = case.copies.get(&source).with_context(|| format!("{source} is not restored"))?;
        let by_engine = self.redis.is_some() || self.chroma.is_some() || copy.kind.starts_with("postgres");
        if let (Some(sql), false) = (sql, by_engine) {
            return Ok(vec![sqlite::query(&sqlite::only_file(&copy.path)?, sql, case.timeout)?]);
        }
        let engine = case.engines.of(&source, copy, self.at.as_ref(), case.variables)?;
        let database = self.database.as_deref();
        let (words, search);
        let question = match (sql, &self.redis, &self.chroma) {
            (Some(sql), ..) => Question::Sql { database, sql },
            (_, Some(command), _) => {
                words = case.variables.fill_all(command)?;
                Question::Redis { database: database.map_or(Ok(0), str::parse)?, words: &words }
            }
            (_, _, Some(collection)) => {
                search = match (&self.nearest, &self.nearest_to) {
                    (Some(vector), _) => Search::Nearest(vector.clone()),
                    (_, Some(id)) => Search::NearestTo(id.clone()),
                    _ => Search::Count,
                };
                Question::Chroma { database, collection, asked: &search }
            }
            _ => anyhow::bail!("there is nothing to ask"),
        };
        let found = engine.ask(&question, case.timeout)?;
        Ok(if found.is_empty() { vec!["null".to_owned()] } else { found })
    }

    fn expected(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.equals.clone());
        parts.extend(self.at_least.map(|n| format!("at least {n}")));
        parts.extend(self.at_most.map(|n| format!("at most {n}")));
        parts.extend(self.within.map(|w| format!("not older than {w:#} at the snapshot's time")));
        parts.extend(self.http.as_ref().map(|_| self.status.unwrap_or(200).to_string()));
        parts.extend(self.command.as_ref().map(|_| "exit 0".to_owned()));
        parts.extend(self.wanted().map(|text| format!("with {text:?}")));
        parts.extend(self.sha256.clone());
        if parts.is_empty() { "anything but null, 0, false and nothing".into() } else { parts.join(", ") }
    }

    /// What an answer must contain: a search for an id must find that id.
    fn wanted(&self) -> Option<&String> {
        let itself = self.nearest_to.as_ref().filter(|_| self.equals.is_none());
        self.contains.as_ref().or(itself)
    }

    /// Against the bounds; a value that is no number holds none of them. Of several values `equals` takes the first, and one must be what
    /// is wanted.
    fn held(&self, found: &[String]) -> Check {
        let first = found.first().map_or("null", String::as_str);
        let number: Option<i64> = first.parse().ok();
        let bounded = self.at_least.is_some() || self.at_most.is_some() || self.equals.is_some();
        let has = |text: &String| match self.chroma.is_some() {
            true => found.contains(text),
            false => found.iter().any(|f| f.contains(text.as_str())),
        };
        let passed = match (bounded, self.wanted()) {
            (false, None) => !NO.contains(&first),
            (_, wanted) => {
                self.at_least.is_none_or(|least| number.is_some_and(|n| n >= least))
                    && self.at_most.is_none_or(|most| number.is_some_and(|n| n <= most))
                    && self.equals.as_ref().is_none_or(|text| text == first)
                    && wanted.is_none_or(has)
            }
        };
        Check { passed, ..Check::compare(self.name(), self.expected(), found.join(", ")) }
    }

    fn newest(&self, found: &str, case: &Case) -> Result<Check> {
        let source = self.about(&case.kinds()).map_err(anyhow::Error::msg)?;
        let data_time = case.copies.get(&source).context("no copy to date it by")?.data_time;
        let newest = moment(found).with_context(|| format!("{found:?} is no time"))?;
        let age = data_time.duration_since(newest);
        let passed = self.within.is_some_and(|within| age <= within);
        let seconds = SignedDuration::from_secs(age.as_secs());
        let actual = format!("{newest:.0}, {seconds:#} before the snapshot's time");
        Ok(Check { passed, ..Check::compare(self.name(), self.expected(), actual) })
    }
}

/// RFC 3339, SQL's `2026-01-31 03:00:00` in UTC, or seconds since 1970.
fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        // Beyond what seconds can be today they are milliseconds.
        let seconds = if seconds > 1e11 { seconds / 1000.0 } else { seconds };
        return Timestamp::from_second(seconds as i64).ok();
    }
    let civil: DateTime = text.parse().ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_or_do_not() {
        let check = |text: &str| toml::from_str::<CheckOf>(text).unwrap();
        let held = |text: &str, found: &str| check(text).held(&[found.to_owned()]).passed;
        assert!(
            held("sql = 'q'", "7") && held("sql = 'q'", "x") && !held("sql = 'q'", "0") && !held("sql = 'q'", "null")
        );
        assert!(!held("sql = 'q'", "f") && held("sql = 'q'", "t"), "PostgreSQL's no and yes");
        assert!(held("sql = 'q'\nat_least = 3", "3") && !held("sql = 'q'\nat_least = 3", "2"));
        assert!(!held("sql = 'q'\nat_least = 0", "null"), "nothing is not 0");
        assert!(held("sql = 'q'\nat_most = 0", "0") && !held("sql = 'q'\nequals = 'ok'", "bad"));
    }

    #[test]
    fn moments_as_databases_write_them() {
        let at = Timestamp::from_second(1_767_225_600).unwrap();
        for text in [
            "2026-01-01 00:00:00+00",
            "2026-01-01 02:00:00.25+02",
            "2026-01-01T00:00:00Z",
            "2026-01-01 00:00:00",
            "1767225600",
            "1767225600000",
            "1767225600.5",
        ] {
            let found = moment(text).map(|t| t.as_second());
            assert_eq!(found, Some(at.as_second()), "{text}");
        }
        assert_eq!(moment("null"), None);
    }

    #[test]
    fn what_has_just_been_started_may_begin_to_listen_later() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            let (mut client, _) = std::net::TcpListener::bind(address).unwrap().accept().unwrap();
            let _ = client.read(&mut [0; 1024]).unwrap();
            client.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        });
        let check: CheckOf = toml::from_str(&format!("http = 'http://{address}/'")).unwrap();
        let (variables, copies, engines) = (Variables::default(), BTreeMap::new(), Engines::default());
        let timeout = Duration::from_secs(60);
        let (environment, secrets) = (Vec::new(), Vec::new());
        let case = Case { variables: &variables, copies: &copies, engines: &engines, environment, secrets, timeout };
        let made = check.make(&case).unwrap();
        server.join().unwrap();
        // The first answer counts: it is not asked again until it pleases.
        assert_eq!((made.passed, made.actual.as_str()), (false, "503"));
    }

    #[test]
    fn a_search_must_find_what_it_is_for() {
        let held = |text: &str, found: &[&str]| {
            let found: Vec<String> = found.iter().map(|f| (*f).to_owned()).collect();
            toml::from_str::<CheckOf>(text).unwrap().held(&found).passed
        };
        let itself = "chroma = 'c'\nnearest_to = 'id1'";
        assert!(held(itself, &["id2", "id1"]) && !held(itself, &["id2", "id11"]) && !held(itself, &["null"]));
        let first = "chroma = 'c'\nnearest = [1.0, 2]\nequals = 'id1'";
        assert!(held(first, &["id1", "id2"]) && !held(first, &["id2", "id1"]));
    }
}
