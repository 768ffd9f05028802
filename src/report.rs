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

/// Stands for what was found, in a report that everybody may read who may read the repository.
pub const HIDDEN: &str = "not kept here";
/// Words of our own in what was found.
const OURS: [&str; 24] = [
    "and",
    "are",
    "before",
    "by",
    "differ",
    "done",
    "error",
    "exit",
    "gone",
    "missing",
    "no",
    "none",
    "not",
    "null",
    "of",
    "ok",
    "other",
    "refused",
    "run",
    "snapshot's",
    "text",
    "the",
    "time",
    "without",
];

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ",;()\"".contains(c))
        .map(|word| word.trim_end_matches(':'))
        .filter(|w| !w.is_empty())
}

/// A number, a length of time, a hash, a time or a truth value.
fn is_figure(word: &str) -> bool {
    let hash = word.len() >= 16 && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let truth = matches!(word, "true" | "false" | "t" | "f" | "yes");
    hash || truth
        || word.parse::<f64>().is_ok()
        || word.parse::<jiff::Timestamp>().is_ok()
        || word.parse::<jiff::SignedDuration>().is_ok()
}

/// Remarks for a report in plain text: without what follows upon a colon, which may be the name of a file or the words of a program.
pub fn remarks_in_public(remarks: &[String]) -> Vec<String> {
    let mut all: Vec<(&str, usize)> = Vec::new();
    for remark in remarks {
        let remark = remark.split_once(": ").map_or(remark.as_str(), |(what, _)| what);
        match all.iter_mut().find(|(known, _)| *known == remark) {
            Some((_, times)) => *times += 1,
            None => all.push((remark, 1)),
        }
    }
    all.into_iter().map(|(what, n)| if n == 1 { what.to_owned() } else { format!("{what} ({n} times)") }).collect()
}

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

    /// The same for a report that is signed in plain text. What was found is there as far as it says no more than numbers, hashes, times and what was
    /// expected: an answer of an engine or the words of a program may hold the data itself.
    pub fn in_public(&self) -> Check {
        if !self.was_run() || self.says_no_more() {
            return self.clone();
        }
        // How a program ended is a figure; what it said is not.
        let exit = self.actual.strip_prefix("exit ").and_then(|rest| rest.split_once(": "));
        let exit = exit.filter(|(code, _)| is_figure(code));
        let hidden = |text: &str| format!("{HIDDEN} ({} bytes of text)", text.len());
        let actual = exit.map_or_else(|| hidden(&self.actual), |(code, said)| format!("exit {code}: {}", hidden(said)));
        Check { actual, ..self.clone() }
    }

    fn says_no_more(&self) -> bool {
        let known = || words(&self.expected).chain(words(&self.name));
        words(&self.actual).all(|word| is_figure(word) || OURS.contains(&word) || known().any(|one| one == word))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_check_has_figures_and_no_answers() {
        let public = |expected: &str, actual: &str| Check::compare("rows of t", expected, actual).in_public().actual;
        for actual in [
            "42",
            "-1.5",
            "null",
            "true",
            "41 rows of t",
            "3 tables",
            "503, without the text",
            "exit 0",
            "2026-01-31T03:00:00Z, 1h 5m before the snapshot's time",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        ] {
            assert_eq!(public("3 tables", actual), actual);
        }
        assert_eq!(public("alice", "alice"), "alice", "the operator's own words");
        for actual in ["alice@example.com", "error: duplicate key (email)=(alice)", "42 alice", "beef"] {
            assert_eq!(public("3 tables", actual), format!("not kept here ({} bytes of text)", actual.len()));
        }
        assert_eq!(public("refused", "exit 1: no row for alice"), "exit 1: not kept here (16 bytes of text)");
        assert_eq!(public("refused", "exit alice: x"), "not kept here (13 bytes of text)");
        let unasked = Check::not_run("chromadb", "no Python here has it");
        assert_eq!(unasked.in_public(), unasked);
    }

    #[test]
    fn public_remarks_name_no_file() {
        let remarks = ["it was resumed", "restored with a note: pay/alice.pdf: no owner", "restored with a note: b: c"];
        let public = remarks_in_public(&remarks.map(str::to_owned));
        assert_eq!(public, ["it was resumed", "restored with a note (2 times)"]);
    }
}
