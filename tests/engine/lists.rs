//! A snapshot that needs more packs than its commit lists: the rest lie in pack lists, which can be damaged like anything else.

use super::faults::{Fault, Faulty};
use super::world::{World, assert_same_tree, name};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::restore::{self, Pick};
use blackstart::operations::retention::Policy;
use blackstart::operations::{prune, verify};
use blackstart::repository::layout;
use blackstart::repository::series;
use blackstart::repository::snapshot::Snapshot;
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::fs;
use std::sync::Arc;

/// As in `commit.rs`.
const INLINE: usize = 512;

fn options() -> Options {
    Options { workers: 1, ..Options::default() }
}

fn one_more(world: &World, n: usize) -> anyhow::Result<()> {
    fs::write(world.path(&format!("data/{n:04}")), n.to_string()).unwrap();
    world.backup_files(&world.path("data"), options()).map(drop)
}

fn latest(world: &World) -> Snapshot {
    restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap().1
}

fn sound(world: &World) -> bool {
    let options = verify::Options { hashes: true, ..verify::Options::default() };
    verify::verify(&world.host.open, None, &options).unwrap().sound()
}

fn prune(world: &World, last: u32) -> anyhow::Result<prune::PruneReport> {
    let policy = Policy { last, ..Policy::default() };
    let plan = prune::plan(&world.host.open, &name("tree"), &policy, SignedDuration::ZERO)?;
    prune::sweep(&world.host, plan)
}

#[test]
fn pack_lists_survive_crashes_and_their_damage_is_named() {
    let memory = Memory::default();
    let mut world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(world.path("data")).unwrap();
    // Each run adds a pack. Few snapshots are kept, or the test would take long.
    for n in 0..INLINE {
        one_more(&world, n).unwrap();
        if n % 64 == 63 {
            prune(&world, 1).unwrap();
        }
    }
    assert!(latest(&world).pack_lists.is_empty());
    // The run that moves them to a list dies at every call; the next but one does it.
    for n in 1.. {
        let faulty = Faulty::new(memory.clone(), Fault::Call(n));
        let good = std::mem::replace(&mut world.host.open.store, Store::new(faulty.clone()).unwrap());
        let result = one_more(&world, INLINE);
        world.host.open.store = good;
        if result.is_ok() {
            break;
        }
        let packs = series::packs_of(&world.host.open.store, &latest(&world)).unwrap();
        assert_eq!(packs.len(), INLINE, "after call {n}");
    }
    let snapshot = latest(&world);
    assert_eq!((snapshot.pack_lists.len(), snapshot.packs.add.len()), (1, 0));
    assert_eq!(series::packs_of(&world.host.open.store, &snapshot).unwrap().len(), INLINE + 1);
    assert!(sound(&world));
    prune(&world, 1).unwrap();
    assert!(sound(&world));
    world.restore("tree", &Pick::Latest, "out").unwrap();
    assert_same_tree(&world.path("data"), &world.path("out"));

    // Damaged: verify names it, prune deletes nothing, and the snapshot restores, since its index knows the packs as well.
    let list = layout::index(&name("tree"), &snapshot.pack_lists[0].0);
    memory.tamper(&list, |body| body[1] ^= 1);
    let report = verify::verify(&world.host.open, None, &verify::Options::default()).unwrap();
    assert!(format!("{report:?}").contains("pack list"), "{report:?}");
    let before = memory_objects(&world);
    prune(&world, 1).unwrap_err();
    assert_eq!(memory_objects(&world), before);
    world.restore("tree", &Pick::Latest, "again").unwrap();
    // Gone: the next run is a baseline, which needs it no more.
    world.host.open.store.delete(&list).unwrap();
    let report = world.backup_files(&world.path("data"), options()).unwrap();
    assert!(report.why.contains("index objects"), "{}", report.why);
    world.restore("tree", &Pick::Latest, "last").unwrap();
    assert_same_tree(&world.path("data"), &world.path("last"));
}

fn memory_objects(world: &World) -> usize {
    world.host.open.store.list("").unwrap().len()
}
