//! One file of a live cluster, read page by page or as it is; always as many bytes as were promised, and ahead where it is long.

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::ahead::{Ahead, BLOCK, Block, Pool};
use super::page::{self, Verdict};
use crate::entry::Stat;

/// How often a page with a wrong checksum is read again: a torn page is whole a moment later.
const TRIES: u32 = 5;
/// Pages of a segment of a relation: 1 GB.
const SEGMENT_BYTES: u64 = 1 << 30;

/// An open file, and what was promised of it.
pub struct Reading {
    file: Arc<File>,
    pub size: u64,
    pub stat: Stat,
    at: u64,
    pages: Option<Pages>,
    ahead: Ahead,
    /// The block that is being taken, and how much of it was.
    block: (Vec<u8>, usize),
}

/// How the pages of a file are checked.
#[derive(Clone, Copy)]
pub struct Pages {
    pub size: u32,
    /// The number of the file's first block.
    pub first: u32,
    /// Pages changed at or after this LSN are in the WAL as a whole, whatever was read of them.
    pub start: u64,
}

impl Reading {
    pub fn open(path: &Path) -> std::io::Result<Reading> {
        let file = File::open(path)?;
        let m = file.metadata()?;
        let stat = Stat(m.dev(), m.ino(), m.ctime(), u32::try_from(m.ctime_nsec()).unwrap_or(0));
        let ahead = Ahead::default();
        Ok(Reading { file: Arc::new(file), size: m.len(), stat, at: 0, pages: None, ahead, block: (Vec::new(), 0) })
    }

    /// The first bytes of the file, whatever was read.
    pub fn first_bytes(&self) -> Result<[u8; 16]> {
        let mut first = [0; 16];
        fill(&self.file, &mut first, 0)?;
        Ok(first)
    }

    pub fn check_pages(&mut self, pages: Pages) {
        self.pages = Some(pages);
    }

    /// Reads on into `buffer`, as far as the promised size goes; nothing at the end. The second number counts pages that are damaged.
    pub fn read(&mut self, buffer: &mut [u8], pool: &Pool) -> Result<(usize, u64)> {
        let wanted = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        if self.size <= BLOCK as u64 {
            let damaged = read_at(&self.file, buffer, self.at, self.pages)?;
            self.at += wanted as u64;
            return Ok((wanted, damaged));
        }
        let mut found = 0;
        if self.block.1 == self.block.0.len() {
            let Some(Block { bytes, damaged }) = self.ahead.next(pool, &self.file, self.size, self.pages)? else {
                return Ok((0, 0));
            };
            self.block = (bytes, 0);
            found = damaged;
        }
        let (block, taken) = &mut self.block;
        let n = wanted.min(block.len() - *taken);
        buffer[..n].copy_from_slice(&block[*taken..*taken + n]);
        *taken += n;
        self.at += n as u64;
        Ok((n, found))
    }
}

/// Reads whole pages at `at`. What the file lacks meanwhile is zero: it was truncated, and the WAL says so. Gives the number of pages that are damaged.
pub fn read_at(file: &File, buffer: &mut [u8], at: u64, pages: Option<Pages>) -> Result<u64> {
    let got = fill(file, buffer, at)?;
    buffer[got..].fill(0);
    let Some(pages) = pages else { return Ok(0) };
    let mut damaged = 0;
    for (n, page) in buffer.chunks_exact_mut(pages.size as usize).enumerate() {
        let at = at + (n * pages.size as usize) as u64;
        damaged += u64::from(!is_sound(file, page, at, pages)?);
    }
    Ok(damaged)
}

fn is_sound(file: &File, page: &mut [u8], at: u64, pages: Pages) -> Result<bool> {
    let block = pages.first + (at / u64::from(pages.size)) as u32;
    for _ in 0..TRIES {
        if page::check(page, block) != Verdict::Wrong || page::lsn(page) >= pages.start {
            return Ok(true);
        }
        let got = fill(file, page, at)?;
        page[got..].fill(0);
    }
    Ok(page::check(page, block) != Verdict::Wrong)
}

/// The number of the first block of a file: `.3` is the fourth segment of 1 GB.
pub fn first_block(name: &[u8], page: u32) -> u32 {
    let segment = std::str::from_utf8(name).ok().and_then(|name| name.rsplit_once('.')?.1.parse::<u64>().ok());
    segment.map_or(0, |n| (n * SEGMENT_BYTES / u64::from(page)) as u32)
}

/// Reads at `at` until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("read a file of the cluster"),
        }
    }
    Ok(filled)
}
