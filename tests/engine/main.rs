//! The engine end to end, without the command line: backup, incremental, restore, drill, verify, prune, on real files and databases.
#![allow(clippy::unwrap_used, reason = "tests")]

mod crash;
mod faults;
mod roundtrip;
mod world;
