//! Alarms over restarts and outages: only what is known to be over is told as over.

use blackstart::agent::Agent;
use blackstart::config::Config;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::days::{TestClock, settle};
use super::support::binary::{configure, expect, home};

/// The alarms that stand, and since when.
fn alarms(home: &Path) -> BTreeMap<String, String> {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let mut statement = catalog.prepare("select key, json_extract(alarm, '$.since') from alarms").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Lets the agent go on until just these alarms stand.
fn reach(agent: &mut Agent, home: &Path, expected: &[&str]) -> BTreeMap<String, String> {
    let until = Instant::now() + super::daemon::PATIENCE;
    loop {
        settle(agent);
        let alarms = alarms(home);
        if alarms.keys().eq(expected) {
            return alarms;
        }
        assert!(Instant::now() < until, "{alarms:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Flips a bit of every pack, whose sizes stay.
fn damage(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
}

/// Drills by task, whatever came of them.
fn drills(home: &Path) -> BTreeMap<String, u32> {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let mut statement = catalog.prepare("select task, count(*) from runs where task like 'drill%' group by 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_cheap_drill_neither_spares_a_dear_one_nor_ends_its_alarm() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"off\"\nobserve = \"1s\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    let job =
        "source = \"etc\"\nevery = \"1h\"\n[[drill]]\nevery = \"6h\"\nlevel = \"hashes\"\n[[drill]]\nevery = \"24h\"\n";
    fs::write(at.join("schedules/etc.toml"), job).unwrap();
    let begin: Timestamp = "2031-06-01T00:00:00Z".parse().unwrap();
    let clock = Arc::new(TestClock::at("2031-06-01T00:00:00Z"));
    let start = || Agent::start(Config::load(Some(&at.join("blackstart.toml"))).unwrap(), clock.clone()).unwrap();
    let mut agent = start();
    let go = |agent: &mut Agent, hours: i64, expected: &[&str]| {
        clock.set(begin + SignedDuration::from_hours(hours));
        reach(agent, at, expected);
    };
    let runs =
        |hashes: u32, engine: u32| BTreeMap::from([("drill".to_owned(), engine), ("drill-hashes".into(), hashes)]);
    go(&mut agent, 0, &[]);
    assert_eq!(drills(at), BTreeMap::from([("drill".to_owned(), 1)]), "the dear one, which spares the cheap one");
    [6, 12, 18].into_iter().for_each(|hours| go(&mut agent, hours, &[]));
    assert_eq!(drills(at), runs(3, 1));
    go(&mut agent, 24, &[]);
    assert_eq!(drills(at), runs(3, 2), "where both are due the dear one alone runs");
    let packs = at.join("repo/packs");
    damage(&packs);
    go(&mut agent, 30, &["etc/drill-hashes"]);
    go(&mut agent, 48, &["etc/drill", "etc/drill-hashes"]);
    // What is whole again the cheap one sees first, and it may speak for itself only; a restart forgets nothing of that.
    damage(&packs);
    go(&mut agent, 54, &["etc/drill"]);
    drop(agent);
    agent = start();
    go(&mut agent, 60, &["etc/drill"]);
    go(&mut agent, 72, &[]);
    // The dear one speaks for the cheap one.
    damage(&packs);
    go(&mut agent, 78, &["etc/drill-hashes"]);
    damage(&packs);
    let before = drills(at);
    go(&mut agent, 96, &[]);
    let after = drills(at);
    assert_eq!(after["drill"], before["drill"] + 1);
    assert_eq!(after["drill-hashes"], before["drill-hashes"], "it was spared, and its alarm is over all the same");
}

#[test]
fn an_alarm_stands_over_restarts_and_outages_until_it_is_known_to_be_over() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"off\"\nobserve = \"1s\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    let job = "source = \"etc\"\nevery = \"1h\"\nrpo = \"2h\"\ndrill = { every = \"24h\" }\n";
    fs::write(at.join("schedules/etc.toml"), job).unwrap();
    let begin: Timestamp = "2031-06-01T00:00:00Z".parse().unwrap();
    let clock = Arc::new(TestClock::at("2031-06-01T00:00:00Z"));
    let start = || Agent::start(Config::load(Some(&at.join("blackstart.toml"))).unwrap(), clock.clone()).unwrap();
    let mut agent = start();
    reach(&mut agent, at, &[]);
    damage(&at.join("repo/packs"));
    clock.set(begin + SignedDuration::from_hours(24));
    let drill = reach(&mut agent, at, &["etc/drill"]);
    // A restart mends nothing: the next drill is a day away.
    drop(agent);
    agent = start();
    settle(&mut agent);
    assert_eq!(alarms(at), drill);
    fs::rename(at.join("app/etc"), at.join("app/away")).unwrap();
    clock.set(begin + SignedDuration::from_hours(27));
    let three = reach(&mut agent, at, &["etc/drill", "etc/incremental", "etc/rpo"]);
    // With the repository away nothing is known to be over, neither by an agent that has seen it nor by one that has not.
    fs::rename(at.join("repo"), at.join("gone")).unwrap();
    clock.set(begin + SignedDuration::from_hours(28));
    let four = reach(&mut agent, at, &["etc/drill", "etc/incremental", "etc/rpo", "repository"]);
    assert!(three.iter().all(|(key, since)| four[key] == *since), "{three:?} {four:?}");
    drop(agent);
    agent = start();
    settle(&mut agent);
    assert_eq!(alarms(at), four);
    // What is known to be over is told so, and nothing else.
    fs::rename(at.join("gone"), at.join("repo")).unwrap();
    fs::rename(at.join("app/away"), at.join("app/etc")).unwrap();
    clock.set(begin + SignedDuration::from_hours(29));
    assert_eq!(reach(&mut agent, at, &["etc/drill"]), drill);
}

#[test]
fn a_backup_by_hand_ends_the_alarm_of_one_that_failed() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"off\"\nobserve = \"1s\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"3s\"\njitter = \"0s\"\n").unwrap();
    fs::rename(at.join("app/etc"), at.join("app/away")).unwrap();
    // A little ahead of what `protect` wrote, and standing still: the agent tries no second time.
    let failed_at = Timestamp::now() + SignedDuration::from_secs(4);
    let clock = Arc::new(TestClock::at(&failed_at.to_string()));
    let mut agent = Agent::start(Config::load(Some(&at.join("blackstart.toml"))).unwrap(), clock).unwrap();
    reach(&mut agent, at, &["etc/incremental"]);
    fs::rename(at.join("app/away"), at.join("app/etc")).unwrap();
    while Timestamp::now() <= failed_at {
        std::thread::sleep(Duration::from_millis(100));
    }
    settle(&mut agent);
    assert_eq!(alarms(at).into_keys().collect::<Vec<_>>(), ["etc/incremental"], "nothing has cured it yet");
    expect(at, &["backup", "etc"], 0);
    reach(&mut agent, at, &[]);
}

/// What the alarm says.
fn detail(home: &Path, key: &str) -> String {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let query = "select json_extract(alarm, '$.problem.detail') from alarms where key = ?1";
    catalog.query_row(query, [key], |row| row.get(0)).unwrap()
}

#[test]
fn damage_stands_until_a_look_as_deep_has_seen_it_well() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nlisten = \"off\"\nobserve = \"1s\"\n");
    fs::create_dir(at.join("schedules")).unwrap();
    let job = "source = \"etc\"\nevery = \"30d\"\nverify = { every = \"1h\" }\n";
    fs::write(at.join("schedules/etc.toml"), job).unwrap();
    let begin = Timestamp::now();
    let clock = Arc::new(TestClock::at(&begin.to_string()));
    let start = || Agent::start(Config::load(Some(&at.join("blackstart.toml"))).unwrap(), clock.clone()).unwrap();
    let verified = || {
        let catalog = rusqlite::Connection::open(at.join("blackstart/state/catalog.db")).unwrap();
        let query = "select count(*) from runs where task = 'verify' and result = 'done'";
        catalog.query_row(query, [], |row| row.get::<_, u32>(0)).unwrap()
    };
    let mut agent = start();
    reach(&mut agent, at, &[]);
    // A flipped bit, which somebody finds by hand, and no verify on schedule looks for.
    damage(&at.join("repo/packs"));
    expect(at, &["verify", "etc", "--hashes"], 4);
    let begun = reach(&mut agent, at, &["etc/verify"]);
    let said = detail(at, "etc/verify");
    assert!(said.contains("packs/etc/") && said.contains("`blackstart verify etc --hashes`"), "{said}");
    let status = expect(at, &["status"], 4).out;
    assert!(status.contains("`verify` found") && status.contains("`blackstart verify etc --hashes`"), "{status}");
    clock.set(begin + SignedDuration::from_hours(1));
    settle(&mut agent);
    assert_eq!(verified(), 1, "one on schedule passes, as deep as it looks");
    expect(at, &["verify", "etc"], 0);
    drop(agent);
    agent = start();
    settle(&mut agent);
    std::thread::sleep(Duration::from_millis(1100));
    settle(&mut agent);
    assert_eq!(
        alarms(at),
        begun,
        "nobody has seen it well: not the agent's next run, nor that of the one after a restart"
    );
    damage(&at.join("repo/packs"));
    expect(at, &["verify", "etc", "--hashes"], 0);
    reach(&mut agent, at, &[]);
    expect(at, &["status"], 0);
    // What the agent has found itself ends in the same way: a pack that is gone, and comes back.
    fs::rename(at.join("repo/packs"), at.join("aside")).unwrap();
    clock.set(begin + SignedDuration::from_hours(2));
    reach(&mut agent, at, &["etc/verify"]);
    drop(agent);
    agent = start();
    settle(&mut agent);
    assert_eq!(alarms(at).into_keys().collect::<Vec<_>>(), ["etc/verify"]);
    fs::rename(at.join("aside"), at.join("repo/packs")).unwrap();
    clock.set(begin + SignedDuration::from_hours(3));
    reach(&mut agent, at, &[]);
    assert_eq!(verified(), 2);
}
