//! What a channel has not taken is told by the process after this one, once.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::daemon::{Daemon, told};
use super::listener::Listener;
use super::support::binary::{configure, expect, home};

#[test]
fn a_notice_that_was_on_its_way_survives_a_kill_and_so_does_the_end_of_a_stall() {
    let server = Listener::start();
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let hook = format!("[[notify]]\nname = \"hook\"\nwebhook = {{ url = {:?} }}\n", server.url("hook"));
    configure(at, &format!("\n[agent]\nlisten = \"off\"\n{hook}"));
    fs::create_dir(at.join("schedules")).unwrap();
    let job = "source = \"etc\"\nevery = \"24h\"\ndrill = { every = \"24h\" }\n";
    fs::write(at.join("schedules/etc.toml"), job).unwrap();
    // Something that stands wrong, and a channel that takes nothing.
    fs::rename(at.join("blackstart/keys/recovery.key"), at.join("key")).unwrap();
    server.failures.store(usize::MAX, Ordering::SeqCst);
    let daemon = Daemon::start(at, &[]);
    daemon.wait("the alarm", 1, told("drill-key", "begun"));
    let noted = || -> i64 {
        let catalog = rusqlite::Connection::open(at.join("blackstart/state/catalog.db")).unwrap();
        catalog.query_row("select count(*) from untold", [], |row| row.get(0)).unwrap()
    };
    let until = std::time::Instant::now() + super::daemon::PATIENCE;
    while noted() == 0 {
        assert!(std::time::Instant::now() < until, "what is on its way is not noted");
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.kill();
    let of = |key: &str, phase: &str| {
        server.got().iter().filter(|got| got.body["key"] == *key && got.body["phase"] == *phase).count()
    };
    assert_eq!(of("drill-key", "begun"), 0, "nothing has arrived");
    server.failures.store(0, Ordering::SeqCst);
    // The process before had stalled, and systemd has started this one in its place.
    fs::write(at.join("blackstart/state/stalled"), "2031-06-01T00:00:00Z").unwrap();
    let daemon = Daemon::start(at, &[]);
    server.wait("what was on its way", |got| got.body["key"] == "drill-key" && got.body["phase"] == "begun");
    server.wait("the end of the stall", |got| got.body["key"] == "scheduler" && got.body["phase"] == "recovered");
    assert_eq!(daemon.count(told("drill-key", "begun")), 0, "it is no new alarm");
    assert_eq!(daemon.stop(), 0);
    // What has arrived is told no more.
    let daemon = Daemon::start(at, &[]);
    daemon.wait("a look", 1, |l| l["message"] == "job");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.stop(), 0);
    assert_eq!((of("drill-key", "begun"), of("scheduler", "recovered")), (1, 1), "{:#?}", server.got());
}
