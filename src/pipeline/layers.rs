//! Layers around a run: those of its basis merged and looked through, and what is put above its own.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashSet};

use super::chunks::ChunkTable;
use super::pack::Place;
use super::store::{Basis, Target};
use crate::entry::{Entry, Name};
use crate::limits::LAYERS_MAX;
use crate::repository::index::{Extent, LayerReader, LayerWriter, Merge, ObjectWriter, PackLine, layers_to_fold};
use crate::repository::snapshot::{Layer, Named};

/// Interrupted runs whose entries are kept apart; more are merged.
const UNFINISHED_MAX: usize = 4;

fn readers(layers: &[Layer], target: &Target, list: impl Fn(&Layer) -> &[Named]) -> Vec<LayerReader> {
    layers.iter().map(|l| LayerReader::new(target.index.clone(), target.identities.clone(), list(l))).collect()
}

pub fn merge(layers: &[Layer], target: &Target) -> Merge {
    Merge::new(readers(layers, target, |l| &l.entries))
}

/// Notes where the chunks of the basis lie, and those of interrupted runs.
pub fn load_chunks(chunks: &ChunkTable, basis: &Basis, target: &Target) -> Result<()> {
    let place = |extent: &Extent| Place { pack: extent.pack, frame: extent.frame, from: extent.from };
    let mut merge = merge(&basis.layers, target);
    while let Some(merged) = merge.next_entry().context("read the basis's index")? {
        if merged.entry.is_none_or(|e| e.page.is_some()) {
            continue;
        }
        while let Some(segment) = merge.next_segment().context("read the basis's index")? {
            for (extent, id) in segment.extents.iter().zip(segment.ids.chunks_exact(32)) {
                chunks.insert(id, place(extent))?;
            }
        }
    }
    for mut layer in unfinished(basis, target) {
        layer
            .each_chunk(|id, extent| if basis.usable(extent.pack) { chunks.insert(id, place(&extent)) } else { Ok(()) })
            .context("read the index of an interrupted run")?;
    }
    Ok(())
}

fn unfinished(basis: &Basis, target: &Target) -> Vec<LayerReader> {
    let layers: Vec<Layer> = basis.unfinished.iter().cloned().map(only_entries).collect();
    readers(&layers, target, |l| &l.entries)
}

/// What must be read although nothing about it has changed.
#[derive(Default)]
pub struct ToRead {
    /// Files with bytes in a pack to avoid, and all that interrupted runs say anything of, since they may have stopped in the middle of any.
    pub reread: HashSet<Name>,
    /// Of these, the files of which it would not do to read changes only.
    pub whole: HashSet<Name>,
}

pub fn to_read_again(basis: &Basis, target: &Target) -> Result<ToRead> {
    let mut found = ToRead::default();
    for mut layer in unfinished(basis, target) {
        layer.each_path(|path| found.reread.extend([path.clone()])).context("read the index of an interrupted run")?;
    }
    found.whole.clone_from(&found.reread);
    if basis.avoid.is_empty() {
        return Ok(found);
    }
    let mut merge = merge(&basis.layers, target);
    while let Some(merged) = merge.next_entry()? {
        while let Some(segment) = merge.next_segment()? {
            if segment.extents.iter().any(|e| basis.avoid.contains(&e.pack)) {
                found.reread.insert(merged.path.clone());
            }
            if segment.extents.iter().any(|e| basis.leave.contains(&e.pack)) {
                found.whole.insert(merged.path.clone());
            }
        }
    }
    Ok(found)
}

/// A layer above all others with what the run's own layer could not know yet: it takes `lost` out of the snapshot, and gives `streams`
/// their sizes. Both are in path order.
pub fn amend(lost: &[Name], streams: &[Entry], target: &Target) -> Result<Layer> {
    let mut writer = LayerWriter::new(ObjectWriter::new(target.index.clone(), target.index_to.clone()));
    let mut lost = lost.iter().peekable();
    for entry in streams {
        while let Some(path) = lost.next_if(|path| **path < entry.path) {
            writer.gone(path)?;
        }
        writer.entry(entry, entry.size)?;
    }
    for path in lost {
        writer.gone(path)?;
    }
    Ok(Layer { packs: Vec::new(), entries: writer.finish()? })
}

/// The layers that a run begins with: those of the basis, the newest merged as far as keeps their sizes geometric, and below
/// `limits::LAYERS_MAX` together with the entries of interrupted runs, which stay apart: they are read again whatever they say.
pub fn ground(basis: &Basis, target: &Target) -> Result<(Vec<Layer>, Vec<Vec<Named>>)> {
    let mut unfinished = basis.unfinished.clone();
    if unfinished.len() >= UNFINISHED_MAX {
        let layers: Vec<Layer> = unfinished.drain(..).map(only_entries).collect();
        unfinished.push(fold_entries(&layers, target, basis.layers.is_empty())?);
    }
    let mut count = layers_to_fold(&basis.layers);
    if basis.layers.len() - count.saturating_sub(1) + unfinished.len() + 2 > LAYERS_MAX {
        count = basis.layers.len();
    }
    if count < 2 {
        return Ok((basis.layers.clone(), unfinished));
    }
    let (kept, folded) = basis.layers.split_at(basis.layers.len() - count);
    let whole = kept.is_empty();
    let entries = fold_entries(folded, target, whole)?;
    let packs = fold_packs(folded, target, whole)?;
    let mut layers = kept.to_vec();
    layers.push(Layer { packs, entries });
    Ok((layers, unfinished))
}

pub fn only_entries(entries: Vec<Named>) -> Layer {
    Layer { packs: Vec::new(), entries }
}

/// Merges the entries of `layers` into one list. `whole`: no layer lies below them.
fn fold_entries(layers: &[Layer], target: &Target, whole: bool) -> Result<Vec<Named>> {
    let mut writer = LayerWriter::new(ObjectWriter::new(target.index.clone(), target.index_to.clone()));
    let mut merge = merge(layers, target);
    while let Some(merged) = merge.next_entry()? {
        match &merged.entry {
            None if whole => continue,
            None => {
                writer.gone(&merged.path)?;
                continue;
            }
            Some(entry) => writer.entry(entry, if whole { 0 } else { merged.inherit })?,
        }
        while let Some(segment) = merge.next_segment()? {
            writer.data(&merged.path, &segment)?;
        }
    }
    writer.finish()
}

fn fold_packs(folded: &[Layer], target: &Target, whole: bool) -> Result<Vec<Named>> {
    let mut live: BTreeMap<u64, u64> = BTreeMap::new();
    for mut layer in readers(folded, target, |l| &l.packs) {
        while let Some(line) = layer.line()? {
            if let PackLine::Live { pack, live: bytes } = serde_json::from_slice(line).context("read a pack line")? {
                live.insert(pack, bytes);
            }
        }
    }
    let mut writer = ObjectWriter::new(target.index.clone(), target.index_to.clone());
    for mut layer in readers(folded, target, |l| &l.packs) {
        while let Some(line) = layer.line()? {
            let pack: PackLine = serde_json::from_slice(line).context("read a pack line")?;
            if matches!(pack, PackLine::Pack { .. }) && (!whole || live.get(&pack.number()).is_none_or(|l| *l > 0)) {
                writer.pack_line(&pack)?;
            }
        }
    }
    for (pack, live) in live.into_iter().filter(|(_, live)| !whole || *live > 0) {
        writer.pack_line(&PackLine::Live { pack, live })?;
    }
    writer.finish()
}
