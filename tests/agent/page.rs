//! The page of metrics moves with the configuration, and is never lost on the way.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, told};
use super::support::binary::{configure, expect, home};
use super::support::servers::free_ports;

fn answers(address: &str) -> bool {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    config.new_agent().get(format!("http://{address}/health/live")).call().is_ok()
}

fn wait_until(what: &str, so: impl Fn() -> bool) {
    let until = Instant::now() + super::daemon::PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_page_that_cannot_move_stays_where_it_is_and_moves_when_it_can() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let [first, second] = free_ports().map(|port| format!("127.0.0.1:{port}"));
    configure(at, &format!("\n[agent]\nlisten = \"{first}\"\n"));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1h\"\n").unwrap();
    let daemon = Daemon::start(at, &[]);
    wait_until("it is served", || answers(&first));
    let config = at.join("blackstart.toml");
    let listen = |from: &str, to: &str| {
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace(&format!("\"{from}\""), &format!("\"{to}\""))).unwrap();
    };
    // Somebody else has the port that it is to move to.
    let taken = TcpListener::bind(&second).unwrap();
    listen(&first, &second);
    let begun = daemon.wait("the alarm", 1, told("listen", "begun"));
    let detail = begun["detail"].as_str().unwrap();
    assert!(detail.contains(&second) && detail.contains(&format!("still served at {first}")), "{begun}");
    assert!(answers(&first), "it is served where it was");
    drop(taken);
    daemon.wait("the end of it", 1, told("listen", "recovered"));
    wait_until("it is served at the new place", || answers(&second));
    wait_until("the old place is left", || !answers(&first));
    // All addresses of the same port: the two exclude each other.
    let everywhere = second.replace("127.0.0.1", "0.0.0.0");
    listen(&second, &everywhere);
    daemon.wait("the new address", 1, |l| l["address"] == *everywhere);
    wait_until("it is served everywhere", || answers(&second));
    assert_eq!(daemon.count(told("listen", "begun")), 1, "that was no trouble");
    assert_eq!(daemon.stop(), 0);
}
