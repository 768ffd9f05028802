//! `[agent]` in `blackstart.toml`: how the daemon runs.

use anyhow::Result;
use jiff::SignedDuration;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::{Failure, Kind};

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Runs at the same time.
    pub runs: usize,
    /// Where `/metrics` and `/health/…` are served; `"off"`: nowhere.
    pub listen: String,
    /// The key file that drills on a schedule read and sign with; otherwise the recovery key, while it is on this machine.
    pub drill_key: Option<PathBuf>,
    /// After a request to stop, what is under way may take so long to end by itself.
    #[serde(deserialize_with = "positive")]
    pub stop_within: SignedDuration,
    /// How often the repository is looked at: what others wrote, and whether it is there.
    #[serde(deserialize_with = "positive")]
    pub observe: SignedDuration,
    /// A scheduler that has not looked at the clock for so long has stalled: `/health/live` says so, and every channel is told.
    #[serde(deserialize_with = "positive")]
    pub stalled_after: SignedDuration,
    /// Metrics also go to this file, for node_exporter's textfile collector.
    pub metrics_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            runs: 2,
            listen: "127.0.0.1:9847".into(),
            drill_key: None,
            stop_within: SignedDuration::from_secs(60),
            observe: SignedDuration::from_mins(5),
            stalled_after: SignedDuration::from_secs(60),
            metrics_file: None,
        }
    }
}

fn positive<'de, D: serde::Deserializer<'de>>(d: D) -> Result<SignedDuration, D::Error> {
    crate::time::optional_length(d).map(Option::unwrap_or_default)
}

impl Options {
    /// Fails with `Kind::Config`.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &str| Err(Failure::new(Kind::Config, format!("[agent]: {what}"), "Nothing was done."));
        if !(1..=16).contains(&self.runs) {
            return wrong("runs is a number from 1 to 16");
        }
        // The scheduler itself sleeps for a second.
        if self.stalled_after < SignedDuration::from_secs(2) {
            return wrong("stalled_after is at least 2s");
        }
        if self.listen != "off" && self.listen.parse::<SocketAddr>().is_err() {
            return wrong("listen is an address such as \"127.0.0.1:9847\", or \"off\"");
        }
        Ok(())
    }

    /// Where to listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }
}
