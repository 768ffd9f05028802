//! How far an operation has come: counted by the threads that work, read by whoever draws a bar.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes done and bytes expected. Clones count together; a fresh one counts for nobody.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    expected: AtomicU64,
}

impl Progress {
    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many bytes there will be in all, as far as one can tell.
    pub fn expect(&self, bytes: u64) {
        self.0.expected.store(bytes, Ordering::Relaxed);
    }

    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// `None` while nobody knows.
    pub fn expected(&self) -> Option<u64> {
        Some(self.0.expected.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
