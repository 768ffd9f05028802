//! What a host remembers of its own commits (FORMAT.md §3-5, §4-4): the one piece of local state that is more than a cache. Losing it costs one full read.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layout::{Hash, SourceName};
use crate::durable;

/// Commits remembered; more than one, because a commit may have been recorded and then not sent.
const REMEMBERED: usize = 16;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    lineage: Option<String>,
    /// Hashes of commits that this host has sent or was about to send, newest last.
    sent: Vec<Hash>,
    /// The newest commit known to lie in the repository, whoever wrote it: its number and hash.
    #[serde(default)]
    seen: Option<(u64, Hash)>,
}

pub struct Memory {
    path: PathBuf,
    content: Content,
}

/// The newest commit of each source that this host has seen, for readers. What cannot be read is left out.
pub fn remembered(directory: &Path) -> BTreeMap<SourceName, (u64, Hash)> {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let one = |file: std::fs::DirEntry| {
        let name = SourceName::new(file.file_name().to_str()?.strip_suffix(".json")?).ok()?;
        let content: Content = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
        Some((name, content.seen?))
    };
    files.filter_map(one).collect()
}

impl Memory {
    /// A memory that cannot be read is no memory: the next run is a full.
    pub fn open(directory: &Path, source: &SourceName) -> Result<Memory> {
        durable::create_directories(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(format!("{source}.json"));
        let content = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Ok(Memory { path, content })
    }

    pub fn lineage(&self) -> Option<&str> {
        self.content.lineage.as_deref()
    }

    pub fn has_sent(&self, commit: &Hash) -> bool {
        self.content.sent.contains(commit)
    }

    /// The newest commit that this host knows to have been in the repository. An older head is a rollback.
    pub fn seen(&self) -> Option<(u64, Hash)> {
        self.content.seen
    }

    /// Notes the head as found in, or accepted by, the store.
    pub fn see(&mut self, seq: u64, commit: Hash) -> Result<()> {
        if self.content.seen == Some((seq, commit)) {
            return Ok(());
        }
        self.content.seen = Some((seq, commit));
        self.save()
    }

    /// Durable when this returns; must come before the commit is sent.
    pub fn record(&mut self, lineage: &str, commit: Hash) -> Result<()> {
        self.content.lineage = Some(lineage.to_owned());
        self.content.sent.push(commit);
        let excess = self.content.sent.len().saturating_sub(REMEMBERED);
        self.content.sent.drain(..excess);
        self.save()
    }

    fn save(&self) -> Result<()> {
        durable::publish_over(&self.path, &serde_json::to_vec_pretty(&self.content)?, 0o600)
            .with_context(|| format!("record what was committed in {}", self.path.display()))
    }
}
