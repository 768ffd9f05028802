//! What a plan can check on a restored copy, and on the systems that run on it.

use anyhow::{Context, Result, ensure};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use zeroize::Zeroizing;

use super::Variables;
use crate::child::{self, Spec};
use crate::config::duration;
use crate::report::Check;
use crate::repository::layout::{Hash, SourceName};

/// Variables of programs that are never shown.
pub type Secrets = Vec<(OsString, Zeroizing<String>)>;

/// Bytes of an answer that are looked at.
const ANSWER_MAX: u64 = 1 << 20;

/// One check, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckOf {
    pub name: Option<String>,
    /// The first value of the first row counts. Without a bound it must be neither null, 0, nor empty.
    sql: Option<String>,
    /// SQL for the time of the newest data; needs `within`.
    newest: Option<String>,
    http: Option<String>,
    command: Option<Vec<String>>,
    /// In hex, of `file`.
    sha256: Option<String>,
    /// A directory whose entries, all of them below it, are counted.
    files: Option<String>,
    /// The copy that `sql` and `newest` ask; the only one if absent.
    source: Option<SourceName>,
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

/// A restored copy.
#[derive(Debug, Clone)]
pub struct Copy {
    pub path: PathBuf,
    pub data_time: Timestamp,
}

/// Where checks are made.
pub struct Case<'a> {
    pub variables: &'a Variables,
    pub copies: &'a BTreeMap<SourceName, Copy>,
    pub environment: Vec<(OsString, OsString)>,
    pub secrets: Secrets,
    pub timeout: Duration,
}

impl CheckOf {
    /// A check of a copy by SQL, for `bisect`.
    pub fn of_sql(sql: &str) -> CheckOf {
        CheckOf { sql: Some(sql.to_owned()), ..CheckOf::nothing() }
    }

    /// A program that exits with 0 if the copy is good.
    pub fn of_command(argv: Vec<String>) -> CheckOf {
        CheckOf { command: Some(argv), ..CheckOf::nothing() }
    }

    fn nothing() -> CheckOf {
        CheckOf {
            name: None,
            sql: None,
            newest: None,
            http: None,
            command: None,
            sha256: None,
            files: None,
            source: None,
            file: None,
            at_least: None,
            at_most: None,
            equals: None,
            within: None,
            status: None,
            contains: None,
        }
    }

    /// That it is one check, with what belongs to it. `restored`: sources that stages above have restored.
    pub fn validate(&self, restored: &[SourceName]) -> Result<(), String> {
        let kinds = [
            self.sql.is_some(),
            self.newest.is_some(),
            self.http.is_some(),
            self.command.is_some(),
            self.sha256.is_some(),
            self.files.is_some(),
        ];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err("a check is one of sql, newest, http, command, sha256, files".into());
        }
        let asks = self.sql.is_some() || self.newest.is_some();
        let wrong = [
            (self.newest.is_some() != self.within.is_some(), "`newest` and `within` go together"),
            (self.sha256.is_some() && self.file.is_none(), "`sha256` needs the `file`"),
            (self.http.is_none() && self.status.is_some(), "`status` belongs to `http`"),
            (
                self.http.is_none() && self.command.is_none() && self.contains.is_some(),
                "`contains` belongs to `http` or `command`",
            ),
            (self.command.as_ref().is_some_and(Vec::is_empty), "there is no program to run"),
            (!asks && self.source.is_some(), "`source` belongs to `sql` or `newest`"),
            (
                asks && self.file.is_none() && self.source.is_none() && restored.len() != 1,
                "which copy? Name the `source`, restored above, or a `file`",
            ),
            (
                self.sql.is_none() && self.files.is_none() && (self.at_least.is_some() || self.at_most.is_some()),
                "`at_least` and `at_most` belong to `sql` or `files`",
            ),
            (self.sql.is_none() && self.equals.is_some(), "`equals` belongs to `sql`"),
        ];
        if let Some((_, why)) = wrong.iter().find(|(wrong, _)| *wrong) {
            return Err((*why).into());
        }
        match &self.source {
            Some(source) if !restored.contains(source) => Err(format!("{source} is not restored by a stage above")),
            _ => Ok(()),
        }
    }

    /// Every text in which variables stand.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let words = self.command.iter().flatten();
        [&self.http, &self.file, &self.files].into_iter().flatten().chain(words)
    }

    /// Whether it speaks to what runs here, and not to a copy alone.
    pub fn is_live(&self) -> bool {
        self.http.is_some() || self.command.is_some()
    }

    pub fn name(&self) -> String {
        let what = [&self.sql, &self.newest, &self.http, &self.files].into_iter().flatten().next().cloned();
        let what = what.or_else(|| self.command.as_ref().map(|c| c.join(" ")));
        let hash = || format!("SHA-256 of {}", self.file.as_deref().unwrap_or_default());
        self.name.clone().or(what).unwrap_or_else(hash)
    }

    /// Makes the check. What cannot be asked is a check that did not pass.
    pub fn make(&self, case: &Case) -> Check {
        match self.ask(case) {
            Ok(check) => check,
            Err(e) => Check { passed: false, ..Check::compare(self.name(), self.expected(), format!("error: {e:#}")) },
        }
    }

    fn ask(&self, case: &Case) -> Result<Check> {
        if let Some(sql) = &self.sql {
            let found = query(&self.database(case)?, sql, case.timeout)?;
            return Ok(self.held(&found));
        }
        if let Some(sql) = &self.newest {
            return self.newest(&query(&self.database(case)?, sql, case.timeout)?, case);
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
            let found = entries(Path::new(&directory)).with_context(|| format!("count what is in {directory}"))?;
            return Ok(self.held(&found.to_string()));
        }
        let file = case.variables.fill(self.file.as_deref().context("`sha256` needs the `file`")?)?;
        let found = hash(Path::new(&file)).with_context(|| format!("hash {file}"))?;
        Ok(Check::compare(self.name(), self.sha256.as_deref().unwrap_or_default().to_ascii_lowercase(), found))
    }

    fn expected(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.equals.clone());
        parts.extend(self.at_least.map(|n| format!("at least {n}")));
        parts.extend(self.at_most.map(|n| format!("at most {n}")));
        parts.extend(self.within.map(|w| format!("not older than {w:#} at the snapshot's time")));
        parts.extend(self.http.as_ref().map(|_| self.status.unwrap_or(200).to_string()));
        parts.extend(self.command.as_ref().map(|_| "exit 0".to_owned()));
        parts.extend(self.contains.as_ref().map(|text| format!("with {text:?}")));
        parts.extend(self.sha256.clone());
        if parts.is_empty() { "anything but null, 0 and nothing".into() } else { parts.join(", ") }
    }

    /// Against the bounds; a value that is no number holds none of them.
    fn held(&self, found: &str) -> Check {
        let number: Option<i64> = found.parse().ok();
        let bounded = self.at_least.is_some() || self.at_most.is_some() || self.equals.is_some();
        let passed = match bounded {
            true => {
                self.at_least.is_none_or(|least| number.is_some_and(|n| n >= least))
                    && self.at_most.is_none_or(|most| number.is_some_and(|n| n <= most))
                    && self.equals.as_ref().is_none_or(|text| text == found)
            }
            false => !["", "0", "null", "0.0"].contains(&found),
        };
        Check { passed, ..Check::compare(self.name(), self.expected(), found) }
    }

    fn newest(&self, found: &str, case: &Case) -> Result<Check> {
        let source = self.source.as_ref().or(case.copies.keys().next());
        let data_time = source.and_then(|s| case.copies.get(s)).context("no copy to date it by")?.data_time;
        let newest = moment(found).with_context(|| format!("{found:?} is no time"))?;
        let age = data_time.duration_since(newest);
        let passed = self.within.is_some_and(|within| age <= within);
        let seconds = SignedDuration::from_secs(age.as_secs());
        let actual = format!("{newest:.0}, {seconds:#} before the snapshot's time");
        Ok(Check { passed, ..Check::compare(self.name(), self.expected(), actual) })
    }

    /// The SQLite file to ask.
    fn database(&self, case: &Case) -> Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(case.variables.fill(file)?.into());
        }
        let source = self.source.as_ref().or(case.copies.keys().next()).context("nothing is restored")?;
        let copy = case.copies.get(source).with_context(|| format!("{source} is not restored"))?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&copy.path).with_context(|| format!("read {}", copy.path.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && !["-wal", "-shm", "-journal"].iter().any(|s| name.ends_with(s)) {
                files.push(path);
            }
        }
        match (files.pop(), files.is_empty()) {
            (Some(file), true) => Ok(file),
            _ => anyhow::bail!("the copy of {source} is not one SQLite file: name the `file` to ask"),
        }
    }
}

/// The first value of the first row, as text; `null` where there is none.
fn query(file: &Path, sql: &str, timeout: Duration) -> Result<String> {
    ensure!(file.is_file(), "{} does not exist", file.display());
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .with_context(|| format!("open {}", file.display()))?;
    let handle = connection.get_interrupt_handle();
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = timeout;
            // More than once: an interrupt that falls between two queries is forgotten by SQLite.
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
                wait = Duration::from_millis(50);
            }
        });
        let found = first_value(&connection, sql).with_context(|| format!("ask {}", file.display()));
        drop(done);
        found
    })
}

fn first_value(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok("null".into()) };
    Ok(match row.get_ref(0)? {
        ValueRef::Null => "null".into(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
    })
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

fn entries(directory: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        sum += 1;
        if entry.file_type()?.is_dir() {
            sum += entries(&entry.path())?;
        }
    }
    Ok(sum)
}

fn hash(file: &Path) -> Result<Hash> {
    use std::io::Read;
    let (mut file, mut hasher, mut part) = (std::fs::File::open(file)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(Hash(hasher.finalize().into())),
            n => hasher.update(&part[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_or_do_not() {
        let check = |text: &str| toml::from_str::<CheckOf>(text).unwrap();
        let held = |text: &str, found: &str| check(text).held(found).passed;
        assert!(
            held("sql = 'q'", "7") && held("sql = 'q'", "x") && !held("sql = 'q'", "0") && !held("sql = 'q'", "null")
        );
        assert!(held("sql = 'q'\nat_least = 3", "3") && !held("sql = 'q'\nat_least = 3", "2"));
        assert!(!held("sql = 'q'\nat_least = 0", "null"), "nothing is not 0");
        assert!(held("sql = 'q'\nat_most = 0", "0") && !held("sql = 'q'\nequals = 'ok'", "bad"));
    }

    #[test]
    fn moments_as_databases_write_them() {
        let at = Timestamp::from_second(1_767_225_600).unwrap();
        for text in ["2026-01-01T00:00:00Z", "2026-01-01 00:00:00", "1767225600", "1767225600000", "1767225600.5"] {
            assert_eq!(moment(text), Some(at), "{text}");
        }
        assert_eq!(moment("null"), None);
    }

    #[test]
    fn half_checks_are_refused() {
        let refused = |text: &str| toml::from_str::<CheckOf>(text).unwrap().validate(&[]).unwrap_err();
        assert!(refused("at_least = 1").contains("one of"));
        assert!(refused("sql = 'q'\nhttp = 'u'").contains("one of"));
        assert!(refused("sql = 'q'").contains("which copy"));
        assert!(refused("newest = 'q'\nfile = 'f'").contains("within"));
        assert!(refused("http = 'u'\nat_least = 1").contains("belong"));
        assert!(refused("sql = 'q'\nsource = 'x'").contains("not restored"));
    }
}
