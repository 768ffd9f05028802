//! `--metrics-file`: metrics of runs that no agent makes, for node_exporter.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::output::Shell;
use crate::operations::evidence::Level;
use crate::{agent, durable, metrics};

/// Writes what the repository shows. Where it shows nothing the file stays: its times grow old, which is what the alert rules notice. The verb has
/// ended as it has, whatever becomes of this.
pub fn write(shell: &Shell, path: &Path) {
    if let Err(error) = figures(shell).and_then(|text| Ok(durable::publish_over(path, text.as_bytes(), 0o644)?)) {
        shell.warn(format!("the metrics in {} stay as they are: {error:#}", path.display()));
    }
}

fn figures(shell: &Shell) -> Result<String> {
    let config = shell.config()?;
    let open = shell.open(&config)?;
    let sources = config.source.iter().map(|source| (source.name.clone(), BTreeSet::from([Level::Engine]))).collect();
    let seen = agent::observe(&open, &sources, &BTreeMap::new()).context("look at the repository")?;
    metrics::textfile(&agent::figures(&config, &seen))
}
