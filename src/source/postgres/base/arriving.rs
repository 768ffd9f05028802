//! Files as they arrive: whole, or as changes, which are read as the whole that they stand for.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::blocks::{self, Changes};
use super::manifest::{Arriving, Instead};
use super::{BaseBackup, Current, FILES_MAX};
use crate::source::Piece;

/// The file that tells a server where to begin the recovery.
const LABEL: &[u8] = b"backup_label";
/// Bytes of that file; a server takes no longer one.
const LABEL_MAX: u64 = 64 << 10;

impl BaseBackup {
    /// What the snapshot has in place of a file that only makes sense together with the basis: its path, contents, and size.
    pub(super) fn take_changed(&mut self, path: &[u8], size: u64) -> Result<Option<(Vec<u8>, Current, u64)>> {
        let feed = self.feed.as_mut().context("a file without a backup (this is a bug)")?;
        let mut arriving = Arriving::new(path.to_owned());
        if path == LABEL {
            ensure!(size <= LABEL_MAX, "the server's backup_label is longer than {LABEL_MAX} bytes");
            let mut label = vec![0; size as usize];
            arriving.filling(&mut self.members, feed)(&mut label)?;
            arriving.end(&mut self.arrived);
            let label = without_increment(&label);
            let size = label.len() as u64;
            self.instead.insert(
                path.to_owned(),
                Instead { path: path.to_owned(), size, hash: Some(Sha256::digest(&label).into()) },
            );
            return Ok(Some((path.to_owned(), Current::Bytes(label), size)));
        }
        let Some(whole) = blocks::changed(path) else { return Ok(None) };
        let shown = String::from_utf8_lossy(&whole).into_owned();
        let before = self.asked.as_ref().and_then(|asked| asked.get(&whole).copied());
        let before =
            before.with_context(|| format!("the server sends changes of {shown}, which it was not asked for"))?;
        let mut fill = arriving.filling(&mut self.members, feed);
        let changes = Changes::begin(size, before, self.facts.block_size, &mut fill);
        drop(fill);
        let changes = changes.with_context(|| format!("read the changes of {shown}"))?;
        let size = changes.size();
        self.instead.insert(path.to_owned(), Instead { path: whole.clone(), size, hash: None });
        Ok(Some((whole, Current::Changes(arriving, changes), size)))
    }

    pub(super) fn read_member(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let Some(feed) = &mut self.feed else { bail!("a file after the backup's end (this is a bug)") };
        let piece = match &mut self.current {
            Some(Current::Changes(arriving, changes)) => {
                changes.read(buffer, &mut arriving.filling(&mut self.members, feed))?
            }
            Some(Current::Member(arriving)) => match self.members.read(feed, buffer)? {
                0 => Piece::End,
                n => {
                    arriving.note(&buffer[..n]);
                    Piece::Data(n)
                }
            },
            _ => return Ok(Piece::End),
        };
        if piece == Piece::End {
            ensure!(self.arrived.len() < FILES_MAX, "the cluster has more than {FILES_MAX} files");
            if let Some(Current::Changes(arriving, _) | Current::Member(arriving)) = self.current.take() {
                arriving.end(&mut self.arrived);
            }
        }
        Ok(piece)
    }
}

/// A label as that of a whole backup: a server refuses to start on any other.
fn without_increment(label: &[u8]) -> Vec<u8> {
    label
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| !line.starts_with(b"INCREMENTAL FROM "))
        .flatten()
        .copied()
        .collect()
}
