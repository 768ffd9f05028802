//! Evidence: signed reports of drills and of real restores, each naming the hash of the one before it (FORMAT.md §2.7).
//!
//! `drills/<subject>/<n>` is create-only and `n` has no gaps, so a report can neither be altered nor taken out of the middle unnoticed.

mod environment;
mod level;
pub mod restored;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::Open;
use super::canary::CanaryReport;
use crate::error::{Failure, Kind, kind_of};
use crate::report::{Check, Outcome, Phase, remarks_in_public};
use crate::repository::check_format;
use crate::repository::history::{self, Cover, Written};
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::series;
use crate::repository::signed::{PublicKey, SignedLine, SigningKey};
use crate::repository::snapshot::Snapshot;
use crate::repository::trust::Role;
use crate::storage::{self, Key};
pub use environment::Environment;
pub use level::Level;

/// Tries to append a report while others append theirs.
const TRIES: usize = 8;

/// The report on one drill, or on one real restore, of one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillReport {
    /// `drill`, or `restore` for a real one, which proves nothing but is measured.
    pub r#type: String,
    pub format: u32,
    pub repository: String,
    pub subject: String,
    /// Place in the chain of the subject's reports, from 1.
    pub n: u64,
    /// Hash of report `n - 1`.
    pub previous: Option<Hash>,
    pub source: SourceName,
    pub kind: String,
    pub level: Level,
    /// Of which run of which plan this was a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Who or what started it.
    pub trigger: String,
    pub seq: u64,
    pub commit: Hash,
    pub data_time: Timestamp,
    /// Up to where the log that was replayed went when the drill began; absent where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_until: Option<Timestamp>,
    pub outcome: Outcome,
    /// Why this recovery point was taken.
    pub point: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub passed: bool,
    pub checks: Vec<Check>,
    /// What the copy's canary told, where one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryReport>,
    pub tested: Vec<String>,
    pub not_tested: Vec<String>,
    /// Entries and bytes restored, and stored bytes fetched for them.
    pub entries: u64,
    pub bytes: u64,
    pub bytes_fetched: u64,
    pub objects: Objects,
    pub keys: Keys,
    pub environment: Environment,
    /// Hash of the configuration file in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Hash>,
    /// Age of the data when the drill began, the stored log included.
    pub rpo_exposure_seconds: f64,
    pub rpo_target_seconds: Option<f64>,
    pub rpo_met: Option<bool>,
    /// From the first read of the repository until the last check, on a monotonic clock.
    pub achieved_rto_seconds: f64,
    pub rto_target_seconds: Option<f64>,
    pub rto_met: Option<bool>,
    pub timeline: Vec<Phase>,
    /// What was not as it should be, though no check failed by it.
    pub deviations: Vec<String>,
    /// Whether the scratch copy is gone again; of a real restore: nothing to remove.
    pub scratch_removed: bool,
    /// Scratch of earlier drills that had been killed, removed at the start.
    pub leftovers_removed: u64,
    pub agent: String,
}

impl DrillReport {
    /// Whether it proves its recovery point: a drill with the real engine that passed.
    pub fn proves(&self) -> bool {
        self.r#type == "drill" && self.passed && self.level.proves()
    }

    /// Whether it shows that what had failed is well: a drill since then that passed, of a level that tells as much, and of no older snapshot.
    pub fn answers(&self, failed: &DrillReport) -> bool {
        let later = self.r#type == "drill" && self.n > failed.n && self.seq >= failed.seq;
        later && self.passed && self.level.covers(failed.level)
    }
}

/// The stored objects that the snapshot needs. Anyone who has the commit can count and digest them again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Objects {
    pub count: u64,
    pub bytes: u64,
    /// SHA-256 over the lines `<sha256> <size>` of all of them, sorted.
    pub digest: Hash,
}

impl Objects {
    pub fn of(open: &Open, snapshot: &Snapshot) -> Result<Objects> {
        let mut all = series::packs_of(&open.store, snapshot)?;
        all.extend(series::index_objects(snapshot).copied());
        let text: String = all.iter().map(|(hash, size)| format!("{hash} {size}\n")).collect();
        Ok(Objects { count: all.len() as u64, bytes: all.values().sum(), digest: Hash::of(text.as_bytes()) })
    }
}

/// Key ids; never a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keys {
    pub root: String,
    pub epoch: u64,
    /// age recipients of the data.
    pub recipients: Vec<String>,
    /// Who signed the snapshot, and who signs this.
    pub commit: String,
    pub report: String,
}

/// What every report has.
#[derive(Debug, Clone, Deserialize)]
pub struct Head {
    pub r#type: String,
    format: u32,
    repository: String,
    pub subject: String,
    pub n: u64,
    previous: Option<Hash>,
    pub started: Timestamp,
    source: Option<SourceName>,
    #[serde(default)]
    sources: Vec<SourceName>,
}

impl Head {
    /// Sources that it speaks of.
    fn sources(&self) -> impl Iterator<Item = &SourceName> {
        self.source.iter().chain(&self.sources)
    }
}

/// A report that verified.
#[derive(Debug, Clone)]
pub struct Stored {
    pub head: Head,
    pub hash: Hash,
    pub signer: PublicKey,
    /// The object, both lines.
    pub object: Vec<u8>,
}

impl Stored {
    /// Reads one object: the signature fits its key and it is a report of ours. Whether the key may sign is [`Stored::trusted`].
    pub fn parse(object: &[u8]) -> Result<Stored> {
        let signed = SignedLine::parse(object)?;
        check_format(signed.format()?, "the report")?;
        let head: Head = signed.decode()?;
        let ours = ["drill", "restore", "plan"].contains(&head.r#type.as_str()) && head.format > 0;
        ensure!(ours, "a signed line of type {}, not a report", head.r#type);
        Ok(Stored { head, hash: Hash::of(object), signer: signed.key.clone(), object: object.to_vec() })
    }

    /// That a key that may sign such a report of this repository has signed it.
    pub fn trusted(&self, open: &Open) -> Result<()> {
        ensure!(self.head.repository == open.trust.id, "the report belongs to another repository");
        let sources: Vec<SourceName> = self.head.sources().cloned().collect();
        require_trusted(open, &self.signer, &sources, self.head.started)
    }

    /// Whether it names `before` as the report before it.
    pub fn follows(&self, before: &Stored) -> bool {
        self.head.previous == Some(before.hash)
    }

    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let line = self.object.split(|b| *b == b'\n').next().unwrap_or_default();
        serde_json::from_slice(line).context("read a report")
    }
}

/// That `key` may sign a report on `sources` that is begun at `at`: the root's, or one certified for drills of all of them.
pub fn require_trusted(open: &Open, key: &PublicKey, sources: &[SourceName], at: Timestamp) -> Result<()> {
    let may = |source: &SourceName| open.trust.may_sign(key, Role::Drill, source, at);
    if *key == open.trust.root || (!sources.is_empty() && sources.iter().all(may)) {
        return Ok(());
    }
    Err(Failure::new(
        Kind::WrongKey,
        format!("signed by {}, which may not sign reports of this source", key.id()),
        "Such a report counts for nothing. Give the recovery key file of this repository, or a drill key that its root has certified.",
    ))
}

/// All reports on one subject, as far as they verify, the oldest first.
#[derive(Debug, Default)]
pub struct Chain {
    pub reports: Vec<Stored>,
    /// What does not verify, is missing or breaks the chain: (object, why).
    pub faults: Vec<(Key, String)>,
    /// Whole reports by keys that may not sign here, and why: they count for nothing, and hurt nothing.
    pub foreign: Vec<(Key, String)>,
    /// What somebody has put over reports; the oldest version counts.
    pub covers: Vec<Cover>,
}

impl Chain {
    pub fn read(open: &Open, subject: &str) -> Result<Chain> {
        let mut listed: BTreeMap<u64, Written> = BTreeMap::new();
        let mut chain = Chain::default();
        for written in history::list(&open.store, &layout::drills(subject)).context("list reports")? {
            chain.covers.extend(written.cover());
            match layout::parse_drill(&written.key) {
                Some(n) => drop(listed.insert(n, written)),
                None => chain.faults.push((written.key, "is not named as a report is".into())),
            }
        }
        let last = listed.last_key_value().map_or(0, |(n, _)| *n);
        let mut before: Option<Hash> = None;
        for n in 1..=last {
            let Some(written) = listed.remove(&n) else {
                chain.faults.push((layout::drill(subject, n), "is missing: somebody removed evidence".into()));
                before = None;
                continue;
            };
            let key = written.key.clone();
            let read = written.read(&open.store, |body| {
                Stored::parse(body).and_then(|stored| belongs(open, subject, n, &stored).map(|()| stored))
            });
            match read {
                Ok(stored) => {
                    // What is before it and does not verify has been named already.
                    if before.is_some_and(|hash| stored.head.previous != Some(hash)) {
                        chain.faults.push((key, "does not follow the report before it: the chain is broken".into()));
                    }
                    before = Some(stored.hash);
                    chain.reports.push(stored);
                }
                Err(e) if e.is::<storage::Error>() => return Err(e.context("read a report")),
                Err(e) if kind_of(&e) == Kind::WrongKey => {
                    chain.foreign.push((key, format!("{e:#}: it counts for nothing, and hurts nothing")));
                    // The next report names it all the same: one that was put in the place of another breaks the chain.
                    before = written.read(&open.store, |body| Stored::parse(body)).ok().map(|stored| stored.hash);
                }
                Err(e) => {
                    chain.faults.push((key, format!("{e:#}")));
                    before = None;
                }
            }
        }
        Ok(chain)
    }

    /// The reports on drills and restores of a source.
    pub fn drills(&self) -> Vec<DrillReport> {
        self.reports.iter().filter(|s| s.head.r#type != "plan").filter_map(|s| s.decode().ok()).collect()
    }
}

fn belongs(open: &Open, subject: &str, n: u64, stored: &Stored) -> Result<()> {
    stored.trusted(open)?;
    ensure!(stored.head.subject == subject && stored.head.n == n, "the report belongs elsewhere");
    ensure!(n > 1 || stored.head.previous.is_none(), "is the first, but names one before it");
    Ok(())
}

/// A report as it is stored: signed plain text, for everybody who may read the repository.
pub trait Public: Serialize {
    /// Without answers of engines and words of programs, which may hold the data itself (docs/decisions/018).
    fn in_public(&self) -> Self;
}

impl Public for DrillReport {
    fn in_public(&self) -> DrillReport {
        DrillReport {
            checks: self.checks.iter().map(Check::in_public).collect(),
            deviations: remarks_in_public(&self.deviations),
            ..self.clone()
        }
    }
}

/// Signs what `make` gives for its place in the chain of `subject`, as far as it is for the public, and stores it; gives all of it. Of two writers of
/// one place, one goes behind the other.
pub fn append<T: Public>(
    open: &Open,
    signer: &SigningKey,
    subject: &str,
    mut make: impl FnMut(u64, Option<Hash>) -> T,
) -> Result<(T, Hash)> {
    for _ in 0..TRIES {
        let listed = open.store.list(&layout::drills(subject)).context("list reports")?;
        let last = listed.iter().filter_map(|o| Some((layout::parse_drill(&o.key)?, &o.key))).max();
        let previous = match last {
            Some((_, key)) => Some(Hash::of(&open.store.get(key).context("read the last report")?)),
            None => None,
        };
        let n = last.map_or(0, |(n, _)| n) + 1;
        let report = make(n, previous);
        let body = signer.sign_line(&report.in_public())?;
        // Reports are never removed: one that no reader would count must not be written.
        Stored::parse(&body)?.trusted(open)?;
        let hash = Hash::of(&body);
        match open.store.create(&layout::drill(subject, n), body.into(), &hash.0) {
            Ok(_) => return Ok((report, hash)),
            Err(e) if e.kind == storage::Kind::AlreadyExists => {}
            Err(e) => return Err(e).context("store the report"),
        }
    }
    bail!("store the report: others were faster {TRIES} times")
}

/// Subjects that have reports, sources and `plan.…`.
pub fn subjects(open: &Open) -> Result<Vec<String>> {
    let listed = open.store.list("drills/").context("list reports")?;
    let mut names: Vec<String> =
        listed.iter().filter_map(|o| Some(o.key.as_str().strip_prefix("drills/")?.split_once('/')?.0.into())).collect();
    names.dedup();
    Ok(names)
}
