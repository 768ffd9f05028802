//! Which snapshot is meant: never one that looks wrong, nor an older one than could be had, in silence.

use anyhow::Result;
use jiff::Timestamp;
use std::collections::BTreeSet;

use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::suspect::suspects;
use crate::operations::verified::Proven;
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::time;

/// Which snapshot to restore.
#[derive(Debug, Clone, PartialEq)]
pub enum Pick {
    /// The newest complete one that is not suspect; if all are, the newest complete one.
    Latest,
    /// The newest that a drill has proven, by what drills have proven.
    LatestVerified(Proven),
    /// As `Latest`, among those whose data is not younger; one whose times the store's clock contradicts only if there is no other.
    At(Timestamp),
    Seq(u64),
}

impl Pick {
    /// Whether the time of the snapshot's data is not beyond what is asked for.
    fn reaches(&self, snapshot: &Snapshot) -> bool {
        !matches!(self, Pick::At(time) if snapshot.data_time > *time)
    }
}

/// Finds the snapshot that `pick` means among those that verify.
pub fn find(open: &Open, source: &SourceName, pick: &Pick) -> Result<(Commit, Snapshot)> {
    // A memory that cannot be read keeps nobody from his data: `status`, `verify` and `watch` tell of it.
    let seen = open.seen(source).unwrap_or_default();
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    if let Pick::LatestVerified(proven) = pick {
        nothing_newer_is_proven(&series, &whole, proven)?;
    }
    let Some((commit, snapshot)) = meant(&whole, pick) else { return Err(nothing_found(open, source, pick, &whole)) };
    if matches!(pick, Pick::Latest | Pick::At(_)) {
        nothing_newer_is_broken(&whole, snapshot, pick)?;
        nothing_newer_is_gone(series.lacks(seen), &whole, snapshot, pick)?;
    }
    Ok((commit.clone(), snapshot.clone()))
}

fn meant<'a>(whole: &'a Whole, pick: &Pick) -> Option<(&'a Commit, &'a Snapshot)> {
    let all: Vec<(&Commit, &Snapshot)> = whole.snapshots().collect();
    let mut newest = all.into_iter().rev();
    match pick {
        Pick::Latest | Pick::At(_) => {
            let suspects = passed_over_by(pick, whole);
            let mut reached = newest.filter(|(_, s)| pick.reaches(s));
            let mut complete = reached.clone().filter(|(_, s)| s.outcome == Outcome::Complete);
            let good = complete.clone().find(|(_, s)| !suspects.contains(&s.seq));
            good.or(complete.next()).or(reached.next())
        }
        Pick::LatestVerified(proven) => newest.find(|(commit, _)| proven.has(&commit.hash)),
        Pick::Seq(seq) => newest.find(|(_, s)| s.seq == *seq),
    }
}

/// An unsound commit that `pick` may mean is never passed over in silence.
pub fn nothing_newer_is_broken(whole: &Whole, snapshot: &Snapshot, pick: &Pick) -> Result<()> {
    let Some(broken) = broken_after(whole, snapshot, pick) else { return Ok(()) };
    Err(does_not_verify(&snapshot.source, broken, at_most(snapshot)))
}

/// The newest unsound commit after `snapshot` that `pick` may mean: number, and what is wrong.
pub fn broken_after<'a>(whole: &'a Whole, snapshot: &Snapshot, pick: &Pick) -> Option<&'a (u64, String)> {
    whole.faults.iter().rev().find(|(seq, _)| may_mean(pick, *seq, whole, snapshot))
}

/// That a restore must not pass over this commit in silence.
pub fn does_not_verify(source: &SourceName, (seq, why): &(u64, String), help: String) -> anyhow::Error {
    let what = format!("commit {seq} of {source} is newer than the newest sound snapshot, and does not verify: {why}");
    Failure::new(Kind::CheckFailed, what, help)
}

/// Nor is the commit `gone`, which this host has seen and somebody has taken away: see [`Series::lacks`].
pub fn nothing_newer_is_gone(gone: Option<u64>, whole: &Whole, snapshot: &Snapshot, pick: &Pick) -> Result<()> {
    let Some(seq) = gone.filter(|seq| may_mean(pick, *seq, whole, snapshot)) else { return Ok(()) };
    let source = &snapshot.source;
    let what = format!(
        "commit {seq} of {source} is newer than the newest snapshot there is, and gone: this host has seen it, and no prune removed it"
    );
    let help = format!("{} Somebody deleted it, or the store shows an older state: find out which.", at_most(snapshot));
    Err(Failure::new(Kind::CheckFailed, what, help))
}

/// Whether `pick` may mean the commit `seq`, of which nothing else is known, rather than `snapshot`.
fn may_mean(pick: &Pick, seq: u64, whole: &Whole, snapshot: &Snapshot) -> bool {
    // What comes after a snapshot from beyond the time is beyond it too.
    let beyond =
        whole.snapshots().find(|(_, s)| s.seq > snapshot.seq && !pick.reaches(s)).map_or(u64::MAX, |(_, s)| s.seq);
    seq > snapshot.seq && seq < beyond
}

fn at_most(snapshot: &Snapshot) -> String {
    let (seq, at) = (snapshot.seq, time::local(snapshot.data_time));
    format!(
        "Nothing was changed. The newest that can be restored is {seq} with data of {at}: say --snapshot {seq} to take it."
    )
}

/// Nor is one that drills have proven, or may have: where it does not verify or is gone, or the report on it.
fn nothing_newer_is_proven(series: &Series, whole: &Whole, proven: &Proven) -> Result<()> {
    let source = &series.source;
    let taken = whole.snapshots().rfind(|(commit, _)| proven.has(&commit.hash)).map(|(_, snapshot)| snapshot);
    let above = taken.map_or(0, |snapshot| snapshot.seq);
    let help = match taken {
        Some(s) => format!(
            "Nothing was changed. The newest that is known to be proven is {} with data of {}: say --snapshot {} to take it (in a plan: its number as \
             the point), or restore the newest without --latest-verified.",
            s.seq,
            time::local(s.data_time),
            s.seq
        ),
        None => format!("Nothing was changed. `snapshots {source}` lists what there is: say --snapshot N to take one."),
    };
    let refuse = |what: String| Err(Failure::new(Kind::CheckFailed, what, help));
    for proof in proven.proofs.iter().rev().filter(|proof| proof.seq > above) {
        let why = match whole.faults.iter().find(|(seq, _)| *seq == proof.seq) {
            Some((_, why)) => format!("does not verify: {why}"),
            None if !series.has(proof.seq, proof.commit)? => "is gone, and no prune record removed it".to_owned(),
            None => continue,
        };
        return refuse(format!("commit {} of {source} is the newest that a drill has proven, and {why}", proof.seq));
    }
    let doubted = |snapshot: &Snapshot| Some((snapshot.seq, proven.doubt(snapshot)?.clone()));
    let newer = whole.snapshots().rev().map(|(_, s)| s).filter(|s| s.seq > above);
    let Some((seq, broken)) = newer.filter_map(doubted).next() else { return Ok(()) };
    refuse(format!("{}: {}; it may have proven snapshot {seq} of {source}, which is newer", broken.object, broken.why))
}

fn nothing_found(open: &Open, source: &SourceName, pick: &Pick, whole: &Whole) -> anyhow::Error {
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

/// Those that `pick` takes only if there is no other. When a snapshot was taken matters only where a time is asked for.
fn passed_over_by(pick: &Pick, whole: &Whole) -> BTreeSet<u64> {
    let mut found = suspects(whole);
    if matches!(pick, Pick::At(_)) {
        found.extend(whole.snapshots().filter(|(_, s)| whole.is_mistimed(s)).map(|(_, s)| s.seq));
    }
    found
}

/// Newer snapshots of `source` than `seq` that `pick` passed over because they are suspect.
pub fn passed_over(open: &Open, source: &SourceName, seq: u64, pick: &Pick) -> Result<Vec<u64>> {
    Ok(over(&Series::list(&open.store, &open.trust, source)?.whole(), seq, pick))
}

/// Whether `Pick::Latest` passes over snapshots that look wrong.
pub fn passes_over(open: &Open, source: &SourceName) -> Result<bool> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    Ok(meant(&whole, &Pick::Latest).is_some_and(|(_, taken)| !over(&whole, taken.seq, &Pick::Latest).is_empty()))
}

fn over(whole: &Whole, seq: u64, pick: &Pick) -> Vec<u64> {
    let suspects = passed_over_by(pick, whole);
    let over = |s: &Snapshot| s.seq > seq && suspects.contains(&s.seq) && pick.reaches(s);
    whole.snapshots().filter(|(_, s)| over(s)).map(|(_, s)| s.seq).collect()
}
