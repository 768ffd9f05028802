//! Groups under the agent: one run is one of each member, the common points are what is remembered and what alarms go by.

use blackstart::agent::Agent;
use blackstart::config::Config;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, ended};
use super::days::{TestClock, settle};
use super::support::binary::{configure, expect, home, run};

/// A shop of a database and a tree, backed up as a group each hour; the tree has a job of its own as well.
fn shop(agent: &str) -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        &format!(
            "\n[agent]\n{agent}\n[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\n\
             [[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n\
             [[group]]\nname = \"shop\"\nsources = [\"orders\", \"etc\"]\n"
        ),
    );
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/shop.toml"), "group = \"shop\"\nevery = \"1h\"\nrpo = \"90m\"\n").unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1h\"\n").unwrap();
    home
}

/// Runs by source, task and result, from the catalog.
fn runs(home: &Path) -> BTreeMap<String, u32> {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let mut statement =
        catalog.prepare("select source || ' ' || task || ' ' || result, count(*) from runs group by 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn alarms(home: &Path) -> BTreeSet<String> {
    let catalog = rusqlite::Connection::open(home.join("blackstart/state/catalog.db")).unwrap();
    let mut statement = catalog.prepare("select key from alarms").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn objects(home: &Path, below: &str) -> usize {
    fs::read_dir(home.join("repo").join(below)).map_or(0, Iterator::count)
}

fn start(home: &Path, clock: &Arc<TestClock>) -> Agent {
    Agent::start(Config::load(Some(&home.join("blackstart.toml"))).unwrap(), clock.clone()).unwrap()
}

const BEGIN: &str = "2031-06-01T00:30:00Z";

fn minutes(n: i64) -> Timestamp {
    BEGIN.parse::<Timestamp>().unwrap() + SignedDuration::from_mins(n)
}

#[test]
fn one_run_of_a_group_is_one_of_each_member() {
    let home = shop("listen = \"off\"\nobserve = \"1s\"");
    let at = home.path();
    let clock = Arc::new(TestClock::at(BEGIN));
    let mut agent = start(at, &clock);
    for minute in [0, 30, 61] {
        clock.set(minutes(minute));
        settle(&mut agent);
    }
    let counted = BTreeMap::from([
        ("group.shop incremental done".to_owned(), 2),
        ("orders incremental done".to_owned(), 2),
        ("etc incremental done".to_owned(), 2),
    ]);
    assert_eq!(runs(at), counted, "the hourly runs of the tree's own job are the group's");
    let stored = |at: &Path| ["groups/shop", "snapshots/orders", "snapshots/etc"].map(|below| objects(at, below));
    assert_eq!(stored(at), [2, 2, 2]);
    drop(agent);
    // The catalog is lost: that both were done is read from the points and the series themselves.
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        drop(fs::remove_file(at.join("blackstart/state").join(name)));
    }
    clock.set(minutes(90));
    let mut agent = start(at, &clock);
    settle(&mut agent);
    assert_eq!((runs(at), stored(at)), (BTreeMap::new(), [2, 2, 2]), "nothing is due after a restart");
    clock.set(minutes(122));
    settle(&mut agent);
    assert_eq!(stored(at), [3, 3, 3]);
    assert_eq!(alarms(at), BTreeSet::new());
}

#[test]
fn without_a_common_point_a_run_has_failed_and_the_newest_point_grows_old() {
    let home = shop("listen = \"off\"\nobserve = \"1s\"");
    let at = home.path();
    let clock = Arc::new(TestClock::at(BEGIN));
    let mut agent = start(at, &clock);
    settle(&mut agent);
    fs::rename(at.join("app/orders.db"), at.join("away")).unwrap();
    clock.set(minutes(61));
    settle(&mut agent);
    let failed = runs(at);
    assert_eq!(failed["group.shop incremental failed"], 1, "{failed:?}");
    assert_eq!(failed["etc incremental done"], 2, "the member that got its snapshot has had its run: {failed:?}");
    assert!(!failed.contains_key("orders incremental failed"), "{failed:?}");
    assert_eq!(alarms(at), BTreeSet::from(["group.shop/incremental".to_owned()]));
    // The tree is backed up all the time; what belongs together is not.
    clock.set(minutes(100));
    settle(&mut agent);
    assert!(alarms(at).contains("group.shop/rpo"), "{:?}", alarms(at));
    let line: String = rusqlite::Connection::open(at.join("blackstart/state/catalog.db"))
        .unwrap()
        .query_row("select line from runs where result = 'failed' limit 1", [], |row| row.get(0))
        .unwrap();
    assert!(line.contains("has no common point of now: orders failed; etc got a snapshot of its own"), "{line}");
    fs::rename(at.join("away"), at.join("app/orders.db")).unwrap();
    clock.set(minutes(130));
    settle(&mut agent);
    assert_eq!(alarms(at), BTreeSet::new(), "{:?}", runs(at));
    // Somebody takes a member of a point away: that is told without any new run.
    fs::remove_file(at.join("repo/snapshots/orders/0000000001")).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !alarms(at).contains("group.shop/damaged") {
        assert!(Instant::now() < until, "the loss was not told: {:?}", alarms(at));
        settle(&mut agent);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn metrics_and_status_show_the_newest_common_point() {
    let home = shop("listen = \"127.0.0.1:0\"\nobserve = \"1s\"");
    let at = home.path();
    let said = expect(at, &["status", "--json"], 4).json();
    assert_eq!(said["report"]["groups"][0]["group"], "shop");
    assert!(said["report"]["groups"][0]["attention"].as_str().unwrap().contains("backup --group shop"), "{said}");
    let daemon = Daemon::start(at, &[]);
    let of_shop = |l: &Value| l["source"] == "group.shop" && ended("incremental")(l);
    daemon.wait("a run of the group", 1, of_shop);
    let point = "blackstart_recovery_point_timestamp_seconds{source=\"group.shop\",verified=\"false\"}";
    daemon.wait_metric(point, |at| at > 1_700_000_000.0);
    daemon.wait_metric("blackstart_rpo_target_seconds{source=\"group.shop\"}", |seconds| seconds == 5400.0);
    let of =
        |source: &str| format!("blackstart_runs_total{{source=\"{source}\",task=\"incremental\",result=\"done\"}}");
    for source in ["group.shop", "etc", "orders"] {
        assert_eq!(daemon.metric(&of(source)), 1.0, "{source}");
    }
    assert_eq!(daemon.stop(), 0);
    let status = run(at, &["status"]);
    assert!(status.out.contains("group shop: point 1 has the data of"), "{}", status.all());
    let check = run(at, &["check"]);
    assert!(check.out.contains("newest common point of group shop: its data is of"), "{}", check.all());
    assert!(check.out.contains("job shop.toml: group.shop: incremental every 1h"), "{}", check.all());
}

#[test]
fn the_agent_does_nothing_for_a_retired_source_but_look_whether_it_is_whole() {
    let home = shop("listen = \"off\"\nobserve = \"1s\"");
    let at = home.path();
    fs::remove_file(at.join("schedules/shop.toml")).unwrap();
    fs::write(
        at.join("schedules/etc.toml"),
        "source = \"etc\"\nevery = \"1h\"\nrpo = \"2h\"\nverify = { every = \"1h\" }\n",
    )
    .unwrap();
    let clock = Arc::new(TestClock::at(BEGIN));
    let mut agent = start(at, &clock);
    for minute in [0, 61] {
        clock.set(minutes(minute));
        settle(&mut agent);
    }
    let before = runs(at);
    assert_eq!(before["etc incremental done"], 2, "{before:?}");
    // By somebody else, while the agent runs. Its clock is the real one: to it a lease of the agent's time seems to be held.
    fs::remove_file(at.join("repo/leases/etc")).unwrap();
    expect(at, &["retire", "etc", "--confirm", "etc"], 0);
    let until = Instant::now() + Duration::from_secs(60);
    let mut minute = 62;
    // The agent sees it at its next look at the repository.
    while runs(at)["etc verify done"] < before["etc verify done"] + 4 {
        assert!(Instant::now() < until, "{:?}", runs(at));
        std::thread::sleep(Duration::from_millis(1100));
        settle(&mut agent);
        minute += 61;
        clock.set(minutes(minute));
        settle(&mut agent);
    }
    let after = runs(at);
    assert_eq!(after["etc incremental done"], 2, "{after:?}");
    assert!(after.keys().all(|run| run.ends_with("done")), "{after:?}");
    assert_eq!(alarms(at), BTreeSet::new(), "hours beyond its RPO");
    // Somebody takes it up again: it is due as ever.
    fs::remove_file(at.join("repo/leases/etc")).unwrap();
    expect(at, &["backup", "etc"], 0);
    let until = Instant::now() + Duration::from_secs(60);
    while runs(at)["etc incremental done"] < 3 {
        assert!(Instant::now() < until, "{:?}", runs(at));
        std::thread::sleep(Duration::from_millis(1100));
        settle(&mut agent);
        minute += 61;
        clock.set(minutes(minute));
        settle(&mut agent);
    }
}
