//! A first backup of a server that is killed is not in vain: its entries come in the server's order, and the next run goes on all the same.

use crate::physical::{Home, revive};
use crate::support::binary::files_below;
use crate::support::postgres::Cluster;
use blackstart::bridge::Store;
use blackstart::clock::{Clock, SystemClock};
use blackstart::config::Config;
use blackstart::operations::backup::{self, Options};
use blackstart::operations::{Host, Open};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::SourceName;
use blackstart::repository::trust::Trust;
use blackstart::source::postgres::{self, Transport, client::Address};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tells the process that is to be killed where it is at home, and its server's address.
const HOME: &str = "BLACKSTART_TEST_HOME_OF_THE_KILLED";
const URL: &str = "BLACKSTART_TEST_URL_OF_THE_KILLED";

/// A backup as the program makes it, but for checkpoints as often as can be.
fn back_up(home: &Path, url: &str) {
    let config = Config::load(Some(&home.join("blackstart.toml"))).unwrap();
    let store = Store::open(&config.location().unwrap()).unwrap();
    let trust = Trust::load(&store, config.root.as_deref()).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let open = Open { store, trust, clock: Arc::clone(&clock), state: Some(config.state()) };
    let host = Host { open, keys: KeyPair::read(&config.host_key()).unwrap(), name: config.host_name() };
    let of = postgres::Options { transport: Some(Transport::Stream), ..postgres::Options::default() };
    let source = || postgres::open(Address::parse(url)?, of.clone(), &clock);
    let options = Options { workers: 1, level: Some(1), checkpoint_every: Duration::ZERO, ..Options::default() };
    backup::backup(&host, &SourceName::new("pg").unwrap(), &source, options).unwrap();
}

fn stored(home: &Path) -> u64 {
    files_below(&home.join("repository/packs"), |_| true).iter().map(|f| f.metadata().unwrap().len()).sum()
}

#[test]
fn a_first_backup_that_is_killed_is_gone_on_from() {
    if let Some(home) = std::env::var_os(HOME) {
        back_up(Path::new(&home), &std::env::var(URL).unwrap());
        panic!("it should have been killed before this");
    }
    let cluster = Cluster::new(15);
    // 80 MB that do not compress, in one relation.
    cluster.sql(
        "create table t as select n, (select string_agg(sha256(convert_to(n || '/' || m, 'utf8')), '') from generate_series(1, 60) m) body \
         from generate_series(1, 40000) n; checkpoint",
    );
    let sum = "select count(*) || ' ' || sum(hashtext(body::text)::bigint) from t";
    let before = cluster.value(sum);
    let home = Home::new(&cluster, "transport = \"stream\"");
    let at = home.0.path();
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "interrupted::a_first_backup_that_is_killed_is_gone_on_from", "--nocapture"])
        .env(HOME, at)
        .env(URL, cluster.url("postgres"))
        .current_dir(at)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Once it has noted three packs, and entries that speak of them.
    let journal = || {
        let files = files_below(at, |name| name == "pg.jsonl");
        files.first().map_or(String::new(), |file| fs::read_to_string(file).unwrap_or_default())
    };
    let noted = |text: &str| {
        let packs = text.lines().filter(|line| line.starts_with("{\"pack\"")).count();
        packs >= 3 && text.lines().next_back().is_some_and(|line| line.starts_with("{\"list\""))
    };
    let begun = Instant::now();
    while !noted(&journal()) {
        let ended = killed.try_wait().unwrap();
        assert!(
            ended.is_none() && begun.elapsed() < Duration::from_secs(60),
            "it noted nothing: {ended:?} {}",
            journal()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(
        files_below(&at.join("repository/snapshots"), |_| true).is_empty(),
        "it was killed too late: it has committed"
    );
    let first = stored(at);
    assert!(first > 30 << 20, "only {first} bytes were stored when it was killed");
    // Somebody writes in between.
    cluster.sql("create table later as select generate_series(1, 1000) n");
    let report = home.backup(0);
    let whole = report["stats"]["bytes_read"].as_u64().unwrap();
    let (new, taken) = (report["stats"]["bytes_stored"].as_u64().unwrap(), report["taken_over"].as_u64().unwrap());
    assert!(whole > 70 << 20, "all of it is read again: {whole}");
    assert!(
        taken > 30 << 20 && new + (30 << 20) < stored(at) + (1 << 20),
        "{new} bytes stored anew, {taken} taken over: {report}"
    );
    home.run(&["verify"], 0);
    home.run(&["drill", "pg"], 0);
    let copy = revive(&home, 15);
    assert_eq!(copy.value(sum), before, "the restored table");
    assert_eq!(copy.value("select count(*) from later"), "1000");
    // Nothing is left to do, and the checkpoint is gone.
    assert!(journal().is_empty(), "the checkpoint stays behind: {}", journal());
}
