//! What a host remembers of its own commits (FORMAT.md §3-5, §4-4): the one piece of local state that is more than a cache. Losing it costs one full read.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::layout::{Hash, SourceName};
use crate::durable;
use crate::error::{Failure, Kind};

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
    /// One that was seen, and was not there when this host looked again: later commits do not make up for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed: Option<(u64, Hash)>,
}

pub struct Memory {
    path: PathBuf,
    content: Content,
}

/// The newest commit of each source that this host has seen, for readers. What is there and cannot be read is an error: taken for no memory, a
/// rollback would look well.
pub fn remembered(directory: &Path) -> Result<BTreeMap<SourceName, (u64, Hash)>> {
    let files = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        files => files.map_err(|e| unreadable(directory, &e))?,
    };
    let mut all = BTreeMap::new();
    for file in files {
        let name = file.map_err(|e| unreadable(directory, &e))?.file_name();
        let source = name.to_str().and_then(|name| name.strip_suffix(".json")).map(SourceName::new);
        if let Some(Ok(source)) = source
            && let Some(seen) = seen(directory, &source)?
        {
            all.insert(source, seen);
        }
    }
    Ok(all)
}

/// As [`remembered`], of one source.
pub fn seen(directory: &Path, source: &SourceName) -> Result<Option<(u64, Hash)>> {
    Ok(read(&path(directory, source))?.seen)
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> anyhow::Error {
    Failure::new(
        Kind::Environment,
        format!("what this host has seen in the repository cannot be read: {}: {why}", path.display()),
        "Nothing was changed. Whether somebody has taken commits away, or set the store back, cannot be told without it. Run this as the user who makes \
         the backups. If the file itself is broken: compare `blackstart snapshots` with what there should be, then remove the file.",
    )
}

/// Commits of `source` that this host knows to have been in the repository: the one that it misses, and the newest that it has seen.
pub fn known(directory: &Path, source: &SourceName) -> Result<Vec<(u64, Hash)>> {
    let content = read(&path(directory, source))?;
    Ok(content.missed.into_iter().chain(content.seen).collect())
}

/// Where the memory of `source` lies.
pub fn path(directory: &Path, source: &SourceName) -> PathBuf {
    directory.join(format!("{source}.json"))
}

fn read(path: &Path) -> Result<Content> {
    match std::fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Content::default()),
        text => serde_json::from_slice(&text.map_err(|e| unreadable(path, &e))?).map_err(|e| unreadable(path, &e)),
    }
}

impl Memory {
    /// A memory that makes no sense is no memory: the next run is a full, and says so.
    pub fn open(directory: &Path, source: &SourceName) -> Result<Memory> {
        durable::create_directories(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = path(directory, source);
        let content = match std::fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Content::default(),
            text => serde_json::from_slice(&text.map_err(|e| unreadable(&path, &e))?).unwrap_or_default(),
        };
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

    /// The commit that was seen and is not there any more.
    pub fn missed(&self) -> Option<(u64, Hash)> {
        self.content.missed
    }

    /// Notes which commit is missed: the first stays until it is there again, or somebody removes this memory.
    pub fn miss(&mut self, missed: Option<(u64, Hash)>) -> Result<()> {
        if self.content.missed == missed || (self.content.missed.is_some() && missed.is_some()) {
            return Ok(());
        }
        self.content.missed = missed;
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
