//! The bytes of one regular file, holes told apart from data.

use super::dir::open_quietly;
use super::seen::Seen;
use crate::source::Piece;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, OFlags, SeekFrom};
use rustix::io::Errno;
use std::ffi::CStr;
use std::num::NonZeroU64;

/// From this size on the kernel is told that the file will be read from front to back.
const SEQUENTIAL_FROM: u64 = 1 << 20;

pub(super) struct Content {
    file: OwnedFd,
    /// Bytes to deliver: the size that the entry promised.
    size: u64,
    at: u64,
    sparse: bool,
    /// Up to here the bytes from `at` are known to be data.
    data_end: u64,
    /// Whether the file ended before its promised size.
    pub is_short: bool,
}

impl Content {
    /// Opens `name` of `dir`. [`Errno::STALE`] if it is no longer the file that was `seen` there.
    pub fn open(dir: impl AsFd, name: &CStr, seen: &Seen) -> Result<Content, Errno> {
        // Should a fifo have taken its place, NONBLOCK keeps the open from waiting for a writer.
        let file = open_quietly(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        if !Seen::of(&file)?.is_same_file(seen) {
            return Err(Errno::STALE);
        }
        if seen.size > SEQUENTIAL_FROM {
            // Advice: a file system that ignores it is none the worse.
            rustix::fs::fadvise(&file, 0, NonZeroU64::new(seen.size), Advice::Sequential).ok();
        }
        let sparse = seen.blocks.saturating_mul(512) < seen.size;
        let data_end = if sparse { 0 } else { seen.size };
        Ok(Content { file, size: seen.size, at: 0, sparse, data_end, is_short: false })
    }

    /// [`Piece::End`] at the promised size, or before it where the file has become shorter; never more.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Piece, Errno> {
        if self.at >= self.size {
            return Ok(Piece::End);
        }
        if self.sparse && self.at >= self.data_end {
            let data = self.seek_data()?;
            if data > self.at {
                let hole = data - self.at;
                self.at = data;
                return Ok(Piece::Hole(hole));
            }
        }
        let left = usize::try_from(self.data_end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let n = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buffer[..wanted], self.at))?;
        self.at += n as u64;
        self.is_short = n == 0;
        Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
    }

    /// The file as it is now.
    pub fn seen(&self) -> Result<Seen, Errno> {
        Seen::of(&self.file)
    }

    /// Where the next data begins, at most the size; sets `data_end` to where it ends.
    fn seek_data(&mut self) -> Result<u64, Errno> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start.min(self.size),
            // No data from here on: a hole to the end. A file that shrank is noticed by its size.
            Err(Errno::NXIO) => self.size,
            // The file system cannot tell: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.sparse = false;
                self.data_end = self.size;
                return Ok(self.at);
            }
            Err(e) => return Err(e),
        };
        self.data_end = start;
        if start < self.size {
            self.data_end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
                Ok(end) => end.min(self.size),
                // Cut off since the data was found; the next read notices.
                Err(Errno::NXIO) => start,
                Err(e) => return Err(e),
            };
        }
        Ok(start)
    }
}
