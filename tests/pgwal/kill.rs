//! The hardest test: server and receiver are killed at random moments under load; what was acknowledged as stored is in the repository.

use crate::support::binary::Random;
use crate::support::postgres::{Cluster, Setup};
use crate::world::{World, base, on_copy, options, source, wait};
use blackstart::operations::wal::get::Files;
use blackstart::operations::wal::receive::Options;
use blackstart::source::postgres::wal::WalFile;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Rounds; `BLACKSTART_KILL_ROUNDS` asks for another number.
fn rounds() -> u64 {
    std::env::var("BLACKSTART_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// Writes everything that the repository has of the log into the data directory of a base backup, and starts a server on it.
pub fn recover(world: &World, base: &Path, like: &Cluster, settings: &str) -> Cluster {
    let mut cluster = on_copy(base, like);
    let identities = std::slice::from_ref(&world.recovery.identity);
    let files = Files::open(&world.host.open, identities, &source()).unwrap().unwrap();
    let window = files.windows.last().unwrap();
    let mut at = window.from.1.0;
    while at < window.to.1.0 {
        let (_, on) = files.log.locate(window, window.to.0, at + files.segment_size - 1).unwrap();
        let name = WalFile::Segment { timeline: on, start: at }.name(files.segment_size);
        let mut file = File::create(cluster.data.join("pg_wal").join(name)).unwrap();
        files.segment(window, window.to.0, at, &mut file).unwrap();
        at += files.segment_size;
    }
    for timeline in 2..=window.to.0 {
        if let Some(history) = files.reader().history(&files.log, window, timeline).unwrap() {
            let name = WalFile::History { timeline }.name(files.segment_size);
            fs::write(cluster.data.join("pg_wal").join(name), history.bytes).unwrap();
        }
    }
    cluster.configure(&format!("restore_command = 'false'\nrecovery_target_action = 'promote'\n{settings}\n"));
    fs::write(cluster.data.join("recovery.signal"), "").unwrap();
    crate::support::postgres::own_all(&cluster.data);
    cluster.start();
    cluster.await_recovery();
    cluster
}

/// Numbers, each with the position after its commit, of which a client was told that they are committed.
type Committed = Arc<Mutex<Vec<(u64, u64)>>>;

/// Commits numbers one by one until it is told to stop or the server goes; notes each.
fn writer(cluster: &Cluster, halt: &Arc<AtomicBool>, from: u64, done: &Committed) -> std::thread::JoinHandle<()> {
    let (url, halt, done) = (cluster.url("postgres"), Arc::clone(halt), Arc::clone(done));
    std::thread::spawn(move || {
        use blackstart::source::postgres::client::{Address, Client, Session};
        let Ok(mut client) = Client::connect(&Address::parse(&url).unwrap(), Session::Plain) else { return };
        for n in from.. {
            if halt.load(Ordering::SeqCst) || client.query(&format!("insert into acknowledged values ({n})")).is_err() {
                break;
            }
            let Ok(Some(lsn)) = client.value("select pg_current_wal_insert_lsn()") else { break };
            done.lock().unwrap().push((n, lsn.parse::<blackstart::source::postgres::wal::Lsn>().unwrap().0));
        }
    })
}

#[test]
fn nothing_that_is_acknowledged_as_stored_is_missing() {
    let seed = std::env::var("BLACKSTART_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    let mut random = Random(seed);
    let mut setup = Setup::new(15)
        .config("max_wal_size = 256MB\nwal_keep_size = 0\nsynchronous_commit = on\nwal_sender_timeout = 3s");
    setup.segment = 1;
    let (world, mut cluster) = (World::new(), setup.start());
    cluster.sql("create table acknowledged (n bigint)");
    cluster.pgbench_init(1);
    world.catch_up(&cluster).unwrap();
    let base = base(&cluster, "base");
    // How far was stored.
    let (committed, mut acknowledged) = (Committed::default(), 0u64);
    for round in 0..rounds() {
        let load = cluster.pgbench(60);
        let halt = Arc::new(AtomicBool::new(false));
        let writer = writer(&cluster, &halt, round * 1_000_000, &committed);
        let mut receiver =
            Some(world.receiver(&cluster, Options { seal_every: Duration::from_millis(20), ..options() }));
        let due = |stored: u64| -> Vec<u64> {
            committed.lock().unwrap().iter().filter(|(_, at)| *at <= stored).map(|(n, _)| *n).collect()
        };
        let of_round = |n: &u64| *n >= round * 1_000_000;
        wait("some commits of this round are stored", || {
            due(receiver.as_ref().unwrap().stored()).into_iter().filter(of_round).count() > 20
        });
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        let server_first = random.below(2) == 0;
        if server_first {
            cluster.kill();
        }
        // The receiver is stopped without a word to the server: its thread ends after what is under way, as a killed process's requests may.
        let stopped = receiver.take().unwrap();
        acknowledged = acknowledged.max(stopped.stored());
        drop(stopped.stop());
        if !server_first {
            cluster.kill();
        }
        halt.store(true, Ordering::SeqCst);
        drop(load);
        writer.join().unwrap();
        if round % 2 == 1 || round + 1 == rounds() {
            let restored = recover(&world, &base, &cluster, "");
            let all = restored.client().rows("select n from acknowledged").unwrap();
            let there: std::collections::HashSet<u64> = all.rows.iter().map(|r| r.parse(0).unwrap()).collect();
            let due = due(acknowledged);
            let missing: Vec<&u64> = due.iter().filter(|n| !there.contains(n)).collect();
            assert!(
                missing.is_empty(),
                "seed {seed}, round {round}: {} of {} are missing: {missing:?}",
                missing.len(),
                due.len()
            );
            let accounts = restored.value(
                "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)",
            );
            assert_eq!(accounts, "t", "the books do not balance");
        }
        cluster.start();
    }
    assert_eq!(world.windows().len(), 1, "no gap came of it");
}

/// With `synchronous_standby_names`, from the command line: a commit that returned is in the repository, whoever is killed when.
#[test]
fn a_commit_that_returned_survives_the_loss_of_the_server_and_of_the_receiver() {
    use crate::recovery::Home;
    use crate::support::binary;
    let seed = std::env::var("BLACKSTART_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(11);
    let mut random = Random(seed);
    let mut setup = Setup::new(15).config("max_wal_size = 256MB\nwal_keep_size = 0");
    setup.segment = 1;
    let mut cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table acknowledged (n bigint)");
    home.run(&["backup"], 0);
    home.receive();
    cluster.sql("alter system set synchronous_standby_names = 'blackstart'");
    cluster.sql("select pg_reload_conf()");
    let acknowledged = Committed::default();
    for round in 0..rounds() {
        let mut receiver = binary::command(home.0.path(), &["wal-receive", "pg", "--quiet"]).spawn().unwrap();
        wait("the receiver is synchronous", || {
            cluster.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
        });
        let halt = Arc::new(AtomicBool::new(false));
        let before = acknowledged.lock().unwrap().len();
        let writer = writer(&cluster, &halt, round * 1_000_000, &acknowledged);
        wait("commits return", || acknowledged.lock().unwrap().len() > before + 3);
        std::thread::sleep(Duration::from_millis(random.below(1200)));
        if random.below(2) == 0 {
            receiver.kill().unwrap();
            std::thread::sleep(Duration::from_millis(random.below(200)));
            cluster.kill();
        } else {
            cluster.kill();
            std::thread::sleep(Duration::from_millis(random.below(50)));
            receiver.kill().unwrap();
        }
        receiver.wait().unwrap();
        halt.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        if round + 1 == rounds() || round % 4 == 3 {
            let mut copy = Cluster::empty(cluster.major);
            home.run(&["restore", "pg", "--to", copy.data.to_str().unwrap()], 0);
            copy.configure("archive_mode = off");
            copy.start();
            copy.await_recovery();
            let all = copy.client().rows("select n from acknowledged").unwrap();
            let there: std::collections::HashSet<u64> = all.rows.iter().map(|r| r.parse(0).unwrap()).collect();
            let acknowledged = acknowledged.lock().unwrap();
            let missing: Vec<u64> = acknowledged.iter().map(|(n, _)| *n).filter(|n| !there.contains(n)).collect();
            assert!(missing.is_empty(), "seed {seed}, round {round}: {missing:?} of {}", acknowledged.len());
        }
        cluster.start();
    }
}
