//! The agent as a process writes canaries, and says when it cannot.

use std::fs;
use std::path::Path;

use super::daemon::{Daemon, ended, told};
use super::support::binary::{configure, expect, home};

fn written(at: &Path) -> String {
    fs::read_to_string(at.join("app/etc/.blackstart-canary")).unwrap_or_default()
}

#[test]
fn canaries_are_written_while_it_runs_and_an_alarm_tells_when_not() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n[source.canary]\nevery = \"1s\"\n\
         [[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\n\
         [agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\n",
    );
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1h\"\n").unwrap();
    let daemon = Daemon::start(at, &[]);
    let metric = "blackstart_canary_timestamp_seconds{source=\"etc\"}";
    daemon.wait_metric(metric, |at| at > 1.0e9);
    let first = daemon.metric(metric);
    daemon.wait_metric(metric, |at| at > first);
    assert_eq!(daemon.metric("blackstart_canary_up{source=\"etc\"}"), 1.0);
    assert_eq!(daemon.metric_if_any("blackstart_canary_up{source=\"orders\"}"), None, "it was not asked for");
    assert!(written(at).ends_with("Z\n"), "{}", written(at));
    // A drill finds it, and the metric of the last drill says how old.
    daemon.wait("a backup", 1, ended("incremental"));
    expect(at, &["drill", "etc"], 0);
    daemon.wait_metric("blackstart_drill_canary_age_seconds{source=\"etc\"}", |age| (-5.0..600.0).contains(&age));
    // Something else is in its place, which must not be written over.
    let path = at.join("app/etc/.blackstart-canary");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    daemon.wait("the alarm", 1, told("etc/canary", "begun"));
    assert_eq!(daemon.metric("blackstart_canary_up{source=\"etc\"}"), 0.0);
    fs::remove_dir(&path).unwrap();
    daemon.wait("the recovery", 1, told("etc/canary", "recovered"));
    assert_eq!(daemon.stop(), 0);
    let last = written(at);
    assert!(expect(at, &["status"], 4).out.contains("etc: canary written"), "it is shown");
    assert_eq!(written(at), last, "nobody writes when the agent has ended");
}
