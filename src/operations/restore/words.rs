//! What is said of a restore that cannot begin, or does not come to its end.

use super::{Pick, Request};
use crate::error::{Failure, Kind, help_of, kind_of};
use crate::operations::Open;
use crate::repository::layout::SourceName;
use crate::repository::series::Whole;
use crate::repository::snapshot::Snapshot;
use crate::storage;
use crate::time;

pub(super) fn nothing_found(open: &Open, source: &SourceName, pick: &Pick, whole: &Whole) -> anyhow::Error {
    let place = open.store.place();
    let mut help = match whole.snapshots().map(|(_, s)| s.data_time).min() {
        None => format!("Nothing was changed. `snapshots` lists the sources in {place}."),
        Some(oldest) => format!(
            "Nothing was changed. The oldest snapshot of {source} has data of {}; `snapshots {source}` lists all.",
            time::local(oldest)
        ),
    };
    if !whole.faults.is_empty() {
        help.push_str(&format!(" {} commits do not verify; `verify` says why.", whole.faults.len()));
    }
    let what = match pick {
        Pick::Latest => "no snapshot".to_owned(),
        Pick::LatestVerified(_) => "no snapshot that a drill has proven".to_owned(),
        Pick::At(at) => format!("no snapshot with data of {} or before", time::local(*at)),
        Pick::Seq(seq) => format!("no snapshot {seq}"),
    };
    Failure::new(Kind::Usage, format!("there is {what} of {source} in {place}"), help)
}

pub(super) fn unfinished(error: anyhow::Error, snapshot: &Snapshot, request: &Request) -> anyhow::Error {
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
