//! Reading several layers as one: for each path the newest entry, for each position the newest extent below the limits.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

use super::layer::LayerReader;
use super::line::{EntriesLine, Extent, PackLine, Segment, id_bytes};
use crate::entry::{Entry, Name};
use crate::limits::{LAYERS_MAX, SEGMENT_PAGES};
use crate::repository::snapshot::Layer;

/// An entry as the layers together tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedEntry {
    pub path: Name,
    /// `None`: gone. Only met when the oldest layers are not among those merged.
    pub entry: Option<Entry>,
    /// What layers older than those merged still contribute, in bytes.
    pub inherit: u64,
}

/// A cursor over merged layers, the oldest first.
pub struct Merge {
    layers: Vec<LayerReader>,
    current: Option<Current>,
}

struct Current {
    path: Name,
    page: Option<u32>,
    size: u64,
    /// By layer: positions at or beyond this do not count.
    limits: Vec<u64>,
}

impl Merge {
    pub fn new(layers: Vec<LayerReader>) -> Merge {
        Merge { layers, current: None }
    }

    /// The next entry in path order; data of the one before that was not read is passed over.
    pub fn next_entry(&mut self) -> Result<Option<MergedEntry>> {
        while self.next_segment()?.is_some() {}
        let mut path: Option<Name> = None;
        for layer in &mut self.layers {
            if let Some(line) = layer.peek()?
                && path.as_ref().is_none_or(|p| line.path() < p)
            {
                path = Some(line.path().clone());
            }
        }
        let Some(path) = path else { return Ok(None) };
        let mut newest: Option<Option<Box<Entry>>> = None;
        let mut limit = u64::MAX;
        let mut limits = vec![0; self.layers.len()];
        for (i, layer) in self.layers.iter_mut().enumerate().rev() {
            limits[i] = limit;
            if layer.peek()?.is_none_or(|line| *line.path() != path) {
                continue;
            }
            match layer.take() {
                Some(EntriesLine::Entry { entry, inherit }) => {
                    limit = limit.min(inherit);
                    newest.get_or_insert(Some(entry));
                }
                Some(EntriesLine::Gone(_)) => {
                    limit = 0;
                    newest.get_or_insert(None);
                }
                _ => bail!("index: data of {path} without its entry"),
            }
        }
        let entry = newest.flatten().map(|entry| *entry);
        let (page, size) = entry.as_ref().map_or((None, 0), |e| (e.page, e.size));
        self.current = Some(Current { path: path.clone(), page, size, limits });
        Ok(Some(MergedEntry { path, entry, inherit: if limit == u64::MAX { 0 } else { limit } }))
    }

    /// The next data of the current entry, in ascending order; `None` at its end.
    pub fn next_segment(&mut self) -> Result<Option<Segment>> {
        let Some(current) = &self.current else { return Ok(None) };
        loop {
            let mut at: Option<u64> = None;
            for layer in &mut self.layers {
                if let Some(EntriesLine::Data { path, segment }) = layer.peek()?
                    && *path == current.path
                {
                    at = Some(at.map_or(segment.at, |a| a.min(segment.at)));
                }
            }
            let Some(at) = at else {
                self.current = None;
                return Ok(None);
            };
            let mut parts = Vec::new();
            for (i, layer) in self.layers.iter_mut().enumerate() {
                let here = matches!(layer.peek()?, Some(EntriesLine::Data { path, segment }) if *path == current.path && segment.at == at);
                if here && let Some(EntriesLine::Data { segment, .. }) = layer.take() {
                    let limit = current.limits[i].min(current.size);
                    // Only then can the segment count; what does not count need not even fit the present page size.
                    if at < limit {
                        segment.check(current.page).with_context(|| format!("index: {} at {at}", current.path))?;
                        parts.push((segment, limit));
                    }
                }
            }
            let merged =
                overlay(current.page, at, parts).with_context(|| format!("index: {} at {at}", current.path))?;
            if !merged.extents.is_empty() {
                return Ok(Some(merged));
            }
        }
    }
}

/// Lays segments of one position over each other, the oldest first, each cut at its limit.
fn overlay(page: Option<u32>, at: u64, mut parts: Vec<(Segment, u64)>) -> Result<Segment> {
    let whole = |(s, limit): &(Segment, u64)| s.extents.last().is_none_or(|e| e.end() <= *limit);
    if parts.len() == 1 && whole(&parts[0]) {
        return Ok(parts.swap_remove(0).0);
    }
    let Some(page) = page else {
        // A streamed file is rewritten as a whole: inherit is 0 or its size, so layers cannot overlap.
        ensure!(parts.len() <= 1, "two layers hold the same bytes of a streamed file");
        ensure!(parts.is_empty(), "a streamed file is cut within its extents");
        return Ok(Segment::default());
    };
    let page = u64::from(page);
    let mut pages: Vec<Option<(Extent, [u8; 8])>> = vec![None; SEGMENT_PAGES];
    for (segment, limit) in &parts {
        let mut ids = segment.ids.chunks_exact(8);
        for extent in &segment.extents {
            for n in 0..extent.len / page {
                let mut id = [0; 8];
                id.copy_from_slice(ids.next().context("ids cut short")?);
                let one = Extent { at: extent.at + n * page, len: page, from: extent.from + n * page, ..*extent };
                if one.end() <= *limit {
                    let slot = pages.get_mut(((one.at - at) / page) as usize).context("extent beyond its segment")?;
                    *slot = Some((one, id));
                }
            }
        }
    }
    let mut merged = Segment { at, ..Segment::default() };
    for (one, id) in pages.into_iter().flatten() {
        match merged.extents.last_mut() {
            Some(last) if last.joins(&one) => last.len += one.len,
            _ => merged.extents.push(one),
        }
        merged.ids.extend_from_slice(&id);
    }
    debug_assert_eq!(merged.ids.len(), merged.extents.iter().map(|e| id_bytes(Some(page as u32), e)).sum::<usize>());
    Ok(merged)
}

/// How many of the newest layers to fold into one before a run adds its own: as many as keep each layer at least twice
/// the size of all newer ones together, and the number of layers logarithmic.
pub fn layers_to_fold(layers: &[Layer]) -> usize {
    let bytes = |l: &Layer| l.entries.iter().chain(&l.packs).map(|(_, size)| *size).sum::<u64>();
    let mut sizes = layers.iter().rev().map(bytes);
    let Some(mut together) = sizes.next() else { return 0 };
    // The run adds its own layer, and one more where files were lost or streams were read.
    if layers.len() + 2 > LAYERS_MAX {
        return layers.len();
    }
    let mut fold = 1;
    for size in sizes {
        if size >= 2 * together {
            break;
        }
        together += size;
        fold += 1;
    }
    fold
}

/// The pack table of a snapshot, in ascending order of pack numbers, each pack with its newest count of live bytes. Packs with no
/// live bytes are left out. `open` makes readers of the layers' `packs`, the oldest first; it is called twice, so that only the
/// counts are held in memory.
pub fn read_pack_lines(
    open: impl Fn() -> Vec<LayerReader>,
    mut each: impl FnMut(PackLine, u64) -> Result<()>,
) -> Result<()> {
    let mut live: HashMap<u64, u64> = HashMap::new();
    for mut layer in open() {
        while let Some(line) = layer.line()? {
            if let PackLine::Live { pack, live: bytes } = serde_json::from_slice(line).context("read a pack line")? {
                live.insert(pack, bytes);
            }
        }
    }
    for mut layer in open() {
        while let Some(line) = layer.line()? {
            let line: PackLine = serde_json::from_slice(line).context("read a pack line")?;
            if let PackLine::Pack { pack, .. } = line {
                let bytes =
                    live.get(&pack).copied().with_context(|| format!("index: pack {pack} without its live bytes"))?;
                if bytes > 0 {
                    each(line, bytes)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::layout::Hash;

    fn layers(sizes: &[u64]) -> Vec<Layer> {
        let layer = |size: &u64| Layer { packs: Vec::new(), entries: vec![(Hash([0; 32]), *size)] };
        sizes.iter().map(layer).collect()
    }

    #[test]
    fn layers_stay_geometric_and_few() {
        assert_eq!(layers_to_fold(&layers(&[])), 0);
        assert_eq!(layers_to_fold(&layers(&[1000, 100, 10])), 1);
        assert_eq!(layers_to_fold(&layers(&[1000, 15, 10])), 2);
        assert_eq!(layers_to_fold(&layers(&[20, 15, 10])), 3);
        let steep: Vec<u64> = (0..15).rev().map(|n| 4u64.pow(n)).collect();
        assert_eq!(layers_to_fold(&layers(&steep)), 15);
    }
}
