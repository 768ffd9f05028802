//! RDB files: what is in one, counted on the fly, and whether it is whole.
//!
//! ```text
//! REDIS0010            magic and version; VALKEY080 from Valkey 9 on
//! 250 key value        auxiliary: who wrote it, when, replication id and offset
//! 254 n                the keys that follow are of database n
//! [252 ms] type key value
//! 255                  the end
//! 8 bytes              CRC-64 (Jones) of all before, little-endian; 0: the server does not compute it
//! ```
//! Values are passed over, not decoded. What is not understood here (a newer server, a module) ends the counting, not the copying, as long as the
//! checksum tells that the file is whole.

mod reader;
mod value;

pub use reader::Tap;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use value::Value;

/// What an RDB file says of itself, and what was counted in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// `REDIS` or `VALKEY`.
    pub magic: String,
    pub version: u32,
    /// Bytes.
    pub size: u64,
    /// Whether the CRC was compared; a server with `rdbchecksum no` writes none.
    pub checksum: bool,
    /// By number.
    pub databases: BTreeMap<u32, Keys>,
    /// Keys by type: `string`, `list`, …
    pub types: BTreeMap<String, u64>,
    pub function_libraries: u64,
    /// Seconds since the epoch, on the server's clock: when the server forked.
    pub ctime: Option<i64>,
    pub replication_id: Option<String>,
    pub replication_offset: Option<i64>,
    /// The database that the replication stream had selected there.
    pub replication_database: Option<u32>,
    /// Why counting ended before the end; the counts are of no use then.
    pub uncounted: Option<String>,
}

/// Keys of one database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    pub keys: u64,
    /// Those of them that expire some day.
    pub expiring: u64,
}

impl Summary {
    pub fn keys(&self) -> u64 {
        self.databases.values().map(|d| d.keys).sum()
    }

    /// Where the file stands in the server's replication stream: replication ID, and bytes of the stream that it contains. A server that never
    /// had a replica has no stream.
    pub fn place(&self) -> Option<(&str, u64)> {
        let offset = self.replication_offset.and_then(|offset| u64::try_from(offset).ok())?;
        self.replication_database?;
        Some((self.replication_id.as_deref()?, offset))
    }
}

/// One key as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub database: u32,
    pub name: Vec<u8>,
    /// As `TYPE` says it.
    pub kind: &'static str,
    /// Milliseconds since the epoch, on the server's clock.
    pub expires: Option<i64>,
    /// Members, fields, characters: what `SCARD`, `HLEN`, `STRLEN`, … answer; where the file tells without decoding it.
    pub length: Option<u64>,
    /// A short string itself, where [`Tap::keep_texts`] asks for it.
    pub text: Option<Vec<u8>>,
}

/// Reads a whole file from `tap`, and calls `each` for every key. What is damaged or cut off is an `Err`.
pub fn read(tap: &mut Tap, each: &mut dyn FnMut(Key)) -> Result<Summary> {
    let mut summary = Summary::default();
    header(tap, &mut summary)?;
    let counted = records(tap, &mut summary, each);
    if counted.is_err() {
        tap.pass_rest()?;
    }
    let checked = tap.finish();
    summary.size = tap.taken();
    match (counted, checked) {
        (Ok(()), Ok(checked)) => summary.checksum = checked,
        (Err(e), Ok(true)) => (summary.checksum, summary.uncounted) = (true, Some(format!("{e:#}"))),
        (Err(e), _) | (_, Err(e)) => return Err(e),
    }
    Ok(summary)
}

fn header(tap: &mut Tap, summary: &mut Summary) -> Result<()> {
    let head = tap.bytes(9)?;
    let digits = head.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (magic, version) = head.split_at(head.len() - digits);
    summary.magic = String::from_utf8_lossy(magic).into_owned();
    ensure!(matches!(summary.magic.as_str(), "REDIS" | "VALKEY"), "this is no RDB file");
    summary.version = std::str::from_utf8(version)?.parse()?;
    ensure!(summary.version >= 5, "RDB version {} is older than Redis 2.6 and has no checksum", summary.version);
    Ok(())
}

fn records(tap: &mut Tap, summary: &mut Summary, each: &mut dyn FnMut(Key)) -> Result<()> {
    let (mut database, mut expires) = (0, None);
    loop {
        let opcode = tap.byte()?;
        match opcode {
            255 => return Ok(()),
            254 => database = u32::try_from(tap.length()?)?,
            253 => expires = Some(i64::from(u32::from_le_bytes(tap.array()?)) * 1000),
            252 => expires = Some(i64::from_le_bytes(tap.array()?)),
            251 => {
                tap.length()?;
                tap.length()?;
            }
            250 => {
                let (key, value) = (tap.text()?, tap.text()?);
                auxiliary(summary, &key, value);
            }
            249 => {
                tap.byte()?;
            }
            248 => {
                tap.length()?;
            }
            247 => value::module_auxiliary(tap)?,
            245 => {
                tap.pass_string()?;
                summary.function_libraries += 1;
            }
            244 => {
                for _ in 0..3 {
                    tap.length()?;
                }
            }
            242 | 243 | 246 => bail!("it has records of a kind ({opcode}) that is not known here"),
            _ => {
                let name = tap.string()?;
                let Value { kind, length, text } = value::pass(tap, opcode, &summary.magic)?;
                let keys = summary.databases.entry(database).or_default();
                keys.keys += 1;
                keys.expiring += u64::from(expires.is_some());
                match summary.types.get_mut(kind) {
                    Some(count) => *count += 1,
                    None => drop(summary.types.insert(kind.to_owned(), 1)),
                }
                each(Key { database, name, kind, expires: expires.take(), length, text });
            }
        }
    }
}

fn auxiliary(summary: &mut Summary, key: &str, value: String) {
    match key {
        "ctime" => summary.ctime = value.parse().ok(),
        "repl-id" => summary.replication_id = Some(value),
        "repl-stream-db" => summary.replication_database = value.parse().ok(),
        "repl-offset" => summary.replication_offset = value.parse().ok(),
        _ => {}
    }
}

/// Whether these are the first bytes of an RDB file.
pub fn has_magic(start: &[u8]) -> bool {
    let version = |rest: &[u8], digits| rest.len() >= digits && rest[..digits].iter().all(u8::is_ascii_digit);
    start.strip_prefix(b"REDIS").is_some_and(|rest| version(rest, 4))
        || start.strip_prefix(b"VALKEY").is_some_and(|rest| version(rest, 3))
}

/// A length read from a file, as memory may be asked for: a damaged file must not ask for all of it.
fn bounded(length: u64, most: usize) -> Result<usize> {
    match usize::try_from(length) {
        Ok(length) if length <= most => Ok(length),
        _ => bail!("the file is damaged: a length of {length}"),
    }
}
