//! blackstart: backups that prove they come back.
//!
//! Modules in reading order, from the words up to the shell. A file imports only from its own row or a lower one
//! (`tests/tidy.rs` checks it); ARCHITECTURE.md has the map and the invariants, FORMAT.md the repository.

// words: no I/O
pub mod clock;
pub mod entry;
pub mod error;
pub mod fingerprint;
pub mod interrupt;
pub mod limits;
pub mod progress;
pub mod report;
pub mod size;
pub mod time;
// edges: storage, sources, targets, and the one crossing between async and threads
pub mod accounts;
pub mod audit;
pub mod bridge;
pub mod child;
pub mod durable;
pub mod net;
pub mod secret;
pub mod source;
pub mod storage;
pub mod target;
// repository: everything that knows FORMAT.md
pub mod pipeline;
pub mod repository;
// operations: one public function each, each returns a report
pub mod operations;
// agent: what the operator wrote down
pub mod agent;
pub mod catalog;
pub mod config;
pub mod job;
pub mod metrics;
pub mod notify;
pub mod plan;
pub mod scheduler;
// shell: the only part that prints
pub mod cli;
pub mod commands;
