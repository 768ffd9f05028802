//! What an operation did, as data. Only `commands` turns it into text; `--json` prints it as it is.

use crate::entry::Name;
use serde::{Deserialize, Serialize};

/// Something of a source that is not in its snapshot, or not for certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    pub path: Name,
    pub why: String,
}

/// How whole a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Complete,
    Partial,
}
