//! `verify`: is the repository whole?

use anyhow::Result;
use std::time::Instant;

use super::open::{KeyCanary, recovery_key};
use super::output::{Ending, Exit, Shell, count, numbers, size, time};
use crate::cli::Verify;
use crate::operations::group::Sight;
use crate::operations::reread::{Budget, Coverage};
use crate::operations::verify;
use crate::repository::history::Cover;

pub fn run(shell: &Shell, args: &Verify) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let read_data = match args.read_data {
        true => Some(recovery_key(reader.config.as_ref(), args.identity.as_deref())?.identities),
        false => None,
    };
    if let Some(identities) = &read_data {
        KeyCanary::fly(&reader.open, identities)?;
    }
    let until = args.during.map(|time| Instant::now() + time.unsigned_abs());
    let budget = Budget { bytes: args.subset, until };
    let expected = reader.expected();
    let options = verify::Options { hashes: args.hashes, read_data, budget, expected, ..verify::Options::default() };
    let busy = shell.busy("verifying".into(), &options.progress);
    let report = verify::verify(&reader.open, args.source.as_ref(), &options)?;
    drop(busy);
    let mut sound = true;
    for source in &report.sources {
        let verdict = match (source.faults.is_empty(), source.snapshots) {
            (true, _) => "whole",
            (false, _) if source.is_unread() => "NOT KNOWN: the store does not give all of it",
            (false, 0) => "MISSING",
            (false, _) => "DAMAGED",
        };
        shell.say(format!(
            "{}: {verdict}: {}, {}, {} read",
            source.source,
            count(source.snapshots, "snapshot"),
            count(source.objects, "object"),
            size(source.bytes_read)
        ));
        if let Some(at) = source.retired {
            shell.say(format!("{}: retired {}; what is stored of it can be restored", source.source, time(at)));
        }
        if let Some(coverage) = &source.coverage {
            shell.say(format!("{}: {}", source.source, said(coverage)));
        }
        if source.archived > 0 {
            let packs = count(source.archived, "pack");
            shell.say(format!("{}: {packs} in an archive class were not read; they are there", source.source));
        }
        for foreign in &source.foreign {
            shell.warn(format!("{}: {}: {}", source.source, foreign.object, foreign.what));
        }
        for fault in &source.faults {
            sound = false;
            let hurts = match fault.hurts.as_slice() {
                [] => String::new(),
                hurt => format!("; hurts snapshots {}", numbers(hurt)),
            };
            shell.warn(format!("{}: {}: {}{hurts}", source.source, fault.object, fault.what));
        }
    }
    for group in &report.groups {
        sound &= group.faults.is_empty() && group.unread.is_none();
        say_group(shell, group);
    }
    let covers: Vec<_> = report.covers.iter().chain(report.sources.iter().flat_map(|s| &s.covers)).collect();
    say_covers(shell, &covers);
    if !sound {
        shell.say(
            "Snapshots that are not named here are whole: `restore SOURCE --snapshot N` brings one back.\n\
             `backup SOURCE --baseline` makes a new one that needs nothing of what is damaged.",
        );
    }
    Ending::new(if report.sound() { Exit::Done } else { Exit::CheckFailed }, report)
}

fn say_covers(shell: &Shell, covers: &[&Cover]) {
    for cover in covers {
        let what = if cover.deleted { "was deleted" } else { "was written over" };
        shell.warn(format!(
            "{} {what} at {}; the store keeps versions, and the first one is still there",
            cover.object,
            time(cover.at)
        ));
    }
    if !covers.is_empty() {
        shell.say(
            "Somebody who may write or delete in the store has touched objects that are never changed. Everything restores from the first versions as long as \
             the store keeps them: find out who it was, change the credentials, then take the covers away with `prune --uncover` (as keeper).",
        );
    }
}

fn say_group(shell: &Shell, group: &Sight) {
    if let Some(why) = &group.unread {
        let what = format!("group {}: how it stands is not known, the store does not give it: {why}", group.group);
        return shell.warn(what);
    }
    let newest = match (group.n, group.newest) {
        (Some(n), Some(at)) => format!("its newest whole point is {n}, with data of {}", time(at)),
        _ => "it has no whole point: run `blackstart backup --group`".to_owned(),
    };
    let expired = match group.expired.as_slice() {
        [] => String::new(),
        gone => format!("; retention has removed members of points {}", numbers(gone)),
    };
    shell.say(format!("group {}: {newest}{expired}", group.group));
    group.faults.iter().for_each(|fault| shell.warn(format!("group {}: {fault}", group.group)));
}

/// How far the reading of the data has come.
fn said(coverage: &Coverage) -> String {
    let since = coverage.all_read_since.map_or(String::new(), |at| format!("; the others since {}", time(at)));
    match (coverage.packs, coverage.packs_read, coverage.never_read) {
        (packs, read, _) if packs == read => format!("all data was read: {}", count(packs, "pack")),
        (packs, read, 0) => format!("{read} of {} read now{since}", count(packs, "pack")),
        (packs, read, never) => format!(
            "{read} of {} read now; {never} have never been read, as far as this machine remembers{since}",
            count(packs, "pack")
        ),
    }
}
