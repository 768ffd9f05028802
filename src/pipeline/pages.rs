//! What the basis knows of the pages of one file, segment by segment, beside the reading of the file.

use anyhow::{Context, Result};
use std::sync::Arc;

use super::batch::BasisPages;
use crate::limits::SEGMENT_PAGES;
use crate::repository::index::{Extent, Segment};

/// The pages of the basis for the segment of a file that is being read.
pub struct BasisCursor {
    /// Whether the basis has the file, in pages of this size.
    pub has: bool,
    page: usize,
    /// A segment that lies further on.
    upcoming: Option<Segment>,
    pub pages: Option<Arc<BasisPages>>,
}

impl BasisCursor {
    pub fn new(has: bool, page: usize) -> BasisCursor {
        BasisCursor { has, page, upcoming: None, pages: None }
    }

    /// Goes on to the segment that begins at `at`; `next` gives the basis's segments in order.
    pub fn pass_to(&mut self, at: u64, mut next: impl FnMut() -> Result<Option<Segment>>) -> Result<()> {
        if !self.has || self.pages.as_ref().is_some_and(|pages| pages.at == at) {
            return Ok(());
        }
        self.pages = None;
        let segment = match self.upcoming.take() {
            Some(segment) => Some(segment),
            None => next()?,
        };
        match segment {
            Some(segment) if segment.at == at => self.pages = Some(Arc::new(expand(&segment, self.page)?)),
            later => self.upcoming = later,
        }
        Ok(())
    }
}

/// A segment as an array of pages.
fn expand(segment: &Segment, page: usize) -> Result<BasisPages> {
    let mut pages = vec![None; SEGMENT_PAGES];
    let mut ids = segment.ids.chunks_exact(8);
    for extent in &segment.extents {
        for n in 0..extent.len / page as u64 {
            let offset = n * page as u64;
            let slot = pages.get_mut(((extent.at - segment.at + offset) / page as u64) as usize);
            let mut id = [0; 8];
            id.copy_from_slice(ids.next().context("index: ids cut short")?);
            let one = Extent { at: extent.at + offset, len: page as u64, from: extent.from + offset, ..*extent };
            *slot.context("index: extent beyond its segment")? = Some((one, id));
        }
    }
    Ok(BasisPages { at: segment.at, pages })
}
