//! Metrics in Prometheus' text format. They are made anew for each scrape from what the agent knows, so that a source that is gone leaves
//! nothing behind; times come from the data and from the repository, so that a restart loses nothing.

use anyhow::{Context, Result};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

/// What is known of one source.
#[derive(Debug, Clone, Default)]
pub struct SourceFigures {
    /// Time of the data of the newest complete snapshot.
    pub newest: Option<Timestamp>,
    /// Up to when data can be brought back, the stored log included, and up to when a drill has proven it.
    pub reaches: Option<Timestamp>,
    /// When all of it was last read from the repository.
    pub looked: Option<Timestamp>,
    pub verified: Option<Timestamp>,
    pub head: Option<u64>,
    pub rpo_seconds: Option<f64>,
    pub rto_seconds: Option<f64>,
    pub expected_interval_seconds: Option<f64>,
    pub drill: Option<DrillFigures>,
    /// By level what the schedule promises.
    pub levels: BTreeMap<&'static str, LevelFigures>,
    /// Of a plan: whether its newest drill passed, with the text that it has now.
    pub plan_verified: Option<bool>,
    /// By task: the end of the last run that was done, and the start of the next.
    pub last_success: BTreeMap<&'static str, Timestamp>,
    pub next: BTreeMap<&'static str, Timestamp>,
    /// Of a source whose log is received.
    pub log: Option<LogFigures>,
}

/// The drills of one level.
#[derive(Debug, Clone, Default)]
pub struct LevelFigures {
    /// Of the last that told as much: its end, and whether it passed.
    pub last: Option<(Timestamp, bool)>,
    /// The longest planned time between two.
    pub interval_seconds: f64,
}

/// How the receiver of a log stands.
#[derive(Debug, Clone, Default)]
pub struct LogFigures {
    pub up: bool,
    /// The last moment at which nothing was missing.
    pub current: Option<Timestamp>,
    pub behind_bytes: u64,
    /// Bytes that the server keeps for it, and whether it may remove them.
    pub retained_bytes: Option<u64>,
    pub endangered: bool,
    /// Since the start of the agent.
    pub stored_bytes: u64,
    pub gaps: u64,
    pub restarts: u64,
}

#[derive(Debug, Clone, Default)]
pub struct DrillFigures {
    pub passed: bool,
    pub finished: Timestamp,
    pub seconds: f64,
    pub phases: Vec<(String, f64)>,
    /// Seconds by which the canary of the copy was older than its data was said to be.
    pub canary_age: Option<f64>,
}

/// Of a source with a canary.
#[derive(Debug, Clone, Default)]
pub struct CanaryFigures {
    /// The last that this host has written.
    pub written: Option<Timestamp>,
    /// Whether the last try succeeded.
    pub up: bool,
}

/// What the agent knows, as numbers.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub sources: BTreeMap<String, SourceFigures>,
    pub canaries: BTreeMap<String, CanaryFigures>,
    /// (source, task, result): runs since the start.
    pub runs: BTreeMap<(String, &'static str, String), u64>,
    /// (source, task): seconds of the last run.
    pub durations: BTreeMap<(String, &'static str), f64>,
    /// (source, task): slots that passed without a run of their own.
    pub skipped: BTreeMap<(String, &'static str), u64>,
    /// (source, stage): bytes since the start.
    pub bytes: BTreeMap<(String, &'static str), u64>,
    /// Channel: messages that were given up, and that arrived.
    pub notices_failed: BTreeMap<String, u64>,
    pub notices_sent: BTreeMap<String, u64>,
    /// Severity: alarms that stand.
    pub alarms: BTreeMap<&'static str, u64>,
    pub running: u64,
    /// None: it has not been looked at yet.
    pub repository_up: Option<bool>,
    pub configuration_ok: bool,
    /// Of an agent.
    pub started: Option<Timestamp>,
    pub tick: Option<Timestamp>,
}

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

struct Page(Registry);

impl Page {
    /// A gauge for each value; a metric without values is left out.
    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Gauges::default();
        let mut any = false;
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
            any = true;
        }
        if any {
            self.0.register(name, help, family);
        }
    }

    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Counters::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// The page that Prometheus reads.
pub fn page(figures: &Figures) -> Result<String> {
    let mut page = Page(Registry::with_prefix("blackstart"));
    of_sources(&mut page, figures);
    of_canaries(&mut page, figures);
    of_logs(&mut page, figures);
    let two =
        |(source, name): &(String, &'static str), label| vec![("source", source.clone()), (label, (*name).to_owned())];
    page.counters(
        "runs",
        "Runs since the start of the agent, by result",
        figures.runs.iter().map(|((source, task, result), n)| {
            (vec![("source", source.clone()), ("task", (*task).to_owned()), ("result", result.clone())], *n)
        }),
    );
    page.gauges(
        "run_duration_seconds",
        "Length of the last run",
        figures.durations.iter().map(|(key, s)| (two(key, "task"), *s)),
    );
    page.counters(
        "schedule_skipped",
        "Slots of the schedule that passed without a run of their own",
        figures.skipped.iter().map(|(key, n)| (two(key, "task"), *n)),
    );
    page.counters(
        "bytes",
        "Bytes by stage: read from the source, stored in the repository, fetched for drills",
        figures.bytes.iter().map(|(key, n)| (two(key, "stage"), *n)),
    );
    let channel = |(name, n): (&String, &u64)| (vec![("channel", name.clone())], *n);
    page.counters(
        "notify_failures",
        "Messages that did not arrive, after all tries",
        figures.notices_failed.iter().map(channel),
    );
    page.counters("notify_sent", "Messages that arrived", figures.notices_sent.iter().map(channel));
    page.gauges(
        "alarms",
        "Problems that stand, by severity",
        figures.alarms.iter().map(|(severity, n)| (vec![("severity", (*severity).to_owned())], *n as f64)),
    );
    let alone = |value: f64| [(Labels::new(), value)];
    page.gauges("runs_running", "Runs under way", alone(figures.running as f64));
    page.gauges(
        "repository_up",
        "1 if the repository could be read when last looked at; absent before the first look",
        figures.repository_up.map(|up| (Labels::new(), f64::from(u8::from(up)))),
    );
    page.gauges(
        "configuration_ok",
        "0 if a changed configuration was refused",
        alone(f64::from(u8::from(figures.configuration_ok))),
    );
    page.gauges(
        "scheduler_tick_timestamp_seconds",
        "When the scheduler last looked at the clock",
        figures.tick.map(|at| (Labels::new(), seconds(at))),
    );
    let started = figures.started.map(|at| (Labels::new(), seconds(at)));
    page.gauges("start_timestamp_seconds", "When the agent started", started);
    page.gauges(
        "build_info",
        "The version of the agent",
        [(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
    );
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &page.0).context("write the metrics")?;
    Ok(text)
}

/// The same for node_exporter's textfile collector, which reads the older format: there a counter is declared by its full name.
pub fn textfile(figures: &Figures) -> Result<String> {
    let page = page(figures)?;
    let counters: Vec<&str> =
        page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::new();
    for line in page.lines().filter(|l| *l != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match [words.next(), words.next(), words.next(), words.next()] {
            [Some("#"), Some(what), Some(name), Some(rest)] if counters.contains(&name) => {
                text.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    Ok(text)
}

fn of_sources(page: &mut Page, figures: &Figures) {
    let each = |value: &dyn Fn(&SourceFigures) -> Option<f64>| -> Vec<(Labels, f64)> {
        let found = figures.sources.iter().filter_map(|(name, s)| Some((vec![("source", name.clone())], value(s)?)));
        found.collect()
    };
    let points = figures.sources.iter().flat_map(|(name, s)| {
        let of = |verified: &str| vec![("source", name.clone()), ("verified", verified.to_owned())];
        [s.reaches.map(|t| (of("false"), seconds(t))), s.verified.map(|t| (of("true"), seconds(t)))]
    });
    page.gauges(
        "recovery_point_timestamp_seconds",
        "Up to when data can be brought back, and up to when a drill has proven it: newest complete snapshot, and the log stored behind it",
        points.flatten(),
    );
    page.gauges(
        "snapshot_timestamp_seconds",
        "Time of the data of the newest complete snapshot",
        each(&|s| s.newest.map(seconds)),
    );
    page.gauges(
        "head_seq",
        "Number of the newest commit: one that falls is an alarm",
        each(&|s| s.head.map(|h| h as f64)),
    );
    page.gauges(
        "observed_timestamp_seconds",
        "When all that is shown of the source was last read from the repository: what came since is not in the other figures",
        each(&|s| s.looked.map(seconds)),
    );
    page.gauges("rpo_target_seconds", "Data that may be lost at most, as time", each(&|s| s.rpo_seconds));
    page.gauges("rto_target_seconds", "Time that a restore may take", each(&|s| s.rto_seconds));
    page.gauges(
        "expected_interval_seconds",
        "The longest planned time between two backups",
        each(&|s| s.expected_interval_seconds),
    );
    page.gauges(
        "drill_last_timestamp_seconds",
        "End of the last drill",
        each(&|s| s.drill.as_ref().map(|d| seconds(d.finished))),
    );
    page.gauges(
        "drill_passed",
        "1 if the last drill passed",
        each(&|s| s.drill.as_ref().map(|d| f64::from(u8::from(d.passed)))),
    );
    page.gauges(
        "plan_verified",
        "1 if the last drill of the restore plan passed with the text that it has now",
        each(&|s| s.plan_verified.map(|verified| f64::from(u8::from(verified)))),
    );
    page.gauges(
        "drill_rto_achieved_seconds",
        "What the last drill took",
        each(&|s| s.drill.as_ref().map(|d| d.seconds)),
    );
    let phases = figures.sources.iter().flat_map(|(name, s)| {
        let phases = s.drill.iter().flat_map(|d| &d.phases);
        phases.map(move |(phase, t)| (vec![("source", name.clone()), ("phase", phase.clone())], *t))
    });
    page.gauges("drill_phase_seconds", "What the last drill took, by phase", phases);
    of_levels(page, figures);
    let by_task = |of: &dyn Fn(&SourceFigures) -> Vec<(&'static str, Timestamp)>| -> Vec<(Labels, f64)> {
        let sources = figures.sources.iter();
        let all = sources.flat_map(|(name, s)| of(s).into_iter().map(move |(task, t)| (name, task, t)));
        all.map(|(name, task, t)| (vec![("source", name.clone()), ("task", task.to_owned())], seconds(t))).collect()
    };
    let successes = by_task(&|s| s.last_success.iter().map(|(task, t)| (*task, *t)).collect());
    page.gauges("last_success_timestamp_seconds", "End of the last run that did what it was to do", successes);
    let next = by_task(&|s| s.next.iter().map(|(task, t)| (*task, *t)).collect());
    page.gauges("schedule_next_timestamp_seconds", "When the next run is to start", next);
}

fn of_canaries(page: &mut Page, figures: &Figures) {
    let label = |source: &String| vec![("source", source.clone())];
    let written = figures.canaries.iter().filter_map(|(source, c)| Some((label(source), seconds(c.written?))));
    page.gauges("canary_timestamp_seconds", "When the canary of the source was last written from this host", written);
    let up = figures.canaries.iter().map(|(source, c)| (label(source), f64::from(u8::from(c.up))));
    page.gauges("canary_up", "1 if the canary of the source could be written when it was last tried", up);
    let ages = figures.sources.iter().filter_map(|(source, s)| Some((label(source), s.drill.as_ref()?.canary_age?)));
    page.gauges(
        "drill_canary_age_seconds",
        "By how much the canary in the copy of the last drill was older than the copy's data was said to be",
        ages,
    );
}

fn of_levels(page: &mut Page, figures: &Figures) {
    let each = |value: &dyn Fn(&LevelFigures) -> Option<f64>| -> Vec<(Labels, f64)> {
        let all = figures.sources.iter().flat_map(|(name, s)| s.levels.iter().map(move |(level, f)| (name, level, f)));
        let labels = |name: &String, level: &str| vec![("source", name.clone()), ("level", level.to_owned())];
        all.filter_map(|(name, level, f)| Some((labels(name, level), value(f)?))).collect()
    };
    page.gauges(
        "drill_level_interval_seconds",
        "The longest planned time between two drills of this level",
        each(&|f| Some(f.interval_seconds)),
    );
    page.gauges(
        "drill_level_timestamp_seconds",
        "End of the last drill of this level, or of a dearer one",
        each(&|f| f.last.map(|(at, _)| seconds(at))),
    );
    page.gauges(
        "drill_level_passed",
        "1 if the last drill of this level, or of a dearer one, passed",
        each(&|f| f.last.map(|(_, passed)| f64::from(u8::from(passed)))),
    );
}

fn of_logs(page: &mut Page, figures: &Figures) {
    let logs: Vec<(Labels, &LogFigures)> = figures
        .sources
        .iter()
        .filter_map(|(name, s)| Some((vec![("source", name.clone())], s.log.as_ref()?)))
        .collect();
    if logs.is_empty() {
        return;
    }
    let gauge = |value: &dyn Fn(&LogFigures) -> Option<f64>| -> Vec<(Labels, f64)> {
        logs.iter().filter_map(|(labels, log)| Some((labels.clone(), value(log)?))).collect()
    };
    let flag = |on: bool| Some(f64::from(u8::from(on)));
    page.gauges("log_receiver_up", "1 while the log of the source is received", gauge(&|log| flag(log.up)));
    page.gauges(
        "log_current_timestamp_seconds",
        "The last moment, by the server's clock, at which all of its log was stored",
        gauge(&|log| log.current.map(seconds)),
    );
    page.gauges(
        "log_behind_bytes",
        "Bytes of the server's log that are not stored",
        gauge(&|log| Some(log.behind_bytes as f64)),
    );
    page.gauges(
        "log_retained_bytes",
        "Bytes of its log that the server keeps until they are stored",
        gauge(&|log| log.retained_bytes.map(|bytes| bytes as f64)),
    );
    page.gauges(
        "log_endangered",
        "1 if the server may remove, or has removed, what is not stored",
        gauge(&|log| flag(log.endangered)),
    );
    let counter = |value: &dyn Fn(&LogFigures) -> u64| -> Vec<(Labels, u64)> {
        logs.iter().map(|(labels, log)| (labels.clone(), value(log))).collect()
    };
    page.counters("log_stored_bytes", "Bytes of the log stored since the start", counter(&|log| log.stored_bytes));
    page.counters("log_gaps", "Gaps in the log since the start", counter(&|log| log.gaps));
    page.counters("log_restarts", "Times that the receiver was started again", counter(&|log| log.restarts));
}
