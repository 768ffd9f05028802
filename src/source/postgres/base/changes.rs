//! Asking the server for what has changed since the basis, in place of everything (PostgreSQL 17 and later): the server is given a manifest of the basis's
//! relation files, and sends of these only the blocks that its WAL summaries name. (PostgreSQL manual, "Incremental Backup" and, in "Streaming Replication
//! Protocol", UPLOAD_MANIFEST.)
//!
//! The manifest is made of the basis's own index, so that what the server may leave out is just what can be taken over from there. Whatever speaks
//! against it is a reason to read everything, never an error. What must hold:
//!
//! * The basis is whole, of the same cluster, and of the same timeline. Across a promotion servers up to 17.11 and 18.6 may leave out blocks that have
//!   changed (PostgreSQL commits f549ecd2660, 316861101e8).
//! * The server's history is the basis's own. A machine that was put back to an older state has the same identifier and timeline, and other WAL: but a summary
//!   begins exactly where a backup began, and, after a restart, none within the basis's backup.
//! * Blocks behind the point to which a relation was truncated meanwhile may be neither in the WAL nor the basis's; the segment with that point is left out of
//!   the manifest, and so comes whole. Which these are can be told for sure only once the server has begun: so it may have to begin twice.
//! * Visibility maps are left out as well: not every change to them is told apart in the WAL, and they are small.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

use super::begin::once_there_is_a_place;
use super::feed::Feed;
use crate::source::BasisFiles;
use crate::source::postgres::client::{Address, Client, Event, Row};
use crate::source::postgres::server::{self, Facts};
use crate::source::postgres::wal::Lsn;

/// The first version that tells.
const TOLD_FROM: u32 = 170_000;
/// How often a backup is begun before too much is being truncated.
const TRIES: u32 = 3;
/// Bytes of a manifest that are sent at once.
const SEND_BYTES: usize = 64 << 10;

/// A basis that the server may compare with.
pub struct Ground {
    system: u64,
    timeline: u32,
    start: Lsn,
    end: Lsn,
    /// When the basis's server was started.
    started: Option<String>,
    /// Relation files of the basis, with their sizes.
    files: HashMap<Vec<u8>, u64>,
}

/// A backup of which some files come as changes.
pub struct Begun {
    pub feed: Feed,
    /// The files that may, with their sizes in the basis.
    pub asked: HashMap<Vec<u8>, u64>,
    /// The LSN from which on they tell what changed.
    pub since: String,
}

impl Ground {
    /// `before` are the facts of the basis, `now` those of the server.
    pub fn find(before: Option<&Facts>, now: &Facts, basis: &BasisFiles) -> Result<Ground> {
        ensure!(
            now.version >= TOLD_FROM,
            "PostgreSQL {} cannot tell what has changed: that begins with 17",
            now.version / 10_000
        );
        let before = before.context("the last snapshot does not say what it is of")?;
        ensure!(before.system == now.system, "the last snapshot is of another cluster");
        ensure!(before.timeline == now.timeline, "the server has been promoted since the last snapshot");
        ensure!(before.checksum_failures.is_none(), "the last snapshot has damaged pages");
        let mut files = HashMap::new();
        basis(&mut |entry| {
            let path = entry.path.as_bytes();
            let taken = entry.page == Some(now.block_size)
                && entry.size > 0
                && super::super::is_relation(path)
                && !is_map(path);
            ensure!(files.len() < super::FILES_MAX, "the cluster has more than {} files", super::FILES_MAX);
            files.extend(taken.then(|| (path.to_owned(), entry.size)));
            Ok(())
        })?;
        Ok(Ground {
            system: now.system.parse().context("the server's identifier is no number")?,
            timeline: now.timeline,
            start: before.start_lsn.parse().context("where the last snapshot began")?,
            end: before.end_lsn.parse().context("where the last snapshot ended")?,
            started: before.server_started.clone(),
            files,
        })
    }

    /// Begins a backup of changes. An `Err` is why there cannot be one.
    pub fn begin(&self, mut walsender: Client, address: &Address) -> Result<Begun> {
        let mut sql = server::sql(address).with_context(|| {
            format!("{} is let in for replication only, and cannot look at the WAL summaries", address.user)
        })?;
        ensure!(
            sql.value("show summarize_wal")?.as_deref() == Some("on"),
            "summarize_wal is off on the server, so that it cannot tell what has changed"
        );
        let mut left_out = self.truncated(&mut sql, None)?;
        for _ in 0..TRIES {
            let asked = self.upload(&mut walsender, &left_out)?;
            let feed = Feed::start_with_changes(walsender)?;
            let (at, timeline) = &feed.start;
            ensure!(*timeline == self.timeline, "the server has been promoted since the last snapshot");
            self.same_history(&mut sql)?;
            let truncated = self.truncated(&mut sql, Some(at))?;
            if truncated.is_subset(&left_out) {
                return Ok(Begun { feed, asked, since: self.start.to_string() });
            }
            left_out.extend(truncated);
            feed.abandon();
            walsender = once_there_is_a_place(address)?;
            walsender.patience = super::super::CHECKPOINT_MAX;
        }
        bail!("relations are being truncated all the time")
    }

    /// Whether the server's WAL is that in which the basis was taken.
    fn same_history(&self, sql: &mut Client) -> Result<()> {
        let rows = sql.rows(&format!(
            "select count(*) filter (where start_lsn = '{0}'), count(*) filter (where start_lsn > '{0}' and start_lsn < '{1}'), \
             extract(epoch from pg_postmaster_start_time()) from pg_available_wal_summaries() where tli = {2}",
            self.start, self.end, self.timeline
        ))?;
        let row = rows.one()?;
        let (begins, within) = (row.parse::<u64>(0)?, row.parse::<u64>(1)?);
        ensure!(
            begins == 1,
            "the server knows of no checkpoint where the last snapshot began: it may have been put back to an older state"
        );
        let is_same_run = row.text(2)?.is_some_and(|started| self.started.as_deref() == Some(started));
        ensure!(
            is_same_run || within == 0,
            "the server was started again, and whether before or after the last snapshot cannot be told"
        );
        Ok(())
    }

    /// The files in which relations were truncated since the basis began, as [`place`] has them; up to `end`, or as far as is known yet.
    fn truncated(&self, sql: &mut Client, end: Option<&str>) -> Result<HashSet<Vec<u8>>> {
        let setting = sql.value("select setting from pg_settings where name = 'segment_size'")?;
        let segment: u64 =
            setting.context("the server does not tell segment_size")?.parse().context("read segment_size")?;
        ensure!(segment > 0, "a segment of no blocks");
        let up_to = end.map(|end| format!("and s.start_lsn < '{end}'")).unwrap_or_default();
        let rows = sql.rows(&format!(
            "select distinct c.reltablespace, c.reldatabase, c.relfilenode, c.relforknumber, c.relblocknumber from pg_available_wal_summaries() s, \
             lateral pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
             where c.is_limit_block and c.relblocknumber > 0 and s.tli = {} and s.end_lsn > '{}' {up_to}",
            self.timeline, self.start
        ));
        let rows = rows.context("look at the WAL summaries")?;
        let file = |row: &Row| -> Result<Vec<u8>> {
            let directory = match row.parse(0)? {
                1663u32 => format!("base/{}", row.parse::<u32>(1)?),
                1664 => "global".to_owned(),
                tablespace => format!("pg_tblspc/{tablespace}/{}", row.parse::<u32>(1)?),
            };
            let fork = ["", "_fsm", "_vm", "_init"].get(row.parse::<usize>(3)?).context("an unknown fork")?;
            let number = match row.parse::<u64>(4)? / segment {
                0 => String::new(),
                n => format!(".{n}"),
            };
            Ok(format!("{directory}/{}{fork}{number}", row.parse::<u32>(2)?).into_bytes())
        };
        rows.rows.iter().map(file).collect()
    }

    /// Tells the server which files it may send as changes. Gives their paths and sizes.
    fn upload(&self, walsender: &mut Client, left_out: &HashSet<Vec<u8>>) -> Result<HashMap<Vec<u8>, u64>> {
        walsender.begin("UPLOAD_MANIFEST")?;
        let event = walsender.next()?;
        ensure!(event == Event::CopyIn, "the server answers UPLOAD_MANIFEST with {event:?}");
        let mut out = Upload { walsender, hash: Sha256::new(), text: String::new() };
        let mut asked = HashMap::new();
        let mut before = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {},\n\"Files\": [\n",
            self.system
        );
        for (path, size) in &self.files {
            if left_out.contains(&place(path)) {
                continue;
            }
            let text = std::str::from_utf8(path).context("the path of a relation")?;
            out.line(&format!("{before}{{ \"Path\": \"{text}\", \"Size\": {size} }}"))?;
            before = ",\n".to_owned();
            asked.insert(path.clone(), *size);
        }
        ensure!(!asked.is_empty(), "the last snapshot has no relation that did not change");
        let (timeline, start, end) = (self.timeline, self.start, self.end);
        out.line(&format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n"
        ))?;
        out.finish()?;
        while walsender.next()? != Event::Ready {}
        Ok(asked)
    }
}

/// A manifest on its way to the server.
struct Upload<'a> {
    walsender: &'a mut Client,
    hash: Sha256,
    text: String,
}

impl Upload<'_> {
    fn line(&mut self, text: &str) -> Result<()> {
        self.hash.update(text);
        self.text.push_str(text);
        if self.text.len() >= SEND_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        self.walsender.send(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let sum: String = self.hash.finalize_reset().iter().map(|b| format!("{b:02x}")).collect();
        self.text.push_str(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
        self.send()?;
        self.walsender.send_done()
    }
}

/// Whether a relation file is a map of free space or of visibility.
fn is_map(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let fork = name.split(|b| *b == b'.').next().unwrap_or_default();
    fork.ends_with(b"_vm") || fork.ends_with(b"_fsm")
}

/// A path without the directory of a tablespace's version, which WAL summaries do not know.
fn place(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    if parts[0] == b"pg_tblspc" && parts.len() == 5 {
        parts.remove(2);
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_place_and_fork() {
        assert_eq!(place(b"pg_tblspc/16384/PG_18_202506291/5/16385.1"), b"pg_tblspc/16384/5/16385.1");
        assert_eq!(place(b"base/5/16385_init"), b"base/5/16385_init");
        assert!(is_map(b"base/5/1259_vm.1") && is_map(b"base/5/1259_fsm") && !is_map(b"base/5/1259.1"));
    }
}
