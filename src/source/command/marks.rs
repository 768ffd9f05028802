//! What a stream shows of itself while it passes: its length, its hash, its first and its last bytes.

use sha2::{Digest, Sha256};

use super::options::{Stream, WINDOW};

pub(super) struct Marks {
    pub bytes: u64,
    hash: Sha256,
    first: Vec<u8>,
    /// At least the last [`WINDOW`] bytes, at most twice as many.
    last: Vec<u8>,
}

impl Marks {
    pub fn new() -> Marks {
        Marks { bytes: 0, hash: Sha256::new(), first: Vec::new(), last: Vec::new() }
    }

    pub fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
        let wanted = WINDOW - self.first.len();
        self.first.extend_from_slice(&bytes[..wanted.min(bytes.len())]);
        self.last.extend_from_slice(&bytes[bytes.len().saturating_sub(WINDOW)..]);
        if self.last.len() > 2 * WINDOW {
            self.last.drain(..self.last.len() - WINDOW);
        }
    }

    /// In hex.
    pub fn sha256(&self) -> String {
        self.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    pub fn has_magic(&self, stream: &Stream) -> bool {
        stream.magic.as_ref().is_none_or(|magic| self.first.starts_with(&magic.0))
    }

    pub fn has_end_marker(&self, stream: &Stream) -> bool {
        let last = &self.last[self.last.len().saturating_sub(WINDOW)..];
        stream.end_marker.as_ref().is_none_or(|marker| last.windows(marker.len()).any(|w| w == marker.as_bytes()))
    }

    /// The first bytes, for people.
    pub fn begin(&self) -> String {
        self.first.iter().take(16).map(|b| b.escape_ascii().to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_however_the_stream_is_cut() {
        let stream: Stream =
            toml::from_str("file = \"a\"\ndump = [\"x\"]\nmagic = \"PGDMP\"\nend_marker = \"-- done\"\n").unwrap();
        let mut text = b"PGDMP".to_vec();
        text.resize(20_000, b'x');
        text.extend_from_slice(b"-- done\n");
        for cut in [1, 3, 4095, 4096, 4097, 30_000] {
            let mut marks = Marks::new();
            text.chunks(cut).for_each(|piece| marks.pass(piece));
            assert!(marks.has_magic(&stream) && marks.has_end_marker(&stream), "{cut}");
            assert_eq!(marks.bytes, text.len() as u64);
            marks.pass(&[b'y'; WINDOW]);
            assert!(!marks.has_end_marker(&stream), "a marker far from the end counts");
        }
        let mut marks = Marks::new();
        marks.pass(b"PGDM");
        assert!(!marks.has_magic(&stream) && !marks.has_end_marker(&stream));
        assert_eq!(marks.sha256(), "5b0e78d010f84bf8513fa3f5453ff2cd4abbb1d5b4e3017843d29feac4587600");
    }
}
