//! `drill`: restore a snapshot into scratch, check it, and measure.

use anyhow::{Context, Result};
use serde_json::json;

use super::evidence::by_hand;
use super::open::{KeyCanary, recovery_key};
use super::output::{Ending, Exit, Shell, check_line, count, size, span, time};
use super::several::each;
use crate::cli::Drill;
use crate::config::{Config, SourceConfig};
use crate::durable;
use crate::operations::Open;
use crate::operations::drill::{self, DrillReport, Level, Options, Point};
use crate::operations::measures::{self, Measures, Prediction};
use crate::operations::{suspect, verified};
use crate::progress::Progress;
use crate::report::Check;
use crate::repository::keys::KeyFile;

/// What the operator asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub level: Level,
    pub point: Point,
    pub keep_failed: bool,
    /// `drill`, `protect`: the verb that runs it.
    pub by: &'static str,
}

impl Wanted {
    /// The latest point, with the real engine.
    pub fn usual(by: &'static str) -> Wanted {
        Wanted { level: Level::Engine, point: Point::Latest, keep_failed: false, by }
    }
}

pub fn run(shell: &Shell, args: &Drill) -> Result<Ending> {
    let config = shell.config()?;
    let sources = config.chosen(&args.sources)?;
    if sources.is_empty() {
        shell.say("There is nothing to drill: the configuration has no source.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    let keys = recovery_key(Some(&config), args.identity.as_deref())?;
    let open = shell.open(&config)?;
    let wanted = Wanted { level: args.level, point: args.point, keep_failed: args.keep_failed, by: "drill" };
    each(shell, sources, |source| {
        let report = one(shell, &config, &open, &keys, source, wanted)?;
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
pub fn one(
    shell: &Shell,
    config: &Config,
    open: &Open,
    keys: &KeyFile,
    source: &SourceConfig,
    wanted: Wanted,
) -> Result<DrillReport> {
    let busy = shell.busy(format!("drilling {} ({})", source.name, wanted.level), &Progress::default());
    let signer = drill::signer(open, keys, std::slice::from_ref(&source.name))?;
    let base = config.scratch();
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let chosen = drill::choose(open, &keys.identities, &source.name, (wanted.point, wanted.level))?;
    if chosen.level == Level::GameDay {
        let cost = drill::gameday::cost(open, &keys.identities, &chosen.snapshot)?;
        shell.say(format!(
            "{}: a game day copies {} in {} to {}, harms the copy, and restores {} there {} times. Nothing else is touched, and nothing is asked of the source.",
            source.name,
            size(cost.bytes),
            count(cost.objects, "object"),
            base.display(),
            size(cost.restored),
            drill::gameday::RESTORES
        ));
    }
    let options = Options {
        level: chosen.level,
        moment: chosen.moment,
        // An older point says nothing of how much would be lost now.
        rpo: source.rpo.filter(|_| wanted.point == Point::Latest && wanted.level != Level::Point),
        rto: source.rto,
        keep_failed: wanted.keep_failed,
        point: chosen.why,
        trigger: by_hand(wanted.by),
        configuration: config.hash,
        settings: config.settings(source),
        bounds: config.drill_bounds(),
        ..Options::new(base)
    };
    let report = drill::drill(open, &keys.identities, signer, &chosen.commit, &chosen.snapshot, &options)?;
    KeyCanary::remember(open)?;
    drop(busy);
    say(shell, &report);
    say_outlook(shell, open, &report, source)?;
    Ok(report)
}

fn say(shell: &Shell, report: &DrillReport) {
    let suspect_only = !report.passed && failed(report).all(|check| check.name == suspect::FITS);
    let came = match (report.passed, report.level) {
        (true, level) if level.proves() => "came back",
        (true, Level::GameDay) => "stood its game day: every fault was noticed, and nothing false came back",
        (false, Level::GameDay) => "did NOT stand its game day",
        (true, _) => "is sound as far as this level looks",
        (false, _) if suspect_only => "is what was read, and LOOKS WRONG",
        (false, _) => "did NOT come back as it was",
    };
    let verdict = match (report.passed, report.proves()) {
        (true, true) => "PROVEN",
        (true, false) => "ok",
        (false, _) => "FAILED",
    };
    let not_run: Vec<&str> = report.checks.iter().filter(|c| !c.was_run()).map(|c| c.name.as_str()).collect();
    let without = if not_run.is_empty() { String::new() } else { format!(" (not run: {})", not_run.join(", ")) };
    shell.say(format!(
        "{}: {verdict}{without}: snapshot {} with the data of {} {came}: {} in {}",
        report.source,
        report.seq,
        time(report.data_time),
        size(report.bytes.max(report.bytes_fetched)),
        span(report.achieved_rto_seconds)
    ));
    if report.level == Level::Point {
        shell.say(format!("  point   {}", report.point));
    }
    report.checks.iter().for_each(|check| shell.say(format!("  {}", check_line(check))));
    let phases: Vec<String> = report.timeline.iter().map(|p| format!("{} {}", p.name, span(p.seconds))).collect();
    shell.say(format!("  time    {}", phases.join(", ")));
    for deviation in &report.deviations {
        shell.say(format!("  note    {deviation}"));
    }
    if report.leftovers_removed > 0 {
        shell.say(format!(
            "  note    {} of killed drills removed",
            count(report.leftovers_removed, "scratch directory")
        ));
    }
    if suspect_only {
        shell.warn(format!(
            "{0}: snapshot {1} is what the source had, and that does not look like the snapshots before it. Compare it with the source. If the source \
             is right: `blackstart backup {0} --accept-change`. If not: `blackstart snapshots {0}` lists older ones, and `restore` takes the last good one",
            report.source, report.seq
        ));
    } else if !report.passed {
        shell.warn(format!(
            "{}: snapshot {} cannot be relied on; keep older snapshots, and run `blackstart verify {0} --hashes`",
            report.source, report.seq
        ));
    }
    if !report.passed && !report.scratch_removed {
        shell.warn(format!("{}: the scratch copy is kept: {}", report.source, report.environment.place));
    }
    for (name, met) in [("RPO", report.rpo_met), ("RTO", report.rto_met)] {
        match met {
            Some(true) => shell.say(format!("  ok      {name} met")),
            Some(false) => shell.say(format!("  MISSED  {name}")),
            None => {}
        }
    }
}

fn failed(report: &DrillReport) -> impl Iterator<Item = &Check> {
    report.checks.iter().filter(|check| check.was_run() && !check.passed)
}

/// What the drills so far say of the next restore.
fn say_outlook(shell: &Shell, open: &Open, report: &DrillReport, source: &SourceConfig) -> Result<()> {
    let reports = verified::reports(open, &source.name)?;
    let target = source.rto.map(|t| t.as_secs_f64());
    let measures = measures::measure(&reports.drills, Some(report.bytes).filter(|b| *b > 0), target);
    shell.say(format!("  RTO     {}", outlook(&measures)));
    Ok(())
}

/// The predicted RTO with its interval and trend, in words.
pub fn outlook(measures: &Measures) -> String {
    let mut text = match measures.predicted_rto {
        Prediction::Between { seconds, low, high, measured } => {
            let range = format!("{} to {}", span(low), span(high));
            format!("predicted {} ({range}, from {measured} restores)", span(seconds))
        }
        Prediction::TooFew { measured, needed } => {
            format!("not predicted: {measured} of {needed} measured restores")
        }
    };
    if let Some(days) = measures.trend.and_then(|t| t.exceeds_in_days) {
        text.push_str(&match days {
            0.0 => "; it exceeds the target".to_owned(),
            days => format!("; it will exceed the target in about {days:.0} days at the present growth"),
        });
    }
    text
}
