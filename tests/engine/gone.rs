//! Prune where commits are gone: what they needed looks as if nobody needed it, and stays.

use super::world::{World, assert_same_tree, name, one_worker};
use blackstart::bridge::Store;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::operations::restore::Pick;
use blackstart::operations::retention::Policy;
use blackstart::operations::{Host, Open, prune};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout;
use blackstart::repository::memory;
use blackstart::storage::Key;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Three snapshots, each with a file of its own.
fn three() -> World {
    let (world, _) = World::in_memory();
    (1..=3).for_each(|n| back_up(&world, n));
    world
}

fn back_up(world: &World, n: usize) {
    fs::write(world.path(&format!("data/{n}")), format!("file {n}")).unwrap();
    world.backup_files(&world.path("data"), one_worker()).unwrap();
}

fn plan(open: &Open) -> anyhow::Result<prune::Plan> {
    let policy = Policy { last: 9, ..Policy::default() };
    prune::plan(open, &name("tree"), &policy, SignedDuration::ZERO)
}

fn prune(host: &Host) -> anyhow::Result<prune::PruneReport> {
    prune::sweep(host, plan(&host.open)?)
}

/// Another machine that may prune.
fn keeper(world: &World, state: Option<PathBuf>) -> Host {
    let file = world.path("key");
    fs::write(&file, world.host.keys.to_text("copy").as_bytes()).unwrap();
    Host { open: Open { state, ..world.host.open.clone() }, keys: KeyPair::read(&file).unwrap(), name: "keeper".into() }
}

/// All that is there, but leases.
fn objects(store: &Store) -> Vec<Key> {
    let areas = ["packs/", "index/", "snapshots/"];
    areas.iter().flat_map(|area| store.list(area).unwrap()).map(|object| object.key).collect()
}

/// Takes commits away, and gives what puts them back.
fn take_away(store: &Store, seqs: &[u64]) -> BTreeMap<Key, Vec<u8>> {
    let keys = seqs.iter().map(|seq| layout::snapshot(&name("tree"), *seq));
    let taken: BTreeMap<Key, Vec<u8>> = keys.map(|key| (key.clone(), store.get(&key).unwrap().to_vec())).collect();
    taken.keys().for_each(|key| store.delete(key).unwrap());
    taken
}

fn put_back(store: &Store, taken: BTreeMap<Key, Vec<u8>>) {
    for (key, body) in taken {
        let hash = layout::Hash::of(&body);
        store.create(&key, body.into(), &hash.0).unwrap();
    }
}

/// Refused, with nothing deleted nor written.
fn refused(host: &Host, what: &str) -> String {
    let before = objects(&host.open.store);
    let error = prune(host).expect_err(what);
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{what}: {error:#}");
    assert_eq!(objects(&host.open.store), before, "{what}");
    let said = format!("{error:#} {}", help_of(&error).unwrap());
    assert!(said.contains("prune refuses") && said.contains("Nothing was deleted"), "{what}: {said}");
    said
}

#[test]
fn what_commits_needed_that_are_gone_stays_until_they_are_back() {
    for gone in [&[3][..], &[2, 3], &[1, 2, 3]] {
        let world = three();
        let store = &world.host.open.store;
        let before = objects(store);
        let taken = take_away(store, gone);
        refused(&world.host, &format!("{gone:?} are gone"));
        put_back(store, taken);
        prune(&world.host).unwrap();
        assert_eq!(objects(store), before, "{gone:?} were needed");
        world.restore("tree", &Pick::Latest, "back").unwrap();
        assert_same_tree(&world.path("data"), &world.path("back"));
    }
}

#[test]
fn a_backup_in_between_does_not_make_up_for_what_is_gone() {
    for gone in [&[3][..], &[1, 2, 3]] {
        let world = three();
        take_away(&world.host.open.store, gone);
        (4..=5).for_each(|n| back_up(&world, n));
        let said = refused(&world.host, "a backup took the number");
        // That it was meant, the operator says by removing what this machine remembers, which the error names.
        let memory = memory::path(&world.host.open.memory().unwrap(), &name("tree"));
        assert!(said.contains(memory.to_str().unwrap()), "{said}");
        fs::remove_file(memory).unwrap();
        assert!(prune(&world.host).unwrap().objects_deleted > 0);
        back_up(&world, 6);
        world.restore("tree", &Pick::Latest, "back").unwrap();
        assert_same_tree(&world.path("data"), &world.path("back"));
    }
}

#[test]
fn what_was_missed_and_is_there_again_is_missed_no_more() {
    let world = three();
    let store = &world.host.open.store;
    let known = || memory::known(&world.host.open.memory().unwrap(), &name("tree")).unwrap();
    let third = known();
    let taken = take_away(store, &[3]);
    back_up(&world, 4);
    assert!(known().contains(&third[0]) && known().len() == 2, "another has its number: {:?}", known());
    take_away(store, &[3]);
    put_back(store, taken);
    back_up(&world, 5);
    // Of the two that had one number, the other is missed now.
    assert!(!known().contains(&third[0]) && known().len() == 2, "{:?}", known());
}

#[test]
fn a_keeper_deletes_nothing_where_there_is_no_commit_at_all() {
    let world = three();
    let keeper = keeper(&world, None);
    prune(&keeper).unwrap();
    take_away(&world.host.open.store, &[1, 2, 3]);
    let said = refused(&keeper, "a machine without memory");
    assert!(said.contains("blackstart backup tree") && said.contains("packs/tree"), "{said}");
}

#[test]
fn a_first_backup_that_was_interrupted_is_swept_after_the_next() {
    let world = three();
    take_away(&world.host.open.store, &[1, 2, 3]);
    let fresh = keeper(&world, None);
    refused(&fresh, "packs without a commit");
    fs::remove_dir_all(world.path("state")).unwrap();
    back_up(&world, 4);
    assert!(prune(&fresh).unwrap().objects_deleted > 0);
    world.restore("tree", &Pick::Latest, "back").unwrap();
    assert_same_tree(&world.path("data"), &world.path("back"));
}

#[test]
fn a_keeper_remembers_what_it_has_seen() {
    let world = three();
    let keeper = keeper(&world, Some(world.path("state-of-the-keeper")));
    prune(&keeper).unwrap();
    take_away(&world.host.open.store, &[3]);
    refused(&keeper, "the newest is gone");
    back_up(&world, 4);
    refused(&keeper, "another has its number");
}

#[test]
fn what_goes_after_the_plan_was_made_stops_the_sweep() {
    let world = three();
    take_away(&world.host.open.store, &[3]);
    back_up(&world, 4);
    let unaware = Open { state: None, ..world.host.open.clone() };
    let plan = plan(&unaware).unwrap();
    assert!(!plan.unnamed.is_empty());
    let before = objects(&unaware.store);
    assert_eq!(kind_of(&prune::sweep(&world.host, plan).unwrap_err()), Kind::CheckFailed);
    assert_eq!(objects(&unaware.store), before);
}
