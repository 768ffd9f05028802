//! Where objects lie. The only code that builds keys.

use crate::storage::Key;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

pub const REPOSITORY: &str = "repository.json";

/// The name of a source: `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

impl SourceName {
    pub fn new(name: &str) -> Result<SourceName> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        ensure!(
            name.len() <= 63
                && name.bytes().next().is_some_and(ok)
                && name.bytes().all(|b| ok(b) || b == b'_' || b == b'-'),
            "{name:?} cannot name a source: use lower-case letters, digits, `-` and `_`, at most 63, the first a letter or digit"
        );
        Ok(SourceName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SourceName {
    type Error = anyhow::Error;
    fn try_from(name: String) -> Result<SourceName> {
        SourceName::new(&name)
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> String {
        name.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256, written as hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }

    pub fn parse(hex: &str) -> Result<Hash> {
        let mut out = [0u8; 32];
        ensure!(hex.len() == 64 && hex.is_ascii(), "{hex:?} is not a SHA-256 in hex");
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16)?;
        }
        ensure!(Hash(out).to_string() == hex, "{hex:?} is not a SHA-256 in lower-case hex");
        Ok(Hash(out))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Hash, D::Error> {
        Hash::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

fn content(area: &str, source: &SourceName, hash: &Hash) -> Key {
    let name = hash.to_string();
    Key::new(format!("{area}/{source}/{}/{name}", &name[..2]))
}

pub fn pack(source: &SourceName, hash: &Hash) -> Key {
    content("packs", source, hash)
}

pub fn index(source: &SourceName, hash: &Hash) -> Key {
    content("index", source, hash)
}

/// Prefix of all packs (`packs`) or index objects (`index`) of a source.
pub fn content_prefix(area: &str, source: &SourceName) -> String {
    format!("{area}/{source}/")
}

/// The hash in the key of a pack or index object; `None` for a key that is not named so.
pub fn content_hash(key: &Key) -> Option<Hash> {
    Hash::parse(key.as_str().rsplit('/').next()?).ok()
}

pub fn repository() -> Key {
    Key::new(REPOSITORY)
}

/// With [`recover_py`]: how to restore without blackstart.
pub fn readme() -> Key {
    Key::new("README.txt")
}

pub fn recover_py() -> Key {
    Key::new("recover.py")
}

pub const TRUST: &str = "trust/";

pub fn trust(n: u64) -> Key {
    Key::new(format!("{TRUST}{n:010}"))
}

pub const SNAPSHOTS: &str = "snapshots/";

pub fn snapshots(source: &SourceName) -> String {
    format!("{SNAPSHOTS}{source}/")
}

pub fn snapshot(source: &SourceName, seq: u64) -> Key {
    Key::new(format!("{SNAPSHOTS}{source}/{seq:010}"))
}

/// Source and number of a commit's key; `None` for any other key.
pub fn parse_snapshot(key: &Key) -> Option<(SourceName, u64)> {
    let (source, seq) = key.as_str().strip_prefix(SNAPSHOTS)?.split_once('/')?;
    let number = seq.parse().ok()?;
    (seq.len() == 10).then_some((SourceName::new(source).ok()?, number))
}

/// Prefix of the reports on `subject`: a source's name, or `plan.` and a plan's.
pub fn drills(subject: &str) -> String {
    format!("drills/{subject}/")
}

pub fn drill(subject: &str, n: u64) -> Key {
    Key::new(format!("drills/{subject}/{n:010}"))
}

/// Number of a report's key.
pub fn parse_drill(key: &Key) -> Option<u64> {
    let (_, n) = key.as_str().strip_prefix("drills/")?.split_once('/')?;
    (n.len() == 10).then(|| n.parse().ok())?
}

pub fn lease(source: &SourceName) -> Key {
    Key::new(format!("leases/{source}"))
}
