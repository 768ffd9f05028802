//! `backup`: one run of each source named. A source that fails does not keep the next from its run.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::json;

use super::output::{Ending, Exit, Shell, count, numbers, size, span, time};
use super::several::{each, is_retired, partly};
use crate::cli::Backup;
use crate::config::{Config, SourceConfig};
use crate::operations::Host;
use crate::operations::backup::{self, BackupReport, Options};
use crate::report::Outcome;
use crate::source::canary::Stated;

pub fn run(shell: &Shell, args: &Backup) -> Result<Ending> {
    let config = shell.config()?;
    let mut sources = config.chosen(&args.sources)?;
    if sources.is_empty() {
        shell.say("There is nothing to back up: the configuration has no source. `blackstart protect PATH` adds one.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    let host = shell.host(&config)?;
    let by_name = !args.sources.is_empty();
    if !by_name {
        sources.retain(|source| !is_retired(shell, &host.open, source));
    }
    let wanted = Options { revive: by_name, ..wanted(&config, args)? };
    let mut stored = None;
    let mut ending = each(shell, sources, |source| {
        let report = one(shell, &config, &host, source, wanted.clone())?;
        let exit = exit(&report);
        stored = stored.max(Some(exit));
        Ok((exit, report))
    })?;
    ending.exit = partly(ending.exit, stored);
    Ok(ending)
}

/// What the command line asks for.
pub fn wanted(config: &Config, args: &Backup) -> Result<Options> {
    Ok(Options {
        full: args.full,
        baseline: args.baseline,
        adopt: args.adopt,
        heal: args.heal,
        accept_change: args.accept_change,
        ..options(config)?
    })
}

pub fn options(config: &Config) -> Result<Options> {
    let defaults = Options::default();
    Ok(Options {
        level: config.level,
        baseline_every: config.baseline.unwrap_or(defaults.baseline_every),
        grace: config.grace.unwrap_or(defaults.grace),
        spool: config.spool()?,
        ..defaults
    })
}

pub fn exit(report: &BackupReport) -> Exit {
    if !report.suspicions.is_empty() {
        Exit::CheckFailed
    } else if report.outcome == Outcome::Partial || report.alarm || !report.lost_packs.is_empty() {
        Exit::Partial
    } else {
        Exit::Done
    }
}

/// Backs up one source and says how it went.
pub fn one(
    shell: &Shell,
    config: &Config,
    host: &Host,
    source: &SourceConfig,
    options: Options,
) -> Result<BackupReport> {
    let busy = shell.busy(format!("backing up {}", source.name), &options.progress);
    let options = Options { canary: config.canary_stated(source), ..options };
    let open = || config.open_source(source, &shell.clock);
    let report = backup::backup_tiered(host, &source.name, &open, options, config.tiering(source)?)
        .with_context(|| format!("back up {}", config.place_of(source)))?;
    drop(busy);
    say(shell, &report);
    Ok(report)
}

/// How old, at the most, the canary in the snapshot is.
fn of_canary(canary: &Stated, data: Timestamp) -> String {
    match canary.written {
        Some(written) => {
            format!(
                "its canary was written {} before the data's time",
                span(data.duration_since(written).as_secs_f64())
            )
        }
        None => "no canary is known to have been written: the agent does, or `blackstart canary`".into(),
    }
}

pub fn say(shell: &Shell, report: &BackupReport) {
    shell.say(format!(
        "{}: snapshot {} ({}) has the data of {}: {} in {} entries; {} read, {} stored, in {}",
        report.source,
        report.seq,
        report.mode,
        time(report.data_time),
        size(report.stats.bytes),
        report.stats.entries,
        size(report.stats.bytes_read),
        size(report.stats.bytes_stored),
        span(report.seconds),
    ));
    if let Some(canary) = Stated::of(&report.facts) {
        shell.say(format!("{}: {}", report.source, of_canary(&canary, report.data_time)));
    }
    if let Some(why) = report.facts["read_whole"].as_str() {
        shell.say(format!("{}: everything was read, since {why}", report.source));
    }
    if let Some(why) = report.facts["config_missing"].as_str() {
        shell.say(format!(
            "{}: the server's configuration lies outside its data directory, and was not all taken along: {why}. docs/postgres.md has the rights \
             for it; or make its directory a source of its own",
            report.source
        ));
    }
    if let Some(why) = report.facts["counted"]["left_out"].as_str() {
        shell.say(format!(
            "{}: the rows of its tables are not all known, so that drills cannot miss them: {why}",
            report.source
        ));
    }
    if report.taken_over > 0 {
        let had = size(report.taken_over);
        shell.say(format!("{}: {had} of it were in the store already, from a run that was interrupted", report.source));
    }
    if !report.suspicions.is_empty() {
        shell.warn(format!(
            "{}: ALARM: snapshot {} is SUSPECT: {}. It is stored and complete, but `restore` goes on taking the last good one, which no longer \
             expires. Look at the source; if it is right as it is, run `blackstart backup {0} --accept-change`",
            report.source,
            report.seq,
            report.suspicions.join("; ")
        ));
    }
    for notice in &report.notices {
        shell.warn(notice);
    }
    for note in report.facts["notes"].as_array().into_iter().flatten().filter_map(|note| note.as_str()) {
        shell.warn(format!("{}: {note}", report.source));
    }
    for skip in &report.skipped {
        shell.warn(format!("{}: {}: {}", report.source, skip.path, skip.why));
    }
    if report.skipped_count > report.skipped.len() as u64 {
        shell.warn(format!("{}: {} skipped in all", report.source, report.skipped_count));
    }
    if !report.lost_packs.is_empty() {
        shell.warn(format!(
            "{}: gone from the store: {}; what they held was stored again, but these older snapshots are damaged: {}",
            report.source,
            count(report.lost_packs.len() as u64, "pack"),
            numbers(&report.hurt)
        ));
    }
}
