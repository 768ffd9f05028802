//! The real process, and what can happen to one: it is killed, its network breaks, its disk is full, its memory is measured.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: a panic is the report, and figures are shown"
)]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod full;
mod kill;
mod lease;
mod memory;
mod policies;
mod roles;
mod s3;
mod service;
mod signals;
