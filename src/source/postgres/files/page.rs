//! Checksums of pages as PostgreSQL computes them (`src/include/storage/checksum_impl.h`): 32 interleaved FNV-1a sums over the page with its checksum
//! field zeroed, folded together, mixed with the block number.

use std::ops::BitXor;

const SUMS: usize = 32;
const PRIME: u32 = 16_777_619;
const BASES: [u32; SUMS] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, 0xF8D4474F,
    0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC,
    0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6,
    0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// What a page says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Sound,
    /// Never written (its header is all zeros): it has no checksum.
    New,
    Wrong,
}

/// Checks one page. `block` counts from the relation's beginning, over all segments of its fork.
pub fn check(page: &[u8], block: u32) -> Verdict {
    let Some(stored) = page.get(8..10).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes) else {
        return Verdict::Wrong;
    };
    // pd_upper.
    if page[14..16] == [0, 0] {
        return Verdict::New;
    }
    if checksum(page, block) == stored { Verdict::Sound } else { Verdict::Wrong }
}

/// The LSN of the last change to a page, as its header has it.
pub fn lsn(page: &[u8]) -> u64 {
    let half = |at: usize| page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    u64::from(half(0)) << 32 | u64::from(half(4))
}

fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASES;
    for (row, bytes) in page.chunks_exact(4 * SUMS).enumerate() {
        for (column, (sum, word)) in sums.iter_mut().zip(bytes.chunks_exact(4)).enumerate() {
            let mut word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            // pd_checksum is the low half of the third word.
            if row == 0 && column == 2 {
                word &= 0xffff_0000;
            }
            *sum = step(*sum, word);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = step(*sum, 0);
        }
    }
    let folded = sums.into_iter().fold(0, u32::bitxor) ^ block;
    // Never zero.
    (folded % 65_535 + 1) as u16
}

fn step(sum: u32, word: u32) -> u32 {
    let mixed = sum ^ word;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pages_have_none_and_any_change_shows() {
        let mut page = vec![0u8; 8192];
        assert_eq!(check(&page, 0), Verdict::New);
        page[14] = 0x20;
        let sum = checksum(&page, 7);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(check(&page, 7), Verdict::Sound);
        assert_eq!(check(&page, 8), Verdict::Wrong, "another block");
        page[8191] ^= 1;
        assert_eq!(check(&page, 7), Verdict::Wrong);
    }
}
