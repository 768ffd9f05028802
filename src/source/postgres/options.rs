//! `[source.postgres]`: what can be said of a PostgreSQL source beside its address.

use jiff::SignedDuration;
use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::logical::Selection;

/// All keys may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub mode: Option<Mode>,
    /// How a physical backup reads the cluster; otherwise `files` where that can be done, and `stream` where not.
    pub transport: Option<Transport>,
    /// The directory with PostgreSQL's programs (`postgres`, `pg_dump`, …); otherwise it is looked for in the usual places.
    pub bin: Option<PathBuf>,
    /// The replication slot of `wal-receive`; otherwise `blackstart_` and the name of the source.
    pub slot: Option<String>,
    /// What `wal-receive` has received is stored after this long at the latest; a second unless given.
    #[serde(default, deserialize_with = "crate::time::optional_length")]
    pub seal_every: Option<SignedDuration>,
    /// Whether a physical backup notes, at its end, how many rows the tables have, so that drills can tell what is missing. It takes some 15 s at most.
    pub count: Option<bool>,
    /// Of a logical backup: what it takes.
    #[serde(default)]
    pub select: Selection,
    /// Queries for the proof, run in the database of the address. Each must give a first value that is not NULL, false, 0 or empty.
    #[serde(default)]
    pub check: Vec<String>,
}

impl Options {
    /// With relative paths taken to begin at `base`.
    pub fn below(mut self, base: &Path) -> Options {
        self.bin = self.bin.map(|bin| base.join(bin));
        self
    }
}

/// How a server is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The whole cluster, page by page: [`super::base`] or [`super::files`].
    Physical,
    /// Dumps of databases, by `pg_dump`.
    Logical,
}

/// How a physical backup reads the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Beside the server: the files themselves.
    Files,
    /// Over the replication protocol, from anywhere.
    Stream,
}
