//! `[drill]`: what drills may use.

use anyhow::Result;
use jiff::SignedDuration;
use serde::Deserialize;

use super::Config;
use crate::error::{Failure, Kind};
use crate::operations::drill::{self, Bounds};
use crate::size;
use crate::time::optional_length as duration;

/// Below this no engine starts.
const MEMORY_MIN: u64 = 16 << 20;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrillConfig {
    /// From its begin to its last check; a day unless given.
    #[serde(deserialize_with = "duration")]
    pub time: Option<SignedDuration>,
    /// Of all that it starts, together; three quarters of what is free at its begin unless given.
    #[serde(deserialize_with = "size::optional")]
    pub memory: Option<u64>,
}

impl DrillConfig {
    /// Fails with `Kind::Config`.
    pub(super) fn validate(&self) -> Result<()> {
        if self.memory.is_some_and(|memory| memory < MEMORY_MIN) {
            let help =
                "Nothing was done. No engine starts with less than 16 MiB; a server needs about what the live one has.";
            return Err(Failure::new(Kind::Config, "[drill]: memory is at least \"16MiB\"", help));
        }
        Ok(())
    }
}

impl Config {
    /// What a drill that begins now may use.
    pub fn drill_bounds(&self) -> Bounds {
        drill::bounds(self.drill.time, self.drill.memory)
    }
}
