//! A consistent copy of a directory that is in use, in local scratch.
//!
//! Chroma writes an operation to the queue in SQLite first, and after each thousand the vectors into the files of the segment, in place; then it
//! notes in SQLite that they are there, and purges the queue. So the files may be newer than the database (what is in both is taken once), but
//! never older: the vectors in between would be lost. Therefore
//!
//! 1. the segments are copied without a lock, so that little is left to do under it;
//! 2. `BEGIN IMMEDIATE`: no operation, no note and no purge from here on; readers and searches go on, writers wait;
//! 3. the database is copied, first;
//! 4. segments that changed since are copied again, until nothing changes while they are copied and their files fit together: somebody may
//!    have been writing them when the lock was taken;
//! 5. `ROLLBACK`. Nothing was written.

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::hnsw;
use super::layout::{self, DATABASE, MAPS};
use super::pickle;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::source::sqlite;

/// How long to wait for the lock: Chroma holds it for one transaction.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// A file that changed this short a time ago may be about to change again.
const FRESH: SignedDuration = SignedDuration::from_millis(500);
const QUIET: Duration = Duration::from_millis(250);
/// Looks without a change after which nobody is writing any more.
const STILL: u32 = 3;
/// Files of one directory; Chroma has five.
const FILES_MAX: usize = 1000;

/// Files of the source as they were when they were copied, by path relative to the directory.
pub type Seen = BTreeMap<String, Metadata>;

pub struct Copied {
    pub seen: Seen,
    /// How long writers had to wait.
    pub locked: Duration,
    /// How often segments were looked at under the lock.
    pub rounds: u32,
    /// Bytes of a page of the database.
    pub page: u32,
    /// What lies in the directory and belongs to no collection.
    pub left_out: Vec<String>,
    /// Segments whose files did not come to fit together, and why.
    pub torn: BTreeMap<String, String>,
}

/// From where to where.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub from: &'a Path,
    /// A directory of ours.
    pub to: &'a Path,
    pub clock: &'a dyn Clock,
}

/// Copies a directory into an empty one, holding the lock for at most `limit`.
pub fn copy(way: Way, limit: Duration) -> Result<Copied> {
    let Way { from, to, .. } = way;
    let database = from.join(DATABASE);
    let connection = open(&database)?;
    layout::refuse_unknown(&connection, from)?;
    let mut seen = Seen::new();
    let mut whole = BTreeSet::new();
    for segment in segments(&connection)? {
        // What goes wrong here goes wrong again under the lock, or not.
        let _warm = copy_segment(way, &segment, &mut seen);
        if fits(&to.join(&segment)).is_ok() {
            whole.insert(segment);
        }
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| sqlite::open::explain(&database, e))?;
    let began = Instant::now();
    let page = copy_database(&connection, to, began + limit)?;
    seen.insert(DATABASE.to_owned(), std::fs::metadata(&database).context("look at the database")?);
    let segments = segments(&connection)?;
    let mut copied =
        Copied { seen, locked: Duration::ZERO, rounds: 0, page, left_out: Vec::new(), torn: BTreeMap::new() };
    let mut still = 0;
    loop {
        copied.rounds += 1;
        still = if settle(way, &segments, &whole, &mut copied)? { still + 1 } else { 0 };
        // What stays torn while nobody writes is damaged: writers need not wait for it.
        if still > 0 && copied.torn.is_empty() || still >= STILL {
            break;
        }
        if began.elapsed() + QUIET > limit {
            ensure!(!copied.torn.is_empty(), too_busy(from, limit));
            break;
        }
        std::thread::sleep(QUIET);
    }
    copied.left_out = others(from, &segments)?;
    connection.execute_batch("ROLLBACK").map_err(|e| sqlite::open::explain(&database, e))?;
    copied.locked = began.elapsed();
    let gone = |path: &String| path.split_once('/').is_some_and(|(segment, _)| !segments.iter().any(|s| s == segment));
    copied.seen.retain(|path, _| !gone(path));
    Ok(copied)
}

fn too_busy(from: &Path, limit: Duration) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!(
            "the vectors in {} were being written for all of the {} s that the lock may be held",
            from.display(),
            limit.as_secs()
        ),
        "Nothing was backed up, and writers go on. Run the backup at a quieter time, or allow a longer lock: [source.chroma] lock_seconds.",
    )
}

/// A connection that may lock. It never writes.
pub(super) fn open(database: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(|e| sqlite::open::explain(database, e))?;
    sqlite::open::harden(&connection).map_err(|e| sqlite::open::explain(database, e))?;
    connection.busy_timeout(LOCK_WAIT).context("set up SQLite")?;
    ensure!(!connection.is_readonly("main").unwrap_or(true), read_only(database));
    Ok(connection)
}

fn read_only(database: &Path) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!("{} cannot be locked: this user may not write it", database.display()),
        "Nothing was backed up. A consistent copy needs the lock that writers take, though nothing is written: run the backup as the owner of the directory.",
    )
}

pub(super) fn segments(connection: &Connection) -> Result<Vec<String>> {
    let all = layout::collections(connection)?.into_iter().map(|c| c.vectors);
    Ok(all.filter(|name| layout::is_segment(name)).collect())
}

fn copy_database(connection: &Connection, to: &Path, until: Instant) -> Result<u32> {
    let number = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0));
    let (page, count) = (number("page_size")?, number("page_count")?);
    let file = File::create_new(to.join(DATABASE)).context("create the copy of the database")?;
    let mut buffer = vec![0; (1 << 20) / page as usize * page as usize];
    let mut next = 1;
    while next <= u64::from(count) {
        let n = sqlite::read_pages(connection, next, count.into(), page as usize, &mut buffer)?;
        file.write_all_at(&buffer[..n], (next - 1) * u64::from(page)).context("write the copy of the database")?;
        next += (n / page as usize) as u64;
        ensure!(Instant::now() < until, "the database could not be copied in the time that the lock may be held");
    }
    Ok(page)
}

/// Copies what has changed since it was copied. Whether nothing did, and nothing is likely to. `whole` are segments whose first copy fits together:
/// where that has not changed, writers need not wait for another look.
fn settle(way: Way, segments: &[String], whole: &BTreeSet<String>, copied: &mut Copied) -> Result<bool> {
    let mut quiet = true;
    for segment in segments {
        let changed = copy_segment(way, segment, &mut copied.seen)?;
        quiet &= !changed;
        if !changed && (copied.rounds > 1 || whole.contains(segment)) {
            continue;
        }
        match fits(&way.to.join(segment)) {
            Ok(()) => drop(copied.torn.remove(segment)),
            Err(e) => drop(copied.torn.insert(segment.clone(), format!("{e:#}"))),
        }
    }
    Ok(quiet)
}

/// Whether the files of a copied segment fit together. One that was never written, or whose maps were not, is whole: its vectors are in the queue.
fn fits(directory: &Path) -> Result<()> {
    if !directory.is_dir() || std::fs::read_dir(directory)?.next().is_none() {
        return Ok(());
    }
    hnsw::walk(directory, &mut |_| Ok(()))?;
    if let Ok(maps) = File::open(directory.join(MAPS)) {
        pickle::read(std::io::BufReader::with_capacity(1 << 20, maps), &mut |_, _, _| Ok(())).context(MAPS)?;
    }
    Ok(())
}

/// Copies the files of one segment that are not as they were `seen`. Whether there were any, or files are so young that there may be more.
fn copy_segment(way: Way, segment: &str, seen: &mut Seen) -> Result<bool> {
    let Way { from, to, clock } = way;
    let mut changed = false;
    let now = files(&from.join(segment))?;
    let prefix = format!("{segment}/");
    let gone: Vec<String> =
        seen.keys().filter(|p| p.strip_prefix(&prefix).is_some_and(|name| !now.contains_key(name))).cloned().collect();
    for path in gone {
        changed = true;
        seen.remove(&path);
        std::fs::remove_file(to.join(&path)).with_context(|| format!("remove the copy of {path}"))?;
    }
    for (name, before) in now {
        let path = format!("{segment}/{name}");
        if seen.get(&path).is_some_and(|old| same(old, &before)) {
            changed |= is_fresh(&before, clock.now());
            continue;
        }
        changed = true;
        let directory = to.join(segment);
        if !directory.is_dir() {
            std::fs::create_dir(&directory).context("make a directory in scratch")?;
        }
        copy_file(&from.join(&path), &to.join(&path)).with_context(|| format!("copy {path}"))?;
        // As it was before: if it changed since, it differs the next time.
        seen.insert(path, before);
    }
    Ok(changed)
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    let identity = |m: &Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    identity(a) == identity(b)
}

/// Whether a file changed within the last seconds, by its own file system's clock as far as that can be told.
fn is_fresh(metadata: &Metadata, now: Timestamp) -> bool {
    let at = Timestamp::new(metadata.mtime(), i32::try_from(metadata.mtime_nsec()).unwrap_or(0));
    at.is_ok_and(|at| now.duration_since(at).abs() < FRESH)
}

/// Regular files of a directory, by name; none if there is no such directory.
pub(super) fn files(directory: &Path) -> Result<BTreeMap<String, Metadata>> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.with_context(|| format!("list {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let metadata = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
        if metadata.is_file() {
            ensure!(found.len() < FILES_MAX, "{} has more than {FILES_MAX} files", directory.display());
            found.insert(entry.file_name().to_string_lossy().into_owned(), metadata);
        }
    }
    Ok(found)
}

/// Copies data and leaves holes: `link_lists.bin` has been seen with terabytes of them.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).context("open it")?;
    let mut target = File::create(to).context("create the copy")?;
    let size = source.metadata().context("look at it")?.len();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end =
            rustix::fs::seek(&source, SeekFrom::Hole(start)).unwrap_or(size).max(start + 1).min(size.max(start + 1));
        rustix::fs::seek(&source, SeekFrom::Start(start)).context("seek")?;
        rustix::fs::seek(&target, SeekFrom::Start(start)).context("seek")?;
        let n = std::io::copy(&mut (&source).take(end - start), &mut target).context("copy")?;
        ensure!(n > 0, "it has become shorter");
        at = start + n;
    }
    target.set_len(size).context("set the size of the copy")
}

/// What lies beside the database and belongs to no collection: directories of collections that were deleted, and what is not Chroma's.
pub(super) fn others(from: &Path, segments: &[String]) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let name =
            entry.with_context(|| format!("list {}", from.display()))?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(DATABASE) && !segments.contains(&name) && others.len() < FILES_MAX {
            others.push(name);
        }
    }
    others.sort();
    Ok(others)
}

/// Bytes that the directory occupies.
pub fn occupied(from: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut directories: Vec<PathBuf> = vec![from.to_owned()];
    while let Some(directory) = directories.pop() {
        sum += files(&directory)?.values().map(|m| m.blocks() * 512).sum::<u64>();
        if directory == from {
            let inside = std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))?.flatten();
            directories.extend(inside.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
    }
    Ok(sum)
}
