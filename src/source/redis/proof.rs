//! The proof of a restored data set: a real server starts from it, and has the keys that the file has.
//!
//! The bytes of the file are those that the server sent: the contents are compared with the index before this, and the checksum here. So the
//! file itself says what a server must have: keys by database (less those that expired since), and for a sample of keys their type, their
//! length, and the value of strings.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::connection::{Connection, Reply};
use super::engine::{self, Program};
use super::rdb::{self, Key, Summary, Tap};
use super::replication::aof::Written;
use super::running::Running;
use super::server::{Facts, Info};
use super::{DUMP, Options};
use crate::error::{Failure, Kind, kind_of};
use crate::report::Check;

/// Keys that are looked at one by one, and the longest strings among them whose values are compared, in bytes.
const SAMPLE: usize = 200;
const TEXT_MAX: u64 = 64 << 10;

/// Whether a server that can load the data is here. `Kind::Environment`: it is not.
pub fn ready(facts: &serde_json::Value, options: &Options) -> Result<()> {
    let facts = Facts::deserialize(facts).context("read the facts that the snapshot holds of its server")?;
    engine::find(options.server.as_deref(), facts.flavour, &facts.rdb).map(drop)
}

/// Proves the copy in `copy`; `also` is done while the server runs. `Kind::Environment`: no server here can load it.
pub fn prove(
    copy: &Path,
    facts: &serde_json::Value,
    options: &Options,
    also: &mut dyn FnMut(&mut Connection),
) -> Result<Vec<Check>> {
    let facts = Facts::deserialize(facts).context("read the facts that the snapshot holds of its server")?;
    let file = copy.join(DUMP);
    let mut sample = Sample::default();
    let found = read_file(&file, TEXT_MAX, &mut |key| sample.offer(key));
    let mut checks = vec![checksum(&found)];
    let Ok(found) = found else { return Ok(checks) };
    checks.push(Check::compare("keys in the file", count(&facts.rdb), count(&found)));
    let program = engine::find(options.server.as_deref(), facts.flavour, &facts.rdb)?;
    let started = Instant::now();
    let server = match Running::start(&program, copy, &found, None) {
        Ok(server) => server,
        // The modules of the original are not here: that says nothing of the data.
        Err(e) if facts.modules => {
            let help = "Install the modules of the server here too, and name a server that loads them: [source.redis] server = \"…\".";
            return Err(Failure::new(
                Kind::Environment,
                format!("the data needs modules that the server here lacks: {e:#}"),
                help,
            ));
        }
        Err(e) if kind_of(&e) == Kind::Environment => return Err(e),
        Err(e) => {
            checks.push(Check::compare("server", "starts on the copy", format!("{e:#}")));
            return Ok(checks);
        }
    };
    checks.push(Check::compare("server", program.name(), program.name()));
    let mut connection = server.connect()?;
    compare_counts("keys", &file, &found, &mut connection, started, &mut checks)?;
    checks.push(sample.compare(&mut connection)?);
    if found.function_libraries > 0 {
        let libraries = match connection.command(&["FUNCTION", "LIST"])? {
            Reply::List(list) => list.len() as u64,
            _ => 0,
        };
        checks.push(Check::compare("function libraries", found.function_libraries, libraries));
    }
    also(&mut connection);
    server.stop()?;
    if let Some(manifest) = manifest(copy) {
        let started = Instant::now();
        match Running::start(&program, copy, &found, Some(&manifest)) {
            Ok(server) => {
                compare_counts(
                    "keys from the append-only file",
                    &file,
                    &found,
                    &mut server.connect()?,
                    started,
                    &mut checks,
                )?;
                server.stop()?;
            }
            Err(e) if kind_of(&e) == Kind::Environment => return Err(e),
            Err(e) => {
                checks.push(Check::compare("server with append-only file", "starts on the copy", format!("{e:#}")))
            }
        }
    }
    Ok(checks)
}

/// What to do with a restored data set.
pub fn advice(facts: &serde_json::Value) -> Vec<String> {
    let Ok(facts) = Facts::deserialize(facts) else { return Vec::new() };
    let mut lines = vec![format!(
        "It was written by {} {}. What loads it: {}.",
        facts.flavour,
        facts.version,
        engine::loaders(&facts.rdb)
    )];
    lines.push(if facts.aof {
        "Give the files to the server's user and start it with `dir` set to the directory and `appendonly yes`, as before.".to_owned()
    } else {
        "Give the files to the server's user and start it with `dir` set to the directory and `appendonly no`: with `yes` it would start empty. \
         `CONFIG SET appendonly yes` switches it on later."
            .to_owned()
    });
    if let Some(most) = facts.rdb.databases.keys().max().filter(|most| **most > 15) {
        lines.push(format!("The server needs `databases {}` or more.", most + 1));
    }
    lines
}

/// What to do with a data set that was restored with the log after it.
pub fn advice_with_log(facts: &serde_json::Value) -> Vec<String> {
    let Ok(facts) = Facts::deserialize(facts) else { return Vec::new() };
    vec![format!(
        "Give the files to the server's user and start {} {} or newer with `dir` set to the directory, `appendonly yes` and `aof-load-truncated no`: it replays them by itself. With `appendonly no` it would start empty.",
        facts.flavour, facts.version
    )]
}

/// Starts a server on a copy whose append-only file has the stored log, and holds it against that. `Kind::Environment`: no server here can load it.
pub fn replayed(copy: &Path, facts: &serde_json::Value, options: &Options, written: &Written) -> Result<Vec<Check>> {
    let facts = Facts::deserialize(facts).context("read the facts that the snapshot holds of its server")?;
    let program = engine::find(options.server.as_deref(), facts.flavour, &facts.rdb)?;
    let mut summary = facts.rdb.clone();
    summary.size += written.bytes;
    summary.databases.entry(written.databases_max).or_default();
    let manifest = manifest(copy).context("the copy has no append-only file")?;
    let server = match Running::start(&program, copy, &summary, Some(&manifest)) {
        Ok(server) => server,
        Err(e) if kind_of(&e) == Kind::Environment => return Err(e),
        Err(e) => return Ok(vec![Check::compare("server with the log", "replays it", format!("{e:#}"))]),
    };
    let info = Info::ask(&mut server.connect()?)?;
    server.stop()?;
    // A command that a server refuses while it replays shows nowhere but here: its data is not what it was then.
    let refused = info.number("total_error_replies").context("the server does not tell its errors")?;
    Ok(vec![
        Check::compare("server with the log", "replays it", "replays it"),
        Check::compare(format!("of {} commands in the log, refused", written.commands), 0, refused),
    ])
}

fn checksum(found: &Result<Summary>) -> Check {
    match found {
        Ok(summary) if summary.checksum => Check::compare("checksum of the RDB file", "correct", "correct"),
        Ok(_) => {
            let none = "none: the server has rdbchecksum off";
            Check::compare("checksum of the RDB file", none, none)
        }
        Err(e) => Check::compare("checksum of the RDB file", "correct", format!("{e:#}")),
    }
}

fn count(summary: &Summary) -> String {
    match &summary.uncounted {
        Some(why) => format!("not counted: {why}"),
        None => format!("{} in {} databases", summary.keys(), summary.databases.len()),
    }
}

/// Reads an RDB file that lies on this machine.
pub fn read_file(path: &Path, keep_texts: u64, each: &mut dyn FnMut(Key)) -> Result<Summary> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut tap = Tap::new(Box::new(move |buffer, most| {
        let n = file.by_ref().take(most as u64).read_to_end(buffer)?;
        Ok(n)
    }));
    tap.keep_texts = keep_texts;
    rdb::read(&mut tap, each).with_context(|| format!("read {}", path.display()))
}

/// The path of the manifest of an append-only file, relative to the copy.
fn manifest(copy: &Path) -> Option<PathBuf> {
    for directory in std::fs::read_dir(copy).ok()?.flatten() {
        for file in std::fs::read_dir(directory.path()).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().ends_with(".manifest") {
                return Some(PathBuf::from(directory.file_name()).join(file.file_name()));
            }
        }
    }
    None
}

/// Keys by database. A server drops what has expired: before it started for certain, since then perhaps.
fn compare_counts(
    what: &str,
    file: &Path,
    summary: &Summary,
    connection: &mut Connection,
    started: Instant,
    checks: &mut Vec<Check>,
) -> Result<()> {
    if summary.uncounted.is_some() {
        let keys = Info::ask(connection)?.keys();
        checks.push(Check::compare(what, "not counted in the file", "not counted in the file"));
        checks.push(Check {
            name: format!("{what} that the server has"),
            expected: "any".into(),
            actual: keys.to_string(),
            passed: true,
        });
        return Ok(());
    }
    let mut sizes = BTreeMap::new();
    for database in summary.databases.keys() {
        connection.command(&["SELECT", &database.to_string()])?;
        let size = connection.command(&["DBSIZE"])?.text().and_then(|t| t.parse::<u64>().ok());
        sizes.insert(*database, size.context("the server does not tell how many keys it has")?);
    }
    let now = server_millis(connection)?;
    let begun = now - i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX) - 1000;
    let mut gone: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    read_file(file, 0, &mut |key| {
        let (surely, perhaps) = gone.entry(key.database).or_default();
        match key.expires {
            Some(at) if at < begun => *surely += 1,
            Some(at) if at <= now => *perhaps += 1,
            _ => {}
        }
    })?;
    for (database, keys) in &summary.databases {
        let (surely, perhaps) = gone.get(database).copied().unwrap_or_default();
        let most = keys.keys - surely;
        let size = sizes.get(database).copied().unwrap_or_default();
        let expired = if surely + perhaps > 0 {
            format!(" ({surely} to {} expired since)", surely + perhaps)
        } else {
            String::new()
        };
        checks.push(Check {
            name: format!("{what} of database {database}"),
            expected: format!("{most}{expired}"),
            actual: size.to_string(),
            passed: size <= most && size + perhaps >= most,
        });
    }
    Ok(())
}

/// The server's clock, in milliseconds since the epoch.
fn server_millis(connection: &mut Connection) -> Result<i64> {
    let Reply::List(parts) = connection.command(&["TIME"])? else { anyhow::bail!("the server does not tell the time") };
    let part = |i: usize| {
        parts.get(i).and_then(Reply::text).and_then(|t| t.parse::<i64>().ok()).context("read the server's time")
    };
    Ok(part(0)? * 1000 + part(1)? / 1000)
}

/// The keys whose names have the least hashes: the same ones each time, and evenly spread.
#[derive(Default)]
struct Sample(BinaryHeap<(u64, usize)>, Vec<Key>);

impl Sample {
    fn offer(&mut self, key: Key) {
        // FNV-1a, over the database too.
        let bytes = key.database.to_le_bytes().into_iter().chain(key.name.iter().copied());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let hash = hash ^ hash >> 32;
        if self.1.len() < SAMPLE {
            self.0.push((hash, self.1.len()));
            self.1.push(key);
        } else if self.0.peek().is_some_and(|(greatest, _)| hash < *greatest)
            && let Some((_, slot)) = self.0.pop()
        {
            self.0.push((hash, slot));
            self.1[slot] = key;
        }
    }

    /// Asks the server for each key of the sample.
    fn compare(&self, connection: &mut Connection) -> Result<Check> {
        let now = server_millis(connection)?;
        let (mut same, mut passed_over, mut wrong) = (0, 0, Vec::new());
        for key in &self.1 {
            // Ten seconds to look at it.
            if key.expires.is_some_and(|at| at < now + 10_000) || key.kind == "module" {
                passed_over += 1;
                continue;
            }
            match key.differs(connection)? {
                None => same += 1,
                Some(why) => {
                    wrong.push(format!("{} of database {}: {why}", String::from_utf8_lossy(&key.name), key.database))
                }
            }
        }
        let looked_at = same + wrong.len();
        let found = if wrong.is_empty() {
            format!("{looked_at} as in the file")
        } else {
            wrong[..wrong.len().min(5)].join("; ")
        };
        let mut check = Check::compare(
            "sample of keys: type, length, strings' values",
            format!("{looked_at} as in the file"),
            found,
        );
        if passed_over > 0 {
            check.actual.push_str(&format!(" ({passed_over} passed over: expired, or of a module)"));
        }
        Ok(check)
    }
}

impl Key {
    /// How the server's key differs from this one, if it does.
    fn differs(&self, connection: &mut Connection) -> Result<Option<String>> {
        connection.command(&["SELECT", &self.database.to_string()])?;
        let mut ask = |command: &[u8]| connection.command_bytes(&[command, &self.name]);
        let kind = ask(b"TYPE")?;
        if kind.text() != Some(self.kind) {
            return Ok(Some(format!("{:?} instead of {}", kind, self.kind)));
        }
        if ask(b"DUMP")? == Reply::Nothing {
            return Ok(Some("it has no value".to_owned()));
        }
        let command: &[u8] = match self.kind {
            "string" => b"STRLEN",
            "list" => b"LLEN",
            "set" => b"SCARD",
            "zset" => b"ZCARD",
            "hash" => b"HLEN",
            _ => b"XLEN",
        };
        let length = ask(command)?.text().and_then(|t| t.parse::<u64>().ok());
        if self.length.is_some() && length != self.length {
            return Ok(Some(format!("{length:?} long instead of {:?}", self.length)));
        }
        let Some(text) = &self.text else { return Ok(None) };
        let same = ask(b"GET")?.text() == Some(&*String::from_utf8_lossy(text));
        Ok((!same).then(|| "another value".to_owned()))
    }
}

impl Program {
    fn name(&self) -> String {
        format!("{} {}", self.flavour, self.version)
    }
}
