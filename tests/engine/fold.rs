//! Prune records that a newer one stands for: a series that is pruned for years costs no more requests than a young one, and tells no less.

use super::faults::{Fault, Faulty, hooked};
use super::roundtrip::break_glass;
use super::world::{World, name};
use super::writers::clone_of;
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::prune::{self, PruneReport};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Host, verify};
use blackstart::repository::layout::{self, Hash};
use blackstart::repository::series::{Series, Whole};
use blackstart::repository::snapshot::Line;
use blackstart::storage::memory::Memory;
use blackstart::storage::{Lock, LockMode};
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn on(memory: &Memory) -> World {
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(world.path("data")).unwrap();
    world
}

fn backup(world: &World) -> u64 {
    fs::write(world.path("data/file"), format!("{:?}", std::time::Instant::now())).unwrap();
    world.backup_files(&world.path("data"), Options { workers: 1, ..Options::default() }).unwrap().seq
}

fn prune(world: &World, grace: SignedDuration) -> anyhow::Result<PruneReport> {
    prune_by(&world.host, 1, grace)
}

fn prune_by(host: &Host, last: u32, grace: SignedDuration) -> anyhow::Result<PruneReport> {
    let policy = Policy { last, ..Policy::default() };
    prune::sweep(host, prune::plan(&host.open, &name("tree"), &policy, grace)?)
}

/// Days of a source: each brings a snapshot, and a prune that removes the one before.
fn days(world: &World, count: usize) {
    for _ in 0..count {
        backup(world);
        prune(world, SignedDuration::ZERO).unwrap();
    }
}

fn whole(world: &World) -> Whole {
    let open = &world.host.open;
    Series::list(&open.store, &open.trust, &name("tree")).unwrap().whole()
}

/// The numbers of its prune records.
fn records(world: &World) -> Vec<u64> {
    let whole = whole(world);
    whole.commits.iter().filter(|commit| matches!(commit.line, Line::Prune(_))).map(|commit| commit.seq()).collect()
}

fn hashes(world: &World) -> BTreeMap<u64, Hash> {
    whole(world).commits.iter().map(|commit| (commit.seq(), commit.hash)).collect()
}

fn require_sound(world: &World, context: &str) {
    let report = verify::verify(&world.host.open, None, &verify::Options::default()).unwrap();
    assert!(report.sound(), "{context}: {report:?}");
}

/// How many objects of the series `act` reads.
fn reads<T>(world: &mut World, memory: &Memory, act: impl FnOnce(&World) -> T) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let counted = hooked(memory, move |operation, key| {
        if operation == "get" && key.starts_with("snapshots/") {
            counting.fetch_add(1, Ordering::SeqCst);
        }
    });
    let own = std::mem::replace(&mut world.host.open.store, counted);
    act(world);
    world.host.open.store = own;
    count.load(Ordering::SeqCst)
}

#[test]
fn years_of_prunes_cost_no_more_requests_than_a_month() {
    let memory = Memory::default();
    let mut world = on(&memory);
    backup(&world);
    days(&world, prune::RECORDS);
    let seen = hashes(&world);
    assert_eq!(records(&world).len(), prune::RECORDS, "so many are not folded yet");
    let month = reads(&mut world, &memory, whole);
    assert_eq!(month, prune::RECORDS + 1, "one request for each record, and one for the snapshot");
    // The day after they become one. Whoever has seen them finds them listed, and nothing else in their place.
    backup(&world);
    let report = prune(&world, SignedDuration::ZERO).unwrap();
    assert_eq!((report.removed.len(), report.folded), (1, prune::RECORDS as u64), "{report:?}");
    assert_eq!(records(&world).len(), 1, "one stands for all of them");
    require_sound(&world, "folded");
    let fewer = reads(&mut world, &memory, whole);
    assert_eq!(fewer, 2, "the record and the snapshot");
    let open = &world.host.open;
    let series = Series::list(&open.store, &open.trust, &name("tree")).unwrap();
    for (seq, hash) in &seen {
        assert!(series.has(*seq, *hash).unwrap(), "{seq} was there, and it is known to have been removed");
        assert!(!series.has(*seq, Hash::of(b"another")).unwrap(), "{seq}: another was never there");
    }
    // Two more times round: what a fold says is folded again.
    days(&world, 2 * prune::RECORDS);
    require_sound(&world, "folded three times");
    let years = reads(&mut world, &memory, whole);
    assert!(years <= month + 1, "after years {years} requests, after a month {month}");
    let (whole, head) = (whole(&world), hashes(&world).into_keys().max().unwrap());
    let listed: Vec<u64> = whole
        .commits
        .iter()
        .filter_map(|commit| match &commit.line {
            Line::Prune(record) => Some(record.removed.iter().map(|removed| removed.seq)),
            _ => None,
        })
        .flatten()
        .collect();
    let kept: Vec<u64> = whole.commits.iter().map(|commit| commit.seq()).collect();
    let all: Vec<u64> = (1..=head).collect();
    let mut told = [listed, kept].concat();
    told.sort_unstable();
    assert_eq!(told, all, "each commit that ever was is there, or listed once");
}

/// A copy of all objects, as of now.
fn copied(world: &World) -> Memory {
    let (memory, store) = (Memory::default(), &world.host.open.store);
    let copy = Store::new(Arc::new(memory.clone())).unwrap();
    for object in store.list("").unwrap() {
        let body = store.get(&object.key).unwrap();
        copy.create(&object.key, body.clone(), &Hash::of(&body).0).unwrap();
    }
    memory
}

#[test]
fn a_fold_that_dies_anywhere_loses_nothing_and_is_finished_by_the_next_prune() {
    let mut world = on(&Memory::default());
    backup(&world);
    days(&world, prune::RECORDS);
    backup(&world);
    let seen = hashes(&world);
    let own = world.host.open.store.clone();
    let mut died = 0;
    for n in (1..).step_by(3) {
        let mut struck = false;
        for fault in [Fault::Call(n), Fault::Unanswered(n)] {
            world.host.open.store = own.clone();
            // The copy is older than what this machine has seen of the one before.
            drop(fs::remove_dir_all(world.host.open.memory().unwrap()));
            let memory = copied(&world);
            let faulty = Faulty::new(memory.clone(), fault);
            world.host.open.store = Store::new(faulty.clone()).unwrap();
            let result = prune(&world, SignedDuration::ZERO);
            assert!(result.is_ok() || faulty.struck(), "{fault:?}: {result:?}");
            world.host.open.store = Store::new(Arc::new(memory)).unwrap();
            require_sound(&world, &format!("{fault:?}"));
            let open = &world.host.open;
            let series = Series::list(&open.store, &open.trust, &name("tree")).unwrap();
            assert!(seen.iter().all(|(seq, hash)| series.has(*seq, *hash).unwrap()), "{fault:?}: one is forgotten");
            struck |= faulty.struck();
            died += usize::from(faulty.struck());
        }
        if n % 12 == 1 {
            prune(&world, SignedDuration::ZERO).unwrap();
            require_sound(&world, "after the next prune");
            let left = whole(&world);
            assert!(left.leftover.is_empty() && left.commits.len() <= 3, "call {n}: {:?}", left.leftover);
        }
        if !struck {
            break;
        }
    }
    assert!(died > prune::RECORDS / 2, "deletions were among the moments: {died}");
}

#[test]
fn young_and_locked_records_stay() {
    let memory = Memory::versioned(Arc::new(blackstart::clock::SystemClock));
    let world = on(&memory);
    backup(&world);
    days(&world, prune::RECORDS + 2);
    let before = records(&world);
    let fold = *before.first().unwrap();
    days(&world, prune::RECORDS - 2);
    let young = records(&world);
    backup(&world);
    assert_eq!(prune(&world, SignedDuration::from_hours(1)).unwrap().folded, 0, "a stalled writer may look at them");
    assert!(young.iter().all(|seq| records(&world).contains(seq)));
    // A bucket that locks all that comes in.
    let store = &world.host.open.store;
    let key = layout::snapshot(&name("tree"), fold);
    let id = store.list_versions(key.as_str()).unwrap()[0].id.clone();
    let until = world.host.open.now() + SignedDuration::from_hours(1);
    store.lock(&key, &id, Lock { mode: LockMode::Governance, until }).unwrap();
    backup(&world);
    let report = prune(&world, SignedDuration::ZERO).unwrap();
    assert!(report.folded > 0 && report.refused.is_empty(), "what is locked is not even tried: {report:?}");
    assert_eq!(records(&world).first(), Some(&fold), "the locked one stays");
    require_sound(&world, "beside a locked record");
}

#[test]
fn what_nobody_removed_is_missed_as_before_and_the_script_reads_a_fold() {
    let world = World::local();
    fs::create_dir(world.path("data")).unwrap();
    let first = backup(&world);
    let kept = fs::read(world.path(&format!("repository/{}", layout::snapshot(&name("tree"), first)))).unwrap();
    days(&world, prune::RECORDS + 1);
    assert_eq!(records(&world).len(), 1, "folded");
    break_glass(&world, "tree");
    // Whoever brings a removed commit back brings back no snapshot.
    let back = world.path(&format!("repository/{}", layout::snapshot(&name("tree"), first)));
    fs::write(&back, &kept).unwrap();
    assert_eq!(whole(&world).leftover, [first], "it is listed as removed, whatever has become of it");
    // Of what is there each commit is still missed.
    let fold = records(&world)[0];
    fs::remove_file(world.path(&format!("repository/{}", layout::snapshot(&name("tree"), fold)))).unwrap();
    let report = verify::verify(&world.host.open, None, &verify::Options::default()).unwrap();
    assert!(!report.sound(), "a fold that was deleted must be missed: {report:?}");
}

/// A writer that has lost its lease finds its number free, since the record that took it has been folded into the next.
#[test]
fn a_writer_whose_number_was_folded_away_tries_again() {
    let memory = Memory::default();
    let mut world = on(&memory);
    backup(&world);
    days(&world, prune::RECORDS - 1);
    backup(&world);
    backup(&world);
    let bare = Store::new(Arc::new(memory.clone())).unwrap();
    let (keeper, once) = (clone_of(&world, bare, "state-keeper"), AtomicBool::new(true));
    let folded = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&folded);
    world.host.open.store = hooked(&memory, move |operation, key| {
        if operation == "create" && key.starts_with("index/") && once.swap(false, Ordering::SeqCst) {
            keeper.open.store.delete(&layout::lease(&name("tree"))).unwrap();
            prune_by(&keeper, 2, SignedDuration::ZERO).unwrap();
            let second = prune_by(&keeper, 1, SignedDuration::ZERO).unwrap();
            told.store(usize::try_from(second.folded).unwrap(), Ordering::SeqCst);
        }
    });
    backup(&world);
    assert_eq!(folded.load(Ordering::SeqCst), prune::RECORDS, "the record that took its number was folded");
    require_sound(&world, "after the race");
}

/// Somebody looks while a prune is under way elsewhere: what was listed is gone when it is read, and that is no damage.
#[test]
fn what_a_prune_removes_after_it_was_listed_is_not_called_damaged() {
    for whole in [true, false] {
        let memory = Memory::default();
        let mut world = on(&memory);
        for _ in 0..3 {
            backup(&world);
        }
        let bare = Store::new(Arc::new(memory.clone())).unwrap();
        let (keeper, once) = (clone_of(&world, bare, "keeper"), AtomicBool::new(true));
        world.host.open.store = hooked(&memory, move |operation, key| {
            let first = layout::snapshot(&name("tree"), 1);
            if operation == "get" && key == first.as_str() && once.swap(false, Ordering::SeqCst) {
                prune_by(&keeper, 1, SignedDuration::ZERO).unwrap();
            }
        });
        let open = &world.host.open;
        let series = Series::list(&open.store, &open.trust, &name("tree")).unwrap();
        if whole {
            let whole = series.whole();
            assert_eq!(whole.faults, [], "a healthy series");
            assert_eq!(whole.commits.iter().map(|commit| commit.seq()).collect::<Vec<_>>(), [3, 4]);
        } else {
            // The agent looks so. What it has read by then stands.
            let read: Vec<u64> = series.newest_first().map(|commit| commit.unwrap().seq()).collect();
            assert_eq!(read, [3, 2], "the first is passed over");
        }
    }
}
