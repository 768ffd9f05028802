//! Storage classes and locks over the life of a source, in a store that has both and on a clock that the test moves.

use super::world::{World, name};
use blackstart::bridge::Store;
use blackstart::clock::Clock;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::operations::backup::{self, Options};
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::operations::retention::{Policy, Reason};
use blackstart::operations::thaw::{self, Thaw};
use blackstart::operations::tiers::{Tier, Tiering, Tiers};
use blackstart::operations::{locks, prune};
use blackstart::repository::layout;
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use blackstart::storage::memory::Memory;
use blackstart::storage::{self, Class, Haste, LockMode};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A clock that stands where it is put.
struct Standing(Mutex<Timestamp>);

impl Standing {
    fn at(time: &str) -> Arc<Standing> {
        Arc::new(Standing(Mutex::new(time.parse().unwrap())))
    }

    fn forward(&self, days: i64) {
        *self.0.lock().unwrap() += SignedDuration::from_hours(24 * days);
    }
}

impl Clock for Standing {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

struct Life {
    world: World,
    memory: Memory,
    clock: Arc<Standing>,
    policy: Policy,
    tiers: Tiers,
}

fn days(n: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * n)
}

impl Life {
    /// Daily snapshots kept for a week and locked for two days; monthly ones in an archive class, locked for a year.
    fn begin(cold: Class) -> Life {
        let clock = Standing::at("2026-01-20T03:00:00Z");
        let memory = Memory::versioned(clock.clone());
        let mut world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
        world.host.open.clock = clock.clone();
        fs::create_dir(world.path("data")).unwrap();
        let policy = Policy { daily: 7, monthly: 12, ..Policy::default() };
        let tier =
            |storage_class, lock| Some(Tier { storage_class, lock: Some(lock), lock_mode: LockMode::Governance });
        let tiers = Tiers { daily: tier(Class::Standard, days(2)), monthly: tier(cold, days(365)), ..Tiers::default() };
        Life { world, memory, clock, policy, tiers }
    }

    fn tiering(&self) -> Tiering<'_> {
        Tiering { policy: &self.policy, tiers: &self.tiers }
    }

    /// A day of work: one file is rewritten, another, of the first day, stays for ever; then a backup. Returns its number.
    fn day(&self, n: u64) -> u64 {
        let data = self.world.path("data");
        fs::write(data.join("today"), format!("{n}\n").repeat(4000)).unwrap();
        if n == 1 {
            fs::write(data.join("for-ever"), "the same\n".repeat(4000)).unwrap();
        }
        let open = || -> anyhow::Result<Box<dyn Source>> {
            Ok(Box::new(Files::open(&data, FilesOptions::default(), &*self.world.host.open.clock)?))
        };
        let options = Options { workers: 1, ..Options::default() };
        let report = backup::backup_tiered(&self.world.host, &name("tree"), &open, options, Some(self.tiering()));
        report.unwrap().seq
    }

    fn prune(&self) -> (prune::Plan, locks::Settled) {
        let open = &self.world.host.open;
        let plan = prune::plan(open, &name("tree"), &self.policy, SignedDuration::ZERO).unwrap();
        let report = prune::sweep(&self.world.host, plan.clone()).unwrap();
        assert_eq!(report.refused, [] as [String; 0], "what is locked is not even tried");
        (plan, locks::settle(open, &name("tree"), self.tiering()).unwrap())
    }

    /// Until when the commit is locked, in days from now.
    fn locked_days(&self, seq: u64) -> i64 {
        let key = layout::snapshot(&name("tree"), seq);
        let written = blackstart::repository::history::of(&self.world.host.open.store, &key).unwrap();
        let details = self.world.host.open.store.describe(&key, &written.versions[0].id).unwrap();
        details.lock.map_or(-1, |lock| lock.until.duration_since(self.clock.now()).as_hours().div_euclid(24))
    }
}

#[test]
fn a_month_becomes_cold_and_stays_locked() {
    let life = Life::begin(Class::GlacierIr);
    let mut last = 0;
    for day in 1..=12 {
        last = life.day(day);
        // Locked as a day at least: two days, rounded up to a week.
        assert!((2..9).contains(&life.locked_days(last)), "{}", life.locked_days(last));
        life.clock.forward(1);
    }
    // The first of February. January is over: its last snapshot has the month's lock now.
    let (_, settled) = life.prune();
    assert!(settled.locked.contains(&last) && life.locked_days(last) >= 364, "{settled:?}");
    assert!(settled.marked.is_empty(), "the days keep it warm: {settled:?}");
    assert_eq!(life.prune().1.locked, [] as [u64; 0], "nothing to do twice");

    let january = last;
    for day in 13..=22 {
        life.day(day);
        life.clock.forward(1);
    }
    // The month alone keeps January now: what only it names may go cold, what the days share stays.
    let (plan, settled) = life.prune();
    let of_january = plan.decisions.iter().find(|d| d.seq == january).unwrap();
    assert_eq!(of_january.keep, [Reason::Monthly]);
    assert!(settled.marked[&Class::GlacierIr] > 0 && settled.too_cold == 0, "{settled:?}");
    let packs = life.world.host.open.store.list("packs/").unwrap().len() as u64;
    assert!(settled.marked[&Class::GlacierIr] < packs, "what the newest shares stays warm");
    let moved = life.memory.carry_out_marks();
    assert_eq!(moved as u64, settled.marked[&Class::GlacierIr]);
    assert!(life.prune().1.marked.is_empty());
    life.world.restore("tree", &Pick::Seq(january), "january").unwrap();
    assert!(fs::read_to_string(life.world.path("january/today")).unwrap().starts_with("12\n"));
    life.world.restore("tree", &Pick::Latest, "newest").unwrap();
}

#[test]
fn what_a_lock_holds_is_neither_pruned_nor_deleted() {
    let life = Life::begin(Class::GlacierIr);
    for day in 1..=3 {
        life.day(day);
        life.clock.forward(1);
    }
    let open = &life.world.host.open;
    let policy = Policy { last: 1, ..Policy::default() };
    let plan = prune::plan(open, &name("tree"), &policy, SignedDuration::ZERO).unwrap();
    assert!(plan.remove.is_empty());
    let held: Vec<u64> = plan.locked.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(held, [1, 2]);
    assert!(plan.locked.iter().all(|(_, until)| *until > open.now()));
    for written in blackstart::repository::history::list(&open.store, "").unwrap() {
        let named = ["packs/", "index/", "snapshots/"].iter().any(|area| written.key.as_str().starts_with(area));
        let deleted = open.store.delete(&written.key);
        assert_eq!(deleted.is_err_and(|e| e.kind == storage::Kind::Denied), named, "{}", written.key);
        if !named {
            break;
        }
    }
    life.clock.forward(10);
    let plan = prune::plan(open, &name("tree"), &policy, SignedDuration::ZERO).unwrap();
    assert_eq!(plan.remove.len(), 2);
}

#[test]
fn a_pack_that_is_used_again_is_locked_again_before_the_commit() {
    let life = Life::begin(Class::GlacierIr);
    life.day(1);
    let open = &life.world.host.open;
    let first_packs = open.store.list("packs/").unwrap();
    life.clock.forward(20);
    let seq = life.day(2);
    assert_eq!(seq, 2);
    for object in first_packs {
        let id = open.store.list_versions(object.key.as_str()).unwrap().remove(0).id;
        let lock = open.store.describe(&object.key, &id).unwrap().lock.unwrap();
        assert!(lock.until >= open.now() + days(2), "{}: {}", object.key, lock.until);
    }
}

#[test]
fn without_locks_in_the_store_nothing_is_committed() {
    let mut life = Life::begin(Class::Standard);
    let plain = Memory::new(life.clock.clone());
    for object in life.world.host.open.store.list("").unwrap() {
        let body = life.world.host.open.store.get(&object.key).unwrap();
        let store = Store::new(Arc::new(plain.clone())).unwrap();
        store.create(&object.key, body.clone(), &layout::Hash::of(&body).0).unwrap();
    }
    life.world.host.open.store = Store::new(Arc::new(plain)).unwrap();
    let data = life.world.path("data");
    fs::write(data.join("a"), "a").unwrap();
    let open = || -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(Files::open(&data, FilesOptions::default(), &*life.world.host.open.clock)?))
    };
    let options = Options { workers: 1, ..Options::default() };
    backup::backup_tiered(&life.world.host, &name("tree"), &open, options, Some(life.tiering())).unwrap_err();
    assert!(life.world.host.open.store.list("snapshots/").unwrap().is_empty());
}

#[test]
fn an_archive_is_found_and_thawed_before_a_restore() {
    let mut life = Life::begin(Class::DeepArchive);
    // Cold from the start.
    life.policy = Policy { monthly: 12, ..Policy::default() };
    life.day(1);
    let (open, identities) = (&life.world.host.open, std::slice::from_ref(&life.world.recovery.identity));
    let (commit, snapshot) = restore::find(open, &name("tree"), &Pick::Latest).unwrap();
    let to = life.world.path("back");
    let request = Request { to: to.clone(), in_place: false, paths: Vec::new(), workers: 1, finish: None };
    let frozen = thaw::look(open, identities, &snapshot, &request).unwrap();
    assert!(frozen.frozen > 0 && frozen.thawing == 0 && !frozen.is_empty());
    assert_eq!(thaw::estimate(&frozen, Haste::Expedited), None);
    assert_eq!(thaw::estimate(&frozen, Haste::Standard).unwrap().hours, 12.0);

    let error = restore::restore(open, identities, &commit, &snapshot, &request).unwrap_err();
    let archived = error.chain().find_map(|e| e.downcast_ref::<storage::Error>()).unwrap();
    assert_eq!(archived.kind, storage::Kind::Archived, "{error:#}");
    let error = life.world.drill("tree").unwrap_err();
    assert_eq!(kind_of(&error), Kind::Environment, "an archive says nothing of the backup: {error:#}");
    assert!(help_of(&error).unwrap().contains("thaw"), "{error:#}");

    thaw::thaw(open, &frozen, Thaw { haste: Haste::Standard, days: 1, wait: Duration::from_secs(5) }).unwrap();
    assert!(thaw::look(open, identities, &snapshot, &request).unwrap().is_empty());
    restore::restore(open, identities, &commit, &snapshot, &request).unwrap();
    assert!(to.join("for-ever").exists());
}
