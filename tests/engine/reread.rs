//! `verify --read-data` in pieces: what was read longest ago comes first, and many short runs are a whole one.

use super::world::{World, name, noise};
use blackstart::bridge::Store;
use blackstart::clock::Clock;
use blackstart::operations::Open;
use blackstart::operations::backup::Options;
use blackstart::operations::reread::{Amount, Budget, Coverage};
use blackstart::operations::verify::{self, SourceVerified};
use blackstart::storage::memory::Memory;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A clock that each look moves on by a second.
#[derive(Debug)]
struct Ticking(Mutex<Timestamp>);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        let mut now = self.0.lock().unwrap();
        *now += SignedDuration::from_secs(1);
        *now
    }
}

/// Six packs, and what the store was asked for.
fn world() -> (World, Memory, Open, Arc<Mutex<Vec<String>>>) {
    let memory = Memory::default();
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(world.path("data")).unwrap();
    for n in 0..6 {
        fs::write(world.path(&format!("data/{n}")), noise(n, 12 << 20)).unwrap();
    }
    world.backup_files(&world.path("data"), Options { workers: 1, level: Some(1), ..Options::default() }).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let store = super::faults::hooked(&memory, move |operation, key| {
        if operation == "get" && key.starts_with("packs/") {
            log.lock().unwrap().push(key.to_owned());
        }
    });
    let clock = Arc::new(Ticking(Mutex::new(Timestamp::now())));
    let open = Open { store, clock, ..world.host.open.clone() };
    (world, memory, open, asked)
}

fn read(world: &World, open: &Open, budget: Budget) -> SourceVerified {
    let read_data = Some(vec![world.recovery.identity.clone()]);
    let options = verify::Options { read_data, budget, ..verify::Options::default() };
    verify::verify(open, Some(&name("tree")), &options).unwrap().sources.remove(0)
}

fn some(amount: Amount) -> Budget {
    Budget { bytes: Some(amount), until: None }
}

fn coverage(found: &SourceVerified) -> Coverage {
    found.coverage.clone().unwrap()
}

#[test]
fn short_runs_add_up_to_a_whole_one_and_begin_again_with_the_oldest() {
    let (world, memory, open, asked) = world();
    // By run: within one, threads ask in any order.
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    let mut round = |amount| {
        let found = coverage(&read(&world, &open, some(amount)));
        let keys: BTreeSet<String> = asked.lock().unwrap().drain(..).collect();
        assert_eq!(keys.len() as u64, found.packs_read);
        seen.push(keys);
        found
    };
    let first = round(Amount::Share(0.3));
    assert!(first.packs_read >= 1 && first.never_read > 0, "{first:?}");
    let mut runs = 1;
    let packs = first.packs;
    loop {
        let found = round(Amount::Bytes(20 << 20));
        runs += 1;
        if found.never_read == 0 {
            break;
        }
        assert!(runs < 10);
    }
    assert!(runs >= 3, "{runs}");
    let (last, before) = seen.split_last().unwrap();
    let mut once = BTreeSet::new();
    assert!(before.iter().flatten().all(|key| once.insert(key)), "none twice before all were read once: {seen:?}");
    once.extend(last);
    assert_eq!(once.len() as u64, packs, "{seen:?}");
    read(&world, &open, some(Amount::Bytes(1)));
    let next = asked.lock().unwrap().remove(0);
    assert!(!last.contains(&next), "what was read last comes first");

    // Packs that no snapshot needs any more are forgotten.
    let remembered = world.path("state").join(&open.trust.id).join("verified/tree");
    assert_eq!(fs::read_to_string(&remembered).unwrap().lines().count() as u64, packs);
    drop(memory);
}

#[test]
fn a_fault_is_found_and_comes_up_again() {
    let (world, memory, open, _) = world();
    assert_eq!(coverage(&read(&world, &open, Budget::default())).never_read, 0);
    let packs = open.store.list("packs/").unwrap();
    memory.tamper(&packs[2].key, |body| *body.last_mut().unwrap() ^= 1);
    for _ in 0..2 {
        let found = read(&world, &open, Budget::default());
        assert_eq!(found.faults.len(), 1, "{:?}", found.faults);
        assert_eq!((found.faults[0].object.as_str(), &found.faults[0].hurts), (packs[2].key.as_str(), &vec![1]));
    }
    // It was not found sound, so it is among those read longest ago, and the shortest run finds it.
    let found = read(&world, &open, some(Amount::Bytes(1)));
    assert!(found.coverage.unwrap().packs_read <= 2 && found.faults.len() == 1);
}

#[test]
fn what_is_not_remembered_counts_as_never_read() {
    let (world, _, open, _) = world();
    let whole = coverage(&read(&world, &open, Budget::default()));
    assert_eq!((whole.packs_read, whole.never_read), (whole.packs, 0));
    fs::remove_dir_all(world.path("state")).unwrap();
    let found = coverage(&read(&world, &open, some(Amount::Bytes(1))));
    assert_eq!(found.never_read, found.packs - found.packs_read);
    // Nor is anything remembered where there is no place for it.
    let open = Open { state: None, ..open };
    for _ in 0..2 {
        let found = coverage(&read(&world, &open, some(Amount::Bytes(1))));
        assert_eq!(found.never_read, found.packs - found.packs_read);
    }
}

#[test]
fn time_that_is_over_ends_the_reading() {
    let (world, _, open, _) = world();
    let budget = Budget { bytes: None, until: Some(Instant::now()) };
    let found = read(&world, &open, budget);
    assert!(found.faults.is_empty());
    assert_eq!(coverage(&found).packs_read, 0);
}
