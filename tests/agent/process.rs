//! The agent as a process, over real seconds: restarts, kills, a repository that goes away, files that break, systemd.

use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, ended, told};
use super::listener::Listener;
use super::support::binary::{configure, expect, home};

/// A home with a repository, and one job that runs every two seconds.
fn busy_home(config: &str) -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, &format!("\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\nstop_within = \"20s\"\n{config}"));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"2s\"\nrpo = \"30s\"\n").unwrap();
    home
}

#[test]
fn it_goes_on_with_the_old_configuration_when_the_new_one_is_broken() {
    let home = busy_home("");
    let at = home.path();
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a backup", 1, ended("incremental"));
    assert_eq!(daemon.get("/health/live").0, 200);
    assert_eq!(daemon.get("/health/ready").0, 200);
    assert_eq!(daemon.get("/").0, 404);
    let job = at.join("schedules/etc.toml");
    let good = fs::read_to_string(&job).unwrap();
    fs::write(&job, "source = \"etc\"\nevry = \"2s\"\n").unwrap();
    let refused = daemon.wait("the refusal", 1, |l| l["level"] == "ERROR" && l["error"].is_string());
    assert!(refused["error"].as_str().unwrap().contains("etc.toml, line 2"), "{refused}");
    daemon.wait("the notice", 1, told("configuration", "begun"));
    let before = daemon.count(ended("incremental"));
    daemon.wait("backups after it", before + 2, ended("incremental"));
    assert_eq!(daemon.metric("blackstart_configuration_ok{}"), 0.0);
    // SIGHUP reads it again, at once, and says so again.
    daemon.signal(Signal::HUP);
    daemon.wait("the second refusal", 2, |l| l["level"] == "ERROR" && l["error"].is_string());
    fs::write(&job, format!("{good}verify = {{ every = \"2s\" }}\n")).unwrap();
    daemon.wait("the recovery", 1, told("configuration", "recovered"));
    daemon.wait("the new task", 1, ended("verify"));
    assert_eq!(daemon.metric("blackstart_configuration_ok{}"), 1.0);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn killed_and_started_again_without_its_catalog_it_knows_what_was() {
    let home = busy_home("");
    let at = home.path();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1s\"\ndrill = { every = \"1h\" }\n").unwrap();
    for round in 0..6_u64 {
        let daemon = Daemon::start(at, &[]);
        daemon.wait("a start", 1, |l| l["message"] == "run started");
        std::thread::sleep(Duration::from_millis(round * 37));
        daemon.kill();
    }
    expect(at, &["verify"], 0);
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a backup", 1, ended("incremental"));
    let point = daemon.metric("blackstart_recovery_point_timestamp_seconds{source=\"etc\",verified=\"true\"}");
    assert_eq!(daemon.stop(), 0);
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        drop(fs::remove_file(at.join("blackstart/state").join(name)));
    }
    fs::remove_file(at.join("schedules/etc.toml")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1h\"\ndrill = { every = \"1h\" }\n").unwrap();
    let daemon = Daemon::start(at, &[]);
    let until = Instant::now() + Duration::from_secs(60);
    while daemon.get("/health/ready").0 != 200 {
        assert!(Instant::now() < until, "never ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(1500));
    // Neither is due: the repository knows of the backup and of the drill.
    assert_eq!(daemon.count(|l| l["message"] == "run started"), 0, "{:?}", daemon.lines());
    let again = daemon.metric("blackstart_recovery_point_timestamp_seconds{source=\"etc\",verified=\"true\"}");
    assert_eq!(again, point);
    assert!(daemon.metric("blackstart_last_success_timestamp_seconds{source=\"etc\",task=\"incremental\"}") > 1.0e9);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_repository_that_goes_away_is_told_once_and_again_when_it_is_back() {
    let server = Listener::start();
    let notify = format!(
        "[[notify]]\nname = \"hook\"\nwebhook = {{ url = {:?}, token = {{ env = \"HOOK\" }} }}\n[[notify]]\nname = \"hc\"\nping = {{ backup = {:?} }}\n",
        server.url("hook"),
        server.url("ping")
    );
    let home = busy_home(&notify);
    let at = home.path();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"2s\"\nrpo = \"5s\"\n").unwrap();
    let daemon = Daemon::start(at, &[("HOOK", OsStr::new("hunter2"))]);
    daemon.wait("a backup", 2, ended("incremental"));
    // What has not happened yet is counted from the start: a counter that begins at one has not risen.
    for counter in
        ["runs_total{source=\"etc\",task=\"incremental\",result=\"failed\"}", "notify_failures_total{channel=\"hook\"}"]
    {
        assert_eq!(daemon.metric(&format!("blackstart_{counter}")), 0.0);
    }
    let ping = server.wait("a success ping", |g| g.path.starts_with("/ping?rid="));
    let run = ping.path.strip_prefix("/ping?rid=").unwrap().to_owned();
    server.wait("its start", |g| g.path == format!("/ping/start?rid={run}"));
    fs::rename(at.join("repo"), at.join("gone")).unwrap();
    let gone =
        |phase: &'static str| move |g: &super::listener::Got| g.body["key"] == "repository" && g.body["phase"] == phase;
    let notice = server.wait("the notice", gone("begun"));
    assert_eq!(notice.authorization.as_deref(), Some("Bearer hunter2"));
    server.wait("the RPO", |g| {
        g.body["key"] == "etc/rpo" && g.body["phase"] == "begun" && g.body["head"]["seq"].as_u64() > Some(0)
    });
    server.wait("a failure ping", |g| g.path.starts_with("/ping/fail?rid="));
    assert_eq!(daemon.metric("blackstart_repository_up{}"), 0.0);
    assert_eq!(daemon.get("/health/live").0, 200, "a bucket that is gone is no reason to restart");
    assert_eq!(daemon.get("/health/ready").0, 503, "it can do no work");
    let well = |g: &super::listener::Got| g.body["phase"] == "recovered";
    assert!(!server.got().iter().any(well), "nothing is well while the repository is gone");
    fs::rename(at.join("gone"), at.join("repo")).unwrap();
    server.wait("the recovery", gone("recovered"));
    server.wait("the RPO again", |g| g.body["key"] == "etc/rpo" && g.body["phase"] == "recovered");
    let begun = server.got().iter().filter(|g| gone("begun")(g)).count();
    assert_eq!(begun, 1, "told once");
    assert_eq!(daemon.stop(), 0);
    expect(at, &["verify"], 0);
}

#[test]
fn systemd_hears_that_it_is_ready_alive_and_stopping() {
    let home = busy_home("");
    let at = home.path();
    let socket = UnixDatagram::bind(at.join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let environment = [("NOTIFY_SOCKET", at.join("notify").into_os_string()), ("WATCHDOG_USEC", "60000000".into())];
    let environment: Vec<(&str, &OsStr)> = environment.iter().map(|(k, v)| (*k, v.as_os_str())).collect();
    let daemon = Daemon::start(at, &environment);
    let mut heard = String::new();
    let mut hear = |what: &str| {
        let mut buffer = [0; 4096];
        while !heard.contains(what) {
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}: {heard}"));
            heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_run_that_does_not_end_is_abandoned_and_nothing_is_half_done() {
    let home = busy_home("");
    let at = home.path();
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(at.join("blackstart.toml"), config.replace("stop_within = \"20s\"", "stop_within = \"1s\"")).unwrap();
    // A file that takes long to read, even where it is all holes of one kind.
    let big = at.join("app/etc/big");
    let file = File::create(&big).unwrap();
    let noise = super::support::binary::noise(7, 64 << 20);
    (0..12)
        .for_each(|n| std::os::unix::fs::FileExt::write_all_at(&file, &noise[n as usize..], n * (64 << 20)).unwrap());
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a start", 1, |l| l["message"] == "run started");
    let before = Instant::now();
    let log = daemon.log.clone();
    assert_eq!(daemon.stop(), 0);
    assert!(before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
    assert!(fs::read_to_string(log).unwrap().contains("abandoned"));
    fs::remove_file(big).unwrap();
    expect(at, &["backup", "etc"], 0);
    expect(at, &["verify"], 0);
}

#[test]
fn nothing_to_do_is_an_error_at_the_start() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let refused = expect(at, &["agent"], 78);
    assert!(refused.err.contains("schedules"), "{}", refused.err);
}

#[test]
fn a_plan_is_drilled_on_schedule_and_an_edit_shows() {
    let home = busy_home("");
    let at = home.path();
    fs::create_dir(at.join("restore-plans")).unwrap();
    let plan = at.join("restore-plans/p.toml");
    let text = "rto = \"1h\"\n[[stage]]\nname = \"a\"\nrestore = { source = \"etc\", to = \"x\" }\n";
    fs::write(&plan, text).unwrap();
    fs::write(at.join("schedules/p.toml"), "plan = \"q\"\ndrill = { every = \"1h\" }\n").unwrap();
    assert!(expect(at, &["agent"], 78).err.contains("is for the plan q, which does not exist"));
    fs::write(at.join("schedules/p.toml"), "plan = \"p\"\ndrill = { every = \"1h\" }\n").unwrap();
    let never = expect(at, &["status"], 4).out;
    assert!(never.contains("plan p: is NOT VERIFIED: never drilled"), "{never}");

    let agent = Daemon::start(at, &[]);
    let of_plan = |l: &Value| l["source"] == "plan.p" && l["task"] == "drill" && l["result"] == "done";
    agent.wait("the drill of the plan", 1, of_plan);
    let verified = |value: f64| {
        let until = Instant::now() + Duration::from_secs(60);
        while agent.metric("blackstart_plan_verified{source=\"plan.p\"}") != value {
            assert!(
                Instant::now() < until,
                "plan_verified is not {value}: {}",
                fs::read_to_string(&agent.log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    verified(1.0);
    assert_eq!(agent.metric("blackstart_drill_passed{source=\"plan.p\"}"), 1.0);
    assert_eq!(agent.metric("blackstart_rto_target_seconds{source=\"plan.p\"}"), 3600.0);
    let status = expect(at, &["status", "--json"], 0).json()["report"]["plans"][0].clone();
    assert_eq!((status["plan"].as_str(), status["state"]["is"].as_str()), (Some("p"), Some("verified")), "{status}");
    let report = expect(at, &["report", "show", "plan.p", "--json"], 0).json()["report"]["report"].clone();
    assert_eq!(report["trigger"], "on schedule, by the agent");

    fs::write(&plan, format!("# a word\n{text}")).unwrap();
    agent.wait("the edit is told", 1, told("plan.p/edited", "begun"));
    verified(0.0);
    assert!(expect(at, &["status"], 4).out.contains("is NOT VERIFIED: edited since its drill"));
    expect(at, &["drill", "--plan", "p"], 0);
    agent.wait("what was drilled by hand counts", 1, told("plan.p/edited", "recovered"));

    // Text that is wrong is told of, and stops nothing else.
    let backups = agent.count(ended("incremental"));
    fs::write(&plan, "[[stag]]\n").unwrap();
    agent.wait("the wrong text is told", 1, told("plan.p/text", "begun"));
    agent.wait("backups go on", backups + 2, ended("incremental"));
    assert!(expect(at, &["status"], 4).out.contains("plan p: cannot be read"));
    assert_eq!(agent.stop(), 0);
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + super::daemon::PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
