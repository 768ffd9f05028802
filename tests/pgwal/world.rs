//! A server, a repository for its log, and receivers between them.

use crate::support::postgres::{Cluster, own_all};
use blackstart::bridge::Store;
use blackstart::clock::{Clock, SystemClock};
use blackstart::operations::wal::receive::{self, Event, Options, ReceiveReport};
use blackstart::operations::{Host, Open};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::SourceName;
use blackstart::repository::log::{Log, Window};
use blackstart::repository::trust::{Certificate, Role, Trust, TrustRecord};
use blackstart::source::postgres::client::Address;
use blackstart::source::postgres::wal::Lsn;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub struct World {
    pub dir: tempfile::TempDir,
    pub recovery: KeyPair,
    pub host: Arc<Host>,
}

pub fn source() -> SourceName {
    SourceName::new("db").unwrap()
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("repository").to_str().unwrap()).unwrap();
        World::on(store, dir)
    }

    pub fn on(store: Store, dir: tempfile::TempDir) -> World {
        let (recovery, keys) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let record = TrustRecord {
            recipients: vec![recovery.identity.to_public().to_string()],
            keys: vec![certificate(&keys)],
            ..TrustRecord::default()
        };
        let trust = Trust::create(&store, &recovery.signing, record, clock.now()).unwrap();
        let open = Open { store, trust, clock, state: Some(dir.path().join("state")) };
        World { host: Arc::new(Host { open, keys, name: "test".into() }), recovery, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> Log {
        Log::list(&self.host.open.store, &self.host.open.trust, &source()).unwrap()
    }

    pub fn windows(&self) -> Vec<Window> {
        self.log().windows(&self.host.open.store, &self.host.open.trust).unwrap()
    }

    /// Receives until everything is stored that the server has.
    pub fn catch_up(&self, cluster: &Cluster) -> anyhow::Result<ReceiveReport> {
        self.receive_once(cluster, &options())
    }

    pub fn receive_once(&self, cluster: &Cluster, options: &Options) -> anyhow::Result<ReceiveReport> {
        let options = Options { once: true, ..options.clone() };
        let address = Address::parse(&cluster.url("postgres")).unwrap();
        receive::receive(&self.host, &source(), &address, &options, &AtomicBool::new(false), &|_| ())
    }

    /// Receives in the background until told to stop.
    pub fn receiver(&self, cluster: &Cluster, options: Options) -> Receiver {
        let stop = Arc::new(AtomicBool::new(false));
        let events = Arc::new(Mutex::new(Vec::new()));
        let (host, halt, seen) = (Arc::clone(&self.host), Arc::clone(&stop), Arc::clone(&events));
        let address = Address::parse(&cluster.url("postgres")).unwrap();
        let thread = std::thread::spawn(move || {
            let tell = |event: &Event| seen.lock().unwrap().push(event.clone());
            receive::receive(&host, &source(), &address, &options, &halt, &tell)
        });
        Receiver { stop, events, thread: Some(thread) }
    }
}

pub fn certificate(keys: &KeyPair) -> Certificate {
    Certificate {
        role: Role::Host,
        name: "test".into(),
        key: keys.signing.public(),
        index: Some(keys.identity.to_public().to_string()),
        sources: vec!["*".into()],
    }
}

pub fn options() -> Options {
    Options { level: 1, seal_every: Duration::from_millis(50), ..Options::new("blackstart".into()) }
}

pub struct Receiver {
    stop: Arc<AtomicBool>,
    pub events: Arc<Mutex<Vec<Event>>>,
    thread: Option<JoinHandle<anyhow::Result<ReceiveReport>>>,
}

impl Receiver {
    pub fn stop(mut self) -> anyhow::Result<ReceiveReport> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }

    /// Up to where it has said that everything is stored.
    pub fn stored(&self) -> u64 {
        let position = |e: &Event| match e {
            Event::Stored { position, .. } => Some(position.parse::<Lsn>().unwrap().0),
            _ => None,
        };
        self.events.lock().unwrap().iter().rev().find_map(position).unwrap_or(0)
    }

    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Event) -> bool) {
        wait(what, || self.events.lock().unwrap().iter().any(&wanted));
    }

    /// Waits until all that the server has now is stored.
    pub fn wait_for_all(&self, cluster: &Cluster) -> u64 {
        let end = flushed(cluster);
        let begun = Instant::now();
        while self.stored() < end {
            let events = self.events.lock().unwrap().clone();
            assert!(begun.elapsed() < Duration::from_secs(60), "not all is stored: {end:x} {events:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        end
    }
}

pub fn flushed(cluster: &Cluster) -> u64 {
    cluster.value("select pg_current_wal_flush_lsn()").parse::<Lsn>().unwrap().0
}

pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A base backup of the cluster, without the log that it needs.
pub fn base(cluster: &Cluster, name: &str) -> PathBuf {
    let to = cluster.directory.join(name);
    cluster.tool(
        "pg_basebackup",
        &[
            "-h",
            cluster.directory.to_str().unwrap(),
            "-p",
            &cluster.port.to_string(),
            "-U",
            "postgres",
            "-c",
            "fast",
            "-X",
            "none",
            "--no-sync",
            "-D",
            to.to_str().unwrap(),
        ],
    );
    to
}

/// A cluster yet to be started on a copy of `base`.
pub fn on_copy(base: &Path, like: &Cluster) -> Cluster {
    let cluster = Cluster::empty(like.major);
    assert!(std::process::Command::new("cp").arg("-a").arg(base).arg(&cluster.data).status().unwrap().success());
    own_all(&cluster.data);
    cluster.configure("hot_standby = on\narchive_mode = off\n");
    cluster
}
