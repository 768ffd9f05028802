//! Random histories of one source against a naive copy of it for each snapshot.

use super::world::{World, assert_same_tree, name, noise};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::{prune, verify};
use blackstart::repository::layout;
use blackstart::repository::series::{self, Series};
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    /// Writes file `0` with `1` bytes of noise from `2`; 0 bytes of a multiple of 5 removes it.
    Edit(u8, u32, u64),
    /// Overwrites a few bytes in the middle of a file.
    Patch(u8, u32),
    /// Rows: changed, added, or deleted with a VACUUM.
    Rows(u8, u16),
    Backup(u8),
    LosePack(prop::sample::Index),
    Prune(u8),
    LoseState,
    Restore(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..12u8, prop_oneof![Just(0u32), 1..5000u32, 60_000..70_000u32, 1_000_000..3_000_000u32], any::<u64>())
            .prop_map(|(file, size, seed)| Step::Edit(file, size, seed)),
        3 => (0..12u8, any::<u32>()).prop_map(|(file, at)| Step::Patch(file, at)),
        3 => (0..3u8, 1..120u16).prop_map(|(what, n)| Step::Rows(what, n)),
        6 => (0..8u8).prop_map(Step::Backup),
        1 => any::<prop::sample::Index>().prop_map(Step::LosePack),
        1 => (1..4u8).prop_map(Step::Prune),
        1 => Just(Step::LoseState),
        2 => any::<prop::sample::Index>().prop_map(Step::Restore),
    ]
}

struct History {
    world: World,
    /// What each snapshot must bring back.
    copies: BTreeMap<(&'static str, u64), PathBuf>,
    /// Snapshots that a lost pack has hurt.
    hurt: BTreeSet<(&'static str, u64)>,
    restores: usize,
}

impl History {
    fn new() -> History {
        let store = Store::new(Arc::new(Memory::default())).unwrap();
        let world = World::on(store, tempfile::tempdir().unwrap());
        fs::create_dir(world.path("data")).unwrap();
        let history = History { world, copies: BTreeMap::new(), hurt: BTreeSet::new(), restores: 0 };
        history.sql(
            "PRAGMA page_size=1024; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<700) INSERT INTO t SELECT i, randomblob(250) FROM n",
        );
        history
    }

    fn sql(&self, text: &str) {
        rusqlite::Connection::open(self.world.path("app.db")).unwrap().execute_batch(text).unwrap();
    }

    fn file(&self, n: u8) -> PathBuf {
        let dir = self.world.path("data").join(format!("dir-{}", n % 3));
        fs::create_dir_all(&dir).unwrap();
        dir.join(format!("file-{n}"))
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Edit(n, 0, seed) if seed % 5 == 0 => drop(fs::remove_file(self.file(*n))),
            Step::Edit(n, size, seed) => fs::write(self.file(*n), noise(*seed, *size as usize)).unwrap(),
            Step::Patch(n, at) => {
                let Ok(mut bytes) = fs::read(self.file(*n)) else { return };
                let at = *at as usize % (bytes.len() + 1);
                bytes.splice(at..at, *b"patched");
                fs::write(self.file(*n), bytes).unwrap();
            }
            Step::Rows(0, n) => self.sql(&format!("UPDATE t SET body=randomblob(250) WHERE id % {n} = 0")),
            Step::Rows(1, n) => self.sql(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{n}) INSERT INTO t(body) SELECT randomblob(250) FROM n"
            )),
            Step::Rows(_, n) => self.sql(&format!("DELETE FROM t WHERE id % 120 < {}; VACUUM", n / 3)),
            Step::Backup(how) => {
                let (full, baseline) = (how % 4 == 1, how % 4 == 2 && *how > 4);
                self.backup(if *how < 4 { "tree" } else { "db" }, full, baseline);
            }
            Step::LosePack(which) => self.lose_pack(which),
            Step::Prune(last) => self.prune(u32::from(*last)),
            Step::LoseState => drop(fs::remove_dir_all(self.world.path("state"))),
            Step::Restore(which) => {
                let sound: Vec<_> = self.copies.keys().filter(|k| !self.hurt.contains(k)).copied().collect();
                if !sound.is_empty() {
                    self.restore(*which.get(&sound));
                }
            }
        }
        self.verify();
    }

    fn backup(&mut self, source: &'static str, full: bool, baseline: bool) {
        let options = Options { full, baseline, heal: true, workers: 2, ..Options::default() };
        let (from, report) = if source == "tree" {
            (self.world.path("data"), self.world.backup_files(&self.world.path("data"), options).unwrap())
        } else {
            (self.world.path("app.db"), self.world.backup_sqlite(&self.world.path("app.db"), options).unwrap())
        };
        let copy = self.world.path(&format!("copy-{source}-{}", report.seq));
        if source == "db" {
            fs::create_dir(&copy).unwrap();
        }
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(&copy).status().unwrap().success());
        for seq in &report.hurt {
            assert!(self.hurt.contains(&(source, *seq)), "{seq} is said to be hurt");
        }
        self.copies.insert((source, report.seq), copy);
        self.restore((source, report.seq));
    }

    fn lose_pack(&mut self, which: &prop::sample::Index) {
        let store = &self.world.host.open.store;
        let packs = store.list("packs/").unwrap();
        if packs.is_empty() {
            return;
        }
        let lost = &which.get(&packs).key;
        store.delete(lost).unwrap();
        let hash = layout::content_hash(lost).unwrap();
        for source in ["tree", "db"] {
            let open = &self.world.host.open;
            for (_, s) in Series::list(&open.store, &open.trust, &name(source)).unwrap().whole().snapshots() {
                if series::packs_of(&open.store, s).unwrap().contains_key(&hash) {
                    self.hurt.insert((source, s.seq));
                }
            }
        }
    }

    fn prune(&mut self, last: u32) {
        let policy = Policy { last, ..Policy::default() };
        for source in ["tree", "db"] {
            let plan = prune::plan(&self.world.host.open, &name(source), &policy, SignedDuration::ZERO).unwrap();
            let report = prune::sweep(&self.world.host, plan).unwrap();
            for seq in report.removed {
                self.copies.remove(&(source, seq));
                self.hurt.remove(&(source, seq));
            }
        }
    }

    fn restore(&mut self, (source, seq): (&'static str, u64)) {
        self.restores += 1;
        let out = format!("out-{}", self.restores);
        self.world.restore(source, &Pick::Seq(seq), &out).unwrap_or_else(|e| panic!("restore {source} {seq}: {e:#}"));
        if source == "tree" {
            assert_same_tree(&self.copies[&(source, seq)], &self.world.path(&out));
        } else {
            let read = |path: PathBuf| fs::read(path.join("app.db")).unwrap();
            let (a, b) = (read(self.copies[&(source, seq)].clone()), read(self.world.path(&out)));
            assert!(a == b, "{source} {seq} differs: {} and {} bytes", a.len(), b.len());
        }
        fs::remove_dir_all(self.world.path(&out)).unwrap();
    }

    fn verify(&self) {
        let report = verify::verify(
            &self.world.host.open,
            None,
            &verify::Options { hashes: true, ..verify::Options::default() },
        )
        .unwrap();
        let mut hurt = BTreeSet::new();
        for found in &report.sources {
            let source = if found.source.as_str() == "tree" { "tree" } else { "db" };
            hurt.extend(found.faults.iter().flat_map(|f| &f.hurts).map(|seq| (source, *seq)));
            assert!(found.faults.iter().all(|f| !f.hurts.is_empty()), "{report:?}");
        }
        assert_eq!(hurt, self.hurt, "{report:?}");
        let there: BTreeSet<_> = report.sources.iter().map(|s| s.snapshots as usize).collect();
        assert_eq!(report.sources.iter().map(|s| s.snapshots as usize).sum::<usize>(), self.copies.len(), "{there:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_snapshot_brings_back_what_was_there(steps in prop::collection::vec(step(), 10..45)) {
        let mut history = History::new();
        for step in &steps {
            history.step(step);
        }
    }
}
