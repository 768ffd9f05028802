//! The engine end to end, without the command line: backup, incremental, restore, drill, verify, prune, on real files and databases.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests: a panic is the report, and what is written here need not be durable"
)]

mod bounds;
mod crash;
mod damage;
mod faults;
mod histories;
mod keys;
mod roundtrip;
mod world;
mod writers;
