//! `restore`: bring a source back, beside whatever is there.

use anyhow::{Context, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::evidence::{by_hand, record};
use super::open::{Reader, recovery_key};
use super::output::{Ending, Exit, Shell, numbers, size, span, time};
use super::{point, thaw};
use crate::cli::Restore;
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::limits;
use crate::operations::evidence::restored::Circumstances;
use crate::operations::restore::{self, Forecast, LogAhead, Pick, Request, RestoreReport};
use crate::operations::{Open, proof, verified};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::Snapshot;
use crate::source::postgres;
use crate::target::{self, Branch};

pub fn run(shell: &Shell, args: &Restore) -> Result<Ending> {
    let to = to(args)?;
    if args.in_place {
        may_replace(args, &to)?;
    }
    let reader = shell.reader(&args.place)?;
    no_group_by_that_name(&reader, args)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let open = &reader.open;
    let wanted = pick(open, args)?;
    let started = open.now();
    let point = point::of(open, &keys.identities, args)?;
    let (commit, snapshot) = match &point {
        Some(point) => (point.commit.clone(), point.snapshot.clone()),
        None => restore::find(open, &args.source, &wanted)?,
    };
    if point.is_none() && matches!(wanted, Pick::Latest | Pick::At(_)) {
        say_suspects(shell, open, &snapshot, &wanted)?;
    }
    if args.in_place && snapshot.kind != "files" {
        return Err(not_in_place(&snapshot.kind));
    }
    let paths: Vec<Name> = args.path.iter().map(|p| name_of(p)).collect();
    let branches = branches(args, &snapshot, &keys.identities)?;
    let finish = match &point {
        Some(point) => Some(point.finish(open, &keys.identities, &to, &branches)?),
        None if paths.is_empty() => restore::finish_of(&snapshot, &keys.identities, &to, &branches)?,
        None => None,
    };
    let name = point.as_ref().map(point::Point::name);
    let anew = Request::new(to, limits::workers());
    let request = Request { in_place: args.in_place, paths, branches, point: name, finish, ..anew };
    if args.dry_run {
        let log = point.as_ref().and_then(point::Point::ahead);
        return foretell(shell, open, &keys.identities, &snapshot, &request, log);
    }
    thaw::thawed(shell, args, open, &keys.identities, &snapshot, &request)?;
    let busy = shell.busy(format!("restoring {}", args.source), &request.progress);
    let report = restore::restore(open, &keys.identities, &commit, &snapshot, &request)?;
    drop(busy);
    say(shell, &report);
    // A log changes what is to be done with the files.
    if let Ok(sealed) = SealedPart::open(&snapshot, &keys.identities)
        && point.is_none()
    {
        proof::advice(&snapshot.kind, &sealed.facts).iter().for_each(|line| shell.say(line));
    }
    let how = Circumstances {
        started,
        point: why(&wanted),
        trigger: by_hand("restore"),
        plan: None,
        partial: !request.paths.is_empty(),
        configuration: reader.config.as_ref().and_then(|config| config.hash),
    };
    record(shell, open, keys.signing.as_ref(), (&commit, &snapshot), &report, &how);
    let mut shown = serde_json::to_value(&report)?;
    if let Some(point) = &point {
        point.say(shell, &keys.identities);
        shown["recovery"] = point.prepared()?;
    }
    let partial = report.outcome == Outcome::Partial || report.notes_count > 0;
    Ending::new(if partial { Exit::Partial } else { Exit::Done }, shown)
}

/// Where to restore to.
pub fn to(args: &Restore) -> Result<PathBuf> {
    let to = args.to.as_deref().context("--to DIR says where to restore")?;
    let to = std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?;
    // `DIR/` means DIR.
    Ok(to.components().collect())
}

/// The tablespaces that are to lie elsewhere.
fn branches(args: &Restore, snapshot: &Snapshot, identities: &[Identity]) -> Result<Vec<Branch>> {
    if args.tablespace.is_empty() {
        return Ok(Vec::new());
    }
    if snapshot.kind != postgres::PHYSICAL {
        let what = format!("{} is no copy of a PostgreSQL server's files, and has no tablespaces", args.source);
        return Err(Failure::new(Kind::Usage, what, "Nothing was restored. Leave --tablespace out."));
    }
    let facts = postgres::Facts::of(&SealedPart::open(snapshot, identities)?.facts)?;
    postgres::restored::branches(&facts, &args.tablespace)
}

/// Databases have more to them than a rename.
fn not_in_place(kind: &str) -> anyhow::Error {
    let help = match kind {
        "sqlite" => {
            "Nothing was changed. Restore beside it, stop what uses the database, and move the file into place; remove its -wal and -shm first."
        }
        "command" => {
            "Nothing was changed. Restore beside it, and load it: --into does it where the source has `restore` programs."
        }
        postgres::LOGICAL => "Nothing was changed. Load it into a new database: --into postgres://user@host/NAME.",
        _ => {
            "Nothing was changed. Restore beside it, stop the server, and swap the directories; keep the old one until the new one has proven itself."
        }
    };
    Failure::new(Kind::Usage, "a database is not replaced in place", help)
}

/// Somebody who means a group hears of the option.
fn no_group_by_that_name(reader: &Reader, args: &Restore) -> Result<()> {
    let Some(config) = &reader.config else { return Ok(()) };
    let named = |name: &str| name == args.source.as_str();
    if config.source.iter().any(|s| named(s.name.as_str())) || !config.group.iter().any(|g| named(&g.name.to_string()))
    {
        return Ok(());
    }
    let help = format!(
        "Nothing was changed. To bring back all its members: blackstart restore --group {} --to DIR",
        args.source
    );
    Err(Failure::new(Kind::Usage, format!("{} is no source, but a group", args.source), help))
}

/// What a restore would do.
pub fn foretell(
    shell: &Shell,
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    request: &Request,
    log: Option<LogAhead>,
) -> Result<Ending> {
    if !request.in_place {
        target::must_be_free(&request.to)?;
    }
    let rate = verified::of(open, &snapshot.source)?
        .iter()
        .rev()
        .find(|p| p.seconds > 0.0)
        .map(|p| p.bytes as f64 / p.seconds);
    let forecast = Forecast { log, ..restore::forecast(open, identities, snapshot, request, rate)? };
    // What would stop the real one stops this.
    let mut places = forecast.places.clone();
    places[0].1 += forecast.log.as_ref().map_or(0, |log| log.bytes);
    restore::has_place(&request.to, &places)?;
    shell.say(format!(
        "Would restore snapshot {} of {} (data of {}) to {}: {} entries, {}; {} to fetch in {} packs{}",
        forecast.seq,
        forecast.source,
        time(forecast.data_time),
        forecast.to.display(),
        forecast.entries,
        size(forecast.bytes),
        size(forecast.bytes_to_fetch),
        forecast.packs,
        forecast.seconds.map_or(String::new(), |s| format!("; about {}, as drills measured", span(s)))
    ));
    for (place, bytes) in &forecast.places[1..] {
        shell.say(format!("Of that {} to {}", size(*bytes), place.display()));
    }
    if let Some(log) = &forecast.log {
        let most = if log.at_most { "at most " } else { "" };
        let (from, to) = (&log.from, &log.to);
        shell
            .say(format!("Then the log from {from} to {most}{to}: {most}{} for the server to replay", size(log.bytes)));
    }
    thaw::foretell(shell, open, identities, snapshot, request)?;
    Ending::new(Exit::Done, forecast)
}

/// The default passes over suspect snapshots, and never in silence.
pub fn say_suspects(shell: &Shell, open: &Open, snapshot: &Snapshot, pick: &Pick) -> Result<()> {
    let newer = restore::passed_over(open, &snapshot.source, snapshot.seq, pick)?;
    if let Some(newest) = newer.last() {
        let what = if newer.len() == 1 { "the newer snapshot" } else { "the newer snapshots" };
        shell.warn(format!(
            "{what} {} of {} LOOK WRONG (a sudden shrink, no rows, encrypted, or times that the store's clock contradicts) and are passed over: this restores {}, the last good one, \
             with data of {}. To take the newest all the same: --snapshot {newest}",
            numbers(&newer),
            snapshot.source,
            snapshot.seq,
            time(snapshot.data_time)
        ));
    }
    Ok(())
}

fn why(pick: &Pick) -> String {
    match pick {
        Pick::Latest => "the newest complete snapshot that is not suspect".into(),
        Pick::LatestVerified(_) => "the newest snapshot that a drill has proven".into(),
        Pick::At(at) => format!("the newest with data of {} or before", time(*at)),
        Pick::Seq(_) => "named by number".into(),
    }
}

fn may_replace(args: &Restore, to: &Path) -> Result<()> {
    if args.confirm.as_ref() != Some(&args.source) {
        let help = format!(
            "Nothing was changed. To put the restore where {} is now: --in-place --confirm {}",
            to.display(),
            args.source
        );
        return Err(Failure::new(Kind::Usage, "--confirm names another source", help));
    }
    Ok(())
}

pub fn pick(open: &Open, args: &Restore) -> Result<Pick> {
    Ok(match (args.at, args.snapshot) {
        (Some(at), _) => Pick::At(at),
        (_, Some(seq)) => Pick::Seq(seq),
        _ if args.latest_verified => Pick::LatestVerified(verified::proven(open, &args.source)?),
        _ => Pick::Latest,
    })
}

/// A path of the source, relative to its root.
pub fn name_of(path: &Path) -> Name {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    Name::new(bytes.strip_suffix(b"/").unwrap_or(bytes))
}

pub fn say(shell: &Shell, report: &RestoreReport) {
    shell.say(format!(
        "Restored snapshot {} of {} (data of {}) to {}: {} entries, {}, in {}. Every byte was checked.",
        report.seq,
        report.source,
        time(report.data_time),
        report.to.display(),
        report.entries,
        size(report.bytes),
        span(report.phases.total)
    ));
    for Branch { at, place } in &report.branches {
        shell.say(format!("{at} lies in {}.", place.display()));
    }
    if let Some(kept) = &report.kept {
        shell.say(format!("What was there is at {}.", kept.display()));
    }
    if report.outcome == Outcome::Partial {
        shell.warn("this snapshot is partial: something could not be read when it was made");
    }
    for note in &report.notes {
        shell.warn(format!("{}: {}", note.path, note.why));
    }
}
