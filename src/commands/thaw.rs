//! Archived packs that a restore needs: what it takes to thaw them, and the wait for them.

use anyhow::Result;

use super::output::{Shell, count, size, span};
use crate::cli::{Restore, ThawHaste};
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::restore::Request;
use crate::operations::thaw::{self, Frozen, Thaw};
use crate::progress::Progress;
use crate::repository::agefile::Identity;
use crate::repository::snapshot::Snapshot;
use crate::storage::Haste;

/// For how long thawed copies stay readable: long enough to restore twice.
const THAWED_DAYS: u32 = 7;

/// Says what lies in the ice of all that is needed; nothing where nothing does.
pub fn foretell(
    shell: &Shell,
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    request: &Request,
) -> Result<()> {
    let frozen = thaw::look(open, identities, snapshot, request)?;
    if !frozen.is_empty() {
        shell.say(format!("{}. {}", in_the_ice(&frozen), offers(&frozen)));
    }
    Ok(())
}

/// Makes sure that nothing that is needed lies in the ice.
pub fn thawed(
    shell: &Shell,
    args: &Restore,
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    request: &Request,
) -> Result<()> {
    let frozen = thaw::look(open, identities, snapshot, request)?;
    if frozen.is_empty() {
        return Ok(());
    }
    let what = in_the_ice(&frozen);
    let Some(wanted) = args.thaw else {
        let help = format!(
            "Nothing was changed. {} The same command again resumes. A snapshot of a warmer tier restores at once: `snapshots {}` lists all.",
            offers(&frozen),
            snapshot.source
        );
        return Err(Failure::new(Kind::Failed, what, help));
    };
    let haste = match wanted {
        ThawHaste::Bulk => Haste::Bulk,
        ThawHaste::Standard => Haste::Standard,
        ThawHaste::Expedited => Haste::Expedited,
    };
    let Some(takes) = takes(&frozen, haste) else {
        let help = "Nothing was changed. --thaw standard or --thaw bulk.";
        return Err(Failure::new(Kind::Usage, "what lies in DEEP_ARCHIVE cannot be thawed in that haste", help));
    };
    shell.say(format!("{what}. To thaw the rest takes {takes}, as a rule and by list price."));
    let busy = shell.busy("thawing".into(), &Progress::default());
    let how = Thaw { haste, days: THAWED_DAYS, wait: args.thaw_wait.unsigned_abs() };
    thaw::thaw(open, &frozen, how)?;
    drop(busy);
    Ok(())
}

fn in_the_ice(frozen: &Frozen) -> String {
    let packs = count(frozen.frozen + frozen.thawing, "pack");
    format!(
        "{packs} of what is needed lie in an archive class ({}); {} are being thawed already",
        size(frozen.bytes),
        frozen.thawing
    )
}

fn takes(frozen: &Frozen, haste: Haste) -> Option<String> {
    let takes = thaw::estimate(frozen, haste)?;
    Some(format!("up to {} and about ${:.2}", span(takes.hours * 3600.0), takes.dollars))
}

/// Each way to thaw, with time and cost.
fn offers(frozen: &Frozen) -> String {
    let all = [("standard", Haste::Standard), ("bulk", Haste::Bulk), ("expedited", Haste::Expedited)];
    let all = all.into_iter().filter_map(|(name, haste)| Some(format!("--thaw {name}: {}", takes(frozen, haste)?)));
    format!(
        "To thaw them takes, as a rule and by the list prices of AWS in us-east-1: {}.",
        all.collect::<Vec<_>>().join("; ")
    )
}
