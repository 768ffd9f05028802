//! Errors that speak of the place, and not of the backup: no room, no server program, no network, no time, a store out of reach. Whoever judges a
//! backup must tell them apart: nothing is said of it then, and another try may succeed.

use crate::error::{Failure, Kind, kind_of};
use crate::storage;

/// Whether the place is to blame for `error`.
pub fn is_to_blame(error: &anyhow::Error) -> bool {
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

/// An error for which the place is to blame, as one of [`Kind::Environment`]; others stay as they are.
pub fn blamed(error: anyhow::Error) -> anyhow::Error {
    if kind_of(&error) != Kind::Failed || !is_to_blame(&error) {
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
