//! The receiver of a Redis source under the agent, with a real server: the RPO counts from the end of its log, and a gap is closed.

use std::fs;
use std::path::Path;

use super::daemon::{Daemon, ended};
use super::process::wait_until;
use super::support::binary::{configure, expect, root_of};
use super::support::engines::Server;

const POINT: &str = "blackstart_recovery_point_timestamp_seconds{source=\"store\",verified=\"false\"}";
const SNAPSHOT: &str = "blackstart_snapshot_timestamp_seconds{source=\"store\"}";
const UP: &str = "blackstart_log_receiver_up{source=\"store\"}";

fn home(server: &Server, user: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    let source = format!(
        "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"2s\"\nstop_within = \"20s\"\n[[source]]\nname = \"store\"\nkind = \"redis\"\n\
         url = {:?}\ncontinuous = true\n{user}[source.redis]\nseal_every = \"100ms\"\n",
        server.url()
    );
    configure(at, &source);
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/store.toml"), "source = \"store\"\nrpo = \"10s\"\n").unwrap();
    home
}

/// Whether what is written now comes to lie in the repository.
fn stored(server: &Server, value: &str) -> bool {
    let mut c = server.connect();
    c.command(&["SET", "last", value]).unwrap();
    c.command(&["WAIT", "1", "300"]).unwrap().text() == Some("1")
}

fn restored(at: &Path, key: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("restored");
    expect(at, &["restore", "store", "--to", target.to_str().unwrap()], 0);
    let copy = Server::on(directory, "redis-server", "--dir DIR/restored --appendonly yes");
    copy.run(&format!("GET {key}")).text().unwrap_or_default().to_owned()
}

fn now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}

#[test]
fn the_agent_follows_the_stream_and_the_rpo_counts_from_its_end() {
    let server = Server::on(tempfile::tempdir().unwrap(), "redis-server", "--appendonly yes --repl-backlog-size 16kb");
    server.run("SET first 1");
    let home = home(&server, "");
    let at = home.path();
    expect(at, &["check", "--identity", "blackstart/keys/recovery.key"], 4);
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the first backup", 1, ended("incremental"));
    daemon.wait_metric(UP, |up| up == 1.0);
    daemon.wait_metric(SNAPSHOT, |at| at > 0.0);
    // A server that writes nothing loses nothing: the point moves on, and the log asks for no snapshot.
    let snapshot = daemon.metric(SNAPSHOT);
    daemon.wait_metric(POINT, |point| point > snapshot + 3.0 && now() - point < 5.0);
    assert_eq!(daemon.count(|l| l["message"] == "run started"), 1);
    assert_eq!(daemon.metric("blackstart_log_behind_bytes{source=\"store\"}"), 0.0);
    // Whoever looks from outside, without a key, sees the end of the log.
    wait_until("it is stored", || stored(&server, "second"));
    let status = expect(at, &["status", "--json", "--repo", "repo", "--root", &root_of(at)], 4).json();
    let row = &status["report"]["sources"][0];
    assert!(row["recovery_point"].as_str() > row["newest"].as_str(), "{row}");
    let watched = expect(at, &["watch", "--json", "--repo", "repo", "--root", &root_of(at)], 0).json();
    assert_eq!(watched["report"]["sources"][0]["newest"].as_str(), row["recovery_point"].as_str());
    // Away longer than the backlog reaches: told, and a snapshot out of turn leads on.
    assert_eq!(daemon.stop(), 0);
    server.run(&format!("SET large {}", "x".repeat(100_000)));
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the gap", 1, |l| l["message"] == "a gap in the log");
    daemon.wait("a snapshot out of turn", 1, |l| {
        l["message"] == "run started" && l["why"] == "the log needs a snapshot to go on from"
    });
    wait_until("it leads on", || stored(&server, "third"));
    assert_eq!(daemon.metric("blackstart_log_gaps_total{source=\"store\"}"), 1.0);
    assert_eq!(daemon.count(|l| l["message"] == "run started"), 1, "one is enough");
    // A server that goes away is told of, and its log goes on when it is back.
    let directory = server.kill();
    daemon.wait_metric(UP, |up| up == 0.0);
    let server = Server::on(directory, "redis-server", "--appendonly yes --repl-backlog-size 16kb");
    daemon.wait_metric(UP, |up| up == 1.0);
    wait_until("it is stored again", || stored(&server, "fourth"));
    assert_eq!(daemon.stop(), 0);
    assert_eq!(restored(at, "last"), "fourth");
}

#[test]
fn a_user_without_the_rights_is_found_by_check_and_told_of() {
    let [port] = super::support::servers::free_ports::<1>();
    let server = Server::start("redis-server", &format!("--port {port} --bind 127.0.0.1"));
    server.run("SET first 1");
    server.run("ACL SETUSER backup on >secret resetkeys -@all +ping +info +sync +replconf");
    let password = server.directory.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let url = format!("redis://backup@127.0.0.1:{port}");
    let home = home(&server, &format!("password = {{ file = {:?} }}\n", password.display().to_string()));
    let at = home.path();
    let file = at.join("blackstart.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&server.url(), &url)).unwrap();
    let said = expect(at, &["check"], 4).all();
    assert!(said.contains("FAILED   log of store") && said.contains("+psync"), "{said}");
    let told = expect(at, &["wal-receive", "store", "--once"], 1).all();
    assert!(told.contains("ACL SETUSER backup") && !told.contains("secret"), "{told}");
    server.run("ACL SETUSER backup +psync");
    let said = expect(at, &["check"], 4).all();
    assert!(said.contains("ok       log of store") && said.contains("repl-backlog-size"), "{said}");
    // Tried, and nothing begun: the server has had no replica, and has not forked.
    let info = server.run("INFO");
    let info = info.text().unwrap();
    assert!(info.contains("repl_backlog_active:0") && info.contains("total_forks:0"), "{info}");
}
