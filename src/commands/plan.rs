//! `restore --plan` and `drill --plan`: the disaster, for real and rehearsed.

use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

use super::evidence::by_hand;
use super::open::recovery_key;
use super::output::{self, Ending, Exit, Shell, check_line, span, table, time};
use super::several::worse;
use crate::cli::{Drill, Restore};
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::plan::{self, Action, Ended, Forecast, Journal, Mode, Plan, PlanReport, Run, StageReport, State, Wanted};
use crate::repository::layout::SourceName;

/// How the operator wants a plan run.
struct Asked<'a> {
    name: &'a str,
    mode: Mode,
    identity: Option<&'a Path>,
    dry_run: bool,
    resume: bool,
    restart: bool,
    confirm: Option<&'a str>,
    keep_failed: bool,
}

/// `restore --plan`.
pub fn for_real(shell: &Shell, args: &Restore) -> Result<Ending> {
    run(
        shell,
        &Asked {
            name: args.source.as_str(),
            mode: Mode::Real,
            identity: args.identity.as_deref(),
            dry_run: args.dry_run,
            resume: args.resume,
            restart: args.restart,
            confirm: args.confirm.as_ref().map(SourceName::as_str),
            keep_failed: false,
        },
    )
}

/// `drill --plan`: each plan named, one after the other; the worst decides.
pub fn rehearsed(shell: &Shell, args: &Drill) -> Result<Ending> {
    let mut worst = None;
    for name in &args.sources {
        let asked = Asked {
            name: name.as_str(),
            mode: Mode::Drill,
            identity: args.identity.as_deref(),
            dry_run: false,
            resume: false,
            restart: false,
            confirm: None,
            keep_failed: args.keep_failed,
        };
        worst = Some(worse(worst, run(shell, &asked)?));
    }
    worst.map_or_else(|| Ending::new(Exit::NothingToDo, json!({"plans": []})), Ok)
}

fn run(shell: &Shell, asked: &Asked) -> Result<Ending> {
    let config = shell.config()?;
    let plan = Plan::named(asked.name, &config)?;
    let open = shell.open(&config)?;
    let runs = plan::reports(&open, &plan.name)?;
    let forecast = plan::forecast(&open, &plan, &runs)?;
    let unfinished = match asked.mode {
        Mode::Real => Journal::unfinished(&config.state(), &open.trust.id, &plan.name)?,
        Mode::Drill => None,
    };
    if asked.mode == Mode::Real || asked.dry_run {
        show(shell, &plan, &forecast, &plan::state(&plan, &runs), unfinished.as_ref());
    }
    if asked.dry_run {
        return Ending::new(
            Exit::Done,
            json!({"plan": plan.name, "hash": plan.hash, "state": plan::state(&plan, &runs), "forecast": forecast}),
        );
    }
    if asked.mode == Mode::Real {
        may_go_on(&plan, unfinished.as_ref(), asked)?;
        free(&plan, &config, unfinished.as_ref().filter(|_| asked.resume))?;
        confirmed(&plan, asked)?;
    }
    let keys = recovery_key(Some(&config), asked.identity)?;
    open.trust.require_reader(&keys.identities)?;
    durable::create_directories(&config.scratch()).context("make the directory for scratch")?;
    let tell = |n: usize, report: Option<&StageReport>| say_stage(shell, &plan, n, report);
    let verb = if asked.mode == Mode::Real { "restore --plan" } else { "drill --plan" };
    let run = Run {
        config: &config,
        open: &open,
        keys: &keys,
        plan: &plan,
        wanted: Wanted {
            mode: asked.mode,
            resume: asked.resume,
            keep_failed: asked.keep_failed,
            trigger: by_hand(verb),
            configuration: config.hash,
        },
        tell: &tell,
    };
    let report = run.go()?;
    say_end(shell, &report);
    Ending::new(exit(&report), &report)
}

pub fn exit(report: &PlanReport) -> Exit {
    let missed = report.rpo_met == Some(false) || report.rto_met == Some(false);
    match report.passed {
        // A real restore that stopped has failed, unless a check has found something, as in a drill.
        false if report.mode == "real" && report.stages.iter().all(|s| s.checks.iter().all(|c| c.passed)) => {
            Exit::Failed(1)
        }
        false => Exit::CheckFailed,
        true if missed || report.stages.iter().any(StageReport::over_budget) => Exit::Missed,
        true => Exit::Done,
    }
}

fn show(shell: &Shell, plan: &Plan, forecast: &[Forecast], state: &State, unfinished: Option<&Journal>) {
    shell.say(format!("Plan {}: {}", plan.name, say_state(state)));
    if !plan.about.is_empty() {
        shell.say(&plan.about);
    }
    let rows: Vec<[String; 5]> = plan
        .stages
        .iter()
        .zip(forecast)
        .enumerate()
        .map(|(n, (stage, forecast))| {
            let done = unfinished.is_some_and(|j| j.stages.iter().any(|s| s.name == stage.name));
            [
                format!("{}{}", n + 1, if done { " done" } else { "" }),
                stage.name.clone(),
                what(&stage.action),
                stage.budget.map_or(String::new(), |b| span(b.as_secs_f64())),
                forecast.seconds.map_or(forecast.from.clone(), |s| format!("{} ({})", span(s), forecast.from)),
            ]
        })
        .collect();
    shell.say(table(["", "STAGE", "DOES", "BUDGET", "PREDICTED"], &rows));
    let known: f64 = forecast.iter().filter_map(|f| f.seconds).fold(0.0, |all, one| all + one);
    let unknown = forecast.iter().filter(|f| f.seconds.is_none()).count();
    let more = if unknown > 0 { format!(", and {unknown} stages that were never measured") } else { String::new() };
    let target = plan.rto.map_or(String::new(), |t| format!("; the RTO is {}", span(t.as_secs_f64())));
    shell.say(format!("In all about {}{more}{target}.", span(known)));
}

fn what(action: &Action) -> String {
    match action {
        Action::Run(argv) => format!("runs {}", argv.join(" ")),
        Action::Restore(r) if r.replace => {
            format!("restores {} to {}, keeping what is there beside it", r.source, r.to)
        }
        Action::Restore(r) => format!("restores {} to {}", r.source, r.to),
        Action::RestoreGroup(r) => {
            let all: Vec<String> = r.to.iter().map(|(source, to)| format!("{source} to {to}")).collect();
            let kept = if r.replace { ", keeping what is there beside it" } else { "" };
            format!("restores group {} to one point: {}{kept}", r.group, all.join(", "))
        }
        Action::Check(checks) => format!("{} checks", checks.len()),
        Action::WaitFor(_) => "waits".into(),
        Action::Notify(_) => "tells people".into(),
    }
}

pub fn say_state(state: &State) -> String {
    match state {
        State::Verified { at, seconds } => format!("verified {}, in {}", time(*at), span(*seconds)),
        State::Edited { drilled } => format!("NOT VERIFIED: edited since its drill of {}", time(*drilled)),
        State::Failed { at } => format!("NOT VERIFIED: its drill of {} failed", time(*at)),
        State::NeverDrilled => "NOT VERIFIED: never drilled".into(),
    }
}

/// An unfinished run is neither forgotten nor gone on with by accident.
fn may_go_on(plan: &Plan, unfinished: Option<&Journal>, asked: &Asked) -> Result<()> {
    let refuse = |message: String, help: String| Err(Failure::new(Kind::Usage, message, help));
    match unfinished {
        Some(journal) if !asked.resume && !asked.restart => refuse(
            format!(
                "a run of {} that began {} has not come to its end: {} stages are done",
                plan.name,
                time(journal.started),
                journal.stages.len()
            ),
            "Nothing was changed. --resume goes on behind the last stage that is done; --restart begins anew.".into(),
        ),
        Some(journal) if asked.resume && journal.hash != plan.hash => refuse(
            format!("{} was edited since its run of {} began", plan.file.display(), time(journal.started)),
            "Nothing was changed. Put the old text back to --resume, or --restart with the new one.".into(),
        ),
        None if asked.resume => refuse(
            format!("there is no unfinished run of {}", plan.name),
            "Nothing was changed. Leave --resume out.".into(),
        ),
        _ => Ok(()),
    }
}

/// Before anything is stopped: that no restore will find its place taken.
fn free(plan: &Plan, config: &Config, unfinished: Option<&Journal>) -> Result<()> {
    let mut variables = plan::Variables::new(&plan.variables);
    variables.set("scratch", Path::new("/"));
    for stage in &plan.stages {
        let done = unfinished.is_some_and(|j| j.stages.iter().any(|s| s.name == stage.name));
        let part = unfinished.and_then(|j| j.part.as_ref()).filter(|part| part.name == stage.name);
        for (source, to, replace) in stage.places() {
            let there = done || part.is_some_and(|part| part.points().any(|point| point.source == *source));
            let Ok(to) = variables.fill(to) else { continue };
            let to = config.base().join(to);
            if !there && !replace && to.symlink_metadata().is_ok() {
                return Err(Failure::new(
                    Kind::Usage,
                    format!("stage {:?} restores to {}, and something is there", stage.name, to.display()),
                    "Nothing was changed. Move it away, or say `replace = true` in the stage: then it is kept beside.",
                ));
            }
        }
    }
    Ok(())
}

fn confirmed(plan: &Plan, asked: &Asked) -> Result<()> {
    let question = "This changes live systems. Type the plan's name to begin";
    if output::confirmed(&plan.name, asked.confirm, question)? {
        return Ok(());
    }
    let help = format!(
        "Nothing was changed. To run it for real: --confirm {}. `blackstart drill --plan {0}` rehearses it.",
        plan.name
    );
    Err(Failure::new(Kind::Usage, "a plan is run for real only if its name is confirmed", help))
}

fn say_stage(shell: &Shell, plan: &Plan, n: usize, report: Option<&StageReport>) {
    let number = format!("[{}/{}]", n + 1, plan.stages.len());
    let Some(report) = report else {
        return shell.say(format!("{number} {} ...", plan.stages[n].name));
    };
    let verdict = match report.outcome {
        Ended::Done => "ok",
        Ended::Failed => "FAILED",
        Ended::Skipped => "skipped",
        Ended::NotReached => "not reached",
        Ended::DoneBefore => "done before",
        Ended::Undone => "undone",
    };
    let late = if report.over_budget() { ", OVER BUDGET" } else { "" };
    shell.say(format!("{number} {}: {verdict} in {}{late}: {}", report.name, span(report.seconds), report.detail));
    report.checks.iter().for_each(|check| shell.say(format!("        {}", check_line(check))));
}

fn say_end(shell: &Shell, report: &PlanReport) {
    let verdict = if report.passed { "PASSED" } else { "FAILED" };
    shell.say(format!("Plan {} ({}): {verdict} in {}", report.plan, report.mode, span(report.achieved_rto_seconds)));
    let say = |name: &str, achieved: f64, target: Option<f64>, met: Option<bool>| {
        if let (Some(target), Some(met)) = (target, met) {
            let verdict = if met { "ok    " } else { "MISSED" };
            shell.say(format!("  {verdict}  {name}: {} of {}", span(achieved), span(target)));
        }
    };
    say("RPO", report.rpo_exposure_seconds, report.rpo_target_seconds, report.rpo_met);
    say("RTO", report.achieved_rto_seconds, report.rto_target_seconds, report.rto_met);
    report.not_tested.iter().for_each(|what| shell.say(format!("  not tested: {what}")));
    report.deviations.iter().for_each(|what| shell.say(format!("  note: {what}")));
    if report.stages.iter().any(|s| s.outcome == Ended::Undone) {
        shell.warn("the plan stopped, and what was done is taken back; the restored copies are kept beside what was there before");
    } else if report.mode == "real" && !report.passed {
        shell.warn(format!(
            "the plan stopped. What is done is done, and old data is kept beside. Put right what failed, then: blackstart restore --plan {0} --confirm {0} --resume",
            report.plan
        ));
    }
    if !report.scratch_removed {
        shell.warn(format!("the scratch copies are kept: {}", report.environment.place));
    }
}
