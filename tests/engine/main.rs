//! The engine end to end, without the command line: backup, incremental, restore, drill, verify, prune, on real files and databases.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make their sources with plain writes")]

mod bounds;
mod branches;
mod checkpoint;
mod crash;
mod damage;
mod faults;
mod fold;
mod forged;
mod gone;
mod groups;
mod histories;
mod keys;
mod lists;
mod log;
mod log_end;
mod log_ends;
mod log_lost;
mod log_near;
mod order;
mod proven;
mod reread;
mod retire;
mod roundtrip;
mod silence;
mod spool;
mod streams;
mod tiers;
mod versions;
mod world;
mod writers;
