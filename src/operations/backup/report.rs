//! What a backup did.

use jiff::Timestamp;
use serde::Serialize;

use crate::report::{Outcome, Skip, Stats};
use crate::repository::layout::{Hash, SourceName};
use crate::repository::snapshot::Mode;

#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    pub commit: Hash,
    pub outcome: Outcome,
    pub mode: Mode,
    /// Why this was a full or a baseline; empty for an incremental.
    pub why: String,
    pub data_time: Timestamp,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub seconds: f64,
    pub stats: Stats,
    /// Stored bytes that were there already from an interrupted run.
    pub taken_over: u64,
    /// Stored bytes that waited in the spool.
    pub spooled: u64,
    pub skipped: Vec<Skip>,
    pub skipped_count: u64,
    /// Packs that were missing and the snapshots that they hurt.
    pub lost_packs: Vec<Hash>,
    pub hurt: Vec<u64>,
    /// The repository no longer shows what this host has seen in it, or somebody has changed what is never changed.
    pub alarm: bool,
    /// Why the snapshot is suspect; empty if it is not.
    pub suspicions: Vec<String>,
    pub notices: Vec<String>,
    pub facts: serde_json::Value,
}
