//! How a drill is to be made.

use jiff::SignedDuration;
use std::path::PathBuf;

use super::bounds::{Bounds, bounds};
use crate::limits;
use crate::operations::evidence::Level;
use crate::operations::moment::Moment;
use crate::repository::layout::Hash;
use crate::source::Settings;

#[derive(Debug, Clone)]
pub struct Options {
    /// A directory for scratch; a new directory in it is made and removed.
    pub scratch: PathBuf,
    pub workers: usize,
    pub level: Level,
    pub rpo: Option<SignedDuration>,
    pub rto: Option<SignedDuration>,
    /// Leave the restored copy for inspection if the drill fails.
    pub keep_failed: bool,
    /// Up to where the log after the snapshot is replayed; without it, as far as it goes.
    pub moment: Option<Moment>,
    /// Why this recovery point was taken.
    pub point: String,
    /// Who or what started the drill.
    pub trigger: String,
    /// Of which plan this is a part.
    pub plan: Option<String>,
    /// Hash of the configuration file.
    pub configuration: Option<Hash>,
    /// For the proof.
    pub settings: Settings,
    /// Of time, and of the memory of what it starts.
    pub bounds: Bounds,
}

impl Options {
    /// A drill of the latest point with the real engine.
    pub fn new(scratch: PathBuf) -> Options {
        Options {
            scratch,
            workers: limits::workers(),
            level: Level::Engine,
            rpo: None,
            rto: None,
            keep_failed: false,
            moment: None,
            point: "the latest complete snapshot".into(),
            trigger: "by hand".into(),
            plan: None,
            configuration: None,
            settings: Settings::default(),
            bounds: bounds(None, None),
        }
    }
}
