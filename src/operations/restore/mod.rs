//! One restore, top to bottom: pick a snapshot, plan by pack, fetch and write in parallel, publish by one rename.
//!
//! A drill runs exactly this, into scratch. Every frame is checked against its SHA-256 before a byte of it is written, and nothing
//! is visible under the final name before everything is.

mod fetch;
mod plan;
mod words;
mod work;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Open;
use super::basis::index_store;
use super::suspect::suspects;
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::progress::Progress;
use crate::report::{Outcome, Skip, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres;
use crate::target::StagingTree;
use crate::time;
pub use fetch::OpenPack;
pub use plan::PackWork;
use plan::Plan;
use words::{nothing_found, unfinished};

/// What the kind of `snapshot` adds to a whole copy that is to be `to`.
pub fn finish_of(snapshot: &Snapshot, to: &Path) -> Option<Finish> {
    let finally = to.to_owned();
    (snapshot.kind == postgres::PHYSICAL).then(|| {
        Arc::new(move |staged: &Path| {
            postgres::restored::settle(staged, &finally)?;
            postgres::restored::recover(staged)
        }) as Finish
    })
}

/// Which snapshot to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The newest complete one that is not suspect; if all are, the newest complete one.
    Latest,
    /// The newest that a drill has proven; the numbers are those that are.
    LatestVerified(Vec<u64>),
    /// The newest complete one whose data is not younger.
    At(Timestamp),
    Seq(u64),
}

#[derive(Clone)]
pub struct Request {
    /// A directory that does not exist yet; it receives the entries.
    pub to: PathBuf,
    /// Replace what is there, keeping it beside.
    pub in_place: bool,
    /// These entries and what is below them; empty for all.
    pub paths: Vec<Name>,
    pub workers: usize,
    /// What a kind adds to the staged copy before it becomes visible: recovery settings, …
    pub finish: Option<Finish>,
    /// Counts the stored bytes of the packs that are written.
    pub progress: Progress,
}

impl Request {
    /// Everything, to a place where nothing is yet.
    pub fn new(to: PathBuf, workers: usize) -> Request {
        Request { to, in_place: false, paths: Vec::new(), workers, finish: None, progress: Progress::default() }
    }
}

/// Called with the path of the staged copy, after everything else has been written.
pub type Finish = Arc<dyn Fn(&Path) -> Result<()> + Send + Sync>;

#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    pub commit: Hash,
    pub data_time: Timestamp,
    pub outcome: Outcome,
    pub to: PathBuf,
    pub entries: u64,
    pub bytes: u64,
    pub packs: u64,
    /// Stored bytes fetched.
    pub bytes_fetched: u64,
    pub phases: Phases,
    pub resumed: bool,
    /// What could not be restored as it was, though its contents were.
    pub notes: Vec<Skip>,
    pub notes_count: u64,
    /// Where what was there before is now.
    pub kept: Option<PathBuf>,
}

/// Seconds by phase, on a monotonic clock.
#[derive(Debug, Clone, Copy, Default, Serialize, serde::Deserialize)]
pub struct Phases {
    /// Reading the index and planning.
    pub locate: f64,
    /// Fetching, decrypting, checking, decompressing and writing, which overlap.
    pub data: f64,
    /// How `data` divides among them, by the share of the workers' time: waiting for packs, …
    pub fetch: f64,
    pub decrypt: f64,
    /// Checking the hash and decompressing.
    pub decode: f64,
    pub write: f64,
    /// Links, metadata, making durable, the rename.
    pub publish: f64,
    pub total: f64,
}

/// What a restore would do.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    pub source: SourceName,
    pub seq: u64,
    pub data_time: Timestamp,
    pub to: PathBuf,
    pub entries: u64,
    pub bytes: u64,
    pub packs: u64,
    pub bytes_to_fetch: u64,
    /// From measured drills of this source; absent where there is none.
    pub seconds: Option<f64>,
}

/// Finds the snapshot that `pick` means among those that verify.
pub fn find(open: &Open, source: &SourceName, pick: &Pick) -> Result<(Commit, Snapshot)> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let all: Vec<(&Commit, &Snapshot)> = whole.snapshots().collect();
    let complete = |s: &Snapshot| s.outcome == Outcome::Complete;
    let suspects = suspects(&whole);
    let found = match pick {
        Pick::Latest => {
            let mut newest = all.iter().rev().filter(|(_, s)| complete(s));
            let good = newest.clone().find(|(_, s)| !suspects.contains(&s.seq));
            good.or(newest.next()).or(all.last())
        }
        Pick::LatestVerified(seqs) => all.iter().rev().find(|(_, s)| seqs.contains(&s.seq)),
        Pick::At(time) => {
            let mut until = all.iter().rev().filter(|(_, s)| s.data_time <= *time);
            until.clone().find(|(_, s)| complete(s)).or(until.next())
        }
        Pick::Seq(seq) => all.iter().find(|(_, s)| s.seq == *seq),
    };
    let Some((commit, snapshot)) = found else { return Err(nothing_found(open, source, pick, &whole)) };
    if *pick == Pick::Latest {
        nothing_newer_is_broken(&whole, snapshot)?;
    }
    Ok(((*commit).clone(), (*snapshot).clone()))
}

/// An unsound head is never passed over in silence.
pub fn nothing_newer_is_broken(whole: &Whole, snapshot: &Snapshot) -> Result<()> {
    let Some((seq, why)) = whole.faults.iter().rev().find(|(seq, _)| *seq > snapshot.seq) else { return Ok(()) };
    Err(Failure::new(
        Kind::CheckFailed,
        format!(
            "commit {seq} of {} is newer than the newest sound snapshot, and does not verify: {why}",
            snapshot.source
        ),
        format!(
            "Nothing was changed. The newest that can be restored is {} with data of {}: say --snapshot {} to take it.",
            snapshot.seq,
            time::local(snapshot.data_time),
            snapshot.seq
        ),
    ))
}

/// Newer snapshots of `source` than `seq` that [`Pick::Latest`] passed over because they are suspect.
pub fn passed_over(open: &Open, source: &SourceName, seq: u64) -> Result<Vec<u64>> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    Ok(suspects(&whole).into_iter().filter(|suspect| *suspect > seq).collect())
}

/// Plans without fetching data. `rate` is bytes a second as drills have measured it.
pub fn forecast(
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    request: &Request,
    rate: Option<f64>,
) -> Result<Forecast> {
    let plan = Plan::read(&index_store(open, &snapshot.source, true), snapshot, identities, &request.paths)?;
    Ok(Forecast {
        source: snapshot.source.clone(),
        seq: snapshot.seq,
        data_time: snapshot.data_time,
        to: request.to.clone(),
        entries: plan.totals.entries,
        bytes: plan.totals.bytes,
        packs: plan.totals.packs,
        bytes_to_fetch: plan.totals.pack_bytes,
        seconds: rate.filter(|r| *r > 0.0).map(|r| plan.totals.bytes as f64 / r),
    })
}

/// The packs that a restore fetches from.
pub fn packs_needed(open: &Open, identities: &[Identity], snapshot: &Snapshot, request: &Request) -> Result<Vec<Hash>> {
    let plan = Plan::read(&index_store(open, &snapshot.source, true), snapshot, identities, &request.paths)?;
    plan.pack_numbers()?.into_iter().map(|number| Ok(plan.pack(number)?.name)).collect()
}

/// Restores `snapshot`.
pub fn restore(
    open: &Open,
    identities: &[Identity],
    commit: &Commit,
    snapshot: &Snapshot,
    request: &Request,
) -> Result<RestoreReport> {
    let begun = Instant::now();
    let id = staging_id(snapshot, &request.paths);
    let journal = request.to.with_file_name(format!(".{}.blackstart-{id}.done", file_name(&request.to)?));
    let (tree, resumed) = stage(&request.to, &id, request.in_place, &journal)?;
    let plan = match planned(open, identities, snapshot, request, resumed) {
        Ok(plan) => plan,
        // Nothing is in a new tree yet.
        Err(e) => {
            if !resumed {
                tree.discard().with_context(|| format!("{e:#}"))?;
            }
            return Err(e);
        }
    };
    plan.each_entry(|entry, _| tree.add(entry))?;
    let located = begun.elapsed();
    let stage = work::Stage {
        open,
        source: &snapshot.source,
        identities,
        plan: &plan,
        tree: &tree,
        journal: work::Journal::open(&journal)?,
        progress: &request.progress,
        times: Stopwatch::default(),
    };
    request.progress.expect(plan.totals.pack_bytes);
    let bytes_fetched = work::write_all(&stage, request.workers).map_err(|e| unfinished(e, snapshot, request))?;
    let written = begun.elapsed();
    let [fetch, decrypt, decode, write] = shares(&stage.times, written - located);
    plan.each_entry(
        |entry, open| {
            if open { tree.set_metadata(&tree.open_file(&entry.path)?, entry) } else { tree.link(entry) }
        },
    )?;
    plan.each_entry(|entry, _| tree.seal(entry))?;
    // After the walk, which finds everything where the index has it: a finish may move things.
    if let Some(finish) = &request.finish {
        finish(&tree.staging_path()).context("finish the restored copy")?;
    }
    let (notes, kept) = if request.in_place { tree.publish_in_place(open.now())? } else { (tree.publish()?, None) };
    work::forget(&journal).context("the restored tree is whole and in place, but something is left beside it")?;
    let total = begun.elapsed();
    Ok(RestoreReport {
        source: snapshot.source.clone(),
        kind: snapshot.kind.clone(),
        seq: snapshot.seq,
        commit: commit.hash,
        data_time: snapshot.data_time,
        outcome: snapshot.outcome,
        to: request.to.clone(),
        entries: plan.totals.entries,
        bytes: plan.totals.bytes,
        packs: plan.totals.packs,
        bytes_fetched,
        phases: Phases {
            locate: located.as_secs_f64(),
            data: (written - located).as_secs_f64(),
            fetch,
            decrypt,
            decode,
            write,
            publish: (total - written).as_secs_f64(),
            total: total.as_secs_f64(),
        },
        resumed,
        notes: notes.first,
        notes_count: notes.count,
        kept,
    })
}

/// Divides `wall` in proportion to the workers' time.
fn shares(times: &Stopwatch, wall: Duration) -> [f64; 4] {
    let phases = times.phases();
    let sum: f64 = phases.iter().map(|p| p.seconds).sum();
    work::PHASES.map(|name| {
        let seconds: f64 = phases.iter().filter(|p| p.name == name).map(|p| p.seconds).sum();
        if sum > 0.0 { wall.as_secs_f64() * seconds / sum } else { 0.0 }
    })
}

/// What is to be written, once it is certain that it is there and has room.
fn planned(
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    request: &Request,
    resumed: bool,
) -> Result<Plan> {
    let plan = Plan::read(&index_store(open, &snapshot.source, true), snapshot, identities, &request.paths)?;
    enough_space(&request.to, plan.totals.bytes, resumed)?;
    Ok(plan)
}

/// The staging tree: a new one, or what an interrupted restore of the same snapshot and paths left.
///
/// The journal speaks of the contents of that tree alone: it goes before a new tree is made, or what it lists would never be written.
fn stage(to: &Path, id: &str, in_place: bool, journal: &Path) -> Result<(StagingTree, bool)> {
    ensure!(to.is_absolute(), "a restore needs an absolute path");
    let staging = to.with_file_name(format!(".{}.blackstart-{id}", file_name(to)?));
    let left = staging.symlink_metadata().is_ok() && (in_place || to.symlink_metadata().is_err());
    if left && let Some(tree) = StagingTree::resume(to, id)? {
        return Ok((tree, true));
    }
    work::forget(journal)?;
    let tree = if in_place { StagingTree::create_in_place(to, id)? } else { StagingTree::create(to, id)? };
    Ok((tree, false))
}

fn file_name(path: &Path) -> Result<String> {
    Ok(path
        .file_name()
        .with_context(|| format!("{} cannot be restored to", path.display()))?
        .to_string_lossy()
        .into_owned())
}

fn staging_id(snapshot: &Snapshot, paths: &[Name]) -> String {
    let mut all = snapshot.repository.clone().into_bytes();
    for path in paths {
        all.extend_from_slice(path.as_bytes());
        all.push(0);
    }
    format!("{}-{}-{}", snapshot.source, snapshot.seq, &Hash::of(&all).to_string()[..8])
}

fn enough_space(to: &Path, bytes: u64, resumed: bool) -> Result<()> {
    let parent = to.parent().context("a restore needs a directory to write to")?;
    let stat = rustix::fs::statvfs(parent).with_context(|| format!("look at {}", parent.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < bytes && !resumed {
        return Err(Failure::new(
            Kind::Environment,
            format!(
                "{} has {} MB free, and the snapshot needs {} MB",
                parent.display(),
                free / 1_000_000,
                bytes / 1_000_000
            ),
            "Nothing was written. Choose a place with more room, or restore single paths.",
        ));
    }
    Ok(())
}
