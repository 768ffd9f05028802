//! A source that is given up on purpose (FORMAT.md §2.6): one signed commit, so that nobody who watches takes its silence for a failure. Its snapshots
//! stay as they are.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::Host;
use crate::error::{Failure, Kind};
use crate::repository::layout::{Hash, SourceName};
use crate::repository::memory::Memory;
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Line, Retirement};
use crate::repository::{FORMAT, PROGRAM};

#[derive(Debug, Clone, Serialize)]
pub struct RetireReport {
    pub source: SourceName,
    /// Number and hash of the record.
    pub seq: u64,
    pub commit: Hash,
    pub started: Timestamp,
    /// Snapshots that stay, and the time of the newest one's data.
    pub snapshots: u64,
    pub newest: Option<Timestamp>,
}

/// Retires `source`. A backup of it that asks for just that takes it up again.
pub fn retire(host: &Host, source: &SourceName, why: Option<String>) -> Result<RetireReport> {
    let open = &host.open;
    let started = open.now();
    host.require_any_role(source)?;
    // A name that nothing has would get a lease, which `watch` takes for the trace of a source.
    if Series::list(&open.store, &open.trust, source)?.head() == 0 {
        return Err(series::unknown(&open.store, source));
    }
    let _lease = host.lease(source)?;
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    whole.require_sound(source).map_err(|e| {
        let help =
            "Nothing was changed. `verify` tells more; whoever gives a source up should know what is left of it.";
        Failure::new(Kind::CheckFailed, format!("retire refuses: {e:#}"), help)
    })?;
    if let Some(before) = whole.retired() {
        let message = format!("{source} has been retired since {:.0}, by {}", before.started, before.host);
        return Err(Failure::new(Kind::Usage, message, "Nothing was changed."));
    }
    let seq = series.head() + 1;
    let record = Retirement {
        format: FORMAT,
        repository: open.trust.id.clone(),
        source: source.clone(),
        seq,
        previous: whole.commits.last().map(|commit| commit.hash),
        host: host.name.clone(),
        key: host.keys.signing.public().id(),
        agent: PROGRAM.into(),
        started,
        why,
    };
    let committed = host.commit(source, seq, &Line::Retire(Box::new(record)));
    let committed =
        committed.context("commit the record: whether it was stored, `status` shows; nothing else was changed")?;
    let Some(commit) = committed else {
        return Err(Failure::new(
            Kind::Busy,
            format!("somebody has committed {seq} of {source} meanwhile"),
            "Nothing was changed. See whether it is still backed up, stop that, and retire it again.",
        ));
    };
    if let Some(directory) = open.memory() {
        // What is lost with it is only that this host would notice if somebody removed the record.
        drop(Memory::open(&directory, source).and_then(|mut memory| memory.see(seq, commit)));
    }
    let newest = whole.snapshots().map(|(_, snapshot)| snapshot.data_time).max();
    Ok(RetireReport {
        source: source.clone(),
        seq,
        commit,
        started,
        snapshots: whole.snapshots().count() as u64,
        newest,
    })
}
