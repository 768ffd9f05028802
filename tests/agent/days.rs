//! The agent over simulated days: a clock that the test moves, real backups of a small tree into a real repository.

use blackstart::agent::Agent;
use blackstart::clock::Clock;
use blackstart::config::Config;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::support::binary::{configure, expect, home};

pub struct TestClock(Mutex<Timestamp>);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

impl TestClock {
    pub fn at(time: &str) -> TestClock {
        TestClock(Mutex::new(time.parse().unwrap()))
    }

    pub fn set(&self, to: Timestamp) {
        *self.0.lock().unwrap() = to;
    }
}

/// Ticks until nothing more is due at this moment.
pub fn settle(agent: &mut Agent) {
    let until = Instant::now() + Duration::from_secs(60);
    let mut quiet = 0;
    while quiet < 3 {
        assert!(Instant::now() < until, "the agent does not come to rest");
        agent.tick();
        quiet = if agent.settle() { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs by task and result, from the catalog.
fn runs(home: &Path) -> BTreeMap<String, u32> {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let mut statement = catalog.prepare("select task || ' ' || result, count(*) from runs group by 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn three_days_a_jump_ahead_and_a_jump_back() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"off\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    let job = "source = \"etc\"\nfull = { cron = \"0 2 * * *\", timezone = \"Asia/Tokyo\" }\nincremental = { every = \"1h\" }\n\
               drill = { every = \"24h\" }\nverify = { every = \"12h\" }\njitter = \"0s\"\n";
    fs::write(at.join("schedules/etc.toml"), job).unwrap();
    let config = Config::load(Some(&at.join("blackstart.toml"))).unwrap();
    // Not in the past of what `protect` has just written.
    let begin: Timestamp = "2031-06-01T00:30:00Z".parse().unwrap();
    let clock = Arc::new(TestClock::at("2031-06-01T00:30:00Z"));
    let mut agent = Agent::start(config, clock.clone()).unwrap();
    for step in 0..3 * 24 * 2 {
        clock.set(begin + SignedDuration::from_mins(30 * step));
        settle(&mut agent);
    }
    let days = runs(at);
    // One at once, for all that was missed since `protect`, and one each night.
    assert_eq!(days["full done"], 4, "{days:?}");
    // A full counts for the incremental of its hour, and moves the ones after it.
    assert!((66..=72).contains(&days["incremental done"]), "{days:?}");
    assert!((3..=4).contains(&days["drill done"]), "{days:?}");
    assert!((5..=6).contains(&days["verify done"]), "{days:?}");
    assert!(days.keys().all(|k| k.ends_with("done")), "{days:?}");
    // Ten days ahead at once: everything is made up for once, not ten times.
    let ahead = begin + SignedDuration::from_hours(13 * 24);
    clock.set(ahead);
    settle(&mut agent);
    let jumped = runs(at);
    for task in ["full done", "drill done", "verify done"] {
        assert_eq!(jumped[task], days[task] + 1, "{task}: {jumped:?}");
    }
    // Back by a year: backups go on.
    let back = ahead - SignedDuration::from_hours(365 * 24);
    for minutes in [0, 61, 122] {
        clock.set(back + SignedDuration::from_mins(minutes));
        settle(&mut agent);
    }
    let after = runs(at);
    assert!(after["incremental done"] >= jumped["incremental done"] + 2, "{after:?}");
    let verified: Value = expect(at, &["verify", "--json"], 0).json();
    assert_eq!(verified["outcome"], "done", "{verified}");
}
