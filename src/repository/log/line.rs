//! The signed lines of a log and the bodies behind them (FORMAT.md §2.8).

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

use crate::error::{Failure, Kind};
use crate::limits::LOG_UNIT_MAX;
use crate::repository::agefile::{self, Identity, Recipient};
use crate::repository::check_format;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::signed::{PublicKey, SignedLine, SigningKey};
use crate::repository::trust::{Role, Trust};

const UNCERTIFIED: &str = "which the root key has not certified for this source";

/// Whether an object was refused because of who signed it: another host, perhaps, that was let in since the trust was read.
pub fn is_of_a_stranger(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.to_string().contains(UNCERTIFIED))
}

/// Bytes of `check`.
const CHECK_BYTES: usize = 16;

/// Counts the bytes of a log on a timeline; 16 hex digits in keys and lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Position> for String {
    fn from(position: Position) -> String {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = anyhow::Error;
    fn try_from(text: String) -> Result<Position> {
        let position = Position(u64::from_str_radix(&text, 16).context("malformed position")?);
        ensure!(position.to_string() == text, "malformed position {text:?}");
        Ok(position)
    }
}

/// Begins a part of the log without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StretchLine {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub n: u64,
    pub previous: Option<Hash>,
    /// Its first byte follows the last of the stretch before.
    pub continues: bool,
    pub kind: String,
    pub epoch: u64,
    /// No object crosses a multiple of this many bytes.
    pub unit: u64,
    /// Bytes of a file of the engine's log, where that is more than a unit: what is read back is whole files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u64>,
    pub timeline: u32,
    pub start: Position,
    /// The engine's own name of what positions count on, where it has one: Redis' replication ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub host: String,
    pub key: String,
    pub agent: String,
    pub started: Timestamp,
    pub sealed: String,
}

/// Where a timeline leaves its parent; the body is the engine's own account of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub stretch: u64,
    pub timeline: u32,
    pub start: Position,
    pub body: Hash,
    pub time: Timestamp,
    pub key: String,
}

/// A piece, or a run of pieces (`last` and `pieces` are set then).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceLine {
    pub format: u32,
    pub repository: String,
    pub source: SourceName,
    pub stretch: u64,
    pub timeline: u32,
    pub start: Position,
    pub end: Position,
    pub previous: Hash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Hash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<u64>,
    pub body: Hash,
    pub check: String,
    /// A moment, by the engine's clock, at which it had written nothing beyond the last byte.
    pub time: Timestamp,
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum LogLine {
    Stretch(Box<StretchLine>),
    History(HistoryLine),
    Piece(PieceLine),
    Run(PieceLine),
}

/// An object of the log that verified: signed by a key that may, its body whole.
pub struct LogObject<'a> {
    pub line: LogLine,
    /// Of the whole object.
    pub hash: Hash,
    pub signer: PublicKey,
    pub body: &'a [u8],
}

impl LogLine {
    /// The object: two signed lines, then the body.
    pub fn sign(&self, key: &SigningKey, body: &[u8]) -> Result<Vec<u8>> {
        let mut object = key.sign_line(self)?;
        object.extend_from_slice(body);
        Ok(object)
    }

    /// Verifies an object of `source`'s log without any key.
    pub fn verify<'a>(trust: &Trust, source: &SourceName, object: &'a [u8]) -> Result<LogObject<'a>> {
        let mut ends = object.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        let split = ends.nth(1).context("not two signed lines: cut short")?;
        let (head, body) = object.split_at(split);
        let signed = SignedLine::parse(head)?;
        check_format(signed.format()?, "the log")?;
        let line: LogLine = signed.decode()?;
        let (repository, named, key, time, expected) = match &line {
            LogLine::Stretch(l) => (&l.repository, &l.source, &l.key, l.started, None),
            LogLine::History(l) => (&l.repository, &l.source, &l.key, l.time, Some(l.body)),
            LogLine::Piece(l) | LogLine::Run(l) => {
                ensure!(l.start < l.end, "the piece is empty or runs backwards");
                ensure!(l.end.0 - l.start.0 <= LOG_UNIT_MAX as u64, "the piece is larger than the format allows");
                (&l.repository, &l.source, &l.key, l.time, Some(l.body))
            }
        };
        ensure!(*repository == trust.id && named == source, "the object belongs elsewhere");
        ensure!(*key == signed.key.id(), "the object names another key than the one that signed it");
        ensure!(trust.may_sign(&signed.key, Role::Host, source, time), "signed by {}, {UNCERTIFIED}", signed.key.id());
        match expected {
            None => ensure!(body.is_empty(), "bytes after the signature"),
            Some(hash) => {
                ensure!(Hash::of(body) == hash, "the body is not the one that was signed: cut short or altered")
            }
        }
        Ok(LogObject { hash: Hash::of(object), signer: signed.key, body, line })
    }
}

/// What the host and the holder of the recovery key may read of a stretch.
#[derive(Clone, Serialize, Deserialize)]
pub struct SealedStretch {
    secret: String,
    /// What the engine said of itself.
    pub facts: serde_json::Value,
    /// Why the stretch began, for people.
    pub why: String,
}

impl SealedStretch {
    pub fn new(facts: serde_json::Value, why: &str) -> Result<SealedStretch> {
        let mut secret = [0u8; 64];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
        Ok(SealedStretch { secret: BASE64_STANDARD.encode(secret), facts, why: why.to_owned() })
    }

    pub fn seal(&self, recipients: &[Recipient]) -> Result<String> {
        Ok(BASE64_STANDARD.encode(agefile::seal(recipients, &serde_json::to_vec(self)?)?.bytes))
    }

    pub fn open(line: &StretchLine, identities: &[Identity]) -> Result<SealedStretch> {
        let read = || {
            let mut stored = BASE64_STANDARD.decode(&line.sealed)?;
            anyhow::Ok(serde_json::from_slice(&agefile::open(&mut stored, identities)?)?)
        };
        read().with_context(|| format!("read the sealed part of stretch {} of the log of {}", line.n, line.source))
    }

    /// The `check` of a piece with these bytes.
    pub fn check(&self, bytes: &[u8]) -> Result<String> {
        let secret = BASE64_STANDARD.decode(&self.secret).context("read the secret of a stretch")?;
        let digest = Sha256::new_with_prefix(secret).chain_update(bytes).finalize();
        Ok(BASE64_STANDARD.encode(&digest[..CHECK_BYTES]))
    }
}

/// A body: an age file of one zstd frame, and what is to lie behind that.
pub fn seal_body(recipients: &[Recipient], bytes: &[u8], behind: &[u8], level: i32) -> Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(level).context("set up compression")?;
    compressor.include_checksum(true).context("set up compression")?;
    let mut frame = compressor.compress(bytes).context("compress")?;
    frame.extend_from_slice(behind);
    Ok(agefile::seal(recipients, &frame)?.bytes)
}

/// The bytes of a body, at most `most`, and what lies behind their frame.
pub fn open_body(body: &[u8], identities: &[Identity], most: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut stored = body.to_vec();
    let frame = agefile::open(&mut stored, identities)?;
    let damaged = |e: String| {
        Failure::new(
            Kind::Failed,
            format!("a piece of the log does not decompress: {e}"),
            "Its signature and hash are right, so it was written so: please report this. Restore to a point before it.",
        )
    };
    let length = zstd::zstd_safe::find_frame_compressed_size(&frame);
    let length = length.map_err(|code| damaged(zstd::zstd_safe::get_error_name(code).to_owned()))?;
    let behind = frame.get(length..).unwrap_or_default().to_vec();
    Ok((zstd::bulk::decompress(&frame, most).map_err(|e| damaged(e.to_string()))?, behind))
}
