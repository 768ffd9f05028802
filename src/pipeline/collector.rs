//! Puts the workers' findings back into source order and writes the new layer as they come.

use anyhow::{Context, Result};
use async_channel::Receiver;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::batch::{Findings, Row};
use crate::entry::Name;
use crate::limits::{EXTENTS_PER_LINE, SEGMENT_PAGES};
use crate::repository::index::{Extent, LinesOut, Segment};
use crate::repository::snapshot::Named;

/// What the findings of a run add up to.
#[derive(Default)]
pub struct Collected {
    pub entries: Vec<Named>,
    pub live: HashMap<u64, u64>,
    pub reused: u64,
}

/// Works until the findings end. Every `checkpoint` of time, or as seldom as [`LinesOut::pause`] says, what there is becomes index objects, so that
/// an interrupted run loses no more than that.
pub fn run(writer: LinesOut, findings: &Receiver<Findings>, checkpoint: Duration) -> Result<Collected> {
    let mut collector = Collector { writer, path: Name::default(), page: None, segment: Segment::default() };
    let mut sum = Collected::default();
    let mut early: BTreeMap<u64, Findings> = BTreeMap::new();
    let mut next = 0;
    let begun = Instant::now();
    let mut noted = begun;
    while let Ok(found) = findings.recv_blocking() {
        early.insert(found.seq, found);
        while let Some(found) = early.remove(&next) {
            next += 1;
            sum.reused += found.reused;
            for (pack, bytes) in found.live {
                *sum.live.entry(pack).or_default() += bytes;
            }
            for row in found.rows {
                collector.row(row)?;
            }
        }
        if noted.elapsed() >= collector.writer.pause(checkpoint, begun.elapsed()) {
            collector.checkpoint()?;
            noted = Instant::now();
        }
    }
    collector.flush()?;
    sum.entries = collector.writer.finish().context("write the index")?;
    Ok(sum)
}

struct Collector {
    writer: LinesOut,
    path: Name,
    page: Option<u64>,
    /// The data line being gathered.
    segment: Segment,
}

impl Collector {
    fn row(&mut self, row: Row) -> Result<()> {
        match row {
            Row::Entry { entry, inherit } => {
                self.flush()?;
                self.writer.entry(&entry, inherit)?;
                self.page = entry.page.map(u64::from);
                self.path = entry.path;
            }
            Row::Gone(path) => {
                self.flush()?;
                self.writer.gone(&path)?;
            }
            Row::Extent { extent, ids } => match self.page {
                Some(page) => self.pages(extent, &ids, page)?,
                None => {
                    if self.segment.extents.len() == EXTENTS_PER_LINE {
                        self.flush()?;
                    }
                    if self.segment.extents.is_empty() {
                        self.segment.at = extent.at;
                    }
                    self.push(extent, &ids);
                }
            },
        }
        Ok(())
    }

    /// Pages go into aligned segments; an extent that crosses a boundary is cut there.
    fn pages(&mut self, mut extent: Extent, mut ids: &[u8], page: u64) -> Result<()> {
        let span = SEGMENT_PAGES as u64 * page;
        while extent.len > 0 {
            let start = extent.at - extent.at % span;
            if self.segment.at != start || self.segment.extents.is_empty() {
                self.flush()?;
                self.segment.at = start;
            }
            let len = extent.len.min(start + span - extent.at);
            let (now, later) = ids.split_at((len / page) as usize * 8);
            self.push(Extent { len, ..extent }, now);
            ids = later;
            extent = Extent { at: extent.at + len, len: extent.len - len, from: extent.from + len, ..extent };
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent, ids: &[u8]) {
        self.segment.ids.extend_from_slice(ids);
        match self.segment.extents.last_mut() {
            Some(last) if self.page.is_some() && last.joins(&extent) => last.len += extent.len,
            _ => self.segment.extents.push(extent),
        }
    }

    /// Finishes what can be finished: a line of pages must be whole, a line of chunks may end anywhere.
    fn checkpoint(&mut self) -> Result<()> {
        if self.page.is_none() {
            self.flush()?;
        }
        self.writer.checkpoint()
    }

    fn flush(&mut self) -> Result<()> {
        if self.segment.extents.is_empty() {
            return Ok(());
        }
        let segment = std::mem::take(&mut self.segment);
        self.writer.data(&self.path, &segment)
    }
}
