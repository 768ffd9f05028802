//! The place of a drill: what keeps it apart from the live systems, and which errors speak of it and not of the backup.

use super::Bounds;
use crate::child;
use crate::error::{Failure, Kind, kind_of};
use crate::size;
use crate::source::postgres;
use crate::storage;

/// What keeps the drill apart from the live systems, for the report.
pub(super) fn isolation(bounds: Bounds) -> String {
    let network = match child::can_be_cut_off(Some(postgres::engine::server_user())) {
        true => "engines have no network, and listen on Unix sockets alone",
        false => {
            "engines listen on Unix sockets alone; this machine allows no network of their own, so nothing but their settings keeps them off it"
        }
    };
    let memory = size::in_words(bounds.memory);
    format!(
        "a new directory that only this user may enter; {network}; at most {memory} of memory and {} s",
        bounds.time.as_secs()
    )
}

/// Names an error of the place as one; others stay as they are.
pub(super) fn of_this_place(error: anyhow::Error) -> anyhow::Error {
    if kind_of(&error) != Kind::Failed || !of_the_environment(&error) {
        return error;
    }
    let archived = |e: &storage::Error| e.kind == storage::Kind::Archived;
    let help = if error.chain().any(|cause| cause.downcast_ref::<storage::Error>().is_some_and(archived)) {
        "The backup itself is as it was. Thaw it first (`restore --thaw` does), or drill a snapshot of a warmer tier."
    } else {
        "Nothing is said of the backup. Put right what the error names, and drill again."
    };
    Failure::new(Kind::Environment, format!("the drill could not be carried out: {error:#}"), help)
}

/// Whether an error speaks of the place and not of the backup: then nothing is said of the backup, and another try may succeed.
pub fn of_the_environment(error: &anyhow::Error) -> bool {
    let store = |kind| {
        matches!(kind, storage::Kind::Transient | storage::Kind::Denied | storage::Kind::Full | storage::Kind::Archived)
    };
    matches!(kind_of(error), Kind::Environment | Kind::Interrupted)
        || error.chain().any(|cause| {
            cause.downcast_ref::<storage::Error>().is_some_and(|e| store(e.kind))
                || cause.downcast_ref::<std::io::Error>().is_some_and(|e| {
                    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
                })
        })
}
