//! `bisect`: when did it go wrong? Restores snapshots into scratch, one after the other, and asks each.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, time};
use crate::child::watch::Watch;
use crate::cli::Bisect;
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::limits;
use crate::operations::Open;
use crate::operations::ask::Restored;
use crate::operations::bisect::search;
use crate::operations::drill::{Bounds, Scratch, bounds};
use crate::operations::restore::{self, Request};
use crate::plan::Variables;
use crate::plan::check::{Case, CheckOf, Copy, Engines, Who};
use crate::progress::Progress;
use crate::report::{Check, Outcome};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::Settings;

/// Longest single question.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Serialize)]
struct Asked {
    seq: u64,
    data_time: jiff::Timestamp,
    good: bool,
    answer: String,
}

pub fn run(shell: &Shell, args: &Bisect) -> Result<Ending> {
    if args.check.is_some() != args.command.is_empty() {
        let help = "Nothing was restored. Give --check 'SQL' (of Redis a command: --check 'GET key'), or a program behind `--`: it gets the copy as \
                    ${copy}, and exits with 0 if it is good.";
        return Err(Failure::new(Kind::Usage, "what is to be checked?", help));
    }
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let base = reader.config.as_ref().map_or_else(std::env::temp_dir, |c| c.scratch());
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let open = &reader.open;
    let whole = Series::list(&open.store, &open.trust, &args.source)?.whole();
    whole.faults.iter().for_each(|(seq, why)| shell.warn(format!("commit {seq} is left out: {why}")));
    let points: Vec<(&Commit, &Snapshot)> = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete).collect();
    let settings = reader.config.as_ref().and_then(|config| {
        let source = config.source.iter().find(|source| source.name == args.source)?;
        Some(config.settings(source))
    });
    let settings = settings.unwrap_or_default();
    let bounds = reader.config.as_ref().map_or_else(|| bounds(None, None), Config::drill_bounds);
    let bisection = Bisection { open, identities: &keys.identities, base: &base, settings: &settings, bounds };
    let mut asked: Vec<Asked> = Vec::new();
    let found = search(points.len(), |n| {
        let (commit, snapshot) = points[n];
        let busy = shell.busy(format!("asking snapshot {}", snapshot.seq), &Progress::default());
        let answer = ask(&bisection, (commit, snapshot), args)
            .with_context(|| format!("ask snapshot {} of {}", snapshot.seq, args.source))?;
        drop(busy);
        let verdict = if answer.passed { "good" } else { "bad " };
        shell.say(format!(
            "{verdict}  snapshot {} with data of {}: {}",
            snapshot.seq,
            time(snapshot.data_time),
            answer.actual
        ));
        asked.push(Asked {
            seq: snapshot.seq,
            data_time: snapshot.data_time,
            good: answer.passed,
            answer: answer.actual,
        });
        Ok(answer.passed)
    })?;
    if args.check.is_some() && !asked.is_empty() && asked.iter().all(|one| one.answer.starts_with("error: ")) {
        let help =
            "Nothing is said of the snapshots: it failed on the newest and on the oldest. Correct it, and ask again.";
        return Err(Failure::new(Kind::Usage, format!("the check could not be asked: {}", asked[0].answer), help));
    }
    let good = found.map(|n| points[n].1);
    let bad = points.get(found.map_or(0, |n| n + 1)).map(|(_, s)| *s);
    let place = |s: Option<&Snapshot>| s.map(|s| json!({"seq": s.seq, "data_time": s.data_time}));
    shell.say(match (good, bad) {
        (Some(good), Some(bad)) => format!(
            "It went wrong between {} and {}. The last good snapshot is {}: blackstart restore {} --snapshot {2} --to DIR",
            time(good.data_time), time(bad.data_time), good.seq, args.source
        ),
        (Some(good), None) => format!("The newest snapshot, {}, is good.", good.seq),
        (None, Some(bad)) => format!("Even the oldest snapshot, {} with data of {}, is bad.", bad.seq, time(bad.data_time)),
        (None, None) => "There are no complete snapshots to ask.".to_owned(),
    });
    let exit = match (good, bad) {
        (Some(_), _) => Exit::Done,
        (None, Some(_)) => Exit::CheckFailed,
        (None, None) => Exit::NothingToDo,
    };
    Ending::new(exit, json!({"good": place(good), "bad": place(bad), "asked": asked}))
}

/// What is the same for every snapshot that is asked.
struct Bisection<'a> {
    open: &'a Open,
    identities: &'a [Identity],
    base: &'a Path,
    settings: &'a Settings,
    bounds: Bounds,
}

/// Restores one snapshot into scratch and makes the check on the copy, by its engine where it has one. An `Err`: it could not be asked here.
fn ask(bisection: &Bisection, (commit, snapshot): (&Commit, &Snapshot), args: &Bisect) -> Result<Check> {
    let Bisection { base, bounds, .. } = bisection;
    let scratch = Scratch::make(base)?;
    let watch = Watch::begin(scratch.notes(), *bounds)?;
    let asked = ask_in(bisection, (commit, snapshot), args, &scratch);
    watch.check().and(asked)
}

fn ask_in(
    bisection: &Bisection,
    (commit, snapshot): (&Commit, &Snapshot),
    args: &Bisect,
    scratch: &Scratch,
) -> Result<Check> {
    let Bisection { open, identities, settings, .. } = bisection;
    let path = scratch.path().join("restored");
    let request = Request::new(path.clone(), limits::workers());
    restore::restore(open, identities, commit, snapshot, &request)?;
    let mut variables = Variables::default();
    variables.set("copy", &path);
    let restored = Restored {
        kind: snapshot.kind.clone(),
        copy: path.clone(),
        scratch: scratch.path().to_owned(),
        facts: SealedPart::open(snapshot, identities)?.facts,
        settings: (*settings).clone(),
    };
    let copy = Copy {
        path: path.clone(),
        data_time: snapshot.data_time,
        kind: snapshot.kind.clone(),
        who: Who::Engine(Box::new(restored)),
    };
    let check = match &args.check {
        Some(command) if snapshot.kind == "redis" => {
            CheckOf::of_redis(command.split_whitespace().map(str::to_owned).collect())
        }
        Some(sql) => CheckOf::of_sql(sql),
        None => CheckOf::of_command(args.command.clone()),
    };
    let engines = Engines::default();
    let made = check.make(&Case {
        variables: &variables,
        copies: &[(snapshot.source.clone(), copy)].into(),
        engines: &engines,
        environment: vec![("BLACKSTART_COPY".into(), path.into_os_string())],
        secrets: Vec::new(),
        timeout: PATIENCE,
    })?;
    engines.stop()?;
    Ok(made)
}
