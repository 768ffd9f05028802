//! Compares a restored tree with the index: every byte through the ids taken when the source was read, and the metadata.

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::basis::index_store;
use super::{Open, shared};
use crate::entry::{Entry, EntryKind, Name};
use crate::interrupt;
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::index::{LayerReader, Merge, Segment, id_bytes};
use crate::repository::sealed::Secrets;
use crate::repository::snapshot::Snapshot;

/// What it means that a comparison does not go on.
const NOTHING_SAID: &str = "Nothing was changed, and nothing is said of the backup.";
/// Differences named in a check.
const NAMED: usize = 5;

/// Reads everything below `dir` that `snapshot` has.
pub fn compare(
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    secrets: &Secrets,
    dir: &Path,
) -> Result<Vec<Check>> {
    let index = index_store(open, &snapshot.source, true);
    let shared = shared(identities);
    let layers = snapshot.layers.iter().map(|l| LayerReader::new(index.clone(), shared.clone(), &l.entries)).collect();
    let mut merge = Merge::new(layers);
    let mut found = Differences::default();
    let (mut entries, mut bytes, mut rooted) = (0u64, 0u64, false);
    while let Some(merged) = merge.next_entry()? {
        let Some(entry) = merged.entry else { continue };
        interrupt::check(NOTHING_SAID)?;
        entries += 1;
        rooted |= entry.path.is_empty();
        let path = dir.join(std::ffi::OsStr::from_bytes(entry.path.as_bytes()));
        if let Some(why) = metadata_differs(&entry, &path) {
            found.metadata.add(&entry.path, &why);
        }
        if entry.kind != EntryKind::File {
            continue;
        }
        bytes += entry.size;
        let file = File::open(&path);
        while let Some(segment) = merge.next_segment()? {
            interrupt::check(NOTHING_SAID)?;
            let same = match &file {
                Ok(file) => segment_matches(file, &entry, &segment, secrets),
                Err(error) => Err(anyhow!("{error}")),
            };
            match same {
                Ok(true) => {}
                Ok(false) => found.contents.add(&entry.path, &format!("differs at {}", segment.at)),
                Err(error) => found.contents.add(&entry.path, &format!("cannot be read at {}: {error:#}", segment.at)),
            }
        }
    }
    // The root of a tree is an entry; a single file has none, and its directory is not counted.
    let present = count(dir).context("count the restored entries")? + u64::from(rooted);
    Ok(vec![
        Check::compare("entries restored", entries, present),
        found.contents.check(format!("{bytes} bytes as they were read")),
        found.metadata.check("types, modes, sizes, times and targets as they were".into()),
    ])
}

#[derive(Default)]
struct Differences {
    contents: Named,
    metadata: Named,
}

#[derive(Default)]
struct Named {
    count: u64,
    first: Vec<String>,
}

impl Named {
    fn add(&mut self, path: &Name, why: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(format!("{path}: {why}"));
        }
    }

    fn check(self, name: String) -> Check {
        let actual = if self.count == 0 {
            "none differ".into()
        } else {
            format!("{} differ: {}", self.count, self.first.join("; "))
        };
        Check::compare(name, "none differ", actual)
    }
}

fn metadata_differs(entry: &Entry, path: &Path) -> Option<String> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Some("missing".into()) };
    let kind = found.file_type();
    let (same_kind, has_mode) = match entry.kind {
        EntryKind::File => (kind.is_file(), true),
        EntryKind::Hardlink => (kind.is_file(), false),
        EntryKind::Dir => (kind.is_dir(), true),
        EntryKind::Symlink => (kind.is_symlink(), false),
        // A device may be left out where only root can make it; restore has noted that.
        EntryKind::Fifo | EntryKind::Char | EntryKind::Block => (true, false),
    };
    if !same_kind {
        return Some("another type".into());
    }
    if entry.kind == EntryKind::File && found.size() != entry.size {
        return Some(format!("{} bytes, not {}", found.size(), entry.size));
    }
    if has_mode && found.mode() & 0o777 != entry.mode & 0o777 {
        return Some(format!("mode {:o}, not {:o}", found.mode() & 0o7777, entry.mode));
    }
    if has_mode && (found.mtime(), found.mtime_nsec()) != (entry.mtime.0, i64::from(entry.mtime.1)) {
        return Some("another time".into());
    }
    let target = std::fs::read_link(path).ok();
    let same_target = target.as_ref().map(|t| t.as_os_str().as_bytes()) == entry.target.as_ref().map(Name::as_bytes);
    (entry.kind == EntryKind::Symlink && !same_target).then(|| "another target".into())
}

fn segment_matches(file: &File, entry: &Entry, segment: &Segment, secrets: &Secrets) -> Result<bool> {
    let secret = if entry.page.is_some() { &secrets.page } else { &secrets.chunk };
    let hash = Sha256::new_with_prefix(secret.as_slice());
    let mut ids = segment.ids.as_slice();
    let mut bytes = Vec::new();
    for extent in &segment.extents {
        bytes.resize(usize::try_from(extent.len)?, 0);
        match file.read_exact_at(&mut bytes, extent.at) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        let (these, later) = ids.split_at(id_bytes(entry.page, extent));
        ids = later;
        let (unit, width) = entry.page.map_or((bytes.len(), 32), |page| (page as usize, 8));
        let same = |(part, id): (&[u8], &[u8])| hash.clone().chain_update(part).finalize()[..width] == *id;
        if !bytes.chunks(unit).zip(these.chunks(width)).all(same) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Entries below `dir`.
fn count(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        sum += 1;
        if entry.file_type()?.is_dir() {
            sum += count(&entry.path())?;
        }
    }
    Ok(sum)
}
