//! Where objects lie. The only code that builds keys.

use crate::storage::Key;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

pub const REPOSITORY: &str = "repository.json";

/// What the names of plans and of groups begin with where those of sources stand.
const PLAN: &str = "plan.";
const GROUP: &str = "group.";

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

    /// The name under which a restore plan is scheduled and reported on. No source can have it.
    pub fn of_plan(plan: &str) -> Result<SourceName> {
        let name = SourceName::new(plan)?;
        Ok(SourceName(format!("{PLAN}{name}")))
    }

    /// The plan that it stands for.
    pub fn plan(&self) -> Option<&str> {
        self.0.strip_prefix(PLAN)
    }

    /// The name under which the backup of a group is scheduled. No source can have it.
    pub fn of_group(group: &GroupName) -> SourceName {
        SourceName(format!("{GROUP}{group}"))
    }

    /// The group that it stands for.
    pub fn group(&self) -> Option<GroupName> {
        GroupName::new(self.0.strip_prefix(GROUP)?).ok()
    }

    /// Whether it names a source, and nothing that is scheduled beside sources.
    pub fn is_source(&self) -> bool {
        !self.0.starts_with(PLAN) && !self.0.starts_with(GROUP)
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

/// The name of a group: as that of a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupName(SourceName);

impl GroupName {
    pub fn new(name: &str) -> Result<GroupName> {
        SourceName::new(name).map(GroupName)
    }
}

impl From<SourceName> for GroupName {
    fn from(name: SourceName) -> GroupName {
        GroupName(name)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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

/// How to restore without blackstart: what to do, and the scripts for snapshots and for logs.
pub const HELP: [&str; 3] = ["README.txt", "recover.py", "recover-log.py"];

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

pub const GROUPS: &str = "groups/";

/// Prefix of the common points of a group.
pub fn groups(group: &GroupName) -> String {
    format!("{GROUPS}{group}/")
}

pub fn group(group: &GroupName, n: u64) -> Key {
    Key::new(format!("{GROUPS}{group}/{n:010}"))
}

/// Group and number of the key of a common point.
pub fn parse_group(key: &Key) -> Option<(GroupName, u64)> {
    let (group, n) = key.as_str().strip_prefix(GROUPS)?.split_once('/')?;
    let number = n.parse().ok()?;
    (n.len() == 10).then_some((GroupName::new(group).ok()?, number))
}

pub const LEASES: &str = "leases/";

pub fn lease(source: &SourceName) -> Key {
    Key::new(format!("{LEASES}{source}"))
}

/// Prefix of everything of a source's log.
pub fn log(source: &SourceName) -> String {
    format!("wal/{source}/")
}

pub fn log_stretches(source: &SourceName) -> String {
    format!("wal/{source}/stretches/")
}

pub fn log_stretch(source: &SourceName, n: u64) -> Key {
    Key::new(format!("wal/{source}/stretches/{n:010}"))
}

pub fn log_history(source: &SourceName, n: u64, timeline: u32) -> Key {
    Key::new(format!("wal/{source}/histories/{n:010}-{timeline:08x}"))
}

pub fn log_histories(source: &SourceName) -> String {
    format!("wal/{source}/histories/")
}

/// Prefix of the pieces and runs of one stretch.
pub fn log_pieces(source: &SourceName, n: u64) -> String {
    format!("wal/{source}/{n:010}/")
}

/// Prefix of the pieces and runs of one timeline of a stretch.
pub fn log_timeline(source: &SourceName, n: u64, timeline: u32) -> String {
    format!("wal/{source}/{n:010}/{timeline:08x}/")
}

/// Comes after the pieces and runs of the timeline that begin before `start`, and before all others of it.
pub fn log_before(source: &SourceName, n: u64, timeline: u32, start: u64) -> String {
    let below = log_timeline(source, n, timeline);
    start.checked_sub(1).map_or_else(|| below.clone(), |last| format!("{below}{last:016x}~"))
}

/// Comes after everything below a prefix that ends with a slash, and before what follows it: no key has it.
pub fn behind(prefix: &str) -> String {
    prefix.trim_end_matches('/').to_owned() + "0"
}

/// Prefix of the pieces and runs that begin in the range of `unit` bytes (a power of two) at `start`; it may take in neighbours.
pub fn log_unit(source: &SourceName, n: u64, timeline: u32, start: u64, unit: u64) -> String {
    let digits = 16 - (unit.trailing_zeros() as usize).div_ceil(4);
    format!("wal/{source}/{n:010}/{timeline:08x}/{}", &format!("{start:016x}")[..digits])
}

/// A piece from `start`; with `end` a run.
pub fn log_piece(source: &SourceName, n: u64, timeline: u32, start: u64, end: Option<u64>) -> Key {
    let end = end.map_or(String::new(), |end| format!("-{end:016x}"));
    Key::new(format!("wal/{source}/{n:010}/{timeline:08x}/{start:016x}{end}"))
}

/// What the key of an object of a log stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKey {
    Stretch(u64),
    History { stretch: u64, timeline: u32 },
    Piece { stretch: u64, timeline: u32, start: u64, end: Option<u64> },
}

impl LogKey {
    /// The number of the stretch that it belongs to.
    pub fn stretch(&self) -> u64 {
        match self {
            LogKey::Stretch(n) => *n,
            LogKey::History { stretch, .. } | LogKey::Piece { stretch, .. } => *stretch,
        }
    }
}

/// `None` for a key that is not of `source`'s log.
pub fn parse_log(source: &SourceName, key: &Key) -> Option<LogKey> {
    let hex = |text: &str, digits: usize| {
        let ok = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        u64::from_str_radix(text, 16).ok().filter(|_| ok)
    };
    let timeline = |text: &str| u32::try_from(hex(text, 8)?).ok();
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| format!("{n:010}") == text);
    let mut parts = key.as_str().strip_prefix(&log(source))?.split('/');
    let found = match (parts.next()?, parts.next()?, parts.next()) {
        ("stretches", n, None) => LogKey::Stretch(number(n)?),
        ("histories", name, None) => {
            let (n, t) = name.split_once('-')?;
            LogKey::History { stretch: number(n)?, timeline: timeline(t)? }
        }
        (n, t, Some(range)) => {
            let (start, end) = range.split_once('-').map_or((range, None), |(start, end)| (start, Some(end)));
            let end = end.map_or(Some(None), |end| hex(end, 16).map(Some))?;
            LogKey::Piece { stretch: number(n)?, timeline: timeline(t)?, start: hex(start, 16)?, end }
        }
        _ => return None,
    };
    parts.next().is_none().then_some(found)
}
