//! `status`: one sentence, then one row for each source. It needs no key: commits are plain text.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;

mod canary;
mod drills;
mod groups;
mod plans;

use super::open::host_identity;
use super::output::{Ending, Exit, Shell, count, numbers, span, table, time};
use crate::cli::{Place, Status};
use crate::config::{Config, SourceConfig};
use crate::operations::drill::DrillReport;
use crate::operations::findings::{Damage, Findings};
use crate::operations::measures::{self, Measures, Prediction};
use crate::operations::reach::{self, LogEnd, WayOn};
use crate::operations::suspect::suspects;
use crate::operations::{Open, verified};
use crate::report::Outcome;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::sealed::SealedPart;
use crate::repository::series::{self, Series, Whole};

#[derive(Serialize)]
struct Row {
    source: SourceName,
    /// Who wrote the newest snapshot.
    host: Option<String>,
    /// The newest complete snapshot.
    seq: Option<u64>,
    commit: Option<Hash>,
    newest: Option<Timestamp>,
    /// Of a source whose log is stored: where it ends that goes on from there.
    log: Option<LogEnd>,
    /// Up to when data can be brought back: the newest snapshot, or the end of its log.
    recovery_point: Option<Timestamp>,
    verified: Option<Timestamp>,
    rpo_exposure_seconds: Option<f64>,
    rpo_seconds: Option<f64>,
    measured_rto_seconds: Option<f64>,
    /// Of a source with a canary.
    canary: Option<canary::Row>,
    /// Predicted RTO, trend, and how fresh each level of drill is.
    measures: Measures,
    /// The levels of drill that the schedule promises.
    drills: Vec<drills::Row>,
    /// Numbers of newer snapshots that are suspect.
    suspect: Vec<u64>,
    rto_seconds: Option<f64>,
    restore: String,
    /// Since when it is given up on purpose.
    retired: Option<Timestamp>,
    /// What is wrong, for people.
    attention: Vec<String>,
    #[serde(skip)]
    exit: Severity,
}

/// How bad it is, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Well,
    Missed,
    Unproven,
}

pub fn run(shell: &Shell, args: &Status) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let configured = reader.config.iter().flat_map(|c| c.source.iter().map(|s| s.name.clone()));
    let names: BTreeSet<SourceName> = configured.chain(series::sources(&reader.open.store)?).collect();
    let rows: Vec<Row> = names
        .into_iter()
        .map(|name| row(&reader.open, reader.config.as_ref(), &args.place, name))
        .collect::<Result<_>>()?;
    let plans = plans::rows(&reader.open, reader.config.as_ref())?;
    let groups = groups::rows(&reader.open, reader.config.as_ref())?;
    let sentence = sentence(&rows, &groups, &plans);
    shell.say(&sentence);
    if !rows.is_empty() {
        shell.say("");
        let cells: Vec<[String; 7]> = rows.iter().map(|row| cells(row, reader.open.now())).collect();
        shell.say(table(
            ["SOURCE", "HOST", "NEWEST POINT", "NEWEST VERIFIED", "RPO EXPOSURE", "RTO", "RESTORE"],
            &cells,
        ));
    }
    groups.iter().for_each(|group| shell.say(group.say()));
    plans.iter().for_each(|plan| shell.say(plan.say()));
    for row in &rows {
        row.canary.iter().for_each(|canary| shell.say(format!("{}: {}", row.source, canary.told())));
        drills::say(&row.drills, reader.open.now())
            .iter()
            .for_each(|what| shell.say(format!("{}: {what}", row.source)));
        row.attention.iter().for_each(|what| shell.say(format!("{}: {what}", row.source)));
    }
    let of_plans = plans.iter().filter(|plan| plan.attention.is_some()).map(|_| Severity::Unproven);
    let of_groups = groups.iter().filter(|group| group.attention.is_some());
    let of_groups = of_groups.map(|group| if group.only_late { Severity::Missed } else { Severity::Unproven });
    let exit = match rows.iter().map(|r| r.exit).chain(of_plans).chain(of_groups).max() {
        None => Exit::NothingToDo,
        Some(Severity::Well) => Exit::Done,
        Some(Severity::Missed) => Exit::Missed,
        Some(Severity::Unproven) => Exit::CheckFailed,
    };
    Ending::new(exit, json!({"sentence": sentence, "sources": rows, "groups": groups, "plans": plans}))
}

fn row(open: &Open, config: Option<&Config>, place: &Place, source: SourceName) -> Result<Row> {
    let seen = open.seen(&source);
    let series = Series::list(&open.store, &open.trust, &source)?;
    let whole = series.whole();
    let doubted = suspects(&whole);
    let complete = || whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete);
    let newest = complete().rfind(|(_, s)| !doubted.contains(&s.seq)).or_else(|| complete().next_back());
    let suspect: Vec<u64> = doubted.into_iter().filter(|seq| newest.is_none_or(|(_, s)| *seq >= s.seq)).collect();
    let reports = verified::reports(open, &source)?;
    let broken = reports.unanswered().is_some();
    let reports = reports.drills;
    let job = config.and_then(|c| c.jobs.iter().find(|job| job.enabled && job.source == source));
    let drills = drills::rows(job, &reports, open.now());
    let proofs = verified::by(open, &source, &reports)?;
    let proven = whole.snapshots().rfind(|(c, _)| proofs.iter().any(|p| p.commit == c.hash));
    let WayOn { log, lost, .. } = newest.map(|(_, s)| reach::way_after(open, s)).transpose()?.unwrap_or_default();
    let point = newest.map(|(_, s)| reach::point(s, log.as_ref()));
    // An engine's clock that is a little ahead of ours makes nothing better than now.
    let exposure = point.map(|point| open.now().duration_since(point).as_secs_f64().max(0.0));
    let (rpo, rto) = targets(config, &source);
    let bytes =
        newest.and_then(|(_, s)| SealedPart::open(s, &host_identity(config)).ok()).map(|sealed| sealed.stats.bytes);
    let measures = measures::measure(&reports, bytes, rto);
    let measured = measures.achieved_rto_seconds;
    let late = |value: Option<f64>, target: Option<f64>| matches!((value, target), (Some(v), Some(t)) if v > t);
    let mut attention = Vec::new();
    let mut exit = Severity::Well;
    let retired = whole.retired().map(|record| record.started);
    // What is given up has nothing to prove and nothing to keep up with; what there is of it must be whole all the same.
    let due = retired.is_none();
    let mut note = |holds: bool, how: Severity, what: &str| {
        if holds {
            attention.push(what.to_owned());
            exit = exit.max(how);
        }
    };
    wrong_in_the_store(&whole, broken).for_each(|what| note(true, Severity::Unproven, what));
    known_here(open, &series, seen).for_each(|what| note(true, Severity::Unproven, &what));
    lost.iter().for_each(|lost| note(true, Severity::Unproven, &unusable(lost, &source)));
    note(due && newest.is_none(), Severity::Unproven, "has no complete snapshot: run `blackstart backup`");
    note(due && !suspect.is_empty(), Severity::Unproven, &suspected(&source, &suspect));
    let unproven = newest.and_then(|_| unproven(&reports, proven.is_some(), &source));
    let overdue = drills.iter().filter_map(|row| row.attention(source.as_str()));
    unproven.into_iter().chain(overdue).for_each(|what| note(due, Severity::Unproven, &what));
    note(due && late(exposure, rpo), Severity::Missed, older(log.is_some()));
    note(due && late(measured, rto), Severity::Missed, "the last restore took longer than the RTO allows");
    let trend = measures.trend.filter(|_| due).and_then(|t| t.exceeds_in_days);
    if let Some(days) = trend.filter(|days| *days < 90.0) {
        attention
            .push(format!("a restore will take longer than the RTO allows in about {days:.0} days, as it grows now"));
    }
    Ok(Row {
        canary: canary::row(config, &source, &reports, open.now()),
        measures,
        drills,
        suspect,
        restore: restore_command(config, &source, place, open),
        source,
        host: whole.snapshots().last().map(|(_, s)| s.host.clone()),
        seq: newest.map(|(_, s)| s.seq),
        commit: newest.map(|(c, _)| c.hash),
        newest: newest.map(|(_, s)| s.data_time),
        log,
        recovery_point: point,
        verified: proven.map(|(_, s)| s.data_time),
        rpo_exposure_seconds: exposure,
        rpo_seconds: rpo,
        measured_rto_seconds: measured,
        rto_seconds: rto,
        retired,
        attention,
        exit,
    })
}

/// What this host knows of the repository that the repository itself does not show; and where what it knows cannot be read.
fn known_here(open: &Open, series: &Series, seen: Result<Option<(u64, Hash)>>) -> impl Iterator<Item = String> {
    let gone = |seq: u64| {
        format!(
            "commit {seq} is gone: this host has seen it, and no prune removed it. Somebody deleted it, or the store shows an older state: run `blackstart verify`"
        )
    };
    let gone = seen.map(|seen| series.lacks(seen).map(gone));
    let source = series.source.clone();
    let found = Findings::recall(open, &source).map(|found| found.damage.map(|damage| damaged(&damage, &source)));
    [gone, found].into_iter().filter_map(|what| what.unwrap_or_else(|error| Some(error.to_string())))
}

/// `broken`: drill reports do not verify, and no drill has passed since.
fn wrong_in_the_store(whole: &Whole, broken: bool) -> impl Iterator<Item = &'static str> {
    let damaged = whole.faults.iter().any(|(seq, _)| !whole.unread.contains(seq));
    [
        (damaged, "commits do not verify: run `blackstart verify`"),
        (
            !whole.unread.is_empty(),
            "the store does not give some commits, so that there may be newer points than are shown here: look at the store, and at what this credential may read",
        ),
        (
            !whole.covers.is_empty(),
            "commits were deleted or written over in the store, which still has their first versions: run `blackstart verify`",
        ),
        (
            broken,
            "drill reports do not verify, so that a failed drill or a proof may be missing here: run `blackstart report` and `blackstart drill`",
        ),
    ]
    .into_iter()
    .filter_map(|(holds, what)| holds.then_some(what))
}

/// What a `verify` on this machine has found.
fn damaged(damage: &Damage, source: &SourceName) -> String {
    format!("`verify` found at {}: {}. {}", time(damage.at), damage.what, damage.advice(source))
}

fn suspected(source: &SourceName, suspect: &[u64]) -> String {
    format!(
        "the newest snapshots are SUSPECT ({}): compare them with the source; `blackstart backup {source} --accept-change` if they are right",
        numbers(suspect)
    )
}

/// That a part of the log cannot be used.
fn unusable(lost: &str, source: &SourceName) -> String {
    format!(
        "its log cannot be used to its end, so that what was written last does not come back: {lost}. Run `blackstart verify`, and back up now: `blackstart backup {source}`"
    )
}

/// That the newest data is too old.
fn older(has_log: bool) -> &'static str {
    if has_log {
        "the stored log ends earlier than the RPO allows: no receiver runs (`blackstart agent`, `wal-receive`), or the server has written nothing since"
    } else {
        "the newest snapshot is older than the RPO allows"
    }
}

/// RPO and RTO that are promised, in seconds.
fn targets(config: Option<&Config>, source: &SourceName) -> (Option<f64>, Option<f64>) {
    let of = config.and_then(|c| c.source.iter().find(|s| s.name == *source));
    let seconds =
        |target: &dyn Fn(&SourceConfig) -> Option<SignedDuration>| of.and_then(target).map(|d| d.as_secs_f64());
    (seconds(&|s| s.rpo), seconds(&|s| s.rto))
}

/// What stands wrong with the proof of a source that has a snapshot.
fn unproven(drills: &[DrillReport], proven: bool, source: &SourceName) -> Option<String> {
    let failed = |r: &&DrillReport| r.r#type == "drill" && !r.passed && !drills.iter().any(|later| later.answers(r));
    match drills.iter().rfind(failed) {
        Some(failed) => Some(format!(
            "a drill FAILED, of snapshot {} (level {}), and none has passed since that tells as much: run `blackstart drill {source}` and `blackstart verify {source} --hashes`",
            failed.seq, failed.level
        )),
        _ if !proven => Some("no drill has proven a snapshot: run `blackstart drill`".into()),
        _ => None,
    }
}

/// As it works here: with the key file named where none lies on this machine.
pub fn restore_command(config: Option<&Config>, source: &SourceName, place: &Place, open: &Open) -> String {
    match &place.repo {
        Some(repo) => {
            let root = open.trust.root.id();
            format!("blackstart restore {source} --repo '{repo}' --root {root} --identity KEY --to DIR")
        }
        None if config.is_some_and(|config| config.recovery_key().exists()) => {
            format!("blackstart restore {source} --to DIR")
        }
        None => format!("blackstart restore {source} --identity KEY --to DIR"),
    }
}

fn sentence(rows: &[Row], groups: &[groups::Row], plans: &[plans::Row]) -> String {
    let bad: Vec<&Row> = rows.iter().filter(|r| r.exit > Severity::Well).collect();
    if rows.is_empty() {
        return "ATTENTION: nothing is protected yet: run `blackstart protect PATH`.".into();
    }
    if !bad.is_empty() {
        // Each with what is worst about it; the rest stands below the table.
        let what = |row: &&Row| format!("{}: {}", row.source, row.attention.first().map_or("", String::as_str));
        let all: Vec<String> = bad.iter().map(what).collect();
        return format!("ATTENTION: {} of {}: {}.", bad.len(), count(rows.len() as u64, "source"), all.join("; "));
    }
    if let Some((group, what)) = groups.iter().find_map(|group| Some((group.group(), group.attention.as_ref()?))) {
        return format!("ATTENTION: group {group}: {what}.");
    }
    if let Some((plan, what)) = plans.iter().find_map(|plan| Some((&plan.plan, plan.attention.as_ref()?))) {
        return format!("ATTENTION: the restore plan {plan} {what}.");
    }
    let live = || rows.iter().filter(|row| row.retired.is_none());
    let oldest = live().filter_map(|r| r.rpo_exposure_seconds).fold(0.0, f64::max);
    let what = match live().count() {
        0 => {
            return "Every source is retired: nothing is protected any more, and what is stored can be restored."
                .into();
        }
        1 => "The one source is protected".to_owned(),
        n => format!("All {n} sources are protected"),
    };
    format!("{what}; a disaster now would lose at most {} of data.", span(oldest))
}

fn rto(row: &Row) -> String {
    let measured = row.measured_rto_seconds.map_or("not measured".into(), span);
    let target = row.rto_seconds.map_or(String::new(), |target| format!(" of {}", span(target)));
    let next = match row.measures.predicted_rto {
        Prediction::Between { low, high, .. } => format!("; next {} to {}", span(low), span(high)),
        Prediction::TooFew { .. } => String::new(),
    };
    format!("{measured}{target}{next}")
}

fn cells(row: &Row, now: Timestamp) -> [String; 7] {
    let point = |at: Option<Timestamp>| {
        at.map_or("none".into(), |at| format!("{} ({} ago)", time(at), span(now.duration_since(at).as_secs_f64())))
    };
    let against = |value: Option<f64>, target: Option<f64>| {
        let value = value.map_or("not measured".into(), span);
        target.map_or(value.clone(), |target| format!("{value} of {}", span(target)))
    };
    [
        row.source.to_string(),
        row.host.clone().unwrap_or_else(|| "?".into()),
        point(row.recovery_point),
        point(row.verified),
        row.retired
            .map_or_else(|| against(row.rpo_exposure_seconds, row.rpo_seconds), |at| format!("retired {}", time(at))),
        rto(row),
        row.restore.clone(),
    ]
}
