//! Index lines in temporary SQLite tables, for sources that give their entries as the engine sends them and not in path order: the basis to be
//! asked for any path, and the run's own lines to be sorted. Both spill to disk by themselves, so that memory stays bounded.

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OptionalExtension, params};

use super::line::{self, EntriesLine, Segment};
use super::{LayerWriter, Merge};
use crate::entry::{Entry, Name};
use crate::repository::snapshot::Named;

/// Entries of one answer when those that were not met are listed.
const LISTED_AT_ONCE: usize = 1000;

fn open(tables: &str) -> Result<Connection> {
    let db = Connection::open("").context("open a temporary table")?;
    db.execute_batch("PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA cache_size=-16384;")
        .and_then(|()| db.execute_batch(tables))
        .context("open a temporary table")?;
    Ok(db)
}

/// A path as bytes that sort as [`Name`] does: `/` is the lowest of them, and no path has a NUL.
fn key(path: &Name) -> Vec<u8> {
    path.as_bytes().iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
}

/// The entries of a basis by path, each to be met once.
pub struct BasisTable {
    db: Connection,
    /// The path found last, and the position that its next segment is at or beyond.
    current: Option<(Vec<u8>, i64)>,
}

impl BasisTable {
    /// Takes in all of `basis`.
    pub fn load(mut basis: Merge) -> Result<BasisTable> {
        let db = open(
            "CREATE TABLE entry(key BLOB PRIMARY KEY, line BLOB, met INTEGER) WITHOUT ROWID;
             CREATE TABLE data(key BLOB, at INTEGER, line BLOB, PRIMARY KEY(key, at)) WITHOUT ROWID; BEGIN",
        )?;
        while let Some(merged) = basis.next_entry().context("read the basis's index")? {
            let Some(entry) = merged.entry else { continue };
            let key = key(&entry.path);
            let mut add = db.prepare_cached("INSERT INTO entry VALUES(?1, ?2, 0)")?;
            add.execute(params![key, line::entry_line(&entry, 0)?]).context("note an entry of the basis")?;
            while let Some(segment) = basis.next_segment().context("read the basis's index")? {
                let mut add = db.prepare_cached("INSERT INTO data VALUES(?1, ?2, ?3)")?;
                add.execute(params![key, i64::try_from(segment.at)?, line::data_line(&entry.path, &segment)?])
                    .context("note pages of the basis")?;
            }
        }
        Ok(BasisTable { db, current: None })
    }

    /// The basis's entry at `path`. Its data is what [`BasisTable::next_segment`] gives from now on.
    pub fn meet(&mut self, path: &Name) -> Result<Option<Entry>> {
        let key = key(path);
        let mut find = self.db.prepare_cached("UPDATE entry SET met=1 WHERE key=?1 RETURNING line")?;
        let found: Option<Vec<u8>> =
            find.query_row([&key], |row| row.get(0)).optional().context("look up an entry of the basis")?;
        self.current = found.as_ref().map(|_| (key, 0));
        found.map(|line| serde_json::from_slice(&line).context("read an entry of the basis")).transpose()
    }

    /// The next data of the entry met last, in ascending order.
    pub fn next_segment(&mut self) -> Result<Option<Segment>> {
        let Some((key, from)) = &self.current else { return Ok(None) };
        let mut find = self.db.prepare_cached("SELECT line FROM data WHERE key=?1 AND at>=?2 ORDER BY at LIMIT 1")?;
        let found: Option<Vec<u8>> =
            find.query_row(params![key, from], |row| row.get(0)).optional().context("look up pages of the basis")?;
        let Some(found) = found else { return Ok(None) };
        let EntriesLine::Data { segment, .. } = EntriesLine::parse(&found)? else {
            anyhow::bail!("an entry among the pages of the basis (this is a bug)")
        };
        if let Some((_, from)) = &mut self.current {
            *from = i64::try_from(segment.at)? + 1;
        }
        Ok(Some(segment))
    }

    /// Calls `each` for every entry.
    pub fn each_entry(&self, each: &mut dyn FnMut(&Entry) -> Result<()>) -> Result<()> {
        let mut list = self.db.prepare("SELECT line FROM entry").context("list the basis")?;
        let mut rows = list.query([]).context("list the basis")?;
        while let Some(row) = rows.next().context("list the basis")? {
            let line = row.get_ref(0)?.as_blob().context("list the basis")?;
            each(&serde_json::from_slice(line).context("read an entry of the basis")?)?;
        }
        Ok(())
    }

    /// Calls `each` for every path that was not met.
    pub fn each_unmet(&self, mut each: impl FnMut(Name) -> Result<()>) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let mut list = self.db.prepare_cached(
                "SELECT key, line FROM entry WHERE met=0 AND (?1 IS NULL OR key>?1) ORDER BY key LIMIT ?2",
            )?;
            let rows = list.query_map(params![after, LISTED_AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(Vec<u8>, Vec<u8>)> = rows.collect::<Result<_, _>>().context("list what is gone")?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = Some(last.clone());
            for (_, line) in rows {
                let entry: Entry = serde_json::from_slice(&line).context("read an entry of the basis")?;
                each(entry.path)?;
            }
        }
    }
}

/// Where the lines of a new layer go: straight into index objects where they come in order, over a table where not.
pub enum LinesOut {
    InOrder(LayerWriter),
    ToSort(LineTable),
}

impl LinesOut {
    pub fn entry(&mut self, entry: &Entry, inherit: u64) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.entry(entry, inherit),
            LinesOut::ToSort(table) => table.add(&entry.path, -1, &line::entry_line(entry, inherit)?),
        }
    }

    pub fn gone(&mut self, path: &Name) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.gone(path),
            LinesOut::ToSort(table) => table.add(path, -1, &line::gone_line(path)?),
        }
    }

    /// A data line of the entry written last.
    pub fn data(&mut self, path: &Name, segment: &Segment) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.data(path, segment),
            LinesOut::ToSort(table) => table.add(path, i64::try_from(segment.at)?, &line::data_line(path, segment)?),
        }
    }

    /// Finishes the object that is being gathered, see [`LayerWriter::flush`]. Lines that are still to be sorted wait for the end.
    pub fn flush(&mut self) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.flush(),
            LinesOut::ToSort(_) => Ok(()),
        }
    }

    pub fn finish(self) -> Result<Vec<Named>> {
        match self {
            LinesOut::InOrder(writer) => writer.finish(),
            LinesOut::ToSort(table) => table.finish(),
        }
    }
}

/// Lines by path and position.
pub struct LineTable {
    db: Connection,
    writer: LayerWriter,
}

impl LineTable {
    pub fn new(writer: LayerWriter) -> Result<LineTable> {
        let db = open(
            "CREATE TABLE line(key BLOB, at INTEGER, line BLOB, PRIMARY KEY(key, at)) WITHOUT ROWID;
             BEGIN",
        )?;
        Ok(LineTable { db, writer })
    }

    fn add(&self, path: &Name, at: i64, line: &[u8]) -> Result<()> {
        let mut add = self.db.prepare_cached("INSERT OR IGNORE INTO line VALUES(?1, ?2, ?3)")?;
        let added = add.execute(params![key(path), at, line]).context("note an index line")?;
        ensure!(added == 1, "the source gave {path} twice");
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Named>> {
        let mut all = self.db.prepare("SELECT line FROM line ORDER BY key, at").context("sort the index")?;
        let mut rows = all.query([]).context("sort the index")?;
        while let Some(row) = rows.next().context("sort the index")? {
            self.writer.line(row.get_ref(0)?.as_blob().context("sort the index")?)?;
        }
        self.writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_names_do() {
        let mut names: Vec<Name> = ["a.txt", "a/b", "a", "a/b/c", "a-b", "", "a\u{1}", "é"].map(Name::new).to_vec();
        let mut by_key = names.clone();
        names.sort();
        by_key.sort_by_key(key);
        assert_eq!(names, by_key);
    }
}
