//! Commits: the one object that makes a snapshot exist, and those that say what became of others (FORMAT.md §2.5, §2.6).

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

use super::layout::{Hash, SourceName};
use super::log::{Gone, Position};
use super::signed::{PublicKey, SignedLine};
use super::trust::{Role, Trust};
use super::{check_format, check_type};
use crate::limits::LAYERS_MAX;
use crate::report::Outcome;
use crate::storage::Lock;

/// An object by name and size in bytes.
pub type Named = (Hash, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Full,
    Incremental,
}

/// As in the commit.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Full => "full",
            Mode::Incremental => "incremental",
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub packs: Vec<Named>,
    pub entries: Vec<Named>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackChange {
    pub add: Vec<Named>,
    pub drop: Vec<Hash>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    pub previous: Option<Hash>,
    pub lineage: String,
    pub epoch: u64,
    pub host: String,
    pub key: String,
    pub agent: String,
    pub data_time: Timestamp,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub outcome: Outcome,
    pub mode: Mode,
    pub basis: Option<u64>,
    pub baseline: u64,
    pub baseline_started: Timestamp,
    pub layers: Vec<Layer>,
    pub pack_lists: Vec<Named>,
    pub packs: PackChange,
    #[serde(default)]
    pub lost: Vec<Hash>,
    /// Of a source that has a log: what of it the snapshot contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogRange>,
    /// It looks wrong beside the snapshots before it (FORMAT.md §4-11).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspect: bool,
    /// The operator accepted what it and the suspect ones before it show.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
    /// Everything that the snapshot names was locked so when it was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
    pub sealed: String,
}

/// A range of a log (FORMAT.md §2.8). From `end` on the log takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    pub timeline: u32,
    /// The engine's own name of what positions count on, where it has one: Redis' replication ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub start: Position,
    pub end: Position,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prune {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub seq: u64,
    pub previous: Option<Hash>,
    pub host: String,
    pub key: String,
    pub agent: String,
    pub started: Timestamp,
    pub removed: Vec<Removed>,
    /// What of the log went with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<Gone>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub seq: u64,
    pub hash: Hash,
}

/// The source is given up on purpose. The next snapshot takes it up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub seq: u64,
    pub previous: Option<Hash>,
    pub host: String,
    pub key: String,
    pub agent: String,
    pub started: Timestamp,
    /// In the words of whoever did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    Snapshot(Box<Snapshot>),
    Prune(Box<Prune>),
    Retire(Box<Retirement>),
}

/// The types of commits that there are.
const TYPES: [&str; 3] = ["snapshot", "prune", "retire"];

/// A commit that verified: read, understood, signed by a key that may.
#[derive(Debug, Clone)]
pub struct Commit {
    pub hash: Hash,
    pub signer: PublicKey,
    pub line: Line,
}

impl Commit {
    /// Reads and verifies the commit that lies at (`source`, `seq`).
    pub fn verify(trust: &Trust, source: &SourceName, seq: u64, object: &[u8]) -> Result<Commit> {
        let signed = SignedLine::parse(object)?;
        check_format(signed.format()?, "the commit")?;
        check_type(&signed.r#type()?, &TYPES, "the commit")?;
        let line: Line = signed.decode()?;
        let commit = Commit { hash: Hash::of(object), signer: signed.key, line };
        let (repository, named, number, key, started) = match &commit.line {
            Line::Snapshot(s) => (&s.repository, &s.source, s.seq, &s.key, s.started),
            Line::Prune(p) => (&p.repository, &p.source, p.seq, &p.key, p.started),
            Line::Retire(r) => (&r.repository, &r.source, r.seq, &r.key, r.started),
        };
        ensure!(*repository == trust.id && named == source && number == seq, "the commit belongs elsewhere");
        let layers = commit.snapshot().map_or(0, |s| s.layers.len());
        ensure!(layers <= LAYERS_MAX, "the commit names {layers} index layers; at most {LAYERS_MAX} are allowed");
        ensure!(*key == commit.signer.id(), "the commit names another key than the one that signed it");
        let keeper = commit.snapshot().is_none() && trust.may_sign(&commit.signer, Role::Keeper, source, started);
        if !keeper && !trust.may_sign(&commit.signer, Role::Host, source, started) {
            bail!("signed by {}, which the root key has not certified for this source", commit.signer.id());
        }
        Ok(commit)
    }

    pub fn seq(&self) -> u64 {
        match &self.line {
            Line::Snapshot(s) => s.seq,
            Line::Prune(p) => p.seq,
            Line::Retire(r) => r.seq,
        }
    }

    pub fn previous(&self) -> Option<Hash> {
        match &self.line {
            Line::Snapshot(s) => s.previous,
            Line::Prune(p) => p.previous,
            Line::Retire(r) => r.previous,
        }
    }

    pub fn snapshot(&self) -> Option<&Snapshot> {
        match &self.line {
            Line::Snapshot(s) => Some(s),
            Line::Prune(_) | Line::Retire(_) => None,
        }
    }
}

/// Text of a pack list: `+<sha256> <size>` and `-<sha256>` lines.
pub fn write_pack_list(change: &PackChange) -> String {
    let added = change.add.iter().map(|(hash, size)| format!("+{hash} {size}\n"));
    added.chain(change.drop.iter().map(|hash| format!("-{hash}\n"))).collect()
}

pub fn read_pack_list(text: &str) -> Result<PackChange> {
    let mut change = PackChange::default();
    for line in text.lines() {
        if let Some(added) = line.strip_prefix('+') {
            let (hash, size) = added.split_once(' ').context("malformed pack list")?;
            change.add.push((Hash::parse(hash)?, size.parse().context("malformed pack list")?));
        } else {
            change.drop.push(Hash::parse(line.strip_prefix('-').context("malformed pack list")?)?);
        }
    }
    Ok(change)
}
