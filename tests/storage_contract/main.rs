//! One contract for every store, on memory, a directory, a store that fails all the time, and a real S3 server; then what
//! is particular to each.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod bridge;
mod cases;
mod faulty;
mod local;
mod s3;

use blackstart::bridge::Store;
use blackstart::clock::SystemClock;
use blackstart::storage::local::Local;
use blackstart::storage::memory::Memory;
use blackstart::storage::retry::{Patience, Retry};
use faulty::Faulty;
use std::sync::Arc;
use std::time::Duration;

/// Impatient enough for tests, with more tries than any test injects faults in a row.
pub const IMPATIENT: Patience =
    Patience { tries: 8, pause: Duration::from_millis(1), pause_max: Duration::from_millis(50) };

/// A module of tests, one for each case of the contract, each on a fresh store. `$many` is the number of objects of the
/// largest listing.
macro_rules! contract {
    ($name:ident, $many:expr, $open:expr) => {
        contract!($name, $many, $open, [
            create_never_overwrites,
            create_after_delete,
            replace_compares_versions,
            replace_of_a_missing_key_conflicts,
            ranges_are_exact,
            listings_are_sorted_and_filtered,
            pages_begin_behind_any_place,
            bodies_of_all_sizes,
            delete_twice,
            of_sixteen_creators_one_wins,
            of_eight_replacers_one_wins,
            missing_objects_are_not_found,
            versions_agree_with_the_listing,
            the_probe_finds_everything
        ]);
    };
    ($name:ident, $many:expr, $open:expr, [$($case:ident),*]) => {
        mod $name {
            $(#[test]
            fn $case() {
                let (store, _keep) = $open;
                crate::cases::$case(&store);
            })*

            #[test]
            fn long_listings_are_whole() {
                let (store, _keep) = $open;
                crate::cases::long_listings_are_whole(&store, $many);
            }
        }
    };
}

contract!(memory, 1100, (crate::memory_store(), ()));
contract!(directory, 1100, crate::local::fresh());
contract!(retry, 1100, (crate::faulty_store(), ()));
contract!(seaweedfs, 45, (crate::s3::fresh(), ()));
contract!(memory_with_versions, 1100, (crate::versioned_memory(), ()));
contract!(seaweedfs_with_versions, 45, (crate::s3::fresh_with_versions(), ()));

#[test]
fn old_versions_stay_in_memory() {
    cases::old_versions_stay(&versioned_memory());
}

#[test]
fn old_versions_stay_behind_retries() {
    let memory = Memory::versioned(Arc::new(SystemClock));
    let patience = Patience { tries: 80, pause_max: Duration::from_millis(4), ..IMPATIENT };
    cases::old_versions_stay(&Store::new(Arc::new(Retry::new(Arc::new(Faulty::new(memory)), patience))).unwrap());
}

#[test]
fn old_versions_stay_in_seaweedfs() {
    cases::old_versions_stay(&s3::fresh_with_versions());
}

fn versioned_memory() -> Store {
    Store::new(Arc::new(Memory::versioned(Arc::new(SystemClock)))).unwrap()
}

fn memory_store() -> Store {
    Store::new(Arc::new(Memory::default())).unwrap()
}

/// Two of three answers are lost, with and without effect; retries hide it. Callers at the same time share the sequence of
/// faults, so one of them can meet many in a row.
fn faulty_store() -> Store {
    let faulty = Faulty::new(Memory::default());
    let patience = Patience { tries: 80, pause_max: Duration::from_millis(4), ..IMPATIENT };
    Store::new(Arc::new(Retry::new(Arc::new(faulty), patience))).unwrap()
}

fn directory_store(root: &std::path::Path) -> Store {
    Store::new(Arc::new(Local::new(root))).unwrap()
}
