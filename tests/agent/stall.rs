//! A scheduler that has stalled, and notices that wait for the end of quiet hours.

use blackstart::agent::Agent;
use blackstart::config::Config;
use jiff::Timestamp;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, ended};
use super::days::{TestClock, settle};
use super::listener::Listener;
use super::support::binary::{configure, expect, home};

/// A configuration that never ends to be read: a named pipe that nobody writes to. The scheduler reads it, and hangs.
#[test]
fn a_scheduler_that_hangs_is_noticed_from_within_and_by_systemd() {
    let server = Listener::start();
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let hook = format!("[[notify]]\nname = \"hook\"\nwebhook = {{ url = {:?} }}\n", server.url("hook"));
    configure(at, &format!("\n[agent]\nlisten = \"127.0.0.1:0\"\nstalled_after = \"2s\"\n{hook}"));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1s\"\n").unwrap();
    let socket = UnixDatagram::bind(at.join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (path, interval) = (at.join("notify").into_os_string(), OsStr::new("2000000"));
    let daemon = Daemon::start(at, &[("NOTIFY_SOCKET", path.as_os_str()), ("WATCHDOG_USEC", interval)]);
    daemon.wait("a backup", 1, ended("incremental"));
    assert_eq!(daemon.get("/health/live").0, 200);
    // Whether there is a sign of life within so long.
    let alive_within = |length: Duration| {
        let (mut buffer, until) = ([0; 4096], Instant::now() + length);
        while Instant::now() < until {
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            if std::str::from_utf8(&buffer[..length]).unwrap().contains("WATCHDOG=1") {
                return true;
            }
        }
        false
    };
    assert!(alive_within(super::daemon::PATIENCE), "it is fed while all is well");
    let config = at.join("blackstart.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::rename(&config, at.join("aside")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&config).status().unwrap().success());
    let until = Instant::now() + super::daemon::PATIENCE;
    while daemon.get("/health/live").0 != 503 {
        assert!(Instant::now() < until, "it does not stall");
        std::thread::sleep(Duration::from_millis(100));
    }
    // What was sent before the stall is drained; then there is silence, at which systemd ends and restarts the process.
    let drained = (0..100).any(|_| !alive_within(Duration::from_millis(300)));
    assert!(drained, "the watchdog is fed on and on though nothing moves");
    assert!(!alive_within(Duration::from_millis(2500)), "the watchdog is fed though nothing moves");
    server.wait("the notice", |got| got.body["key"] == "scheduler" && got.body["severity"] == "critical");
    assert_eq!(daemon.count(|l| l["message"] == "the scheduler has stalled"), 1);
    // From here on somebody listens all the time, as systemd does: nobody may write to a socket that is full. Until the end of the process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let _silence = socket.recv(&mut buffer).is_err();
        }
    });
    // Once what it waits for comes, it goes on as if nothing had been.
    fs::write(&config, &text).unwrap();
    let until = Instant::now() + super::daemon::PATIENCE;
    while daemon.get("/health/live").0 != 200 {
        assert!(Instant::now() < until, "it does not go on");
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::rename(at.join("aside"), &config).unwrap();
    server.wait("the end of it", |got| got.body["key"] == "scheduler" && got.body["phase"] == "recovered");
    assert!(!at.join("blackstart/state/stalled").exists(), "the note of it is gone");
    let before = daemon.count(ended("incremental"));
    daemon.wait("backups again", before + 1, ended("incremental"));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn what_quiet_hours_keep_back_is_told_after_them_also_by_an_agent_that_was_started_meanwhile() {
    let server = Listener::start();
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let channel = |name: &str, more: &str| {
        format!("[[notify]]\nname = {name:?}\nwebhook = {{ url = {:?} }}\n{more}", server.url(name))
    };
    let quiet = "quiet = [{ from = \"22:00\", to = \"06:00\" }]\n";
    configure(at, &format!("\n[agent]\nlisten = \"off\"\n{}{}", channel("day", quiet), channel("always", "")));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"24h\"\ndrill = { every = \"24h\" }\n")
        .unwrap();
    // Drills on the schedule, and no key for them: a warning, nothing to wake people up for.
    fs::rename(at.join("blackstart/keys/recovery.key"), at.join("key")).unwrap();
    let clock = Arc::new(TestClock::at("2031-06-01T23:00:00Z"));
    let start = || Agent::start(Config::load(Some(&at.join("blackstart.toml"))).unwrap(), clock.clone()).unwrap();
    let told = |path: &'static str, phase: &'static str| {
        move |got: &super::listener::Got| {
            got.path == path && got.body["key"] == "drill-key" && got.body["phase"] == phase
        }
    };
    let count = |path, phase| server.got().iter().filter(|got| told(path, phase)(got)).count();
    let mut agent = start();
    settle(&mut agent);
    server.wait("whoever is always told", told("/always", "begun"));
    assert_eq!(count("/day", "begun"), 0);
    // A restart in the night forgets nothing, and tells nobody twice.
    drop(agent);
    let mut agent = start();
    clock.set("2031-06-02T05:59:00Z".parse::<Timestamp>().unwrap());
    settle(&mut agent);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count("/day", "begun"), 0, "still quiet");
    clock.set("2031-06-02T06:00:00Z".parse::<Timestamp>().unwrap());
    settle(&mut agent);
    server.wait("the day shift", told("/day", "begun"));
    assert_eq!((count("/day", "begun"), count("/always", "begun")), (1, 1));
    // What passes in the next night is told in the morning; what began and passed in it, never.
    fs::rename(at.join("key"), at.join("blackstart/keys/recovery.key")).unwrap();
    drop(agent);
    clock.set("2031-06-02T23:00:00Z".parse::<Timestamp>().unwrap());
    let mut agent = start();
    settle(&mut agent);
    server.wait("whoever is always told", told("/always", "recovered"));
    assert_eq!(count("/day", "recovered"), 0);
    clock.set("2031-06-03T06:00:00Z".parse::<Timestamp>().unwrap());
    settle(&mut agent);
    server.wait("the day shift", told("/day", "recovered"));
    assert_eq!((count("/day", "begun"), count("/day", "recovered")), (1, 1));
}
