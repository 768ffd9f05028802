//! Suspect points: a snapshot that came out well and looks wrong, by its fingerprint and those of the good snapshots before it.
//!
//! Nothing is lost by being wrong here: a suspect snapshot is complete, is kept, and can be restored by number. It only displaces nothing,
//! is no default, and raises the alarm, until a run is accepted (`backup --accept-change`). The verdict is in the commit, the reasons are sealed.

use anyhow::Result;
use std::collections::BTreeSet;

use super::Open;
use crate::report::Check;
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::Snapshot;

/// The check that a suspect snapshot fails, also where it comes back as it was read.
pub const FITS: &str = "its size and counts fit the snapshots before it";

/// Numbers of the snapshots that are suspect and that no later run has accepted.
pub fn suspects(whole: &Whole) -> BTreeSet<u64> {
    whole.snapshots().filter(|(_, s)| whole.looks_wrong(s)).map(|(_, s)| s.seq).collect()
}

/// What a drill says of a snapshot's fingerprint; nothing of the first snapshots, which have none before them.
pub fn check(open: &Open, snapshot: &Snapshot, identities: &[Identity]) -> Result<Option<Check>> {
    if !snapshot.suspect {
        return Ok((snapshot.seq > 1).then(|| Check::compare(FITS, "yes", "yes")));
    }
    let series = Series::list(&open.store, &open.trust, &snapshot.source)?;
    if !suspects(&series.whole()).contains(&snapshot.seq) {
        return Ok(Some(Check::compare(FITS, "yes", "yes")));
    }
    let why = match SealedPart::open(snapshot, identities) {
        Ok(sealed) => sealed.suspicions.join("; "),
        Err(error) => format!("the reasons cannot be read: {error:#}"),
    };
    Ok(Some(Check::compare(FITS, "yes", format!("no: {why}"))))
}
