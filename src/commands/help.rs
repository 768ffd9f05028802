//! What to do next, where an error comes from the store and no operation knew better.

use crate::error;
use crate::storage::{self, Kind};

/// The help of the error itself, or what one can say from how the store failed.
pub fn help_of(error: &anyhow::Error) -> Option<&str> {
    error::help_of(error).or_else(|| {
        let failed = error.chain().find_map(|e| e.downcast_ref::<storage::Error>())?;
        match failed.kind {
            Kind::Denied => Some(
                "Snapshots that exist are as they were. Check who is asking: for S3 the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                 or the profile of this user) and what they may do in the bucket, for a directory its owner and mode. Then run the command again.",
            ),
            Kind::NoStore => Some(
                "Nothing was done. Is the bucket's name right, and the endpoint? If this is a new repository, create the bucket first, with versioning on. If it has held \
                 backups before, make no new one: find out where it went.",
            ),
            Kind::Full => Some(
                "Snapshots that exist are as they were, and restore. Make room where the repository lies, then run the command again. \
                 What this run has stored already the next one takes over; what it does not need goes with a `prune` after the grace period.",
            ),
            Kind::Transient => Some(
                "Snapshots that exist are as they were. Check that the store is up and can be reached from here (the endpoint in its address, the network, \
                 and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or another source of credentials). Then run the command again: a backup goes on from what \
                 is stored already.",
            ),
            Kind::Archived => Some(
                "Nothing is lost. The data lies in an archive class: `restore` with --thaw standard asks for it and waits; without --thaw it says how long that takes and what it costs.",
            ),
            Kind::NotFound | Kind::Truncated => {
                Some("`blackstart verify` says what is missing and which snapshots it hurts; the others restore.")
            }
            _ => None,
        }
    })
}
