//! PostgreSQL's log, from real servers into a repository and back: nothing that was acknowledged as stored is missing.
#![expect(clippy::unwrap_used, reason = "a test: a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "test files need no durability")]

#[path = "../support/mod.rs"]
mod support;

mod archive;
mod breakglass;
mod ends;
#[allow(dead_code, reason = "the tests of the engine use all of it")]
#[path = "../engine/faults.rs"]
mod faults;
mod files;
mod kill;
mod lost;
mod receive;
mod records;
mod recovery;
mod world;
