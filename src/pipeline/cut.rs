//! Content-defined cutting of streams: a gear hash over a keyed table (public tables make chunk lengths a fingerprint),
//! with a stricter mask before the average length and a looser one after it, so that lengths cluster around it.

use sha2::{Digest, Sha256};

use crate::limits::Grain;

pub struct Cutter {
    gear: Box<[u64; 256]>,
    grain: Grain,
    /// High bits of the hash that must be zero at a cut: two more than the average asks before it, two fewer after.
    early: u64,
    late: u64,
}

impl Cutter {
    /// The table follows from `key` alone: cut points of one baseline agree for ever.
    pub fn new(key: &[u8; 32], grain: Grain) -> Cutter {
        let mut gear = Box::new([0u64; 256]);
        for (byte, slot) in (0u8..=255).zip(gear.iter_mut()) {
            let hash = Sha256::new_with_prefix(key).chain_update([byte]).finalize();
            let mut word = [0u8; 8];
            word.copy_from_slice(&hash[..8]);
            *slot = u64::from_le_bytes(word);
        }
        let bits = grain.average.trailing_zeros();
        Cutter { gear, grain, early: !0 << (64 - (bits + 2)), late: !0 << (64 - (bits - 2)) }
    }

    /// The greatest length of a chunk.
    pub fn max(&self) -> usize {
        self.grain.max
    }

    /// Length of the first chunk of `data`; `data` must reach [`Cutter::max`] bytes or the end of its stream.
    pub fn first(&self, data: &[u8]) -> usize {
        let Grain { min, average, max } = self.grain;
        if data.len() <= min {
            return data.len();
        }
        let early = data.len().min(average);
        let end = data.len().min(max);
        let mut hash = 0u64;
        for (i, byte) in data[min..early].iter().enumerate() {
            hash = (hash << 1).wrapping_add(self.gear[usize::from(*byte)]);
            if hash & self.early == 0 {
                return min + i + 1;
            }
        }
        for (i, byte) in data[early..end].iter().enumerate() {
            hash = (hash << 1).wrapping_add(self.gear[usize::from(*byte)]);
            if hash & self.late == 0 {
                return early + i + 1;
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let mut step = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        };
        (0..n).map(|_| step()).collect()
    }

    fn lengths(cutter: &Cutter, mut data: &[u8]) -> Vec<usize> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let n = cutter.first(data);
            out.push(n);
            data = &data[n..];
        }
        out
    }

    const GOLDEN: &[usize] =
        &[110_139, 78_337, 68_389, 70_309, 34_005, 80_501, 48_106, 72_510, 66_064, 78_009, 98_437, 86_749, 73_477];

    /// Boundaries are part of a baseline's deduplication: a change here would store every stream again.
    #[test]
    fn cut_points_never_change() {
        let cutter = Cutter::new(&[7; 32], Grain::COARSE);
        let lengths = lengths(&cutter, &noise(1 << 20));
        assert_eq!(lengths.iter().sum::<usize>(), 1 << 20);
        assert_eq!(&lengths[..GOLDEN.len()], GOLDEN, "{lengths:?}");
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        for grain in [Grain::COARSE, Grain::FINE] {
            moves_few_cuts(grain);
        }
    }

    fn moves_few_cuts(grain: Grain) {
        let cutter = Cutter::new(&[1; 32], grain);
        let data = noise(4 << 20);
        let mut edited = data.clone();
        edited.splice(1_000_000..1_000_000, *b"inserted");
        let ends = |data: &[u8]| {
            let mut end = 0;
            lengths(&cutter, data)
                .into_iter()
                .map(move |n| {
                    end += n;
                    end
                })
                .collect::<Vec<_>>()
        };
        let (a, b) = (ends(&data), ends(&edited));
        let moved = b.iter().filter(|e| !a.contains(e) && !a.contains(&e.wrapping_sub(8))).count();
        assert!(moved <= 2, "{moved} of {} cuts moved", b.len());
        let average = data.len() / a.len();
        assert!((grain.average / 2..grain.average * 2).contains(&average), "average {average}");
    }
}
