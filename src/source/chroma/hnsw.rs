//! The files of one vector segment as hnswlib writes them (`hnswalg.h`, `saveIndex`/`persistDirty`), and whether they fit together.
//!
//! ```text
//! header.bin        100 bytes: version, offsets, numbers of elements, sizes
//! data_level0.bin   for each element: u16 links, u8 deleted, u8, links × u32, the vector, u64 label
//! length.bin        one f32 an element
//! link_lists.bin    for each element: u32 bytes, then levels × (u32 links, maxM × u32)
//! ```
//! All little-endian. The loader of hnswlib checks nothing: a bad length makes it read or allocate whatever it says.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// Elements cannot be larger than this, in bytes: a vector of 65,536 dimensions.
const ELEMENT_MAX: u64 = 1 << 20;
/// Pages of paged files, in bytes.
const PAGE_MIN: u64 = 512;
const PAGE_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    pub max_elements: u64,
    pub count: u64,
    /// Bytes of one element in `data_level0.bin`.
    pub element: u64,
    pub label_offset: u64,
    pub vector_offset: u64,
    pub max_level: i32,
    pub enter: u32,
    /// Links of an element above level 0, and on it.
    pub links: u64,
    pub links0: u64,
}

impl Header {
    pub fn read(directory: &Path) -> Result<Header> {
        let mut bytes = [0; 100];
        let mut file = File::open(directory.join("header.bin")).context("open header.bin")?;
        file.read_exact(&mut bytes).context("header.bin is torn")?;
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        ensure!(u32_at(0) == 1, "header.bin is of version {}, and only 1 is known", u32_at(0));
        let header = Header {
            max_elements: u64_at(12),
            count: u64_at(20),
            element: u64_at(28),
            label_offset: u64_at(36),
            vector_offset: u64_at(44),
            max_level: u32_at(52).cast_signed(),
            enter: u32_at(56),
            links: u64_at(60),
            links0: u64_at(68),
        };
        header.is_possible()?;
        Ok(header)
    }

    fn is_possible(&self) -> Result<()> {
        let fits = self.vector_offset == 4 + 4 * self.links0.min(ELEMENT_MAX)
            && self.vector_offset <= self.label_offset
            && self.label_offset.checked_add(8) == Some(self.element)
            && self.element <= ELEMENT_MAX
            && self.links <= self.links0
            && self.count <= self.max_elements
            && self.max_elements.checked_mul(self.element).is_some();
        ensure!(fits, "header.bin contradicts itself");
        ensure!(self.count == 0 || u64::from(self.enter) < self.count, "the entry point of the graph is no element");
        Ok(())
    }

    /// How `data_level0.bin` of so many bytes is best cut into pages: at elements, some together where they are small. `None`: it is streamed.
    pub fn page(&self, size: u64) -> Option<u32> {
        let elements = (self.element > 0 && size.is_multiple_of(self.element)).then(|| size / self.element)?;
        let least = PAGE_MIN.div_ceil(self.element);
        let together = (least..=PAGE_MAX / self.element).find(|n| elements % n == 0)?;
        u32::try_from(together * self.element).ok()
    }
}

/// One element of the index.
pub struct Element<'a> {
    pub label: u64,
    pub deleted: bool,
    /// `f32` each, little-endian.
    pub vector: &'a [u8],
}

/// Walks all files of a segment, and calls `each` for every element. Any contradiction is an error.
pub fn walk(directory: &Path, each: &mut dyn FnMut(Element) -> Result<()>) -> Result<Header> {
    let header = Header::read(directory)?;
    let open = |name: &str| File::open(directory.join(name)).with_context(|| format!("open {name}"));
    let size = |file: &File| file.metadata().map(|m| m.len()).context("look at a file");
    let (data, lengths) = (open("data_level0.bin")?, open("length.bin")?);
    ensure!(
        size(&data)? >= header.count * header.element,
        "data_level0.bin is shorter than its {} elements",
        header.count
    );
    ensure!(size(&lengths)? >= 4 * header.count, "length.bin is shorter than its {} elements", header.count);
    elements(&header, BufReader::with_capacity(1 << 20, data), each).context("data_level0.bin")?;
    upper_levels(&header, open("link_lists.bin")?).context("link_lists.bin")?;
    Ok(header)
}

fn elements(header: &Header, mut data: impl Read, each: &mut dyn FnMut(Element) -> Result<()>) -> Result<()> {
    let mut element = vec![0; usize::try_from(header.element)?];
    let (vector, label) = (usize::try_from(header.vector_offset)?, usize::try_from(header.label_offset)?);
    for n in 0..header.count {
        data.read_exact(&mut element).context("it is torn")?;
        let links = u64::from(u16::from_le_bytes([element[0], element[1]]));
        ensure!(links <= header.links0, "element {n} has {links} links, at most {} are possible", header.links0);
        linked(&element[4..4 + 4 * usize::try_from(links)?], header.count).with_context(|| format!("element {n}"))?;
        let name: [u8; 8] = element[label..label + 8].try_into()?;
        each(Element {
            label: u64::from_le_bytes(name),
            deleted: element[2] & 1 == 1,
            vector: &element[vector..label],
        })?;
    }
    Ok(())
}

fn upper_levels(header: &Header, file: File) -> Result<()> {
    let level = 4 + 4 * header.links;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut bytes = Vec::new();
    for n in 0..header.count {
        let mut length = [0; 4];
        file.read_exact(&mut length).with_context(|| format!("it ends before element {n} of {}", header.count))?;
        let length = u64::from(u32::from_le_bytes(length));
        let levels = length / level;
        let most = u64::try_from(header.max_level).unwrap_or(0);
        ensure!(
            length % level == 0 && levels <= most,
            "element {n} has {length} bytes of links on at most {most} levels"
        );
        bytes.resize(usize::try_from(length)?, 0);
        file.read_exact(&mut bytes).with_context(|| format!("it ends within element {n}"))?;
        for list in bytes.chunks_exact(usize::try_from(level)?) {
            let links = usize::from(u16::from_le_bytes([list[0], list[1]]));
            ensure!(links as u64 <= header.links, "element {n} has {links} links on an upper level");
            linked(&list[4..4 + 4 * links], header.count).with_context(|| format!("element {n}"))?;
        }
    }
    // What follows is left over from a longer file: the loader does not read it either.
    file.stream_position().map(drop).context("read on")
}

fn linked(list: &[u8], count: u64) -> Result<()> {
    let stray = list.chunks_exact(4).find(|n| u64::from(u32::from_le_bytes([n[0], n[1], n[2], n[3]])) >= count);
    ensure!(stray.is_none(), "it is linked to an element that does not exist");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_elements() {
        let header = |element| Header {
            max_elements: 0,
            count: 0,
            element,
            label_offset: 0,
            vector_offset: 0,
            max_level: 0,
            enter: 0,
            links: 16,
            links0: 32,
        };
        assert_eq!(header(1676).page(1676 * 1201), Some(1676));
        assert_eq!(header(204).page(204 * 2000), Some(816));
        assert_eq!(header(204).page(204 * 2003), None);
        assert_eq!(header(1676).page(1676 * 10 + 1), None);
        assert_eq!(header(0).page(0), None);
        assert_eq!(header(100_000).page(100_000 * 7), None);
    }
}
