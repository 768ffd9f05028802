//! `snapshots`: what exists.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;

use super::group;
use super::open::host_identity;
use super::output::{Ending, Exit, Shell, size, table, time};
use crate::cli::Snapshots;
use crate::config::Config;
use crate::operations::retention::Reason;
use crate::operations::suspect::suspects;
use crate::operations::wal::recover::{Recoverable, recoverable};
use crate::operations::{Open, retained, verified};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::sealed::SealedPart;
use crate::repository::series::{self, Series};
use crate::repository::snapshot::Mode;

#[derive(Serialize)]
struct Row {
    source: SourceName,
    seq: u64,
    data_time: jiff::Timestamp,
    outcome: Outcome,
    mode: Mode,
    verified: bool,
    /// It looks wrong beside the snapshots before it.
    suspect: bool,
    /// The store's clock contradicts its times.
    mistimed: bool,
    /// Bytes of the source's files; absent where no key can read it.
    bytes: Option<u64>,
    keep: Vec<Reason>,
}

pub fn run(shell: &Shell, args: &Snapshots) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let sources = match &args.source {
        Some(source) => vec![source.clone()],
        None => series::sources(&reader.open.store)?,
    };
    let identities = host_identity(reader.config.as_ref());
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for source in &sources {
        faults.extend(list(shell, &reader.open, reader.config.as_ref(), source, &identities, &mut rows)?);
    }
    for fault in &faults {
        shell.warn(fault);
    }
    if let Some(source) = &args.source
        && rows.is_empty()
        && faults.is_empty()
        && !reader.expected().contains(source)
    {
        return Err(series::unknown(&reader.open.store, source));
    }
    if rows.is_empty() {
        shell.say("There are no snapshots here.");
    } else {
        let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
        shell.say(table(["SOURCE", "SEQ", "DATA OF", "OUTCOME", "MODE", "SIZE", "VERIFIED", "KEPT AS"], &cells));
    }
    if rows.iter().any(|row| row.bytes.is_none()) {
        shell.say("note: a size of ? is sealed to another host key than the one here; the snapshots are as good as the others.");
    }
    let mistimed: BTreeSet<&SourceName> = rows.iter().filter(|row| row.mistimed).map(|row| &row.source).collect();
    for source in mistimed {
        shell.warn(format!(
            "{source} has snapshots whose times the store's clock contradicts: they never expire. `blackstart confirm {source}` says which"
        ));
    }
    let mut windows = Vec::new();
    for source in &sources {
        let found = recoverable(&reader.open, source)?;
        for (n, window) in found.iter().enumerate() {
            shell.say(reachable(source, window, n > 0));
        }
        windows.extend(found);
    }
    let groups = group::list(shell, &reader.open, args.source.as_ref(), &mut faults)?;
    let exit = if faults.is_empty() { Exit::Done } else { Exit::CheckFailed };
    Ending::new(exit, json!({"snapshots": rows, "faults": faults, "windows": windows, "groups": groups}))
}

/// What a part of the log without a gap allows.
fn reachable(source: &SourceName, window: &Recoverable, after_a_gap: bool) -> String {
    let (from, until, place) = (time(window.from), time(window.until), window.place());
    if window.until < window.from {
        let gap = if after_a_gap { "After a gap in the log: it" } else { "The log" };
        let snapshot = window.snapshot;
        return format!(
            "{gap} of {source} ends ({place}) with snapshot {snapshot} of {from}: no later moment can be reached yet."
        );
    }
    let gap = if after_a_gap { "After a gap in the log: every" } else { "Every" };
    format!(
        "{gap} moment from {from} (snapshot {}) to {until} ({place}) of {source} can be reached: restore {source} --at TIME",
        window.snapshot
    )
}

fn list(
    shell: &Shell,
    open: &Open,
    config: Option<&Config>,
    source: &SourceName,
    identities: &[Identity],
    rows: &mut Vec<Row>,
) -> Result<Vec<String>> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    if let Some(record) = whole.retired() {
        let why = record.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        shell.say(format!("{source} was retired {} by {}{why}", time(record.started), record.host));
    }
    let proven = verified::proven(open, source)?;
    let doubted = suspects(&whole);
    let first = rows.len();
    for (commit, snapshot) in whole.snapshots() {
        let verified = proven.has(&commit.hash);
        rows.push(Row {
            source: source.clone(),
            seq: snapshot.seq,
            data_time: snapshot.data_time,
            outcome: snapshot.outcome,
            mode: snapshot.mode,
            verified,
            suspect: doubted.contains(&snapshot.seq),
            mistimed: whole.is_mistimed(snapshot),
            bytes: SealedPart::open(snapshot, identities).ok().map(|s| s.stats.bytes),
            keep: Vec::new(),
        });
    }
    let policy = config.and_then(|c| c.source.iter().find(|s| s.name == *source)?.retention.as_ref());
    if let Some(policy) = policy {
        for (row, decision) in rows[first..].iter_mut().zip(retained::decisions(open, source, &whole, &proven, policy)?)
        {
            row.keep = decision.keep;
        }
    }
    Ok(whole.faults.into_iter().map(|(seq, why)| format!("commit {seq} of {source}: {why}")).collect())
}

fn cells(row: &Row) -> [String; 8] {
    let outcome = match row.outcome {
        Outcome::Complete if row.suspect => "SUSPECT",
        Outcome::Complete if row.mistimed => "SUSPECT TIME",
        Outcome::Complete => "complete",
        Outcome::Partial => "PARTIAL",
    };
    let kept: Vec<String> = row.keep.iter().map(Reason::to_string).collect();
    [
        row.source.to_string(),
        row.seq.to_string(),
        time(row.data_time),
        outcome.into(),
        row.mode.to_string(),
        row.bytes.map_or("?".into(), size),
        if row.verified { "verified".into() } else { "no".into() },
        kept.join(", "),
    ]
}
