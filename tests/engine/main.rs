//! The engine end to end, without the command line: backup, incremental, restore, drill, verify, prune, on real files and databases.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bounds;
mod crash;
mod damage;
mod faults;
mod histories;
mod keys;
mod roundtrip;
mod world;
mod writers;
