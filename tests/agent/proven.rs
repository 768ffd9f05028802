//! A point that a drill has proven is not verified any more once its packs are found gone: in the metrics, in an alarm, and in `status`.

use std::fs;

use super::daemon::{Daemon, told};
use super::support::binary::{configure, expect, home};

const VERIFIED: &str = "blackstart_recovery_point_timestamp_seconds{source=\"etc\",verified=\"true\"}";
const LOOKED: &str = "blackstart_observed_timestamp_seconds{source=\"etc\"}";

#[test]
fn a_proof_is_taken_back_with_the_packs_that_it_rests_on() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"30d\"\n").unwrap();
    let daemon = Daemon::start(at, &[]);
    daemon.wait_metric(VERIFIED, |at| at > 0.0);
    fs::remove_dir_all(at.join("repo/packs/etc")).unwrap();
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    let healed = expect(at, &["backup", "etc", "--heal"], 3);
    assert!(healed.all().contains("gone from the store"), "the backup says so: {}", healed.all());
    let begun = daemon.wait("the alarm", 1, told("etc/unproven", "begun"));
    assert!(begun["title"].as_str().unwrap().contains("NOT VERIFIED"), "{begun}");
    assert!(begun["detail"].as_str().unwrap().contains("`blackstart drill etc`"), "what to do: {begun}");
    assert_eq!(daemon.metric_if_any(VERIFIED), None, "nothing is proven any more");
    assert!(expect(at, &["status"], 4).out.contains("no drill has proven a snapshot"));
    // It is not forgotten by the next process, which sees the same.
    assert_eq!(daemon.stop(), 0);
    let daemon = Daemon::start(at, &[]);
    daemon.wait_metric(LOOKED, |at| at > 0.0);
    assert_eq!(daemon.metric_if_any(VERIFIED), None, "after a restart");
    assert_eq!(daemon.count(told("etc/unproven", "recovered")), 0);
    expect(at, &["drill", "etc"], 0);
    daemon.wait("the end of it", 1, told("etc/unproven", "recovered"));
    daemon.wait_metric(VERIFIED, |at| at > 0.0);
    assert_eq!(daemon.stop(), 0);
}
