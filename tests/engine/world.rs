//! One repository, its keys, and a host: what every test here starts from.

use blackstart::bridge::Store;
use blackstart::clock::{Clock, SystemClock};
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::{self, Pick, Request, RestoreReport};
use blackstart::operations::{Host, Open, drill};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::SourceName;
use blackstart::repository::trust::{Certificate, Role, Trust, TrustRecord};
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::sqlite::Sqlite;
use blackstart::storage::memory::Memory;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct World {
    pub dir: tempfile::TempDir,
    pub recovery: KeyPair,
    pub host: Host,
}

pub fn name(text: &str) -> SourceName {
    SourceName::new(text).unwrap()
}

/// What is stored comes in one order.
pub fn one_worker() -> Options {
    Options { workers: 1, ..Options::default() }
}

impl World {
    /// A repository in a local directory.
    pub fn local() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("repository").to_str().unwrap()).unwrap();
        World::on(store, dir)
    }

    /// A repository in memory, and one file in `data`.
    pub fn in_memory() -> (World, Memory) {
        let memory = Memory::default();
        let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(world.path("data")).unwrap();
        std::fs::write(world.path("data/file"), "contents").unwrap();
        (world, memory)
    }

    pub fn on(store: Store, dir: tempfile::TempDir) -> World {
        let recovery = KeyPair::generate().unwrap();
        let keys = KeyPair::generate().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let record = TrustRecord {
            recipients: vec![recovery.identity.to_public().to_string()],
            keys: vec![Certificate {
                role: Role::Host,
                name: "test".into(),
                key: keys.signing.public(),
                index: Some(keys.identity.to_public().to_string()),
                sources: vec!["*".into()],
            }],
            ..TrustRecord::default()
        };
        let trust = Trust::create(&store, &recovery.signing, record, clock.now()).unwrap();
        let open = Open { store, trust, clock, state: Some(dir.path().join("state")) };
        World { host: Host { open, keys, name: "test".into() }, recovery, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn backup_files(&self, root: &Path, options: Options) -> anyhow::Result<BackupReport> {
        let open = || -> anyhow::Result<Box<dyn Source>> {
            Ok(Box::new(Files::open(root, FilesOptions::default(), &*self.host.open.clock)?))
        };
        backup::backup(&self.host, &name("tree"), &open, options)
    }

    pub fn backup_sqlite(&self, path: &Path, options: Options) -> anyhow::Result<BackupReport> {
        let open = || -> anyhow::Result<Box<dyn Source>> {
            Ok(Box::new(Sqlite::open(path, Arc::clone(&self.host.open.clock))?))
        };
        backup::backup(&self.host, &name("db"), &open, options)
    }

    /// Restores with the recovery key into a new directory.
    pub fn restore(&self, source: &str, pick: &Pick, to: &str) -> anyhow::Result<RestoreReport> {
        let open = &self.host.open;
        let (commit, snapshot) = restore::find(open, &name(source), pick)?;
        let request = Request::new(self.path(to), 2);
        restore::restore(open, std::slice::from_ref(&self.recovery.identity), &commit, &snapshot, &request)
    }

    pub fn drill(&self, source: &str) -> anyhow::Result<drill::DrillReport> {
        let open = &self.host.open;
        let point = (drill::Point::Latest, drill::Level::Engine);
        let drill::Chosen { commit, snapshot, .. } =
            drill::choose(open, std::slice::from_ref(&self.recovery.identity), &name(source), point)?;
        let options = drill::Options { workers: 2, ..drill::Options::new(self.path("scratch")) };
        drill::drill(
            open,
            std::slice::from_ref(&self.recovery.identity),
            &self.recovery.signing,
            &commit,
            &snapshot,
            &options,
        )
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend(x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Fails with both trees' differences unless they are equal: names, types, modes, times, targets, contents.
pub fn assert_same_tree(a: &Path, b: &Path) {
    let output = std::process::Command::new("diff").arg("-r").arg("--no-dereference").arg(a).arg(b).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let listing = |root: &Path| {
        let output = std::process::Command::new("find")
            .arg(".")
            .args(["-mindepth", "1", "-printf", "%p %y %m %T@ %l\\n"])
            .current_dir(root)
            .output()
            .unwrap();
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(listing(a), listing(b));
}
