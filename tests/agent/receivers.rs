//! Receivers under the agent, with a real PostgreSQL server: they start, come back, end in order, and the RPO counts from the end of the log.

use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::daemon::{Daemon, ended};
use super::support::binary::{command, configure, expect, finish, root_of};
use super::support::postgres::{Cluster, Setup};

const POINT: &str = "blackstart_recovery_point_timestamp_seconds{source=\"db\",verified=\"false\"}";
const SNAPSHOT: &str = "blackstart_snapshot_timestamp_seconds{source=\"db\"}";
const UP: &str = "blackstart_log_receiver_up{source=\"db\"}";

/// A home whose only source is the log and the files of `cluster`.
fn home(cluster: &Cluster) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    let source = format!(
        "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"2s\"\nstop_within = \"20s\"\n[[source]]\nname = \"db\"\nkind = \"postgres\"\n\
         url = {:?}\ncontinuous = true\n[source.postgres]\nseal_every = \"100ms\"\n",
        cluster.url("postgres")
    );
    configure(at, &source);
    fs::create_dir(at.join("schedules")).unwrap();
    // The RPO alone would ask for a backup every few seconds; the log keeps it, and snapshots are daily.
    fs::write(at.join("schedules/db.toml"), "source = \"db\"\nrpo = \"10s\"\n").unwrap();
    home
}

/// Where the stored log ends, by what anyone can read; none where no snapshot leads into it.
fn end(at: &Path) -> Option<u64> {
    let status = expect_any(at, &["status", "--json", "--repo", "repo", "--root", &root_of(at)]);
    let position = &status["report"]["sources"][0]["log"]["position"];
    position.as_str().map(|hex| u64::from_str_radix(hex, 16).unwrap())
}

fn expect_any(at: &Path, arguments: &[&str]) -> Value {
    super::support::binary::run(at, arguments).json()
}

fn flushed(cluster: &Cluster) -> u64 {
    cluster.value("select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint").parse().unwrap()
}

/// Waits until the server has sent everything up to there, and whoever receives has had a moment to read it.
fn await_sent(cluster: &Cluster, position: u64) {
    let sent = "select coalesce(max(sent_lsn - '0/0'::pg_lsn), 0)::bigint from pg_stat_replication";
    super::process::wait_until("the log is sent", || cluster.value(sent).parse::<u64>().unwrap() >= position);
    std::thread::sleep(Duration::from_millis(500));
}

fn now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}

#[test]
fn the_agent_receives_the_log_and_the_rpo_counts_from_its_end() {
    let mut cluster = Setup::new(15).config("wal_level = replica").start();
    cluster.sql("create table t (n int); insert into t values (1)");
    let home = home(&cluster);
    let at = home.path();
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the first backup", 1, ended("incremental"));
    daemon.wait_metric(UP, |up| up == 1.0);
    // The server writes nothing now, and nothing can be lost: the point moves on all the same, and there is no further backup.
    daemon.wait_metric(SNAPSHOT, |at| at > 0.0);
    let snapshot = daemon.metric(SNAPSHOT);
    daemon.wait_metric(POINT, |point| point > snapshot + 3.0 && now() - point < 5.0);
    assert_eq!(daemon.metric(SNAPSHOT), snapshot);
    assert_eq!(daemon.metric("blackstart_log_behind_bytes{source=\"db\"}"), 0.0);
    assert_eq!(daemon.metric("blackstart_log_endangered{source=\"db\"}"), 0.0);
    cluster.sql("insert into t select generate_series(1, 10000)");
    let written = flushed(&cluster);
    super::process::wait_until("it is stored", || end(at).is_some_and(|end| end >= written));
    // Whoever looks from outside, without a key, sees the end of the log, too.
    let status = expect(at, &["status", "--json", "--repo", "repo", "--root", &root_of(at)], 4).json();
    let row = &status["report"]["sources"][0];
    assert!(row["recovery_point"].as_str() > row["newest"].as_str(), "{row}");
    assert!(row["rpo_exposure_seconds"].as_f64().unwrap() < 30.0, "{row}");
    let watched = expect(at, &["watch", "--json", "--repo", "repo", "--root", &root_of(at)], 0).json();
    assert_eq!(watched["report"]["sources"][0]["newest"].as_str(), row["recovery_point"].as_str());
    // A server that goes away is told of, and the log goes on when it is back.
    cluster.kill();
    daemon.wait_metric(UP, |up| up == 0.0);
    cluster.start();
    daemon.wait_metric(UP, |up| up == 1.0);
    cluster.sql("insert into t select generate_series(1, 1000)");
    // An agent that is killed has lost nothing, and goes on without a gap.
    daemon.kill();
    let daemon = Daemon::start(at, &[]);
    daemon.wait_metric(UP, |up| up == 1.0);
    assert_eq!(daemon.metric("blackstart_log_gaps_total{source=\"db\"}"), 0.0);
    // Other settings: the receiver ends in order and begins with the new ones; the rest of the configuration is no reason to.
    let received = || daemon.count(|l| l["message"] == "the log is received");
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let before = received();
    fs::write(at.join("blackstart.toml"), config.replace("observe = \"2s\"", "observe = \"3s\"")).unwrap();
    daemon.wait("the reload", 1, |l| l["message"] == "the configuration is read again");
    fs::write(at.join("blackstart.toml"), config.replace("\"100ms\"", "\"50ms\"")).unwrap();
    super::process::wait_until("the receiver begins anew", || received() == before + 1);
    assert_eq!(daemon.metric("blackstart_log_gaps_total{source=\"db\"}"), 0.0);
    // One that is told to stop stores what has come first.
    cluster.sql("insert into t select generate_series(1, 1000)");
    let written = flushed(&cluster);
    await_sent(&cluster, written);
    assert_eq!(daemon.stop(), 0);
    assert!(end(at).unwrap() >= written);
    // The drill replays the log, and measures from its end.
    let drill = expect(at, &["drill", "--json"], 0).json();
    let report = &drill["report"]["sources"][0];
    assert!(report["log_until"].as_str() > report["data_time"].as_str(), "{report}");
    let from_the_snapshot = now() - snapshot;
    assert!(report["rpo_exposure_seconds"].as_f64().unwrap() < from_the_snapshot - 3.0, "{report}");
}

#[test]
fn a_gap_is_told_of_and_closed_by_a_snapshot_out_of_turn() {
    let cluster = Setup::new(15).config("wal_level = replica").start();
    cluster.sql("create table t (n int)");
    let home = home(&cluster);
    let at = home.path();
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the first backup", 1, ended("incremental"));
    super::process::wait_until("a snapshot leads into the log", || end(at).is_some());
    assert_eq!(daemon.stop(), 0);
    // Somebody drops the slot, and the server recycles what was not stored.
    cluster.sql("select pg_drop_replication_slot('blackstart_db')");
    for _ in 0..3 {
        cluster.sql("insert into t select generate_series(1, 1000)");
        cluster.sql("select pg_switch_wal()");
        cluster.sql("checkpoint");
    }
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the gap", 1, |l| l["message"] == "a gap in the log");
    daemon.wait("a snapshot out of turn", 1, |l| {
        l["message"] == "run started" && l["why"] == "the log needs a snapshot to go on from"
    });
    daemon.wait("its end", 1, ended("incremental"));
    assert_eq!(daemon.metric("blackstart_log_gaps_total{source=\"db\"}"), 1.0);
    let snapshot = daemon.metric(SNAPSHOT);
    daemon.wait_metric(POINT, |point| point > snapshot + 2.0);
    // One is enough.
    assert_eq!(daemon.count(|l| l["message"] == "run started"), 1);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_verb_stores_what_has_come_and_ends_when_it_is_told_to() {
    let cluster = Setup::new(17).config("wal_level = replica").start();
    let home = home(&cluster);
    let at = home.path();
    // Nothing is stored by itself while this test looks.
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(at.join("blackstart.toml"), config.replace("\"100ms\"", "\"60s\"")).unwrap();
    cluster.sql("create table t (n int)");
    expect(at, &["backup"], 0);
    for signal in [Signal::INT, Signal::TERM] {
        let child = command(at, &["wal-receive", "db"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let streams = || cluster.value("select active from pg_replication_slots") == "t";
        super::process::wait_until("it streams", streams);
        cluster.sql("insert into t select generate_series(1, 100)");
        let written = flushed(&cluster);
        await_sent(&cluster, written);
        assert!(end(at) < Some(written), "it is stored already, so that this shows nothing");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let ran = finish(&child.wait_with_output().unwrap());
        assert_eq!(ran.code, 130, "{}", ran.all());
        assert!(ran.err.contains("What had come is stored"), "{}", ran.err);
        assert!(end(at).unwrap() >= written);
    }
}
