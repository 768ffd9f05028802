//! blackstart: backups that prove they come back.
//!
//! Modules in reading order, from the words up to the shell. A file imports only from its own row or a lower one
//! (`tests/tidy.rs` checks it); ARCHITECTURE.md has the map and the invariants, FORMAT.md the repository.

// words: no I/O
pub mod clock;
pub mod entry;
pub mod error;
pub mod limits;
pub mod report;
// edges: storage, sources, targets, and the one crossing between async and threads
pub mod bridge;
pub mod durable;
pub mod source;
pub mod storage;
pub mod target;
// operations
pub mod operations;
