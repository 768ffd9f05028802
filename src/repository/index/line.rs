//! The shapes of index lines.

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Name};
use crate::repository::layout::Hash;

/// Where bytes of a file lie. All in bytes but `pack` and `frame`, which are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u64, u64, u64)", into = "(u64, u64, u64, u64, u64)")]
pub struct Extent {
    /// Offset in the file.
    pub at: u64,
    pub len: u64,
    pub pack: u64,
    pub frame: u64,
    /// Offset in the frame's raw bytes.
    pub from: u64,
}

impl From<(u64, u64, u64, u64, u64)> for Extent {
    fn from((at, len, pack, frame, from): (u64, u64, u64, u64, u64)) -> Extent {
        Extent { at, len, pack, frame, from }
    }
}

impl From<Extent> for (u64, u64, u64, u64, u64) {
    fn from(e: Extent) -> Self {
        (e.at, e.len, e.pack, e.frame, e.from)
    }
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.at + self.len
    }

    /// Whether `next` goes on where this ends, in the file and in the frame.
    pub fn joins(&self, next: &Extent) -> bool {
        self.end() == next.at && self.pack == next.pack && self.frame == next.frame && self.from + self.len == next.from
    }
}

/// One data line: extents of one file, ascending, with their ids (8 bytes a page, or 32 an extent).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    pub at: u64,
    pub extents: Vec<Extent>,
    pub ids: Vec<u8>,
}

/// Bytes of ids that `extent` has.
pub fn id_bytes(page: Option<u32>, extent: &Extent) -> usize {
    page.map_or(32, |page| (extent.len / u64::from(page)) as usize * 8)
}

impl Segment {
    /// Refuses what no writer makes: extents out of order, beyond `u63`, off the page grid, ids that do not fit.
    pub fn check(&self, page: Option<u32>) -> Result<()> {
        let mut end = self.at;
        let mut ids = 0;
        for e in &self.extents {
            ensure!(
                e.len > 0 && e.at >= end && e.at.checked_add(e.len).is_some_and(|x| x < 1 << 62),
                "extents out of order"
            );
            if let Some(page) = page {
                ensure!(e.at % u64::from(page) == 0 && e.len % u64::from(page) == 0, "extent off the page grid");
            }
            end = e.end();
            ids += id_bytes(page, e);
        }
        ensure!(ids == self.ids.len(), "ids do not fit the extents");
        Ok(())
    }
}

/// What a line of `entries` is.
pub(super) enum EntriesLine {
    Entry { entry: Box<Entry>, inherit: u64 },
    Gone(Name),
    Data { path: Name, segment: Segment },
}

/// All fields that tell the three kinds of line apart; the entry's own are read in a second pass.
#[derive(Deserialize)]
struct Probe {
    path: Name,
    #[serde(default)]
    gone: bool,
    at: Option<u64>,
    #[serde(default)]
    inherit: u64,
    #[serde(default)]
    extents: Vec<Extent>,
    #[serde(default)]
    ids: String,
}

impl EntriesLine {
    pub(super) fn parse(line: &[u8]) -> Result<EntriesLine> {
        let probe: Probe = serde_json::from_slice(line).context("read an index line")?;
        if probe.gone {
            return Ok(EntriesLine::Gone(probe.path));
        }
        match probe.at {
            Some(at) => {
                let ids = BASE64_STANDARD.decode(&probe.ids).context("read the ids of an index line")?;
                Ok(EntriesLine::Data { path: probe.path, segment: Segment { at, extents: probe.extents, ids } })
            }
            None => {
                let entry: Entry = serde_json::from_slice(line).context("read an index line")?;
                ensure!(entry.page.is_none_or(|p| (512..=1 << 20).contains(&p)), "impossible page size");
                Ok(EntriesLine::Entry { entry: Box::new(entry), inherit: probe.inherit })
            }
        }
    }

    pub(super) fn path(&self) -> &Name {
        match self {
            EntriesLine::Entry { entry, .. } => &entry.path,
            EntriesLine::Gone(path) | EntriesLine::Data { path, .. } => path,
        }
    }
}

#[derive(Serialize)]
struct DataLine<'a> {
    path: &'a Name,
    at: u64,
    extents: &'a [Extent],
    ids: String,
}

pub(super) fn entry_line(entry: &Entry, inherit: u64) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    if inherit > 0 {
        line.pop();
        line.extend_from_slice(format!(",\"inherit\":{inherit}}}").as_bytes());
    }
    Ok(line)
}

pub(super) fn data_line(path: &Name, segment: &Segment) -> Result<Vec<u8>> {
    let ids = BASE64_STANDARD.encode(&segment.ids);
    Ok(serde_json::to_vec(&DataLine { path, at: segment.at, extents: &segment.extents, ids })?)
}

pub(super) fn gone_line(path: &Name) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::json!({ "path": path, "gone": true }))?)
}

/// A line of the pack table: what a pack holds, or how much of it is still referred to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PackLine {
    Pack {
        pack: u64,
        name: Hash,
        size: u64,
        /// Stored length, raw length, base64 SHA-256 of the stored bytes of each frame.
        frames: Vec<(u64, u64, String)>,
    },
    Live {
        pack: u64,
        live: u64,
    },
}

impl PackLine {
    pub fn number(&self) -> u64 {
        match self {
            PackLine::Pack { pack, .. } | PackLine::Live { pack, .. } => *pack,
        }
    }
}
