//! One restore, top to bottom: pick a snapshot, plan by pack, fetch and write in parallel, publish by one rename.
//!
//! A drill runs exactly this, into scratch. Every frame is checked against its SHA-256 before a byte of it is written, and nothing
//! is visible under the final name before everything is.

mod fetch;
mod pick;
mod plan;
mod room;
mod work;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Serialize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Open;
use super::basis::index_store;
use crate::entry::Name;
use crate::error::{Failure, Kind, help_of, kind_of};
use crate::progress::Progress;
use crate::report::{Outcome, Skip, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres;
use crate::storage;
use crate::target::{Branch, StagingTree};
pub use fetch::read_pack;
pub use pick::{
    Pick, broken_after, does_not_verify, find, nothing_newer_is_broken, nothing_newer_is_gone, passed_over, passes_over,
};
pub use plan::PackWork;
use plan::Plan;
pub use room::has_place;

/// What the kind of `snapshot` adds to a whole copy that is to be `to`, with parts of it in `branches`.
pub fn finish_of(
    snapshot: &Snapshot,
    identities: &[Identity],
    to: &Path,
    branches: &[Branch],
) -> Result<Option<Finish>> {
    if snapshot.kind != postgres::PHYSICAL {
        return Ok(None);
    }
    let facts = postgres::Facts::of(&SealedPart::open(snapshot, identities)?.facts)?;
    let (finally, branches) = (to.to_owned(), branches.to_vec());
    Ok(Some(Arc::new(move |staged: &Path| {
        postgres::restored::settle(staged, &finally, &branches)?;
        postgres::restored::recover(staged, &facts)
    })))
}

#[derive(Clone)]
pub struct Request {
    /// A directory that does not exist yet; it receives the entries.
    pub to: PathBuf,
    /// Replace what is there, keeping it beside.
    pub in_place: bool,
    /// These entries and what is below them; empty for all.
    pub paths: Vec<Name>,
    /// What lies elsewhere; not with `in_place`.
    pub branches: Vec<Branch>,
    pub workers: usize,
    /// To which point the copy will be brought, where that is not the snapshot's own: what is laid out on the way to one is no part of another.
    pub point: Option<String>,
    /// What a kind adds to the staged copy before it becomes visible: recovery settings, …
    pub finish: Option<Finish>,
    /// Counts the stored bytes of the packs that are written.
    pub progress: Progress,
}

impl Request {
    /// Everything, to a place where nothing is yet.
    pub fn new(to: PathBuf, workers: usize) -> Request {
        let progress = Progress::default();
        let (paths, branches) = (Vec::new(), Vec::new());
        Request { to, in_place: false, paths, branches, workers, point: None, finish: None, progress }
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
    /// What lies elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Branch>,
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
    /// Where how many of the bytes come to lie.
    pub places: Vec<(PathBuf, u64)>,
    pub entries: u64,
    pub bytes: u64,
    pub packs: u64,
    pub bytes_to_fetch: u64,
    /// From measured drills of this source; absent where there is none. Without the replay of a log.
    pub seconds: Option<f64>,
    /// What follows the snapshot on the way to a point in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogAhead>,
}

/// The stretch of a log between a snapshot and a point in time.
#[derive(Debug, Clone, Serialize)]
pub struct LogAhead {
    /// Positions as the engine writes them.
    pub from: String,
    pub to: String,
    pub bytes: u64,
    /// Whether the log is read up to `to` at the most: only a position tells beforehand where the point lies.
    pub at_most: bool,
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
        places: plan.places(request)?,
        entries: plan.totals.entries,
        bytes: plan.totals.bytes,
        packs: plan.totals.packs,
        bytes_to_fetch: plan.totals.pack_bytes,
        seconds: rate.filter(|r| *r > 0.0).map(|r| plan.totals.bytes as f64 / r),
        log: None,
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
    let id = staging_id(snapshot, request);
    let journal = request.to.with_file_name(format!(".{}.blackstart-{id}.done", file_name(&request.to)?));
    let (mut tree, resumed) = stage(request, &id, &journal)?;
    if resumed && snapshot.kind == postgres::PHYSICAL {
        // It may have come as far as the finish, which moves things.
        postgres::restored::unsettle(&tree.staging_path()).context("take up the restored copy")?;
    }
    let branched = tree.branch_off(&request.branches);
    let plan = match branched.and_then(|()| planned(open, identities, snapshot, request, resumed)) {
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
    let (source, progress, times) = (&snapshot.source, &request.progress, Stopwatch::default());
    let written = work::Journal::open(&journal)?;
    let stage = work::Stage { open, source, identities, plan: &plan, tree: &tree, journal: written, progress, times };
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
    let tree = finished(tree, request, &journal)?;
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
        branches: request.branches.clone(),
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

/// The tree with what its kind adds.
fn finished(tree: StagingTree, request: &Request, journal: &Path) -> Result<StagingTree> {
    let Some(Err(e)) = request.finish.as_ref().map(|finish| finish(&tree.staging_path())) else { return Ok(tree) };
    // What is wrong in the log is wrong the next time, too: the copy is of no use, and takes room.
    if kind_of(&e) == Kind::CheckFailed {
        tree.discard().with_context(|| format!("{e:#}"))?;
        work::forget(journal).with_context(|| format!("{e:#}"))?;
    }
    Err(e.context("finish the restored copy"))
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

fn unfinished(error: anyhow::Error, snapshot: &Snapshot, request: &Request) -> anyhow::Error {
    let what = format!("the restore is not finished, and nothing is at {} yet", request.to.display());
    if kind_of(&error) == Kind::WrongKey {
        return error.context(what);
    }
    // What is missing in the store is missing the next time, too.
    let passing = |e: &storage::Error| e.kind != storage::Kind::NotFound;
    let of_store = error.chain().any(|cause| cause.downcast_ref().is_some_and(passing));
    if help_of(&error).is_some() || of_store {
        return error.context(format!("{what}; the same command again resumes it"));
    }
    let help = format!(
        "What is written already waits beside it, and the same command again goes on from there. Where stored bytes are damaged that does not help: \
         `blackstart verify {} --hashes` names the snapshots that are hurt; --snapshot N restores another, --path P what is whole in this one.",
        snapshot.source
    );
    Failure::new(Kind::Failed, format!("{what}: {error:#}"), help)
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
    if !resumed {
        room::enough(&request.to, &plan.places(request)?)?;
    }
    Ok(plan)
}

/// The staging tree: a new one, or what an interrupted restore of the same snapshot and paths left.
///
/// The journal speaks of the contents of that tree alone: it goes before a new tree is made, or what it lists would never be written.
fn stage(request: &Request, id: &str, journal: &Path) -> Result<(StagingTree, bool)> {
    let (to, in_place) = (&request.to, request.in_place);
    ensure!(to.is_absolute(), "a restore needs an absolute path");
    let staging = to.with_file_name(format!(".{}.blackstart-{id}", file_name(to)?));
    let left = staging.symlink_metadata().is_ok() && (in_place || to.symlink_metadata().is_err());
    if left && let Some(tree) = StagingTree::resume(to, id, &request.branches)? {
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

fn staging_id(snapshot: &Snapshot, request: &Request) -> String {
    let mut all = snapshot.repository.clone().into_bytes();
    for path in &request.paths {
        all.extend_from_slice(path.as_bytes());
        all.push(0);
    }
    all.extend_from_slice(request.point.as_deref().unwrap_or_default().as_bytes());
    if !request.branches.is_empty() {
        // In the directory of a branch two restores to places of one name would take each other's for their own.
        all.extend_from_slice(request.to.as_os_str().as_bytes());
        all.push(0);
    }
    for Branch { at, place } in &request.branches {
        all.extend_from_slice(at.as_bytes());
        all.push(0);
        all.extend_from_slice(place.as_os_str().as_bytes());
        all.push(0);
    }
    format!("{}-{}-{}", snapshot.source, snapshot.seq, &Hash::of(&all).to_string()[..8])
}
