//! The page of metrics: names, escaping, nothing that lingers.

use blackstart::metrics::{DrillFigures, Figures, SourceFigures, page};
use jiff::Timestamp;
use std::collections::BTreeMap;

pub fn sample() -> Figures {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let source = SourceFigures {
        newest: Some(at(1_700_000_000)),
        verified: Some(at(1_699_990_000)),
        head: Some(7),
        rpo_seconds: Some(3600.0),
        rto_seconds: Some(14400.0),
        expected_interval_seconds: Some(1800.0),
        drill: Some(DrillFigures {
            passed: true,
            finished: at(1_699_999_000),
            seconds: 12.5,
            phases: vec![("data".into(), 9.0)],
        }),
        last_success: BTreeMap::from([("incremental", at(1_700_000_010))]),
        next: BTreeMap::from([("incremental", at(1_700_001_800))]),
    };
    Figures {
        sources: BTreeMap::from([("orders".to_owned(), source)]),
        runs: BTreeMap::from([(("orders".to_owned(), "incremental", "done".to_owned()), 3)]),
        notices_failed: BTreeMap::from([("on \"call\"\n".to_owned(), 2)]),
        repository_up: true,
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
        "blackstart_rpo_target_seconds{source=\"orders\"} 3600.0",
        "blackstart_expected_interval_seconds{source=\"orders\"} 1800.0",
        "blackstart_runs_total{source=\"orders\",task=\"incremental\",result=\"done\"} 3",
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
    assert!(text.contains("blackstart_repository_up{} 0.0"), "{text}");
}
