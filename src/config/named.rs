//! Sources by name.

use anyhow::Result;

use super::{Config, SourceConfig};
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;

impl Config {
    /// The sources named, or all.
    pub fn chosen(&self, names: &[SourceName]) -> Result<Vec<&SourceConfig>> {
        if names.is_empty() {
            return Ok(self.source.iter().collect());
        }
        names.iter().map(|name| self.named_source(name)).collect()
    }

    /// The source with this name.
    pub fn named_source(&self, name: &SourceName) -> Result<&SourceConfig> {
        self.source.iter().find(|s| s.name == *name).ok_or_else(|| {
            let known: Vec<&str> = self.source.iter().map(|s| s.name.as_str()).collect();
            Failure::new(
                Kind::Usage,
                format!("{} has no source {name}", self.file.display()),
                format!("Nothing was done. There are: {}.", known.join(", ")),
            )
        })
    }
}
