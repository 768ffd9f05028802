//! A run that ended because the store is full.

use crate::error::{Failure, Kind, help_of};
use crate::repository::layout::SourceName;
use crate::storage;

/// `error`, with what to do where there is no room: that is the same, whatever was to be written.
pub fn wanting(error: anyhow::Error, name: &SourceName) -> anyhow::Error {
    if storage::kind_of(&error) != Some(storage::Kind::Full) || help_of(&error).is_some() {
        return error;
    }
    let help = format!(
        "There is no snapshot of this run; those before it are as they were, and no backup succeeds until there is room. Enlarge the store or free some of it; \
         then `blackstart prune {name}` removes what its retention lets go (with --dry-run it only says what)."
    );
    Failure::new(Kind::Failed, format!("{error:#}"), help)
}
