//! Rows by table: what a physical backup notes at its end, and what a drill makes of it.

use crate::physical::Home;
use crate::support::postgres::{Cluster, Setup, own_all};
use blackstart::report::{Check, Stopwatch};
use blackstart::source::postgres::{Options, proof};
use serde_json::Value;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Backups and drills under load; for a longer look at it, make it more.
const ROUNDS: u32 = 1;
const NAME: &str = "rows by table, as they were when the backup ended";

/// What was noted of a table of the database `postgres`.
fn noted<'a>(backup: &'a Value, table: &str) -> &'a Value {
    &backup["facts"]["counted"]["databases"]["postgres"]["tables"][format!("public.{table}")]
}

/// The check of a drill.
fn checked(home: &Home, code: i32) -> Value {
    let drill = home.run(&["drill", "pg", "--json"], code).json();
    let checks = drill["report"]["sources"][0]["checks"].as_array().unwrap().clone();
    checks.into_iter().find(|c| c["name"].as_str().unwrap().starts_with(NAME)).unwrap()
}

/// Inserts, deletes, updates, empties and drops, until it is dropped.
struct Churn(Arc<AtomicBool>, Option<std::thread::JoinHandle<u64>>);

impl Churn {
    fn start(cluster: &Cluster) -> Churn {
        cluster.sql(
            "create table churn (n serial primary key, updated_at timestamptz default clock_timestamp()); insert into churn select from \
             generate_series(1, 2000); create table emptied (n int)",
        );
        let (stop, mut client) = (Arc::new(AtomicBool::new(false)), cluster.client());
        let told = Arc::clone(&stop);
        let work = move || {
            let mut rounds = 0;
            while !told.load(Ordering::Relaxed) {
                for sql in [
                    "insert into churn select from generate_series(1, 20)",
                    "delete from churn where n in (select n from churn order by random() limit 20)",
                    "update churn set updated_at = clock_timestamp() where n in (select n from churn order by random() limit 20)",
                    "insert into emptied select generate_series(1, 50)",
                    "truncate emptied",
                    "create table fleeting as select 1 n",
                    "drop table fleeting",
                ] {
                    client.query(sql).unwrap();
                }
                rounds += 1;
            }
            rounds
        };
        Churn(stop, Some(std::thread::spawn(work)))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let rounds = self.1.take().unwrap().join();
        assert!(std::thread::panicking() || rounds.unwrap() > 0, "the writer got nowhere");
    }
}

/// Whoever writes while it is backed up: what was noted holds of the copy.
#[test]
fn what_was_there_when_the_backup_ended_is_in_the_copy_while_others_write() {
    for (major, transport) in [(18, "stream"), (15, "files")] {
        let cluster = Setup { segment: 1, ..Setup::new(major) }.config("autovacuum = off").start();
        cluster.pgbench_init(1);
        cluster.sql("create table quiet as select n, now() as created_at from generate_series(1, 3000) n");
        let home = Home::new(&cluster, &format!("transport = \"{transport}\""));
        let (load, churn) = (cluster.pgbench(120), Churn::start(&cluster));
        for round in 0..ROUNDS {
            let backup = home.backup(0);
            let told = || format!("{major} {transport} {round}: {}", backup["facts"]["counted"]);
            assert_eq!(noted(&backup, "quiet")["kept"], 3000, "all that nobody touches: {}", told());
            assert_eq!(noted(&backup, "quiet")["newest"][0], "created_at", "{}", told());
            assert!(noted(&backup, "pgbench_accounts")["kept"].as_u64().unwrap() > 0, "{}", told());
            assert!(noted(&backup, "churn")["kept"].as_u64().unwrap() <= 2000, "{}", told());
            let check = checked(&home, 0);
            assert_eq!(check["actual"], "all there", "{check} {}", told());
        }
        drop((load, churn));
        // Now nobody writes: all is known exactly.
        let backup = home.backup(0);
        let account = noted(&backup, "pgbench_accounts");
        assert_eq!((&account["rows"], &account["how"]), (&100_000.into(), &"exactly".into()), "{account}");
        assert!(checked(&home, 0)["name"].as_str().unwrap().contains("tables exactly, 0 what"));
    }
}

/// The copy that a restore of snapshot `seq` gives, held against what was noted in `facts`.
fn prove(home: &Home, cluster: &Cluster, seq: u32, facts: &Value) -> Vec<Check> {
    let copy = Cluster::empty(cluster.major);
    let data = copy.data.display().to_string();
    home.run(&["restore", "pg", "--snapshot", &seq.to_string(), "--to", &data], 0);
    // As a drill has it: without what `restore` adds for a server of its own.
    fs::remove_file(copy.data.join("recovery.signal")).unwrap();
    let scratch = copy.directory.join("s");
    fs::create_dir(&scratch).unwrap();
    own_all(&copy.directory);
    let options = Options { bin: Some(crate::support::postgres::installed(cluster.major)), ..Options::default() };
    let copy = proof::Copy { data: &copy.data, scratch: &scratch, goes_on: false, stop: None };
    proof::prove(&copy, facts, &options, &Stopwatch::default(), &mut |_| {}).unwrap().checks
}

/// The copy of another snapshot than its facts speak of is what a stale, or a broken, backup looks like.
#[test]
fn what_is_missing_is_named() {
    // It would begin transactions of its own.
    let cluster = Setup::new(15).config("autovacuum = off").start();
    cluster.sql(
        "create table orders (n int primary key, at timestamptz default clock_timestamp()); insert into orders select generate_series(1, 1000); \
         create table notes as select generate_series(1, 500) n; create table large as select n, repeat('x', 1000) from generate_series(1, 40000) n",
    );
    cluster.sql("vacuum analyze large");
    let home = Home::new(&cluster, "transport = \"files\"");
    let first = home.backup(0);
    let large = noted(&first, "large");
    assert_eq!(
        (&large["how"], &large["kept"]),
        (&"estimated".into(), &20_000.into()),
        "too large to be counted: {large}"
    );
    cluster.sql("truncate notes; insert into orders select generate_series(1001, 1500); create table invoices as select 1 n; delete from large where n > 15000");
    // Somebody is deleting, and has not committed: what he may take with him is not promised.
    let mut other = cluster.client();
    other.query("begin; delete from orders where n <= 100").unwrap();
    let second = home.backup(0);
    assert_eq!(noted(&second, "orders")["kept"], 1400, "{}", noted(&second, "orders"));
    assert_eq!(noted(&second, "orders")["how"], "counted");
    other.query("commit").unwrap();
    drop(other);
    assert_eq!(checked(&home, 0)["actual"], "all there");
    let found = |seq: u32, facts: &Value| {
        let checks = prove(&home, &cluster, seq, facts);
        let check = checks.iter().find(|c| c.name.starts_with(NAME)).unwrap().clone();
        let others: Vec<&Check> = checks.iter().filter(|c| !c.passed && !c.name.starts_with(NAME)).collect();
        assert!(others.is_empty(), "{others:?}");
        (check.passed, check.actual)
    };
    assert_eq!(found(2, &second["facts"]), (true, "all there".into()));
    let (passed, stale) = found(1, &second["facts"]);
    assert!(!passed, "a copy from before: {stale}");
    assert!(stale.contains("public.invoices in postgres, with some 1 rows, is MISSING"), "{stale}");
    assert!(stale.contains("public.orders in postgres has 1000 rows, and 400 of those are MISSING"), "{stale}");
    let (passed, lost) = found(2, &first["facts"]);
    assert!(!passed, "a copy that has lost rows: {lost}");
    assert!(lost.contains("public.notes in postgres has 0 rows, and had 500"), "{lost}");
    assert!(lost.contains("public.large in postgres has 15000 rows, and 5000 of those are MISSING"), "{lost}");
    // A copy that lacks tables beyond those that are known by name.
    let mut facts = second["facts"].clone();
    facts["counted"]["databases"]["postgres"]["all"] = 205.into();
    let (passed, fewer) = found(2, &facts);
    assert!(!passed && fewer.contains("postgres has 4 of its 205 tables"), "{fewer}");
    // A copy with all rows, of which the newest is older than it was.
    let mut facts = second["facts"].clone();
    facts["counted"]["databases"]["postgres"]["tables"]["public.orders"]["newest"][1] = "2999-01-01T00:00:00Z".into();
    let (passed, old) = found(2, &facts);
    assert!(!passed && old.contains("as its newest at, and had 2999"), "{old}");
}

#[test]
fn what_cannot_be_counted_is_said_and_keeps_nothing_back() {
    let cluster = Cluster::new(17);
    cluster.sql("create role weak login replication; create table secrets as select generate_series(1, 100) n; create table plain as select 1 n");
    cluster.sql("grant select on plain to weak");
    // A table that somebody has locked for good.
    let mut locker = cluster.client();
    locker.query("create table locked as select 1 n").unwrap();
    locker.query("begin; lock table locked in access exclusive mode").unwrap();
    let home = Home::with_url(17, &cluster.url("weak"), "transport = \"stream\"");
    let backup = home.backup(0);
    for (table, kept) in [("plain", 1), ("secrets", 0), ("locked", 0)] {
        assert_eq!(noted(&backup, table)["kept"], kept, "{table}: {}", backup["facts"]["counted"]);
    }
    assert_eq!(noted(&backup, "secrets")["how"], "estimated");
    drop(locker);
    let why = backup["facts"]["counted"]["left_out"].as_str().unwrap();
    assert!(
        why.contains("weak may not read public.secrets in postgres") && why.contains("grant pg_read_all_data"),
        "{why}"
    );
    let check = checked(&home, 0);
    assert_eq!(check["actual"], "all there");
    assert!(
        check["name"].as_str().unwrap().contains("2 by name only"),
        "what nobody looked into is not called compared: {check}"
    );
    let home = Home::new(&cluster, "count = false");
    assert!(home.run(&["backup"], 0).out.contains("drills cannot miss them: it is switched off"));
    let backup = home.backup(0);
    let why = backup["facts"]["counted"]["left_out"].as_str().unwrap().to_owned();
    assert!(why.contains("count = false"), "{why}");
    let check = checked(&home, 0);
    assert_eq!((&check["expected"], check["actual"].as_str()), (&"not run".into(), Some(why.as_str())));
}
