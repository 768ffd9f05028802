//! How deep drills go, and which tells what another would.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How deep a drill goes, from the cheap to the dear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Everything that the snapshot names is there, at its size. No key is needed.
    Existence,
    /// Every stored byte is as it was written.
    Hashes,
    /// Every frame decrypts and decompresses. Nothing is written.
    Decode,
    /// Restored into scratch, compared byte by byte, and proven by the real engine.
    Engine,
    /// As `engine`, of a random or named point instead of the newest: where a log is stored, of a moment between two snapshots.
    Point,
    /// Restored by `recover.py` with stock tools from a bare copy of the repository, and then proven as for `engine`.
    ColdStart,
    /// Faults are done to a copy of the repository, and this program's verbs must notice each.
    GameDay,
}

impl Level {
    pub const ALL: [Level; 7] =
        [Level::Existence, Level::Hashes, Level::Decode, Level::Engine, Level::Point, Level::ColdStart, Level::GameDay];

    pub fn name(self) -> &'static str {
        match self {
            Level::Existence => "existence",
            Level::Hashes => "hashes",
            Level::Decode => "decode",
            Level::Engine => "engine",
            Level::Point => "point",
            Level::ColdStart => "cold-start",
            Level::GameDay => "game-day",
        }
    }

    /// Whether a drill of this level tells all that one of `other` would. One of another point than the newest tells nothing of that, and a game day
    /// little of the data: they count for themselves alone.
    pub fn covers(self, other: Level) -> bool {
        let aside = |level| matches!(level, Level::Point | Level::GameDay);
        self == other || (self > other && !aside(self) && !aside(other))
    }

    /// Whether it restores the snapshot and starts its engine on it: then it proves it.
    pub fn proves(self) -> bool {
        matches!(self, Level::Engine | Level::Point | Level::ColdStart)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
