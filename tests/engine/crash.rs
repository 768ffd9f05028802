//! The store dies at the n-th call, for every n. Whatever is left is sound: every snapshot restores as its source was, the next
//! backup succeeds at once, and so does a prune.

use super::faults::{Fault, Faulty};
use super::world::{World, assert_same_tree};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::{prune, verify};
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// A repository in memory, and a copy of the source as it was for each snapshot.
struct Lab {
    world: World,
    memory: Memory,
    copies: BTreeMap<u64, PathBuf>,
    edits: usize,
}

fn options() -> Options {
    Options { workers: 1, ..Options::default() }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

impl Lab {
    fn new() -> Lab {
        let memory = Memory::default();
        let store = Store::new(Arc::new(memory.clone())).unwrap();
        let world = World::on(store, tempfile::tempdir().unwrap());
        fs::create_dir_all(world.path("data/sub")).unwrap();
        fs::write(world.path("data/fixed"), b"always the same").unwrap();
        Lab { world, memory, copies: BTreeMap::new(), edits: 0 }
    }

    /// Runs `act` on a store with `fault`. Whether the fault struck.
    fn with<T>(&mut self, fault: Fault, act: impl FnOnce(&World) -> anyhow::Result<T>) -> bool {
        let faulty = Faulty::new(self.memory.clone(), fault);
        let sound = std::mem::replace(&mut self.world.host.open.store, Store::new(faulty.clone()).unwrap());
        let result = act(&self.world);
        self.world.host.open.store = sound;
        match result {
            // A lease that cannot be given back does no harm to the run.
            Ok(_) => faulty.struck(),
            Err(e) => {
                assert!(faulty.struck(), "it failed without a fault: {e:#}");
                true
            }
        }
    }

    fn edit(&mut self) {
        self.edits += 1;
        fs::write(self.world.path("data/sub/counter"), format!("edit {}\n", self.edits).repeat(self.edits)).unwrap();
        fs::write(self.world.path(&format!("data/new-{}", self.edits % 3)), self.edits.to_string()).unwrap();
    }

    /// An edit, a backup, and all that must hold then.
    fn snapshot(&mut self, context: &str) {
        self.edit();
        self.backup().unwrap_or_else(|e| panic!("{context}: {e:#}"));
        self.check(context);
    }

    fn backup(&self) -> anyhow::Result<u64> {
        Ok(self.world.backup_files(&self.world.path("data"), options())?.seq)
    }

    /// Everything that must hold after a crash.
    fn check(&mut self, context: &str) {
        let open = &self.world.host.open;
        let report =
            verify::verify(open, None, &verify::Options { hashes: true, ..verify::Options::default() }).unwrap();
        assert!(report.sound(), "{context}: {report:?}");
        let series =
            blackstart::repository::series::Series::list(&open.store, &open.trust, &super::world::name("tree"))
                .unwrap();
        let there: Vec<u64> = series.whole().snapshots().map(|(_, s)| s.seq).collect();
        self.copies.retain(|seq, _| there.contains(seq));
        let oldest = there.first().copied();
        for seq in there {
            let is_new = !self.copies.contains_key(&seq);
            if is_new {
                // The source has not changed since the run that left it.
                let to = self.world.path(&format!("copy-{seq}"));
                copy(&self.world.path("data"), &to);
                self.copies.insert(seq, to);
            }
            if is_new || Some(seq) == oldest {
                let out = format!("out-{}-{seq}", self.edits);
                fs::remove_dir_all(self.world.path(&out)).ok();
                self.world.restore("tree", &Pick::Seq(seq), &out).unwrap();
                assert_same_tree(&self.copies[&seq], &self.world.path(&out));
                fs::remove_dir_all(self.world.path(&out)).unwrap();
            }
        }
    }

    fn prune(world: &World, last: u32) -> anyhow::Result<prune::PruneReport> {
        let policy = Policy { last, ..Policy::default() };
        let plan = prune::plan(&world.host.open, &super::world::name("tree"), &policy, SignedDuration::ZERO)?;
        prune::sweep(&world.host, plan)
    }
}

/// For n = 1, 2, 3 …, until nothing strikes any more.
fn at_every(fault: fn(usize) -> Fault, mut round: impl FnMut(Fault, usize) -> bool) -> usize {
    (1..2000).find(|n| !round(fault(*n), *n)).expect("a run ends")
}

const KINDS: [fn(usize) -> Fault; 2] = [Fault::Call, Fault::Unanswered];

#[test]
fn a_first_backup_that_dies_anywhere_leaves_nothing_in_the_way() {
    for kind in KINDS {
        let rounds = at_every(kind, |fault, _| {
            let mut lab = Lab::new();
            lab.edit();
            let struck = lab.with(fault, |w| w.backup_files(&w.path("data"), options()));
            lab.check(&format!("{fault:?}"));
            lab.snapshot(&format!("{fault:?}, and a backup"));
            Lab::prune(&lab.world, 1).unwrap();
            lab.check(&format!("{fault:?}, and a prune"));
            struck
        });
        assert!(rounds > 5, "{rounds}");
    }
}

#[test]
fn incremental_backups_that_die_anywhere_keep_every_snapshot() {
    for kind in KINDS {
        let rounds = at_every(kind, |fault, n| {
            let mut lab = Lab::new();
            // Some with several layers to fold.
            for _ in 0..1 + n % 4 {
                lab.snapshot("before");
            }
            lab.edit();
            let struck = lab.with(fault, |w| w.backup_files(&w.path("data"), options()));
            lab.check(&format!("{fault:?}"));
            lab.snapshot(&format!("{fault:?}, and a backup"));
            if n % 3 == 0 {
                Lab::prune(&lab.world, 2).unwrap();
                lab.check(&format!("{fault:?}, and a prune"));
            }
            struck
        });
        assert!(rounds > 7, "{rounds}");
    }
}

#[test]
fn a_prune_that_dies_anywhere_takes_nothing_that_is_kept() {
    for kind in KINDS {
        at_every(kind, |fault, _| {
            let mut lab = Lab::new();
            for _ in 0..3 {
                lab.snapshot("before");
            }
            let struck = lab.with(fault, |w| Lab::prune(w, 1));
            lab.check(&format!("{fault:?}"));
            lab.snapshot(&format!("{fault:?}, and a backup"));
            Lab::prune(&lab.world, 1).unwrap();
            lab.check(&format!("{fault:?}, and a prune"));
            let left = lab.world.host.open.store.list("packs/").unwrap().len();
            assert!(left < 6, "{left} packs are left for one snapshot");
            struck
        });
    }
}

#[test]
fn a_drill_that_dies_anywhere_proves_nothing_and_harms_nothing() {
    for kind in KINDS {
        let mut lab = Lab::new();
        lab.snapshot("before");
        at_every(kind, |fault, _| {
            let before = lab.world.host.open.store.list("drills/").unwrap().len();
            let mut told = None;
            let struck = lab.with(fault, |w| {
                let report = w.drill("tree")?;
                told = Some(report.passed);
                Ok(())
            });
            let after = lab.world.host.open.store.list("drills/").unwrap().len();
            // Evidence in the repository without an answer is possible, an answer without evidence is not.
            assert!(told.is_none() || after == before + 1, "{fault:?}");
            assert!(!struck || told.is_none(), "{fault:?}: a drill on a dead store was reported");
            assert_eq!(fs::read_dir(lab.world.path("scratch")).map_or(0, Iterator::count), 0, "scratch is left");
            lab.check(&format!("{fault:?}"));
            struck
        });
    }
}

/// The two crashes around the commit itself: recorded and not sent; sent, and the answer lost.
#[test]
fn the_hosts_memory_survives_both_crashes_around_the_commit() {
    for unanswered in [false, true] {
        let mut lab = Lab::new();
        lab.snapshot("before");
        lab.edit();
        let heads = |lab: &Lab| lab.world.host.open.store.list("snapshots/").unwrap().len();
        let recorded = |lab: &Lab| {
            let state = lab.world.path("state").join(&lab.world.host.open.trust.id).join("sources/tree.json");
            let text: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
            text["sent"].as_array().unwrap().len()
        };
        // Find the call that is the commit: the first n at which it is recorded.
        for n in 1.. {
            // One that goes on from another makes fewer calls.
            fs::remove_dir_all(lab.world.path("state").join(&lab.world.host.open.trust.id).join("checkpoints")).ok();
            let fault = if unanswered { Fault::Unanswered(n) } else { Fault::Call(n) };
            let (sent, head) = (recorded(&lab), heads(&lab));
            assert!(lab.with(fault, |w| w.backup_files(&w.path("data"), options())));
            if recorded(&lab) > sent {
                assert_eq!(heads(&lab), head + usize::from(unanswered));
                break;
            }
            assert_eq!(heads(&lab), head, "committed without a record");
        }
        lab.check("after the crash");
        let report = lab.world.backup_files(&lab.world.path("data"), options()).unwrap();
        assert_eq!((report.why.as_str(), report.notices.len()), ("", 0), "the lineage goes on");
    }
}
