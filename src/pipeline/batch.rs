//! What travels between the threads of a run: batches of bytes to the workers, findings in the same order to the collector.

use std::collections::HashMap;
use std::sync::Arc;

use crate::entry::{Entry, Name};
use crate::repository::index::Extent;

/// A run of bytes and of entries, in source order. Handed to one worker.
pub struct Batch {
    pub seq: u64,
    pub bytes: Vec<u8>,
    pub parts: Vec<Part>,
}

pub enum Part {
    Entry {
        entry: Box<Entry>,
        inherit: u64,
    },
    Gone(Name),
    /// One chunk of the current, streamed file.
    Chunk {
        at: u64,
        from: usize,
        len: usize,
    },
    /// Whole pages of the current, paged file; `basis` has what the basis knows of each, where it knows anything.
    Pages {
        at: u64,
        from: usize,
        len: usize,
        page: usize,
        basis: Option<Arc<BasisPages>>,
    },
}

/// Pages of the basis from position `at` on.
pub struct BasisPages {
    pub at: u64,
    pub pages: Vec<Option<(Extent, [u8; 8])>>,
}

/// What a worker made of a batch.
pub struct Findings {
    pub seq: u64,
    pub rows: Vec<Row>,
    /// Live bytes by pack, of the basis's packs and of new ones.
    pub live: HashMap<u64, u64>,
    /// Bytes that were found stored already.
    pub reused: u64,
}

/// Rows of the new layer, in order.
pub enum Row {
    Entry { entry: Box<Entry>, inherit: u64 },
    Gone(Name),
    Extent { extent: Extent, ids: Vec<u8> },
}
