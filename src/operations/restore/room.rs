//! Whether there is room for what is restored, before a byte of it is fetched.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};
use crate::target;

/// That the directory in which `to` is to lie is there, and that all `places` have room for as many bytes.
pub fn has_place(to: &Path, places: &[(PathBuf, u64)]) -> Result<()> {
    target::must_have_parent(to)?;
    enough(to, places)
}

/// Places on one file system share its room.
pub(super) fn enough(to: &Path, places: &[(PathBuf, u64)]) -> Result<()> {
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (place, bytes) in places {
        // What is not there yet, or is replaced, is made beside.
        let there = if place != to && place.is_dir() { Some(place.as_path()) } else { place.parent() };
        let there = there.context("a restore needs a directory to write to")?;
        let look = || format!("look at {}", there.display());
        let device = std::fs::metadata(there).with_context(look)?.dev();
        needed.entry(device).or_insert_with(|| (there.to_owned(), 0)).1 += bytes;
    }
    for (place, bytes) in needed.into_values() {
        let stat = rustix::fs::statvfs(&place).with_context(|| format!("look at {}", place.display()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < bytes {
            return Err(no_room(&place, free, bytes));
        }
    }
    Ok(())
}

fn no_room(place: &Path, free: u64, bytes: u64) -> anyhow::Error {
    Failure::new(
        Kind::Environment,
        format!(
            "{} has {} MB free, and the snapshot needs {} MB",
            place.display(),
            free / 1_000_000,
            bytes / 1_000_000
        ),
        "Nothing was written. Choose a place with more room (a drill's is `scratch` in the configuration, otherwise $TMPDIR), restore single paths, \
         or a PostgreSQL server's tablespaces to other disks: --tablespace OLD=DIR.",
    )
}
