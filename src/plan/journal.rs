//! What a real run of a plan has done already, on this machine: a run that stopped goes on behind its last good stage.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use super::report::StageReport;
use crate::durable;
use crate::repository::layout::Hash;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journal {
    /// Of the plan as it was begun.
    pub hash: Hash,
    pub started: Timestamp,
    pub stages: Vec<StageReport>,
    /// A stage of which only some members of its group are there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<StageReport>,
    #[serde(skip)]
    path: PathBuf,
}

impl Journal {
    fn place(state: &Path, repository: &str, plan: &str) -> PathBuf {
        state.join(repository).join("plans").join(format!("{plan}.json"))
    }

    /// What an unfinished run left.
    pub fn unfinished(state: &Path, repository: &str, plan: &str) -> Result<Option<Journal>> {
        let path = Journal::place(state, repository, plan);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let mut journal: Journal =
            serde_json::from_slice(&text).with_context(|| format!("read what {} says", path.display()))?;
        journal.path = path;
        Ok(Some(journal))
    }

    pub fn begin(state: &Path, repository: &str, plan: &str, hash: Hash, started: Timestamp) -> Result<Journal> {
        let journal =
            Journal { hash, started, stages: Vec::new(), part: None, path: Journal::place(state, repository, plan) };
        journal.save()?;
        Ok(journal)
    }

    /// Durable when it returns.
    pub fn note(&mut self, stage: &StageReport) -> Result<()> {
        self.stages.retain(|s| s.name != stage.name);
        self.stages.push(stage.clone());
        self.part = None;
        self.save()
    }

    /// As [`Journal::note`], of a stage that is not done.
    pub fn note_part(&mut self, stage: &StageReport) -> Result<()> {
        self.part = Some(stage.clone());
        self.save()
    }

    fn save(&self) -> Result<()> {
        durable::publish_over(&self.path, &serde_json::to_vec_pretty(self)?, 0o600)
            .with_context(|| format!("note in {} what is done", self.path.display()))
    }

    /// The run has come to its end.
    pub fn finish(self) -> Result<()> {
        durable::remove(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}
