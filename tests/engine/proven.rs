//! What drills have proven stands until a later backup finds its packs gone, or prune removes it: `verified::of`, which `status` shows, and what
//! the agent keeps from look to look say the same. And what `verify` and `prune` have found is noted until they have seen it well.

use super::faults::{Fault, Faulty};
use super::world::{World, name};
use blackstart::agent::{Seen, observe};
use blackstart::bridge::Store;
use blackstart::error::{self, help_of, kind_of};
use blackstart::operations::backup::Options;
use blackstart::operations::evidence::Level;
use blackstart::operations::findings::Findings;
use blackstart::operations::restore::{self, Pick};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Host, Open, prune, verified, verify};
use blackstart::repository::layout::{self, SourceName};
use blackstart::repository::series::{Series, packs_of};
use blackstart::storage::memory::Memory;
use blackstart::storage::{Key, Kind};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

fn world() -> (World, Memory) {
    let memory = Memory::default();
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(world.path("data")).unwrap();
    (world, memory)
}

/// A snapshot with a file of its own, which later ones refer to.
fn back_up(world: &World) -> u64 {
    let text = format!("{:?}", std::time::Instant::now());
    fs::write(world.path("data").join(&text), &text).unwrap();
    let options = Options { workers: 1, heal: true, ..Options::default() };
    world.backup_files(&world.path("data"), options).unwrap().seq
}

/// The packs that snapshot `seq` needs and none before it.
fn lose_packs_of(world: &World, seq: u64) {
    let open = &world.host.open;
    let series = Series::list(&open.store, &open.trust, &name("tree")).unwrap();
    let packs = |seq| packs_of(&open.store, series.read(seq).unwrap().snapshot().unwrap()).unwrap();
    let older = if seq > 1 { packs(seq - 1) } else { BTreeMap::new() };
    for hash in packs(seq).keys().filter(|hash| !older.contains_key(*hash)) {
        open.store.delete(&layout::pack(&name("tree"), hash)).unwrap();
    }
}

fn prune(host: &Host, last: u32) -> anyhow::Result<prune::PruneReport> {
    let policy = Policy { last, ..Policy::default() };
    prune::sweep(host, prune::plan(&host.open, &name("tree"), &policy, SignedDuration::ZERO)?)
}

fn report(n: u64) -> Key {
    layout::drill("tree", n)
}

fn find(open: &Open) -> anyhow::Result<u64> {
    let pick = Pick::LatestVerified(verified::proven(open, &name("tree")).unwrap());
    restore::find(open, &name("tree"), &pick).map(|(_, snapshot)| snapshot.seq)
}

/// Three snapshots, of which drills have proven the first two.
fn two_proven() -> (World, Memory) {
    let (world, memory) = world();
    for _ in 0..2 {
        back_up(&world);
        world.drill("tree").unwrap();
    }
    back_up(&world);
    (world, memory)
}

#[test]
fn what_a_broken_report_may_have_proven_stays_until_a_newer_one_is_proven() {
    let (world, memory) = two_proven();
    let left = |world: &World| {
        let open = &world.host.open;
        let whole = Series::list(&open.store, &open.trust, &name("tree")).unwrap().whole();
        whole.snapshots().map(|(_, s)| s.seq).collect::<Vec<_>>()
    };
    memory.tamper(&report(2), |bytes| bytes[20] ^= 1);
    back_up(&world);
    prune(&world.host, 1).unwrap();
    assert_eq!(left(&world), [1, 2, 3, 4], "1 is proven, and nobody knows which of the others are");
    let shown = verified::proven(&world.host.open, &name("tree")).unwrap();
    assert!(shown.broken[0].why.contains("signature"), "{shown:?}");
    let proven = world.drill("tree").unwrap().seq;
    prune(&world.host, 1).unwrap();
    assert_eq!((proven, left(&world)[0]), (4, 4), "what is proven is the newest again");
    // It spoke of nothing that was made after the next report.
    back_up(&world);
    back_up(&world);
    prune(&world.host, 1).unwrap();
    assert_eq!(left(&world).len(), 2, "the proven one and the newest");
}

#[test]
fn no_older_snapshot_is_taken_in_silence_for_the_newest_that_is_proven() {
    let commit = |seq| layout::snapshot(&name("tree"), seq);
    let (world, memory) = two_proven();
    let open = &world.host.open;
    assert_eq!(find(open).unwrap(), 2);
    let refused = |word: &str| {
        let error = find(open).expect_err(word);
        let said = format!("{error:#} {}", help_of(&error).unwrap());
        assert_eq!(kind_of(&error), error::Kind::CheckFailed, "{said}");
        assert!(said.contains(word) && said.contains("--snapshot 1"), "{said}");
    };
    let flip = |key: &Key| memory.tamper(key, |bytes| bytes[20] ^= 1);
    flip(&commit(2));
    refused("does not verify");
    flip(&commit(2));
    flip(&report(2));
    refused("it may have proven snapshot 3");
    flip(&report(2));
    let third = open.store.get(&commit(3)).unwrap();
    world.drill("tree").unwrap();
    open.store.delete(&commit(3)).unwrap();
    let error = find(open).unwrap_err();
    assert!(format!("{error:#}").contains("is gone, and no prune record removed it"), "{error:#}");
    open.store.create(&commit(3), third.clone(), &layout::Hash::of(&third).0).unwrap();
    assert_eq!(find(open).unwrap(), 3);
    // A report that was broken before it says nothing of what is newer.
    flip(&report(2));
    assert_eq!(find(open).unwrap(), 3);
}

#[test]
fn a_report_that_does_not_verify_is_told_until_a_drill_has_come_back_well() {
    let (world, memory) = two_proven();
    let open = &world.host.open;
    let sources: BTreeMap<SourceName, BTreeSet<Level>> = [(name("tree"), BTreeSet::from([Level::Engine]))].into();
    let broken = |known: &BTreeMap<SourceName, Seen>| {
        let seen = observe(open, &sources, known).unwrap();
        let by_agent = seen[&name("tree")].broken.clone();
        let by_status = verified::reports(open, &name("tree")).unwrap();
        assert_eq!(by_agent, by_status.unanswered().map(|broken| broken.object.to_string()), "the agent, and status");
        (by_agent, seen)
    };
    let nothing = BTreeMap::new();
    assert_eq!(broken(&nothing).0, None);
    memory.tamper(&report(2), |bytes| bytes[20] ^= 1);
    let (told, known) = broken(&nothing);
    assert_eq!(told.as_deref(), Some(report(2).as_str()));
    assert_eq!(broken(&known).0, told, "nothing has changed");
    world.drill("tree").unwrap();
    assert_eq!(broken(&known).0, None, "one has come back well since");
    assert_eq!(broken(&nothing).0, None);
}

/// What `status` shows: the data time of the newest snapshot that a drill has proven.
fn verified_by_status(open: &Open) -> Option<Timestamp> {
    let proofs = verified::of(open, &name("tree")).unwrap();
    let whole = Series::list(&open.store, &open.trust, &name("tree")).unwrap().whole();
    whole.snapshots().rfind(|(commit, _)| proofs.iter().any(|p| p.commit == commit.hash)).map(|(_, s)| s.data_time)
}

#[test]
fn the_agent_and_status_agree_on_what_is_proven() {
    let (world, _) = world();
    let open = &world.host.open;
    let sources: BTreeMap<SourceName, BTreeSet<Level>> = [(name("tree"), BTreeSet::from([Level::Engine]))].into();
    let mut known: BTreeMap<SourceName, Seen> = BTreeMap::new();
    // One agent looks after each step, another is started after it.
    let mut look = |step: &str| {
        let anew = observe(open, &sources, &BTreeMap::new()).unwrap();
        known = observe(open, &sources, &known).unwrap();
        let (old, new) = (known[&name("tree")].verified, anew[&name("tree")].verified);
        assert_eq!(old, new, "{step}: an agent that has looked before, and one that has just been started");
        assert_eq!(old.newest, verified_by_status(open), "{step}: the agent, and status");
        old
    };
    back_up(&world);
    assert_eq!(look("nothing is proven").newest, None);
    let first = world.drill("tree").unwrap().data_time;
    assert_eq!(look("one is proven").newest, Some(first));
    back_up(&world);
    let second = world.drill("tree").unwrap().data_time;
    for _ in 0..3 {
        back_up(&world);
    }
    assert_eq!(look("the second is proven").newest, Some(second));
    lose_packs_of(&world, 2);
    assert_eq!(look("that packs are gone nobody has seen yet").newest, Some(second));
    back_up(&world);
    let after = look("a backup has found packs of the second gone");
    assert_eq!((after.newest, after.taken_back), (Some(first), Some(2)));
    let third = world.drill("tree").unwrap().data_time;
    let well = look("a newer one is proven");
    assert_eq!((well.newest, well.taken_back), (Some(third), None));
    back_up(&world);
    world.drill("tree").unwrap();
    // Retention keeps the newest verified one, and with it nothing of what was lost.
    prune(&world.host, 1).unwrap();
    let pruned = look("the older ones are pruned");
    assert!(pruned.newest > Some(third) && pruned.taken_back.is_none(), "{pruned:?}");
}

#[test]
fn what_verify_has_found_is_noted_until_one_as_deep_has_passed() {
    let (world, memory) = world();
    let open = &world.host.open;
    let seq = back_up(&world);
    let pack = open.store.list("packs/").unwrap().remove(0);
    let body = open.store.get(&pack.key).unwrap();
    let put = |bytes: &[u8]| {
        open.store.delete(&pack.key).unwrap();
        let checksum = layout::Hash::of(bytes).0;
        open.store.create(&pack.key, bytes.to_vec().into(), &checksum).unwrap();
    };
    let verify = |options: verify::Options| verify::verify(open, Some(&name("tree")), &options).unwrap().sound();
    let plain = verify::Options::default;
    let hashes = || verify::Options { hashes: true, ..plain() };
    let data = || verify::Options { read_data: Some(vec![world.recovery.identity.clone()]), ..plain() };
    let damage = || Findings::recall(open, &name("tree")).unwrap().damage;
    let mut flipped = body.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    put(&flipped);
    assert!(verify(plain()) && damage().is_none(), "its size is right");
    assert!(!verify(hashes()));
    let found = damage().expect("what --hashes found is noted");
    assert!(found.level == Level::Hashes && found.what.contains(pack.key.as_str()), "{found:?} of snapshot {seq}");
    assert!(verify(plain()) && damage() == Some(found.clone()), "a cheap look takes nothing back");
    put(&body);
    assert!(verify(plain()) && damage() == Some(found), "nobody has seen it well yet");
    assert!(verify(hashes()) && damage().is_none(), "as deep a look has passed");
    put(&flipped);
    assert!(!verify(hashes()) && damage().is_some());
    put(&body);
    // What the store does not give is neither well nor damaged.
    let silent = Store::new(Faulty::new(memory.clone(), Fault::Silent("get", "snapshots/", Kind::Denied))).unwrap();
    let silent = Open { store: silent, ..open.clone() };
    let before = Findings::recall(open, &name("tree")).unwrap();
    assert!(!verify::verify(&silent, Some(&name("tree")), &hashes()).unwrap().sound());
    assert_eq!(Findings::recall(open, &name("tree")).unwrap(), before, "a store that says nothing");
    assert!(verify(data()) && damage().is_none(), "a deeper look has passed");
    // Nor is a pack damaged that it refuses to give; of a store that has fallen silent nothing is learnt at all.
    let refusing = |kind| {
        let store = Store::new(Faulty::new(memory.clone(), Fault::Silent("get", "packs/", kind))).unwrap();
        verify::verify(&Open { store, ..open.clone() }, Some(&name("tree")), &data())
    };
    let report = refusing(Kind::Denied).unwrap();
    assert!(!report.sound() && report.sources[0].is_unread(), "{report:?}");
    assert!(report.sources[0].coverage.as_ref().unwrap().denied > 0, "{report:?}");
    assert_eq!(damage(), None, "nothing is known of it");
    refusing(Kind::Transient).unwrap_err();
    assert_eq!(damage(), None, "nothing is known of it");
}

#[test]
fn what_the_store_refused_to_remove_is_noted_until_a_prune_was_whole() {
    let (mut world, memory) = world();
    let open = world.host.open.clone();
    for _ in 0..3 {
        back_up(&world);
    }
    let findings = || Findings::recall(&open, &name("tree")).unwrap();
    world.host.open.store =
        Store::new(Faulty::new(memory, Fault::Silent("delete", "snapshots/", Kind::Denied))).unwrap();
    let report = prune(&world.host, 1).unwrap();
    assert!(!report.refused.is_empty(), "{report:?}");
    let noted = findings().refused.expect("what was refused is noted");
    assert_eq!((noted.objects, &noted.first), (report.refused.len() as u64, &report.refused[0]));
    assert_eq!(findings().pruned, None);
    // It is tried again by each prune, until the store lets it go.
    assert!(!prune(&world.host, 1).unwrap().refused.is_empty() && findings().refused.is_some());
    world.host.open.store = open.store.clone();
    assert!(prune(&world.host, 1).unwrap().refused.is_empty());
    assert!(findings().refused.is_none() && findings().pruned.is_some(), "{:?}", findings());
}
