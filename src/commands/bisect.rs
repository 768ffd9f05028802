//! `bisect`: when did it go wrong? Restores snapshots into scratch, one after the other, and asks each.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, time};
use crate::cli::Bisect;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::bisect::search;
use crate::operations::drill::Scratch;
use crate::operations::restore::{self, Request};
use crate::operations::{Open, backup};
use crate::plan::Variables;
use crate::plan::check::{Case, CheckOf, Copy};
use crate::progress::Progress;
use crate::report::{Check, Outcome};
use crate::repository::agefile::Identity;
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, Snapshot};

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
    let check = match (&args.check, args.command.is_empty()) {
        (Some(sql), true) => CheckOf::of_sql(sql),
        (None, false) => CheckOf::of_command(args.command.clone()),
        _ => {
            let help = "Nothing was restored. Give --check 'SQL', or a program behind `--`: it gets the copy as ${copy}, and exits with 0 if it is good.";
            return Err(Failure::new(Kind::Usage, "what is to be checked?", help));
        }
    };
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let base = reader.config.as_ref().map_or_else(std::env::temp_dir, |c| c.scratch());
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let open = &reader.open;
    let whole = Series::list(&open.store, &open.trust, &args.source)?.whole();
    whole.faults.iter().for_each(|(seq, why)| shell.warn(format!("commit {seq} is left out: {why}")));
    let points: Vec<(&Commit, &Snapshot)> = whole.snapshots().filter(|(_, s)| s.outcome == Outcome::Complete).collect();
    let mut asked: Vec<Asked> = Vec::new();
    let found = search(points.len(), |n| {
        let (commit, snapshot) = points[n];
        let busy = shell.busy(format!("asking snapshot {}", snapshot.seq), &Progress::default());
        let answer = ask(open, &keys.identities, (commit, snapshot), &check, &base)
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
        let help = "Nothing is said of the snapshots: the SQL failed on the newest and on the oldest. Correct it, and ask again.";
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

/// Restores one snapshot into scratch and makes the check on the copy.
fn ask(
    open: &Open,
    identities: &[Identity],
    (commit, snapshot): (&Commit, &Snapshot),
    check: &CheckOf,
    base: &Path,
) -> Result<Check> {
    let scratch = Scratch::make(base)?;
    let path = scratch.path().join("restored");
    let workers = backup::Options::default().workers;
    let request = Request::new(path.clone(), workers);
    restore::restore(open, identities, commit, snapshot, &request)?;
    let mut variables = Variables::default();
    variables.set("copy", &path);
    let copies = [(snapshot.source.clone(), Copy { path: path.clone(), data_time: snapshot.data_time })].into();
    let environment = vec![("BLACKSTART_COPY".into(), path.into_os_string())];
    Ok(check.make(&Case {
        variables: &variables,
        copies: &copies,
        environment,
        secrets: Vec::new(),
        timeout: PATIENCE,
    }))
}
