//! The `postgres` source against real servers, from 13 to 18.
#![expect(clippy::unwrap_used, reason = "a test: a panic is the report")]
#![expect(clippy::disallowed_methods, reason = "test files need no durability")]

#[path = "../support/mod.rs"]
mod support;

mod canary;
mod changes;
mod client;
mod interrupted;
mod logical;
mod physical;
mod tables;
mod tablespaces;
