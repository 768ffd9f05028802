//! The page of metrics: names, escaping, nothing that lingers.

use blackstart::metrics::{
    CanaryFigures, DrillFigures, Figures, LevelFigures, LogFigures, SourceFigures, page, textfile,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn sample() -> Figures {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let source = SourceFigures {
        newest: Some(at(1_699_999_000)),
        reaches: Some(at(1_700_000_000)),
        verified: Some(at(1_699_990_000)),
        looked: Some(at(1_700_000_020)),
        head: Some(7),
        rpo_seconds: Some(3600.0),
        rto_seconds: Some(14400.0),
        expected_interval_seconds: Some(1800.0),
        drill: Some(DrillFigures {
            passed: true,
            finished: at(1_699_999_000),
            seconds: 12.5,
            phases: vec![("data".into(), 9.0)],
            canary_age: Some(61.5),
        }),
        levels: BTreeMap::from([(
            "hashes",
            LevelFigures { last: Some((at(1_699_999_000), true)), interval_seconds: 86400.0 },
        )]),
        plan_verified: Some(true),
        last_success: BTreeMap::from([("incremental", at(1_700_000_010))]),
        next: BTreeMap::from([("incremental", at(1_700_001_800))]),
        log: Some(LogFigures {
            up: true,
            current: Some(at(1_700_000_000)),
            retained_bytes: Some(4096),
            stored_bytes: 7,
            ..LogFigures::default()
        }),
    };
    Figures {
        sources: BTreeMap::from([("orders".to_owned(), source)]),
        canaries: BTreeMap::from([("orders".to_owned(), CanaryFigures { written: Some(at(1_700_000_020)), up: true })]),
        runs: BTreeMap::from([(("orders".to_owned(), "incremental", "done".to_owned()), 3)]),
        skipped: BTreeMap::from([(("orders".to_owned(), "incremental"), 1)]),
        bytes: BTreeMap::from([(("orders".to_owned(), "stored"), 512)]),
        durations: BTreeMap::from([(("orders".to_owned(), "incremental"), 2.0)]),
        alarms: BTreeMap::from([("critical", 1)]),
        notices_failed: BTreeMap::from([("on \"call\"\n".to_owned(), 2)]),
        repository_up: Some(true),
        started: Some(at(1_699_000_000)),
        tick: Some(at(1_700_000_030)),
        configuration_ok: true,
        ..Figures::default()
    }
}

#[test]
fn the_page_says_what_is_known() {
    let text = page(&sample()).unwrap();
    for line in [
        "blackstart_recovery_point_timestamp_seconds{source=\"orders\",verified=\"false\"} 1700000000.0",
        "blackstart_recovery_point_timestamp_seconds{source=\"orders\",verified=\"true\"} 1699990000.0",
        "blackstart_snapshot_timestamp_seconds{source=\"orders\"} 1699999000.0",
        "blackstart_observed_timestamp_seconds{source=\"orders\"} 1700000020.0",
        "blackstart_repository_up{} 1.0",
        "blackstart_log_receiver_up{source=\"orders\"} 1.0",
        "blackstart_log_current_timestamp_seconds{source=\"orders\"} 1700000000.0",
        "blackstart_log_retained_bytes{source=\"orders\"} 4096.0",
        "blackstart_log_endangered{source=\"orders\"} 0.0",
        "blackstart_log_stored_bytes_total{source=\"orders\"} 7",
        "blackstart_canary_timestamp_seconds{source=\"orders\"} 1700000020.0",
        "blackstart_canary_up{source=\"orders\"} 1.0",
        "blackstart_drill_canary_age_seconds{source=\"orders\"} 61.5",
        "blackstart_rpo_target_seconds{source=\"orders\"} 3600.0",
        "blackstart_expected_interval_seconds{source=\"orders\"} 1800.0",
        "blackstart_runs_total{source=\"orders\",task=\"incremental\",result=\"done\"} 3",
        "blackstart_drill_level_timestamp_seconds{source=\"orders\",level=\"hashes\"} 1699999000.0",
        "blackstart_drill_level_passed{source=\"orders\",level=\"hashes\"} 1.0",
        "blackstart_drill_level_interval_seconds{source=\"orders\",level=\"hashes\"} 86400.0",
        "blackstart_drill_phase_seconds{source=\"orders\",phase=\"data\"} 9.0",
        "blackstart_notify_failures_total{channel=\"on \\\"call\\\"\\n\"} 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_gone_leaves_nothing_behind() {
    let text = page(&Figures::default()).unwrap();
    assert!(!text.contains("orders") && !text.contains("recovery_point"), "{text}");
    // Before the first look it is neither up nor down.
    assert!(!text.contains("blackstart_repository_up{}"), "{text}");
    let down = Figures { repository_up: Some(false), ..Figures::default() };
    assert!(page(&down).unwrap().contains("blackstart_repository_up{} 0.0"));
}

#[test]
fn a_run_without_an_agent_writes_the_file_and_leaves_it_where_nothing_can_be_seen() {
    let home = super::support::binary::home();
    let at = home.path();
    super::support::binary::expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    super::support::binary::expect(at, &["backup", "etc", "--metrics-file", "out.prom"], 0);
    let text = fs::read_to_string(at.join("out.prom")).unwrap();
    promtool(&["check", "metrics"], Some(&text));
    for name in [
        "recovery_point_timestamp_seconds{source=\"etc\",verified=\"false\"}",
        "recovery_point_timestamp_seconds{source=\"etc\",verified=\"true\"}",
        "last_success_timestamp_seconds{source=\"etc\",task=\"incremental\"}",
        "drill_passed{source=\"etc\"} 1",
        "head_seq{source=\"etc\"} 2",
    ] {
        assert!(text.contains(&format!("\nblackstart_{name}")), "{name}: {text}");
    }
    assert!(!text.contains("scheduler_tick"), "no scheduler has stalled where there is none: {text}");
    fs::rename(at.join("repo"), at.join("gone")).unwrap();
    let failed = super::support::binary::run(at, &["backup", "--metrics-file", "out.prom"]);
    assert!(failed.code != 0 && failed.err.contains("the metrics in out.prom stay as they are"), "{}", failed.all());
    assert_eq!(fs::read_to_string(at.join("out.prom")).unwrap(), text, "its times grow old");
}

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn promtool(arguments: &[&str], input: Option<&str>) -> String {
    let mut command = Command::new("promtool");
    command
        .current_dir(packaged("prometheus"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is missing: run scripts/test-servers");
    child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_alert_rules_fire_when_they_must_and_never_else() {
    promtool(&["check", "rules", "alerts.yaml"], None);
    promtool(&["test", "rules", "alerts.test.yaml"], None);
}

#[test]
fn the_file_for_node_exporter_has_no_findings() {
    promtool(&["check", "metrics"], Some(&textfile(&sample()).unwrap()));
}

#[test]
fn the_rules_and_the_dashboard_ask_for_metrics_that_exist() {
    let page = page(&sample()).unwrap();
    // All metrics that there can be: the figures of the sample, and those that are made by a count.
    let known: BTreeSet<String> = page
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().ok())
        .map(|[name, kind]: [String; 2]| if kind == "counter" { format!("{name}_total") } else { name })
        .collect();
    for file in ["prometheus/alerts.yaml", "grafana/dashboard.json"] {
        let text = fs::read_to_string(packaged(file)).unwrap();
        let words =
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("blackstart_"));
        let unknown: Vec<&str> = words.filter(|w| !known.contains(*w)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}\n{known:?}");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(packaged("grafana/dashboard.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 8);
}
