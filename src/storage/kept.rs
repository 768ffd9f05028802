//! What a store keeps of an object beside its bytes: versions, a storage class.

use super::{Key, Object};
use jiff::Timestamp;
use std::fmt;

/// Names one version of one key for as long as the store has it; empty where the store keeps no versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(pub String);

/// One version of one key, or a marker that says that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub key: Key,
    pub id: VersionId,
    /// Bytes; 0 for a delete marker.
    pub size: u64,
    /// The store's own clock.
    pub modified: Timestamp,
    pub class: Class,
    /// A delete marker: a deletion that left everything older where it was.
    pub marker: bool,
    /// What plain reads and listings show, or, for a marker, hide.
    pub current: bool,
}

impl Kept {
    /// All that a store without versions has of an object.
    pub fn only(object: Object) -> Kept {
        let Object { key, size, modified } = object;
        Kept { key, id: VersionId::default(), size, modified, class: Class::Standard, marker: false, current: true }
    }
}

/// A part of a listing of versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub rows: Vec<Kept>,
    /// Behind what the next page begins; `None`: nothing follows.
    pub next: Option<String>,
}

impl Page {
    /// Of a whole listing the first `most` keys after `after`.
    pub fn of(all: Vec<Kept>, after: &str, most: usize) -> Page {
        let (mut rows, mut keys): (Vec<Kept>, usize) = (Vec::new(), 0);
        for kept in all.into_iter().filter(|kept| kept.key.as_str() > after) {
            let another = rows.last().is_none_or(|last| last.key != kept.key);
            if another && keys == most {
                let next = rows.last().map_or_else(|| after.to_owned(), |last| last.key.to_string());
                return Page { rows, next: Some(next) };
            }
            keys += usize::from(another);
            rows.push(kept);
        }
        Page { rows, next: None }
    }
}

/// Until when no one may delete a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lock {
    pub mode: LockMode,
    pub until: Timestamp,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Who has the special right may lift it.
    #[default]
    Governance,
    /// Nobody may lift it, the owner of the account included.
    Compliance,
}

/// On what terms an object is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    pub class: Class,
    pub lock: Option<Lock>,
}

/// What a store says of one object without sending it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Details {
    /// Bytes.
    pub size: u64,
    pub class: Class,
    pub lock: Option<Lock>,
    pub ice: Ice,
}

/// Whether an object can be read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ice {
    /// It can.
    None,
    /// It lies in an archive class.
    Frozen,
    /// It does, and a copy is being made that can be read.
    Thawing,
    /// It does, and there is such a copy for some time.
    Thawed,
}

/// How fast an archived object is to be thawed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Haste {
    Bulk,
    #[default]
    Standard,
    /// Not for `DEEP_ARCHIVE`.
    Expedited,
}

/// What is set up on the bucket, as far as this credential may see it; `None` where it may not.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Setup {
    /// Old versions are kept.
    pub versioning: Option<bool>,
    /// Objects can be locked.
    pub locks: Option<bool>,
    /// Lifecycle rules that are in force.
    pub rules: Option<Vec<Rule>>,
}

/// A lifecycle rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    pub id: String,
    pub prefix: String,
    /// The tag that an object must have: name and value.
    pub tag: Option<(String, String)>,
    /// Moves objects to this class.
    pub class: Option<Class>,
    /// Deletes current objects after some time. On a repository that destroys snapshots.
    pub expires: bool,
    /// Deletes old versions after so many days.
    pub old_versions_days: Option<i32>,
}

/// A storage class of S3, from the fastest to the slowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Class {
    #[default]
    Standard,
    StandardIa,
    GlacierIr,
    /// S3 Glacier Flexible Retrieval: must be thawed before it can be read.
    Glacier,
    /// Must be thawed before it can be read.
    DeepArchive,
}

impl Class {
    pub const ALL: [Class; 5] =
        [Class::Standard, Class::StandardIa, Class::GlacierIr, Class::Glacier, Class::DeepArchive];

    /// As S3 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Standard => "STANDARD",
            Class::StandardIa => "STANDARD_IA",
            Class::GlacierIr => "GLACIER_IR",
            Class::Glacier => "GLACIER",
            Class::DeepArchive => "DEEP_ARCHIVE",
        }
    }

    /// Classes that blackstart never asks for (`REDUCED_REDUNDANCY`, `INTELLIGENT_TIERING`, …) are read like the first.
    pub fn parse(name: &str) -> Class {
        Class::ALL.into_iter().find(|class| class.name() == name).unwrap_or_default()
    }

    /// Whether an object of this class must be thawed before it can be read.
    pub fn is_archive(self) -> bool {
        self >= Class::Glacier
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
