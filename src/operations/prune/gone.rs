//! Commits that are gone, which no chain shows: all of them, or the newest. What they needed looks as if nobody needed it, and would be deleted.

use anyhow::{Context, Result};

use super::Plan;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::memory::{self, Memory};
use crate::repository::series::Series;

/// Commits of `source` that this machine knows to have been in the repository.
pub fn known(open: &Open, source: &SourceName) -> Result<Vec<(u64, Hash)>> {
    open.memory().map_or(Ok(Vec::new()), |directory| memory::known(&directory, source))
}

/// Fails if the series has one of the `known` commits no more, and no prune record removed it.
pub fn nothing_is_missed(open: &Open, series: &Series, known: &[(u64, Hash)]) -> Result<()> {
    let source = &series.source;
    for (seq, hash) in known {
        if series.has(*seq, *hash).context("look for what this machine has seen of the series")? {
            continue;
        }
        let memory = open.memory().map(|directory| memory::path(&directory, source).display().to_string());
        return Err(Failure::new(
            Kind::CheckFailed,
            format!(
                "prune refuses: this machine has seen commit {seq} ({hash}) of {source}, and it is not there any more; the newest is now {}",
                series.head()
            ),
            format!(
                "Nothing was deleted: the objects of snapshots that are gone may be needed once these are back. Look for a disk that is not mounted, \
                 a copy that was put back without {}, or somebody who deletes; `blackstart verify {source}` tells more. If they were removed on purpose, \
                 remove {} (what this machine remembers of {source}; the next backup here is a full), and run prune again.",
                layout::snapshots(source),
                memory.unwrap_or_default()
            ),
        ));
    }
    Ok(())
}

/// Fails if `plan` would remove packs or index objects of a source that has no commit at all: where nothing is named, everything looks needless. Of a
/// log nothing goes where no snapshot leads into it.
pub fn not_without_any_commit(plan: &Plan) -> Result<()> {
    let source = &plan.source;
    if plan.head > 0 || plan.unnamed.is_empty() {
        return Ok(());
    }
    let areas = ["packs", "index"].map(|area| layout::content_prefix(area, source));
    Err(Failure::new(
        Kind::CheckFailed,
        format!("prune refuses: {source} has no snapshot at all, but {} older objects", plan.unnamed.len()),
        format!(
            "Nothing was deleted. If {source} had snapshots, look for a disk that is not mounted, or a copy that was put back without {}. \
             If a first backup was interrupted, run `blackstart backup {source}`: once there is a snapshot, prune takes what nothing needs. \
             If the snapshots were removed on purpose, remove {} and {}, too.",
            layout::snapshots(source),
            areas[0],
            areas[1]
        ),
    ))
}

/// Notes the newest commit, for prunes to come. What is lost where that fails is only that they would not miss it.
pub fn remember(open: &Open, source: &SourceName, seq: u64, commit: Hash) {
    if let Some(directory) = open.memory() {
        drop(Memory::open(&directory, source).and_then(|mut memory| memory.see(seq, commit)));
    }
}
