//! A directory as a store. One file per object, published by `durable`; the keys are the paths.
//!
//! Files that are no keys (`.tmp-…` left by a crash, `.lock`, a file manager's litter) are invisible here. The SHA-256 that
//! `create` gets is not checked: the bytes never leave the machine, and `verify` reads them back.

use super::bounds::{REPLACED_MAX, check_range, check_replaced, check_size};
use super::{Error, Kept, Key, Kind, Object, Page, Result, Storage, Version};
use crate::bridge::blocking;
use crate::durable;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Only the owner reads a repository: names of sources and sizes are nobody else's business.
const MODE: u32 = 0o600;

/// Serialises `replace` and `delete` among processes on one machine (and on network file systems that carry locks).
const LOCK: &str = ".lock";

#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The store in directory `root`, which need not exist: the first `create` makes it.
    pub fn new(root: impl Into<PathBuf>) -> Local {
        Local { root: root.into() }
    }

    /// Runs `work` with the path of `key` on a disk thread and turns its error into one of `operation`.
    async fn on_disk<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.root.join(key.as_str());
        match blocking(move || work(path)).await {
            Ok(done) => done.map_err(|error| Error::new(kind_of(error.kind()), operation, key).because(error)),
            Err(panicked) => Err(Error::new(Kind::Other, operation, key).because(panicked)),
        }
    }
}

fn kind_of(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::AlreadyExists => Kind::AlreadyExists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::Full,
        ErrorKind::Unsupported => Kind::Unsupported,
        ErrorKind::UnexpectedEof => Kind::Truncated,
        ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::StaleNetworkFileHandle => Kind::Transient,
        _ => Kind::Other,
    }
}

#[async_trait]
impl Storage for Local {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        let named = key.clone();
        self.on_disk("get", key, move |path| {
            let mut file = open(&path)?;
            let size = file.metadata()?.len();
            check_size("get", &named, size).map_err(io::Error::other)?;
            let mut body = Vec::with_capacity(size as usize);
            file.read_to_end(&mut body)?;
            let version = version(&body);
            Ok((body.into(), version))
        })
        .await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let length = check_range(key, &range)?;
        self.on_disk("get", key, move |path| {
            let file = open(&path)?;
            if file.metadata()?.len() < range.end {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let mut body = vec![0; length];
            file.read_exact_at(&mut body, range.start)?;
            Ok(body.into())
        })
        .await
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        check_size("create", key, body.len() as u64)?;
        let version = if body.len() > REPLACED_MAX { version(&body) } else { Version(hex(sha256)) };
        self.on_disk("create", key, move |path| durable::publish_new(&path, &body, MODE)).await?;
        Ok(version)
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        check_replaced(key, body.len())?;
        let (root, seen) = (self.root.clone(), seen.clone());
        let swapped = self.on_disk("replace", key, move |path| {
            let _lock = lock(&root)?;
            match fs::read(&path) {
                Ok(current) if current.len() <= REPLACED_MAX && version(&current) == seen => {}
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => return Ok(None),
            }
            durable::publish_over(&path, &body, MODE)?;
            Ok(Some(version(&body)))
        });
        swapped.await?.ok_or_else(|| Error::new(Kind::Conflict, "replace", key))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let (root, wanted) = (self.root.clone(), prefix.to_owned());
        let walked = blocking(move || {
            let mut objects = Vec::new();
            // Only the directory that the prefix names in full can hold matching keys.
            let below = wanted.rfind('/').map_or("", |slash| &wanted[..slash]);
            walk(&root, below, &wanted, &mut objects)?;
            objects.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(objects)
        });
        match walked.await {
            Ok(objects) => {
                objects.map_err(|error: io::Error| Error::new(kind_of(error.kind()), "list", prefix).because(error))
            }
            Err(panicked) => Err(Error::new(Kind::Other, "list", prefix).because(panicked)),
        }
    }

    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        let (root, wanted, from) = (self.root.clone(), prefix.to_owned(), after.to_owned());
        let walked = blocking(move || {
            let below = wanted.rfind('/').map_or("", |slash| &wanted[..slash]);
            let mut behind = Behind { root: &root, prefix: &wanted, after: &from, most, rows: Vec::new() };
            behind.walk(below).map(|next| Page { rows: behind.rows, next })
        });
        match walked.await {
            Ok(page) => {
                page.map_err(|error: io::Error| Error::new(kind_of(error.kind()), "list", prefix).because(error))
            }
            Err(panicked) => Err(Error::new(Kind::Other, "list", prefix).because(panicked)),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let root = self.root.clone();
        self.on_disk("delete", key, move |path| {
            match open(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                opened => drop(opened?),
            }
            let _lock = lock(&root)?;
            durable::remove(&path)
        })
        .await
    }

    async fn sweep_unfinished(&self, before: Timestamp) -> Result<u64> {
        let root = self.root.clone();
        let swept = blocking(move || sweep(&root, before)).await;
        let swept = swept.map_err(|panicked| Error::new(Kind::Other, "sweep", "").because(panicked))?;
        swept.map_err(|error| Error::new(kind_of(error.kind()), "sweep", "").because(error))
    }
}

/// Removes files of `durable` that were never published, below `directory`. Symbolic links to directories are followed, as in [`walk`].
fn sweep(directory: &Path, before: Timestamp) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut swept = 0;
    for entry in entries {
        let (path, name) = entry.map(|e| (e.path(), e.file_name()))?;
        let Some(name) = name.to_str() else { continue };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if metadata.is_dir() && Key::is_valid(name) {
            swept += sweep(&path, before)?;
        } else if metadata.is_file() && name.starts_with(durable::TEMPORARY_PREFIX) && modified(&metadata)? < before {
            durable::remove(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Opens an object for reading. A directory where the object should be, or a file where a directory above it should be,
/// means that there is no such object.
fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotADirectory => ErrorKind::NotFound.into(),
        _ => e,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
}

/// Held until it is dropped, or until the process dies.
fn lock(root: &Path) -> io::Result<File> {
    durable::create_directories(root)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(root.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// The SHA-256 in hex; empty, which no `replace` matches, where the body is too large to be replaced.
fn version(body: &[u8]) -> Version {
    if body.len() > REPLACED_MAX { Version(String::new()) } else { Version(hex(&Sha256::digest(body))) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds the objects below directory `below` (relative to `root`) whose keys begin with `prefix`. Symbolic links are followed:
/// people put `packs` on another disk.
fn walk(root: &Path, below: &str, prefix: &str, objects: &mut Vec<Object>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(below)) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = if below.is_empty() { name } else { format!("{below}/{name}") };
        if !Key::is_valid(&key) || !(key.starts_with(prefix) || prefix.starts_with(&key)) {
            continue;
        }
        let metadata = match fs::metadata(entry.path()) {
            Ok(metadata) => metadata,
            // Deleted since the directory was read.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if metadata.is_dir() {
            walk(root, &key, prefix, objects)?;
        } else if metadata.is_file() && key.starts_with(prefix) {
            objects.push(Object { size: metadata.len(), modified: modified(&metadata)?, key: Key::new(key) });
        }
    }
    Ok(())
}

/// A walk in the order of keys that leaves out what comes up to a place, and ends when it has enough.
struct Behind<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: &'a str,
    most: usize,
    rows: Vec<Kept>,
}

impl Behind<'_> {
    /// Adds what is below a directory; gives behind what to go on, if not all was looked at. Of a directory with very many files no more names are
    /// held, and no more files looked at, than are wanted.
    fn walk(&mut self, below: &str) -> io::Result<Option<String>> {
        let entries = match fs::read_dir(self.root.join(below)) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        let (room, mut cut) = (self.most - self.rows.len(), false);
        // A directory sorts as what is below it.
        let mut first: BTreeSet<String> = BTreeSet::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let key = if below.is_empty() { name } else { format!("{below}/{name}") };
            if !Key::is_valid(&key) || !(key.starts_with(self.prefix) || self.prefix.starts_with(&key)) {
                continue;
            }
            let kind = entry.file_type()?;
            let is_directory = match kind.is_symlink() {
                true => fs::metadata(entry.path()).is_ok_and(|linked| linked.is_dir()),
                false => kind.is_dir(),
            };
            let place = if is_directory { format!("{key}/") } else { key };
            if place.as_str() > self.after || is_directory && self.after.starts_with(&place) {
                first.insert(place);
                if first.len() > room + 1 {
                    first.pop_last();
                    cut = true;
                }
            }
        }
        let mut passed = self.after.to_owned();
        for place in first {
            if self.rows.len() == self.most {
                return Ok(Some(passed));
            }
            match place.strip_suffix('/') {
                Some(directory) => {
                    if let Some(next) = self.walk(directory)? {
                        return Ok(Some(next));
                    }
                    // Behind all that is below it: no key has this character.
                    passed = format!("{place}~");
                }
                None => {
                    self.rows.extend(look_at(self.root, &place)?.filter(|_| place.starts_with(self.prefix)));
                    passed = place;
                }
            }
        }
        Ok(cut.then_some(passed))
    }
}

/// `None`: it was deleted since its directory was read, or is no object.
fn look_at(root: &Path, key: &str) -> io::Result<Option<Kept>> {
    match fs::metadata(root.join(key)) {
        Ok(metadata) if metadata.is_file() => {
            let (size, modified) = (metadata.len(), modified(&metadata)?);
            Ok(Some(Kept::only(Object { key: Key::new(key), size, modified })))
        }
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(None),
    }
}

fn modified(metadata: &Metadata) -> io::Result<Timestamp> {
    Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)
}
