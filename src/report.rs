//! What an operation did, as data. Only `commands` turns it into text; `--json` prints it as it is.

use crate::entry::Name;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something of a source that is not in its snapshot, or not for certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    pub path: Name,
    pub why: String,
}

/// How whole a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Complete,
    Partial,
}

/// What one run read and stored, in bytes and counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub entries: u64,
    /// Bytes of regular files in the snapshot.
    pub bytes: u64,
    /// Bytes read from the source in this run.
    pub bytes_read: u64,
    /// Raw bytes that were new.
    pub bytes_new: u64,
    /// Bytes written to the store: packs and index.
    pub bytes_stored: u64,
    /// Packs that the snapshot needs, and their stored bytes.
    pub packs: u64,
    pub pack_bytes: u64,
}

/// Stands for what is expected where a check was not run.
pub const NOT_RUN: &str = "not run";

/// One thing that was checked on a restored copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub expected: String,
    pub actual: String,
    pub passed: bool,
}

impl Check {
    /// What could not be asked here: neither well nor wrong.
    pub fn not_run(name: impl Into<String>, why: impl ToString) -> Check {
        Check { name: name.into(), expected: NOT_RUN.into(), actual: why.to_string(), passed: true }
    }

    /// Whether it was asked at all.
    pub fn was_run(&self) -> bool {
        self.expected != NOT_RUN
    }

    /// Passed if both read the same.
    pub fn compare(name: impl Into<String>, expected: impl ToString, actual: impl ToString) -> Check {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        let passed = expected == actual;
        Check { name: name.into(), expected, actual, passed }
    }
}

/// One stretch of a run, on a monotonic clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
}

/// What takes how long in a run. Stretches of one name add up; they stay in the order in which each was first met.
#[derive(Debug, Default)]
pub struct Stopwatch(Mutex<Vec<Phase>>);

impl Stopwatch {
    /// Runs `work` and adds its time to the phase `name`.
    pub fn time<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        self.add(name, begun.elapsed());
        result
    }

    pub fn add(&self, name: &str, took: Duration) {
        let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match phases.iter_mut().find(|p| p.name == name) {
            Some(phase) => phase.seconds += took.as_secs_f64(),
            None => phases.push(Phase { name: name.to_owned(), seconds: took.as_secs_f64() }),
        }
    }

    pub fn phases(&self) -> Vec<Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One restored file that a program took back into its engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    pub file: String,
    pub program: String,
    pub bytes: u64,
    /// Bytes at the end of the file that the program did not read. Not 0: doubtful.
    pub bytes_unread: u64,
    pub seconds: f64,
    /// The last that the program said.
    pub stderr: Vec<String>,
}
