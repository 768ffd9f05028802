//! A relation file of which only the changed blocks were sent: `INCREMENTAL.<file>`. (PostgreSQL, `src/backend/backup/basebackup_incremental.c`; how it is
//! to be read is in `src/bin/pg_combinebackup/reconstruct.c`.)
//!
//! It begins with four-byte numbers in the server's byte order: a magic number, how many blocks follow, a length in blocks, and the number of each
//! block; where there are blocks, zeros up to a whole block, and then the blocks themselves. Below the length, blocks that did not come are those of the
//! basis, or zeros where the basis ends before; at and above it, blocks that did not come are zeros. The file ends with the length or with the last block.

use anyhow::{Result, ensure};

use crate::source::Piece;

/// What the server puts before the name of the file.
pub const PREFIX: &[u8] = b"INCREMENTAL.";
const MAGIC: u32 = 0xd3ae_1f0d;
/// Blocks of one file: a segment of 1 GB has 131,072 of 8 KiB.
const BLOCKS_MAX: u32 = 1 << 22;

/// Takes bytes from the server until the buffer is full.
pub type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;

/// The path of the file that a file of changes is of.
pub fn changed(path: &[u8]) -> Option<Vec<u8>> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let name = path[at..].strip_prefix(PREFIX)?;
    let path = [&path[..at], name].concat();
    super::super::is_relation(&path).then_some(path)
}

/// The reading of such a file as the whole that it stands for.
#[derive(Debug)]
pub struct Changes {
    /// Bytes of a block.
    block: u64,
    /// Numbers of the blocks that come, ascending; those before `next` have been read.
    sent: Vec<u32>,
    next: usize,
    /// The block that is read next.
    at: u32,
    /// Below this, what does not come is as in the basis; it ends no later than the basis.
    kept: u32,
    length: u32,
}

impl Changes {
    /// Reads the beginning of a file of `size` bytes, of changes to one that has `before` bytes in the basis.
    pub fn begin(size: u64, before: u64, block: u32, fill: Fill) -> Result<Changes> {
        let [magic, count, kept] = numbers(&mut [0; 12], fill)?[..] else {
            unreachable!("twelve bytes are three numbers")
        };
        ensure!(magic == MAGIC, "it does not begin as a file of changes does");
        ensure!(count <= BLOCKS_MAX && kept <= BLOCKS_MAX, "it speaks of more than {BLOCKS_MAX} blocks");
        let block = u64::from(block);
        let mut header = 12 + 4 * u64::from(count);
        let sent = numbers(&mut vec![0; 4 * count as usize], fill)?;
        ensure!(sent.is_sorted_by(|a, b| a < b), "its blocks are in no order");
        ensure!(sent.last().is_none_or(|last| *last < BLOCKS_MAX), "it speaks of more than {BLOCKS_MAX} blocks");
        if count > 0 {
            let padding = header.next_multiple_of(block) - header;
            fill(&mut vec![0; padding as usize])?;
            header += padding;
        }
        ensure!(size == header + u64::from(count) * block, "its length is not that of what it lists");
        let length = sent.last().map_or(kept, |last| kept.max(last + 1));
        let kept = u64::from(kept).min(before / block) as u32;
        Ok(Changes { block, sent, next: 0, at: 0, kept, length })
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        u64::from(self.length) * self.block
    }

    /// The next part of the whole file, into a buffer with room for at least a block.
    pub fn read(&mut self, buffer: &mut [u8], fill: Fill) -> Result<Piece> {
        let room = (buffer.len() as u64 / self.block).min(u64::from(BLOCKS_MAX)) as u32;
        let upcoming = self.sent.get(self.next).copied().unwrap_or(self.length);
        if self.at == self.length {
            return Ok(Piece::End);
        }
        if self.at == upcoming {
            let run = (0..room).zip(&self.sent[self.next..]).take_while(|(n, sent)| self.at + n == **sent).count();
            let bytes = run * self.block as usize;
            fill(&mut buffer[..bytes])?;
            self.next += run;
            self.at += run as u32;
            return Ok(Piece::Data(bytes));
        }
        if self.at < self.kept {
            let run = upcoming.min(self.kept) - self.at;
            self.at += run;
            return Ok(Piece::Same(u64::from(run) * self.block));
        }
        let run = (upcoming - self.at).min(room);
        let bytes = run as usize * self.block as usize;
        buffer[..bytes].fill(0);
        self.at += run;
        Ok(Piece::Data(bytes))
    }
}

fn numbers(bytes: &mut [u8], fill: Fill) -> Result<Vec<u32>> {
    fill(bytes)?;
    // The server and whatever restores the snapshot have the same byte order, and we most likely too: another magic number says if not.
    Ok(bytes.chunks_exact(4).map(|four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 16;

    fn file(sent: &[u32], kept: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            [MAGIC, sent.len() as u32, kept].iter().chain(sent).flat_map(|n| n.to_ne_bytes()).collect();
        if !sent.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        bytes.extend(sent.iter().flat_map(|n| [*n as u8; BLOCK as usize]));
        bytes
    }

    type Pieces = Vec<(Piece, Vec<u8>)>;

    /// The whole of a file that has 8 blocks in the basis.
    fn read(file: &[u8]) -> Result<(u64, Pieces)> {
        let mut left = file;
        let mut fill = |buffer: &mut [u8]| {
            ensure!(buffer.len() <= left.len(), "cut short");
            let (now, later) = left.split_at(buffer.len());
            buffer.copy_from_slice(now);
            left = later;
            Ok(())
        };
        let mut changes = Changes::begin(file.len() as u64, 8 * u64::from(BLOCK), BLOCK, &mut fill)?;
        let mut pieces = Vec::new();
        loop {
            let mut buffer = vec![9; 3 * BLOCK as usize + 5];
            match changes.read(&mut buffer, &mut fill)? {
                Piece::End => return Ok((changes.size(), pieces)),
                piece => {
                    let bytes = if let Piece::Data(n) = piece { buffer[..n].to_vec() } else { Vec::new() };
                    pieces.push((piece, bytes));
                }
            }
        }
    }

    #[test]
    fn a_file_of_changes_is_read_as_the_whole() {
        let b = BLOCK as usize;
        let of = |numbers: &[u8]| numbers.iter().flat_map(|n| [*n; 16]).collect::<Vec<u8>>();
        let (size, pieces) = read(&file(&[1, 2, 5, 8], 7)).unwrap();
        assert_eq!(size, 9 * 16);
        let expected = vec![
            (Piece::Same(16), vec![]),
            (Piece::Data(2 * b), of(&[1, 2])),
            (Piece::Same(32), vec![]),
            (Piece::Data(b), of(&[5])),
            (Piece::Same(16), vec![]),
            // Behind the length, what did not come is zero, and never the basis's.
            (Piece::Data(b), of(&[0])),
            (Piece::Data(b), of(&[8])),
        ];
        assert_eq!(pieces, expected);
        assert_eq!(read(&file(&[], 4)).unwrap(), (64, vec![(Piece::Same(64), vec![])]));
        assert_eq!(read(&file(&[], 0)).unwrap(), (0, vec![]));
        let beyond = vec![(Piece::Same(8 * 16), vec![]), (Piece::Data(2 * b), of(&[0, 0]))];
        assert_eq!(read(&file(&[], 10)).unwrap(), (160, beyond), "the basis ends before");
        let (_, pieces) = read(&file(&[0, 1, 2, 3, 4], 5)).unwrap();
        assert_eq!(pieces.len(), 2, "no more than there is room for");
    }

    #[test]
    fn what_is_no_file_of_changes_is_refused() {
        let good = file(&[1, 2], 7);
        let broken = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            read(&bytes)
        };
        assert!(read(&good).is_ok());
        assert!(broken(0, 1).is_err(), "magic");
        assert!(broken(4, 3).is_err(), "count");
        assert!(broken(12, 5).is_err(), "order");
        assert!(broken(10, 255).is_err(), "too many");
        assert!(read(&good[..good.len() - 1]).is_err(), "cut short");
    }

    #[test]
    fn names_are_those_of_relations() {
        assert_eq!(changed(b"base/5/INCREMENTAL.1259_vm.1").unwrap(), b"base/5/1259_vm.1");
        assert_eq!(changed(b"global/INCREMENTAL.1260").unwrap(), b"global/1260");
        assert!(changed(b"base/5/1259").is_none() && changed(b"INCREMENTAL.conf").is_none());
    }
}
