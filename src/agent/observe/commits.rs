//! What the commits of a source show: its newest snapshot of each sort, and what runs usually take.

use anyhow::Result;
use std::time::Duration;

use super::{Newest, Seen, Span, USUAL_OF, given};
use crate::report::Outcome;
use crate::repository::series::Series;
use crate::repository::snapshot::{Line, Mode};

/// Commits that are read at most to find the newest of each sort.
const COMMITS_READ_MAX: usize = 200;

/// What the commits say, if there are others than before.
pub fn look(series: &Series, seen: &mut Seen) -> Result<()> {
    if seen.head.as_ref().map_or(0, |(seq, _)| *seq) == series.head() {
        return Ok(());
    }
    let mut found = Seen {
        head: None,
        newest: None,
        full: None,
        incremental: None,
        prune: None,
        retired: None,
        usual: Duration::ZERO,
        ..seen.clone()
    };
    let mut durations = Vec::new();
    let mut sound = true;
    for commit in series.newest_first().take(COMMITS_READ_MAX) {
        // One that does not verify is for `verify` to tell of; it is no point to go back to.
        let Some(commit) = given(commit)? else {
            sound = false;
            continue;
        };
        found.head.get_or_insert_with(|| (commit.seq(), commit.hash.to_string()));
        match &commit.line {
            Line::Prune(prune) => {
                found.prune.get_or_insert(prune.started);
            }
            // Unless a snapshot came after it, or what may have been one.
            Line::Retire(record) if durations.is_empty() && sound => {
                found.retired = found.retired.or(Some(record.started))
            }
            Line::Retire(_) => {}
            Line::Snapshot(s) => {
                let span = Span { started: s.started, finished: s.finished };
                match s.mode {
                    Mode::Full => found.full.get_or_insert(span),
                    Mode::Incremental => found.incremental.get_or_insert(span),
                };
                if s.outcome == Outcome::Complete {
                    found.newest.get_or_insert_with(|| Newest {
                        seq: s.seq,
                        commit: commit.hash.to_string(),
                        data_time: s.data_time,
                        begun: series.stored_at(s.seq).map_or(s.started, |at| at.min(s.started)),
                        suspect: s.suspect && !s.accepted,
                        log: s.log.clone().map(|range| (range, s.started)),
                    });
                }
                durations.push(Duration::try_from(s.finished.duration_since(s.started)).unwrap_or_default());
            }
        }
        if found.newest.is_some() && found.full.is_some() && durations.len() >= USUAL_OF && found.prune.is_some() {
            break;
        }
    }
    // The first, a full, is not what runs usually take.
    durations.truncate(USUAL_OF);
    found.usual = durations.into_iter().max().unwrap_or_default();
    *seen = found;
    Ok(())
}
