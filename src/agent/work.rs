//! One run: the same operations as the verbs call, and what came of them as data.

mod group;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::bridge::Store;
use crate::catalog::Run;
use crate::clock::Clock;
use crate::config::{Config, SourceConfig};
use crate::durable;
use crate::error::{Failure, Kind, help_of, kind_of};
use crate::job::Task;
use crate::operations::backup::{self, BackupReport};
use crate::operations::evidence::Level;
use crate::operations::verify::SourceVerified;
use crate::operations::{Host, Open, drill, locks, prune, verify};
use crate::plan::{self, Plan};
use crate::report::Outcome;
use crate::repository::keys::{KeyFile, KeyPair};
use crate::repository::layout::SourceName;
use crate::repository::trust::Trust;
use crate::scheduler::Decision;

/// Objects younger than this stay unless the configuration says otherwise.
const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// A run that is to be carried out.
#[derive(Debug, Clone, Serialize)]
pub struct Order {
    /// A UUID, which pairs the start and the end of it wherever it is told.
    pub run: String,
    pub source: SourceName,
    pub task: Task,
    pub why: String,
}

/// What came of an order.
#[derive(Debug, Clone)]
pub struct Ran {
    pub run: Run,
    /// Of a group: the same run for each member that got its snapshot.
    pub members: Vec<Ran>,
    pub data_time: Option<Timestamp>,
    pub bytes_read: u64,
    pub bytes_stored: u64,
}

/// Opens the repository of `config`.
pub fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<Open> {
    let store = Store::open(&config.location()?)?;
    let trust = Trust::load(&store, config.root.as_deref())
        .with_context(|| format!("open the repository {}", store.place()))?;
    Ok(Open { store, trust, clock: Arc::clone(clock), state: Some(config.state()) })
}

pub fn host(config: &Config, clock: &Arc<dyn Clock>) -> Result<Host> {
    let keys = KeyPair::read(&config.host_key())?;
    Ok(Host { open: open(config, clock)?, keys, name: config.host_name() })
}

/// A random UUID.
pub fn run_id() -> String {
    let mut id = [0u8; 16];
    // Without random bytes nothing can be encrypted either; the run will say so.
    let _said_by_the_run = aws_lc_rs::rand::fill(&mut id);
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What an operation hands over.
#[derive(Default)]
struct Done {
    result: &'static str,
    line: String,
    report: Value,
    data_time: Option<Timestamp>,
    /// Read and stored.
    bytes: (u64, u64),
    /// What to do next.
    help: Option<String>,
    /// Of a group: what it was for its members.
    members: Vec<(SourceName, Done)>,
}

/// Carries out `order`. Whatever happens, a panic included, comes back as a result.
pub fn carry_out(config: &Config, clock: &Arc<dyn Clock>, order: &Order) -> Ran {
    let (started, watch) = (clock.now(), Instant::now());
    let result = catch_unwind(AssertUnwindSafe(|| work(config, clock, order)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the run panicked; this is a bug in blackstart, please report it")));
    let (finished, seconds) = (clock.now(), watch.elapsed().as_secs_f64());
    let done = result.unwrap_or_else(|error| {
        let result = match kind_of(&error) {
            Kind::Busy => "busy",
            Kind::Environment => "environment",
            _ => "failed",
        };
        let line = format!("{} of {}: {error:#}", order.task, order.source);
        let help = help_of(&error).map(str::to_owned);
        Done { result, report: json!({"error": format!("{error:#}")}), line, help, ..Done::default() }
    });
    ran(order, order, done, (started, finished, seconds))
}

/// The record of `order`, which for a member of a group stands for a part of the run `whole`.
fn ran(whole: &Order, order: &Order, done: Done, times: (Timestamp, Timestamp, f64)) -> Ran {
    let of_member = |(source, done)| {
        let why = format!("with {}", whole.source);
        ran(whole, &Order { source, why, ..whole.clone() }, done, times)
    };
    let (started, finished, seconds) = times;
    Ran {
        members: done.members.into_iter().map(of_member).collect(),
        run: Run {
            run: order.run.clone(),
            source: order.source.clone(),
            task: order.task,
            started,
            finished,
            seconds,
            result: done.result.into(),
            why: order.why.clone(),
            report: done.report.to_string(),
            line: done.line,
            help: done.help,
        },
        data_time: done.data_time,
        bytes_read: done.bytes.0,
        bytes_stored: done.bytes.1,
    }
}

fn work(config: &Config, clock: &Arc<dyn Clock>, order: &Order) -> Result<Done> {
    if let Some(name) = order.source.plan() {
        return rehearse(config, clock, name);
    }
    if let Some(name) = order.source.group() {
        return group::back_up(config, clock, &name, order.task == Task::Full);
    }
    let source = config
        .source
        .iter()
        .find(|s| s.name == order.source)
        .with_context(|| format!("{} is no source any more", order.source))?;
    match order.task {
        Task::Full | Task::Incremental => back_up(config, clock, source, order.task == Task::Full),
        Task::Drill(level) => try_out(config, clock, source, level),
        Task::Prune => expire(config, clock, source),
        Task::Verify => look_over(config, clock, source),
    }
}

fn back_up(config: &Config, clock: &Arc<dyn Clock>, source: &SourceConfig, full: bool) -> Result<Done> {
    let host = host(config, clock)?;
    let open_source = || config.open_source(source, clock);
    let options = backup::Options { canary: config.canary_stated(source), ..options(config, full)? };
    let report = backup::backup_tiered(&host, &source.name, &open_source, options, config.tiering(source)?)
        .with_context(|| format!("back up {}", config.place_of(source)))?;
    backed_up(&report)
}

fn options(config: &Config, full: bool) -> Result<backup::Options> {
    let defaults = backup::Options::default();
    let baseline_every = config.baseline.unwrap_or(defaults.baseline_every);
    let grace = config.grace.unwrap_or(defaults.grace);
    Ok(backup::Options { full, level: config.level, baseline_every, grace, spool: config.spool()?, ..defaults })
}

fn backed_up(report: &BackupReport) -> Result<Done> {
    let partial = report.outcome == Outcome::Partial || report.alarm || !report.lost_packs.is_empty();
    let mut line = format!("snapshot {} of {} has the data of {:.0}", report.seq, report.source, report.data_time);
    if partial {
        let skipped = report.skipped.iter().take(3).map(|skip| format!("{}: {}", skip.path, skip.why));
        let notes: Vec<String> = report.notices.iter().cloned().chain(skipped).collect();
        line = format!("{line}, but it is PARTIAL: {} skipped; {}", report.skipped_count, notes.join("; "));
    }
    let mut result = if partial { "partial" } else { "done" };
    if !report.suspicions.is_empty() {
        result = "check-failed";
        line = format!("{line}, and it is SUSPECT: {}", report.suspicions.join("; "));
    }
    Ok(Done {
        result,
        line,
        data_time: Some(report.data_time),
        bytes: (report.stats.bytes_read, report.stats.bytes_stored),
        report: serde_json::to_value(report)?,
        ..Done::default()
    })
}

fn try_out(config: &Config, clock: &Arc<dyn Clock>, source: &SourceConfig, level: Level) -> Result<Done> {
    let open = open(config, clock)?;
    let keys = KeyFile::read(&config.drill_key())?;
    let signer = drill::signer(&open, &keys, std::slice::from_ref(&source.name))?;
    let base = config.scratch();
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let chosen = drill::choose(&open, &keys.identities, &source.name, (drill::Point::Latest, level))?;
    let options = drill::Options {
        level: chosen.level,
        moment: chosen.moment,
        // An older point says nothing of how much would be lost now.
        rpo: source.rpo.filter(|_| level != Level::Point),
        rto: source.rto,
        point: chosen.why,
        trigger: "on schedule, by the agent".into(),
        configuration: config.hash,
        settings: config.settings(source),
        bounds: config.drill_bounds(),
        ..drill::Options::new(base)
    };
    let report = drill::drill(&open, &keys.identities, signer, &chosen.commit, &chosen.snapshot, &options)?;
    let failed: Vec<String> = report.checks.iter().filter(|c| !c.passed).map(|c| c.name.clone()).collect();
    let (result, verdict) = match (report.passed, report.rpo_met, report.rto_met) {
        (false, ..) if level == Level::GameDay => {
            ("check-failed", format!("FAILED its game day: {}", failed.join(", ")))
        }
        (false, ..) if !level.proves() => ("check-failed", format!("is DAMAGED: {}", failed.join(", "))),
        (false, ..) => ("check-failed", format!("did NOT come back as it was: {}", failed.join(", "))),
        (_, _, Some(false)) => ("missed", "came back, and took longer than the RTO allows".into()),
        (_, Some(false), _) => ("missed", "came back, and is older than the RPO allows".into()),
        _ if !report.proves() => ("done", format!("is sound as far as level {level} looks")),
        _ => ("done", "came back".into()),
    };
    Ok(Done {
        result,
        line: format!(
            "snapshot {} of {} {verdict}, in {:.1} s",
            report.seq, report.source, report.achieved_rto_seconds
        ),
        data_time: Some(report.data_time),
        bytes: (report.bytes_fetched, 0),
        report: serde_json::to_value(&report)?,
        ..Done::default()
    })
}

/// The drill of a restore plan.
fn rehearse(config: &Config, clock: &Arc<dyn Clock>, name: &str) -> Result<Done> {
    let plan = Plan::named(name, config)?;
    let open = open(config, clock)?;
    let keys = KeyFile::read(&config.drill_key())?;
    durable::create_directories(&config.scratch()).context("make the directory for scratch")?;
    let run = plan::Run {
        config,
        open: &open,
        keys: &keys,
        plan: &plan,
        wanted: plan::Wanted {
            mode: plan::Mode::Drill,
            resume: false,
            keep_failed: false,
            trigger: "on schedule, by the agent".into(),
            configuration: config.hash,
        },
        tell: &|_, _| {},
    };
    let report = run.go()?;
    let failed: Vec<&str> =
        report.stages.iter().filter(|s| s.outcome == plan::Ended::Failed).map(|s| s.name.as_str()).collect();
    let late = report.rto_met == Some(false) || report.stages.iter().any(plan::StageReport::over_budget);
    let (result, verdict) = match (report.passed, late, report.rpo_met) {
        (false, ..) => ("check-failed", format!("FAILED at {}", failed.join(", "))),
        (_, true, _) => ("missed", "passed, and took longer than its targets allow".to_owned()),
        (_, _, Some(false)) => ("missed", "passed, and its data is older than the RPO allows".to_owned()),
        _ => ("done", "passed".to_owned()),
    };
    Ok(Done {
        result,
        line: format!("the drill of plan {name} {verdict}, in {:.1} s", report.achieved_rto_seconds),
        data_time: report.points.iter().map(|p| p.data_time).min(),
        report: serde_json::to_value(&report)?,
        ..Done::default()
    })
}

fn expire(config: &Config, clock: &Arc<dyn Clock>, source: &SourceConfig) -> Result<Done> {
    let policy = source.retention.as_ref().ok_or_else(|| {
        let help = "Nothing was removed. Add [retention] to the job.";
        Failure::new(Kind::Config, format!("{} has no retention", source.name), help)
    })?;
    let host = host(config, clock)?;
    let plan = prune::plan(&host.open, &source.name, policy, config.grace.unwrap_or(GRACE))?;
    let report = prune::sweep(&host, plan)?;
    let tiering = config.tiering(source)?;
    tiering.map(|tiering| locks::settle(&host.open, &source.name, tiering)).transpose()?;
    let refused = report.refused.len();
    Ok(Done {
        result: if refused == 0 { "done" } else { "partial" },
        line: format!("removed {} snapshots of {}; the store refused {refused}", report.removed.len(), report.source),
        report: serde_json::to_value(&report)?,
        ..Done::default()
    })
}

fn look_over(config: &Config, clock: &Arc<dyn Clock>, source: &SourceConfig) -> Result<Done> {
    let open = open(config, clock)?;
    let options = verify::Options { expected: vec![source.name.clone()], ..verify::Options::default() };
    let report = verify::verify(&open, Some(&source.name), &options)?;
    let damage = report.wrong();
    if report.sources.iter().any(SourceVerified::is_unread) {
        let what = damage.unwrap_or_default();
        let help = "Whether it is whole is not known. Look at the store, and at what this credential may read";
        return Err(Failure::new(Kind::Failed, format!("the store does not give {what}"), help));
    }
    let result = if damage.is_none() { "done" } else { "check-failed" };
    let line = damage.map_or(format!("{} is whole", source.name), |what| format!("{} is DAMAGED: {what}", source.name));
    Ok(Done { result, line, report: serde_json::to_value(&report)?, ..Done::default() })
}

/// The record of a run for which there was not even a thread.
pub fn not_started(decision: &Decision, now: Timestamp) -> Run {
    Run {
        run: run_id(),
        source: decision.source.clone(),
        task: decision.task,
        started: now,
        finished: now,
        seconds: 0.0,
        result: "failed".into(),
        why: decision.why.clone(),
        report: "{}".into(),
        line: format!("{} of {}: there was no thread for it", decision.task, decision.source),
        help: None,
    }
}
