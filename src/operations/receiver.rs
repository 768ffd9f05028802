//! What a receiver of a source's log tells whoever watches it, in words that fit every engine.

use jiff::Timestamp;
use serde::Serialize;

/// What happens while a receiver runs. Positions are as the engine writes them.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Connected; the log goes on from here, in this stretch of it.
    Streaming {
        stretch: u64,
        timeline: u32,
        position: String,
    },
    /// Up to here everything is stored.
    Stored {
        timeline: u32,
        position: String,
        time: Timestamp,
        bytes: u64,
    },
    /// So many bytes of the engine's log are not stored, as far as it has said. All that it had at `current` is, and would not be lost.
    Lag {
        bytes: u64,
        current: Option<Timestamp>,
    },
    /// What the engine wrote in between is not in the log: points in time need a new snapshot first.
    Gap {
        why: String,
    },
    Timeline {
        timeline: u32,
        position: String,
    },
    /// Bytes that the engine keeps for us until they are stored, and its own word for how sure that is (PostgreSQL: `wal_status` of the slot).
    Slot {
        retained: u64,
        status: String,
    },
    /// Something passing; another session follows after the pause.
    Waiting {
        why: String,
        seconds: f64,
    },
    Note {
        text: String,
    },
}

impl Event {
    /// Whether the engine may remove what is not stored yet, by its own word.
    pub fn is_endangered(status: &str) -> bool {
        matches!(status, "lost" | "unreserved")
    }
}
