//! Every bound in one place, with the relations between them. FORMAT.md §4-9 states those that readers enforce.

use std::time::Duration;

pub const MIB: usize = 1 << 20;

/// Raw bytes of one frame: what is compressed together.
pub const FRAME_RAW_MAX: usize = MIB;
/// How hard zstd tries, unless the configuration says otherwise. Not zstd's own 3, which takes half as long again for 1.7 % less (a
/// SQLite database in frames of 1 MiB).
pub const LEVEL: i32 = 2;
/// A pack is closed once its stored bytes pass this.
pub const PACK_TARGET: usize = 16 * MIB;
/// No pack is larger; readers refuse more.
pub const PACK_MAX: usize = 18 * MIB;
/// Frames of one pack, so that its line in the pack table stays short when everything compresses to nothing.
pub const PACK_FRAMES_MAX: usize = 4096;
/// Packs in memory at once: open in the workers, or on their way to the store (DESIGN rule 17).
pub const PACKS_IN_MEMORY: usize = 6;
/// Threads that hash, compress and encrypt.
pub const WORKERS_MAX: usize = 4;

/// Threads of an operation on this machine, unless its caller says otherwise.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(1, WORKERS_MAX)
}

/// Bytes handed to a worker at once.
pub const BATCH_BYTES: usize = 2 * MIB;
/// Raw bytes of one index object.
pub const INDEX_RAW_MAX: usize = MIB;
/// Layers of one snapshot.
pub const LAYERS_MAX: usize = 16;
/// Pages in one data line of a paged file; lines are aligned to this.
pub const SEGMENT_PAGES: usize = 4096;
/// Files of one snapshot whose sizes only their ends tell.
pub const STREAMS_MAX: usize = 10_000;
/// Extents in one data line of a streamed file.
pub const EXTENTS_PER_LINE: usize = 512;
/// An interrupted run stores again at most what it read in this time, or in a sixteenth of its own where entries come in no order.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// Bytes of a log that one of its objects may hold.
pub const LOG_UNIT_MAX: usize = 16 * MIB;
/// No object is larger than this; storage implementations refuse more, so that bodies fit in memory.
pub const OBJECT_MAX: usize = 64 * MIB;

/// Lengths of the content-defined chunks of streamed files, in bytes. `average` is a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    pub min: usize,
    pub average: usize,
    pub max: usize,
}

impl Grain {
    pub const COARSE: Grain = Grain { min: 16 << 10, average: 64 << 10, max: 256 << 10 };
    /// For many small records in a stable order: of scattered changes a sixteenth as much is stored again, for an index sixteen times as large
    /// (some 50 bytes a chunk, at each run).
    pub const FINE: Grain = Grain { min: 1 << 10, average: 4 << 10, max: 16 << 10 };
}

/// Notices that wait on one channel, or for the end of its quiet hours.
pub const NOTICES_QUEUED_MAX: usize = 1000;
/// Files in `schedules/` or in `restore-plans/`, and bytes of one; of `blackstart.toml`, too.
pub const CONFIG_FILES_MAX: usize = 1000;
pub const CONFIG_FILE_MAX: u64 = 1 << 20;

const _: () = {
    assert!(Grain::COARSE.max <= FRAME_RAW_MAX && Grain::FINE.max <= FRAME_RAW_MAX);
    assert!(BATCH_BYTES / Grain::FINE.min <= 4096);
    assert!(PACK_TARGET + 2 * FRAME_RAW_MAX <= PACK_MAX);
    assert!(WORKERS_MAX < PACKS_IN_MEMORY);
    assert!(PACK_MAX <= OBJECT_MAX);
    assert!(LOG_UNIT_MAX + MIB <= PACK_MAX);
};
