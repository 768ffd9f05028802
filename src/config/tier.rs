//! What the tiers of a source ask of its repository.

use anyhow::Result;

use super::{Config, SourceConfig};
use crate::error::{Failure, Kind};
use crate::operations::tiers::Tiering;

impl Config {
    /// What the tiers of `source` ask for; `None` where they ask for nothing.
    pub fn tiering<'a>(&self, source: &'a SourceConfig) -> Result<Option<Tiering<'a>>> {
        let Some(tiers) = source.tier.as_ref().filter(|tiers| !tiers.is_empty()) else { return Ok(None) };
        let wrong =
            |what: &str, help: &str| Failure::new(Kind::Config, format!("{} has tiers, {what}", source.name), help);
        if !self.repository.starts_with("s3://") {
            return Err(wrong(
                "and its repository is a directory, which has no storage classes and no locks",
                "Nothing was done. Leave the tiers out, or take a repository on S3.",
            ));
        }
        let Some(policy) = &source.retention else {
            return Err(wrong("and no retention that they could belong to", "Nothing was done. Add the retention."));
        };
        Ok(Some(Tiering { policy, tiers }))
    }
}
