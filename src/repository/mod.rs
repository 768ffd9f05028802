//! The repository: everything that knows FORMAT.md.

use anyhow::Result;

use crate::error::{Failure, Kind};

pub mod agefile;
pub mod checkpoint;
pub mod group;
pub mod history;
pub mod index;
pub mod keys;
pub mod layout;
pub mod lease;
pub mod log;
pub mod memory;
pub mod sealed;
pub mod series;
pub mod signed;
pub mod snapshot;
pub mod trust;

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// How this program calls itself in what it signs.
pub const PROGRAM: &str = concat!("blackstart ", env!("CARGO_PKG_VERSION"));

const NEWER: &str = "was written by a newer version";

/// Refuses what a newer version wrote; never calls it corrupt.
pub fn check_format(found: u32, what: &str) -> Result<()> {
    if found <= FORMAT {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Failed,
        format!("{what} {NEWER}: it has format {found}, and this program reads up to {FORMAT}"),
        "Nothing was changed. Use that version or a newer one.",
    ))
}

/// Refuses a line of a type that this program does not know, as [`check_format`] does what it cannot understand: who passed it over would not know what
/// it undoes.
pub fn check_type(found: &str, known: &[&str], what: &str) -> Result<()> {
    if known.contains(&found) {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Failed,
        format!("{what} is of the type {found:?}, which this program does not know: it {NEWER}"),
        "Nothing was changed. Use that version or a newer one.",
    ))
}

/// Whether [`check_format`] or [`check_type`] is what refused.
pub fn is_newer(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.to_string().contains(NEWER))
}
