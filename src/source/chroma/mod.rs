//! The `chroma` source: the persistent directory of ChromaDB (0.5, 0.6 and 1.x on one machine), copied while clients write.
//!
//! The copy is made in local scratch first (`copy.rs` says how and why): only then is it known whether its files fit together, and the lock is
//! held for a local copy, not for an upload. That needs room for one more copy of the directory while a backup runs.
//!
//! The database and the vectors are paged files; the vectors' pages are whole elements of the index, so a changed vector costs itself.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name, Stat};
use crate::error::{Failure, Kind};
use crate::report::Skip;
use crate::source::{Before, Finished, Piece, Source};
use rustix::fs::FlockOperation;

pub mod asked;
pub mod copy;
pub mod hnsw;
pub mod layout;
pub mod pickle;
pub mod proof;
mod unchanged;
pub mod verify;

pub use layout::{DATABASE, SEGMENTS, is_alone_in, is_database};

use copy::{Seen, Way};
use hnsw::Header;
use unchanged::Known;
use verify::{Copy, Found};

/// How long the lock may be held if nothing else is said.
const LOCK: u64 = 60;
/// A copy whose files do not fit together is made again so often.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);

/// `[source.chroma]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// A Python that can import `chromadb`, for drills; without it, `python3` is tried.
    pub python: Option<PathBuf>,
    /// Writers wait at most so long for a backup, in seconds.
    pub lock_seconds: Option<u64>,
    /// Where the copy is made; it needs room for all of the directory.
    pub scratch: Option<PathBuf>,
}

impl Options {
    /// With relative paths taken to begin at `base`.
    pub fn below(mut self, base: &Path) -> Options {
        for path in [&mut self.python, &mut self.scratch].into_iter().flatten() {
            *path = base.join(&*path);
        }
        self
    }
}

/// What the snapshot keeps of a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub collections: Vec<Found>,
    /// How long writers had to wait.
    pub locked_seconds: f64,
    /// How often the files were looked at under the lock until they were still.
    pub rounds: u32,
    /// What lies in the directory and belongs to no collection: it is not in the snapshot.
    pub left_out: Vec<String>,
    /// Whether the offline verifier found the copy whole.
    pub verified: bool,
    /// What the directory looked like: see [`unchanged`]. Absent where it cannot be told whether it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// One run's reading of one directory.
pub struct Chroma {
    path: PathBuf,
    scratch: PathBuf,
    options: Options,
    clock: Arc<dyn Clock>,
    known: Option<Known>,
    copied: Option<Ready>,
    file: Option<File>,
    page: Option<u32>,
    /// What the file that is read must still be at its end, where it is not a copy.
    stat: Option<Stat>,
}

/// A copy that is ready to be read, or, without scratch, a directory that did not change.
struct Ready {
    scratch: Option<Scratch>,
    data_time: Timestamp,
    plan: VecDeque<Entry>,
    facts: Facts,
    skipped: Vec<Skip>,
}

impl Chroma {
    /// Looks at the directory. `scratch` is where the copy is made, unless the options say otherwise.
    pub fn open(path: &Path, scratch: PathBuf, options: Options, clock: Arc<dyn Clock>) -> Result<Chroma> {
        let path = std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))?;
        if !path.join(DATABASE).is_file() {
            return Err(Failure::new(
                Kind::Failed,
                format!("{} is no persistent directory of ChromaDB: it has no {DATABASE}", path.display()),
                "Nothing was backed up; the earlier snapshots stand. Check the path, and that the volume is mounted.",
            ));
        }
        let scratch = options.scratch.clone().unwrap_or(scratch);
        Ok(Chroma { path, scratch, options, clock, known: None, copied: None, file: None, page: None, stat: None })
    }

    /// Copies until the copy is whole, at most [`TRIES`] times.
    fn prepare(&self) -> Result<Ready> {
        if let Some(ready) = self.as_before()? {
            return Ok(ready);
        }
        let limit = Duration::from_secs(self.options.lock_seconds.unwrap_or(LOCK));
        self.enough_room()?;
        let mut attempt = 1;
        loop {
            let scratch = Scratch::make(&self.scratch)?;
            let directory = scratch.copy();
            let data_time = self.clock.now();
            let way = Way { from: &self.path, to: &directory, clock: &*self.clock };
            let copied = copy::copy(way, limit).with_context(|| format!("copy {}", self.path.display()))?;
            let (checks, collections) = Copy::open(&directory).and_then(|copy| copy.verify())?;
            let wrong: Vec<&crate::report::Check> = checks.iter().filter(|c| !c.passed).collect();
            if (!wrong.is_empty() || !copied.torn.is_empty()) && attempt < TRIES {
                attempt += 1;
                std::thread::sleep(BETWEEN);
                continue;
            }
            let mut skipped: Vec<Skip> = wrong
                .iter()
                .map(|c| {
                    Skip::new(&Name::new(DATABASE.as_bytes()), format!("{}: {} (stored as it is)", c.name, c.actual))
                })
                .collect();
            skipped.extend(
                copied.torn.iter().map(|(segment, why)| {
                    Skip::new(&Name::new(segment.as_bytes()), format!("{why} (stored as it is)"))
                }),
            );
            let facts = Facts {
                collections,
                locked_seconds: copied.locked.as_secs_f64(),
                rounds: copied.rounds,
                left_out: copied.left_out.clone(),
                verified: skipped.is_empty(),
                state: unchanged::digest(&self.path, &copied.seen),
            };
            let plan = self.entries(&directory, &copied.seen, copied.page, facts.state.is_some())?;
            return Ok(Ready { scratch: Some(scratch), data_time, plan, facts, skipped });
        }
    }

    /// The directory itself, where nothing of it changed since it was verified.
    fn as_before(&self) -> Result<Option<Ready>> {
        let Some(known) = self.known.as_ref().filter(|known| known.facts.verified) else { return Ok(None) };
        let data_time = self.clock.now();
        let began = Instant::now();
        let Some(same) = unchanged::look(&self.path, known)? else { return Ok(None) };
        let locked_seconds = began.elapsed().as_secs_f64();
        let plan = self.entries(&self.path, &same.seen, same.page, true)?;
        let facts = Facts { locked_seconds, rounds: 0, left_out: same.left_out, ..known.facts.clone() };
        Ok(Some(Ready { scratch: None, data_time, plan, facts, skipped: Vec::new() }))
    }

    fn changed(&self) -> anyhow::Error {
        Failure::new(
            Kind::Failed,
            format!("{} was changed while it was read", self.path.display()),
            "No snapshot was made, and the earlier ones stand. Run the backup again: it copies the directory under the lock.",
        )
    }

    fn enough_room(&self) -> Result<()> {
        std::fs::create_dir_all(&self.scratch).with_context(|| format!("make {}", self.scratch.display()))?;
        let needed = copy::occupied(&self.path)?;
        let stat = rustix::fs::statvfs(&self.scratch).with_context(|| format!("look at {}", self.scratch.display()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < needed {
            return Err(Failure::new(
                Kind::Failed,
                format!(
                    "{} has {} MB free, and a copy of {} needs {} MB",
                    self.scratch.display(),
                    free / 1_000_000,
                    self.path.display(),
                    needed / 1_000_000
                ),
                "Nothing was backed up; the earlier snapshots stand. Make room, or choose another place: [source.chroma] scratch.",
            ));
        }
        Ok(())
    }

    /// The entries of the copy, with the metadata of the originals. The database's tell whether it changes only where its `state` is known.
    fn entries(&self, copy: &Path, seen: &Seen, page: u32, state: bool) -> Result<VecDeque<Entry>> {
        let look = |path: &Path| std::fs::metadata(path).with_context(|| format!("look at {}", path.display()));
        let mut entries = vec![entry(Name::default(), EntryKind::Dir, &look(&self.path)?)];
        let mut last = "";
        for (path, metadata) in seen {
            if let Some((segment, _)) = path.split_once('/')
                && segment != last
            {
                last = segment;
                let original = look(&self.path.join(segment)).or_else(|_| look(&self.path))?;
                entries.push(entry(Name::new(segment.as_bytes()), EntryKind::Dir, &original));
            }
            let mut file = entry(Name::new(path.as_bytes()), EntryKind::File, metadata);
            file.size = look(&copy.join(path))?.len();
            if path == DATABASE {
                file.page = Some(page);
                // The file may be longer than its pages, and a WAL beside it may hold more.
                file.stat = file.stat.filter(|_| state && file.size == metadata.len());
            } else if path.ends_with(layout::VECTORS) {
                let header = copy.join(path).parent().map(Header::read);
                file.page = header.and_then(Result::ok).and_then(|h| h.page(file.size));
            }
            entries.push(file);
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries.into())
    }
}

/// A directory for one copy. A lock tells it from what a killed run has left.
struct Scratch {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    const PREFIX: &str = "blackstart-chroma-";

    fn make(parent: &Path) -> Result<Scratch> {
        Scratch::sweep(parent);
        let private = std::fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new()
            .prefix(Scratch::PREFIX)
            .permissions(private)
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let lock = File::create(directory.path().join("lock")).context("make a directory in scratch")?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock a directory in scratch")?;
        let scratch = Scratch { directory, _lock: lock };
        std::fs::create_dir(scratch.copy()).context("make a directory in scratch")?;
        Ok(scratch)
    }

    fn copy(&self) -> PathBuf {
        self.directory.path().join("copy")
    }

    /// Removes what killed runs have left. One that cannot be removed stays for the next.
    fn sweep(parent: &Path) {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(Scratch::PREFIX);
            let Some(lock) = ours.then(|| File::open(entry.path().join("lock")).ok()).flatten() else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _left = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Source for Chroma {
    fn kind(&self) -> &'static str {
        "chroma"
    }

    fn root(&self) -> String {
        self.path.display().to_string()
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        let facts = Facts::deserialize(before.facts).ok();
        self.known = before.shortcuts.zip(facts).map(|(started, facts)| Known { facts, started });
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if self.copied.is_none() {
            self.copied = Some(self.prepare()?);
        }
        let ready = self.copied.as_mut().context("read the copy")?;
        let Some(entry) = ready.plan.pop_front() else { return Ok(None) };
        self.page = entry.page;
        self.file = None;
        if entry.kind == EntryKind::File {
            let directory = ready.scratch.as_ref().map_or_else(|| self.path.clone(), Scratch::copy);
            self.stat = entry.stat.filter(|_| ready.scratch.is_none());
            let path = directory.join(entry.path.escaped());
            self.file = Some(File::open(&path).with_context(|| format!("open {}", path.display()))?);
        }
        Ok(Some(entry))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let Some(file) = &mut self.file else { return Ok(Piece::End) };
        // Whole pages only: what is read is filled up to the last whole page of the buffer, and only the end of the file is shorter.
        let unit = self.page.map_or(1, |page| page as usize);
        let room = buffer.len() / unit * unit;
        let mut filled = 0;
        while filled < room {
            match file.read(&mut buffer[filled..room]).context("read the copy")? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0
            && let Some(stat) = &self.stat
        {
            ensure!(entry_stat(&file.metadata().context("look at it")?) == *stat, self.changed());
        }
        Ok(if filled == 0 { Piece::End } else { Piece::Data(filled) })
    }

    fn finish(&mut self) -> Result<Finished> {
        let ready = self.copied.take().context("the directory was never read")?;
        let facts = serde_json::to_value(&ready.facts)?;
        if let Some(scratch) = ready.scratch {
            scratch.directory.close().context("remove the copy in scratch")?;
        }
        Ok(Finished { data_time: ready.data_time, skipped: ready.skipped, facts })
    }
}

fn nanoseconds(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn entry_stat(metadata: &Metadata) -> Stat {
    Stat(metadata.dev(), metadata.ino(), metadata.ctime(), nanoseconds(metadata.ctime_nsec()))
}

fn entry(path: Name, kind: EntryKind, metadata: &Metadata) -> Entry {
    let stat = entry_stat(metadata);
    Entry {
        path,
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        user: Name::default(),
        group: Name::default(),
        mtime: (metadata.mtime(), nanoseconds(metadata.mtime_nsec())),
        size: 0,
        page: None,
        target: None,
        rdev: None,
        xattrs: BTreeMap::new(),
        stat: (kind == EntryKind::File).then_some(stat),
    }
}
