//! `drill`: restore the newest snapshot into scratch, check it, and measure.

use anyhow::{Context, Result};
use serde_json::json;

use super::backup::each;
use super::open::{Canary, recovery_key};
use super::output::{Ending, Exit, Shell, size, span, time};
use crate::cli::Drill;
use crate::config::{Config, SourceConfig};
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::drill::{self, DrillReport};
use crate::operations::restore::{self, Pick};
use crate::operations::{Open, backup};
use crate::repository::keys::KeyFile;

pub fn run(shell: &Shell, args: &Drill) -> Result<Ending> {
    let config = shell.config()?;
    let sources = config.chosen(&args.sources)?;
    if sources.is_empty() {
        shell.say("There is nothing to drill: the configuration has no source.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    let keys = recovery_key(Some(&config), args.identity.as_deref())?;
    let open = shell.open(&config)?;
    each(shell, sources, |source| {
        let report = one(shell, &config, &open, &keys, source)?;
        Ok((exit(&report), report))
    })
}

pub fn exit(report: &DrillReport) -> Exit {
    match (report.passed, report.rpo_met, report.rto_met) {
        (false, ..) => Exit::CheckFailed,
        (_, Some(false), _) | (_, _, Some(false)) => Exit::Missed,
        _ => Exit::Done,
    }
}

/// Drills one source and says how it went.
pub fn one(shell: &Shell, config: &Config, open: &Open, keys: &KeyFile, source: &SourceConfig) -> Result<DrillReport> {
    let busy = shell.busy(format!("restoring {} into scratch", source.name));
    let signer = keys.signing.as_ref().ok_or_else(|| {
        let help =
            "Nothing was done. Give the whole key file that `init` wrote; `restore` needs the age identity only.";
        Failure::new(Kind::WrongKey, "the key file has no signing key, and a drill must sign its report", help)
    })?;
    let base = config.scratch();
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let scratch =
        tempfile::Builder::new().prefix("blackstart-drill-").tempdir_in(&base).context("make a scratch directory")?;
    let (commit, snapshot) = restore::find(open, &source.name, &Pick::Latest)?;
    let options = drill::Options {
        scratch: scratch.path().to_owned(),
        workers: backup::Options::default().workers,
        rpo: source.rpo,
        rto: source.rto,
        keep: false,
        settings: config.settings(source),
    };
    let report = drill::drill(open, &keys.identities, signer, &commit, &snapshot, &options)?;
    Canary::remember(open)?;
    drop(busy);
    say(shell, &report);
    Ok(report)
}

fn say(shell: &Shell, report: &DrillReport) {
    let came = if report.passed { "came back" } else { "did NOT come back as it was" };
    shell.say(format!(
        "{}: {}: snapshot {} with the data of {} {came}: {} in {}",
        report.source,
        if report.passed { "PROVEN" } else { "FAILED" },
        report.seq,
        time(report.data_time),
        size(report.bytes),
        span(report.achieved_rto_seconds)
    ));
    for check in &report.checks {
        if check.passed {
            shell.say(format!("  ok      {}: {}", check.name, check.actual));
        } else {
            shell.say(format!("  FAILED  {}: expected {}, found: {}", check.name, check.expected, check.actual));
        }
    }
    if !report.passed {
        shell.warn(format!(
            "{}: snapshot {} cannot be relied on; keep older snapshots, and run `blackstart verify {0} --hashes`",
            report.source, report.seq
        ));
    }
    for (name, met) in [("RPO", report.rpo_met), ("RTO", report.rto_met)] {
        match met {
            Some(true) => shell.say(format!("  ok      {name} met")),
            Some(false) => shell.say(format!("  MISSED  {name}")),
            None => {}
        }
    }
}
