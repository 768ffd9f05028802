//! Members of the server's tar streams, one after another. Before version 15 the two blocks of zeros at the end are missing.

use anyhow::{Context, Result, ensure};
use tar::{EntryType, Header};

use super::feed::Feed;

const BLOCK: usize = 512;

/// One member, its contents still to be read.
pub struct Member {
    /// Relative, without `./` before and `/` after it.
    pub path: Vec<u8>,
    pub kind: EntryType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub user: Vec<u8>,
    pub group: Vec<u8>,
    pub mtime: i64,
    pub size: u64,
}

/// A cursor over the members of the feed's current archive.
#[derive(Default)]
pub struct Members {
    /// Bytes of the current member that are not yet read, and its padding.
    left: u64,
    padding: u64,
}

impl Members {
    /// The next member; `None` at the archive's end. What was not read of the one before is passed over.
    pub fn next(&mut self, feed: &mut Feed) -> Result<Option<Member>> {
        let mut rest = [0; 8 * BLOCK];
        while self.read(feed, &mut rest)? > 0 {}
        let mut header = Header::new_old();
        if !fill(feed, header.as_mut_bytes())? || header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let member = parse(&header).context("read the header of a file in the backup")?;
        self.left = member.size;
        self.padding = member.size.next_multiple_of(BLOCK as u64) - member.size;
        Ok(Some(member))
    }

    /// Bytes of the current member: fills `buffer` unless the member ends first; 0 at its end.
    pub fn read(&mut self, feed: &mut Feed, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut filled = 0;
        while filled < wanted {
            let n = feed.read(&mut buffer[filled..wanted])?;
            ensure!(n > 0, "an archive ends within a file");
            filled += n;
        }
        self.left -= filled as u64;
        if self.left == 0 && self.padding > 0 {
            let mut zeros = [0; BLOCK];
            let padding = std::mem::take(&mut self.padding) as usize;
            ensure!(fill(feed, &mut zeros[..padding])?, "an archive ends within a file");
        }
        Ok(filled)
    }
}

/// False if the archive has ended; an error if it ends within `buffer`.
fn fill(feed: &mut Feed, buffer: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let n = feed.read(&mut buffer[filled..])?;
        if n == 0 {
            ensure!(filled == 0, "an archive is cut short");
            return Ok(false);
        }
        filled += n;
    }
    Ok(true)
}

fn parse(header: &Header) -> Result<Member> {
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
        .sum();
    ensure!(header.cksum()? == sum, "its checksum is wrong");
    let path = header.path_bytes();
    let path = path.strip_prefix(b"./").unwrap_or(&path);
    let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
    let kind = header.entry_type();
    Ok(Member {
        path,
        kind,
        mode: header.mode()? & 0o7777,
        uid: u32::try_from(header.uid()?)?,
        gid: u32::try_from(header.gid()?)?,
        user: header.username_bytes().unwrap_or_default().to_vec(),
        group: header.groupname_bytes().unwrap_or_default().to_vec(),
        mtime: i64::try_from(header.mtime()?)?,
        size: if kind == EntryType::Regular { header.size()? } else { 0 },
    })
}
