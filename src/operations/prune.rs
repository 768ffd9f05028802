//! Stand-in, replaced at the merge.

use anyhow::{Result, bail};
use jiff::SignedDuration;
use serde::Serialize;

use super::retention::{Decision, Policy};
use super::{Host, Open};
use crate::repository::layout::SourceName;
use crate::repository::snapshot::Removed;

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub decisions: Vec<Decision>,
    pub remove: Vec<Removed>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PruneReport {}

pub fn plan(_open: &Open, _source: &SourceName, _policy: &Policy, _grace: SignedDuration) -> Result<Plan> {
    bail!("prune is not in this build")
}

pub fn sweep(_host: &Host, _plan: Plan) -> Result<PruneReport> {
    bail!("prune is not in this build")
}
