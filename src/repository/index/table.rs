//! Index lines in temporary SQLite tables, for sources that give their entries as the engine sends them and not in path order: the basis to be
//! asked for any path, and the run's own lines to be sorted. Both spill to disk by themselves, so that memory stays bounded.

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OptionalExtension, params};
use std::time::Duration;

use super::line::{self, EntriesLine, Segment};
use super::{LayerWriter, Merge};
use crate::entry::{Entry, EntryKind, Name};
use crate::repository::snapshot::Named;

/// Entries of one answer when those that were not met are listed.
const LISTED_AT_ONCE: usize = 1000;
/// Where an entry's own line stands among the positions of its data: before them.
const ENTRY: i64 = -1;
/// Lists of a run's checkpoints; when there would be more, one takes their place.
const LISTS_MAX: usize = 8;

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
    ToSort(Box<LineTable>),
}

impl LinesOut {
    pub fn entry(&mut self, entry: &Entry, inherit: u64) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.entry(entry, inherit),
            LinesOut::ToSort(table) => table.entry(entry, inherit),
        }
    }

    pub fn gone(&mut self, path: &Name) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.gone(path),
            LinesOut::ToSort(table) => table.gone(path),
        }
    }

    /// A data line of the entry written last.
    pub fn data(&mut self, path: &Name, segment: &Segment) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.data(path, segment),
            LinesOut::ToSort(table) => table.add(path, i64::try_from(segment.at)?, &line::data_line(path, segment)?),
        }
    }

    /// Makes what was written so far into objects that can be found again, should the run be interrupted.
    pub fn checkpoint(&mut self) -> Result<()> {
        match self {
            LinesOut::InOrder(writer) => writer.flush(),
            LinesOut::ToSort(table) => table.checkpoint(),
        }
    }

    /// How long to wait for the next checkpoint of a run that has taken `so_far`, if `every` is asked for. Lines that are sorted are written once
    /// more for a checkpoint: the longer the run, the fewer there are, so that it costs a small share of it.
    pub fn pause(&self, every: Duration, so_far: Duration) -> Duration {
        match self {
            LinesOut::InOrder(_) => every,
            LinesOut::ToSort(_) => every.max(so_far / 16),
        }
    }

    pub fn finish(self) -> Result<Vec<Named>> {
        match self {
            LinesOut::InOrder(writer) => writer.finish(),
            LinesOut::ToSort(table) => table.finish(),
        }
    }
}

/// What a checkpoint has written of lines that come in no order: a list of index objects that stands for a part of the run's lines, and for those of
/// the lists from number `from` on.
pub struct SortedList {
    pub from: usize,
    pub objects: Vec<Named>,
}

/// Lines by path and position. `recent` has those since the last checkpoint, `line` all others.
pub struct LineTable {
    db: Connection,
    writer: LayerWriter,
    tell: Box<dyn FnMut(SortedList) + Send>,
    /// Lists that stand for what is in `line`.
    lists: usize,
    /// The entry written last: data of it may follow.
    last: Option<Entry>,
    /// The key of an entry in `recent` that only repeats the one in `line`.
    repeats: Option<Vec<u8>>,
}

impl LineTable {
    /// `tell` hears of each list that a checkpoint has written.
    pub fn new(writer: LayerWriter, tell: Box<dyn FnMut(SortedList) + Send>) -> Result<LineTable> {
        let db = open(
            "CREATE TABLE line(key BLOB, at INTEGER, line BLOB, PRIMARY KEY(key, at)) WITHOUT ROWID;
             CREATE TABLE recent(key BLOB, at INTEGER, line BLOB, PRIMARY KEY(key, at)) WITHOUT ROWID;
             BEGIN",
        )?;
        Ok(LineTable { db, writer, tell, lists: 0, last: None, repeats: None })
    }

    fn entry(&mut self, entry: &Entry, inherit: u64) -> Result<()> {
        self.add(&entry.path, ENTRY, &line::entry_line(entry, inherit)?)?;
        self.last = Some(entry.clone());
        Ok(())
    }

    fn gone(&mut self, path: &Name) -> Result<()> {
        self.add(path, ENTRY, &line::gone_line(path)?)?;
        self.last = None;
        Ok(())
    }

    fn add(&self, path: &Name, at: i64, line: &[u8]) -> Result<()> {
        let mut add = self.db.prepare_cached("INSERT OR IGNORE INTO recent VALUES(?1, ?2, ?3)")?;
        let added = add.execute(params![key(path), at, line]).context("note an index line")?;
        ensure!(added == 1, "the source gave {path} twice");
        Ok(())
    }

    /// Writes the recent lines as a list; all there are, when there would be too many lists.
    fn checkpoint(&mut self) -> Result<()> {
        if self.settled()? {
            return Ok(());
        }
        let all = self.lists == LISTS_MAX;
        if all {
            self.keep()?;
        }
        self.write(if all { "line" } else { "recent" })?;
        if !all {
            self.keep()?;
        }
        let from = if all { 0 } else { self.lists };
        self.lists = from + 1;
        (self.tell)(SortedList { from, objects: self.writer.take()? });
        // Of the file that is being read more data may come: in the next list it needs an entry as well, above which all of this list's counts.
        if let Some(entry) = self.last.as_ref().filter(|entry| entry.kind == EntryKind::File) {
            self.add(&entry.path, ENTRY, &line::entry_line(entry, entry.size)?)?;
            self.repeats = Some(key(&entry.path));
        }
        Ok(())
    }

    /// Whether nothing has come since the last checkpoint.
    fn settled(&self) -> Result<bool> {
        let rows: i64 =
            self.db.query_row("SELECT count(*) FROM (SELECT 1 FROM recent LIMIT 2)", [], |row| row.get(0))?;
        Ok(rows == i64::from(self.repeats.is_some()))
    }

    /// Puts the recent lines with the others.
    fn keep(&mut self) -> Result<()> {
        if let Some(key) = self.repeats.take() {
            self.db.execute("DELETE FROM recent WHERE key=?1 AND at=?2", params![key, ENTRY])?;
        }
        self.db
            .execute_batch("INSERT INTO line SELECT * FROM recent; DELETE FROM recent")
            .context("put index lines together (a source gave a path twice?)")
    }

    fn write(&mut self, table: &str) -> Result<()> {
        let mut all =
            self.db.prepare(&format!("SELECT line FROM {table} ORDER BY key, at")).context("sort the index")?;
        let mut rows = all.query([]).context("sort the index")?;
        while let Some(row) = rows.next().context("sort the index")? {
            self.writer.line(row.get_ref(0)?.as_blob().context("sort the index")?)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Named>> {
        self.keep()?;
        self.write("line")?;
        self.writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Store;
    use crate::repository::agefile::Identity;
    use crate::repository::index::{Extent, IndexStore, LayerReader, ObjectWriter};
    use crate::repository::layout::{Hash, SourceName};
    use crate::storage::memory::Memory;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    #[test]
    fn keys_sort_as_names_do() {
        let mut names: Vec<Name> = ["a.txt", "a/b", "a", "a/b/c", "a-b", "", "a\u{1}", "é"].map(Name::new).to_vec();
        let mut by_key = names.clone();
        names.sort();
        by_key.sort_by_key(key);
        assert_eq!(names, by_key);
    }

    fn file(path: &str, size: u64) -> Entry {
        let json =
            serde_json::json!({"path": path, "type": "file", "mode": 384, "mtime": [0, 0], "size": size, "page": 512});
        serde_json::from_value(json).unwrap()
    }

    /// Everything that lists of index objects say, the newest on top.
    fn read(index: &IndexStore, identities: &Arc<[Identity]>, lists: &[Vec<Named>]) -> Vec<(Entry, Vec<Segment>)> {
        let layers = lists.iter().map(|list| LayerReader::new(index.clone(), Arc::clone(identities), list)).collect();
        let (mut merge, mut found) = (Merge::new(layers), Vec::new());
        while let Some(merged) = merge.next_entry().unwrap() {
            let mut segments = Vec::new();
            while let Some(segment) = merge.next_segment().unwrap() {
                segments.push(segment);
            }
            found.push((merged.entry.unwrap(), segments));
        }
        found
    }

    /// After each checkpoint the lists together say what was said so far, however many there were, and in the middle of a file, too.
    #[test]
    fn the_lists_of_checkpoints_say_what_was_said() {
        let store = Store::new(Arc::new(Memory::default())).unwrap();
        let index = IndexStore { store, source: SourceName::new("s").unwrap(), cache: None };
        let identity = Identity::generate();
        let (recipients, identities) = (Arc::from([identity.to_public()]), Arc::from([identity]));
        let lists: Arc<Mutex<Vec<Vec<Named>>>> = Arc::default();
        let told = Arc::clone(&lists);
        let tell = move |list: SortedList| {
            let mut lists = told.lock().unwrap();
            lists.truncate(list.from);
            lists.push(list.objects);
        };
        let writer = LayerWriter::new(ObjectWriter::new(index.clone(), recipients));
        let mut table = LinesOut::ToSort(Box::new(LineTable::new(writer, Box::new(tell)).unwrap()));
        let mut said: BTreeMap<Name, (Entry, Vec<Segment>)> = BTreeMap::new();
        for n in 0..30_u64 {
            // In no order: 0, 7, 14, 21, 28, 5, …
            let entry = file(&format!("f{:02}", n * 7 % 30), 3 * 512);
            table.entry(&entry, 0).unwrap();
            said.insert(entry.path.clone(), (entry.clone(), Vec::new()));
            for page in 0..3 {
                let extents = vec![Extent { at: page * 512, len: 512, pack: n, frame: 0, from: page * 512 }];
                let segment = Segment { at: page * 512, extents, ids: vec![u8::try_from(n).unwrap(); 8] };
                table.data(&entry.path, &segment).unwrap();
                said.get_mut(&entry.path).unwrap().1.push(segment);
                if page == n % 3 {
                    table.checkpoint().unwrap();
                    let lists = lists.lock().unwrap();
                    assert!(lists.len() <= LISTS_MAX, "{} lists after {n} files", lists.len());
                    let expected: Vec<_> = said.values().cloned().collect();
                    assert_eq!(pages(read(&index, &identities, &lists)), pages(expected), "after {n} files");
                }
            }
        }
        let before = lists.lock().unwrap().clone();
        table.checkpoint().unwrap();
        table.checkpoint().unwrap();
        assert!(lists.lock().unwrap().len() <= before.len() + 1, "a checkpoint of nothing writes nothing");
        let all = read(&index, &identities, &[table.finish().unwrap()]);
        assert_eq!(pages(all), pages(said.into_values().collect()), "the layer of the run");
    }

    #[test]
    fn a_path_that_comes_again_after_a_checkpoint_is_refused() {
        let recipients = Arc::from([Identity::generate().to_public()]);
        let put = Box::new(|bytes: Vec<u8>| Ok((Hash::of(&bytes), bytes.len() as u64)));
        let writer = LayerWriter::new(ObjectWriter::sending(recipients, put));
        let mut table = LinesOut::ToSort(Box::new(LineTable::new(writer, Box::new(|_| ())).unwrap()));
        for path in ["b", "a"] {
            table.entry(&file(path, 512), 0).unwrap();
            table.checkpoint().unwrap();
        }
        assert!(table.entry(&file("a", 512), 0).is_err(), "the one that came last");
        table.entry(&file("b", 512), 0).unwrap();
        assert!(table.checkpoint().is_err(), "one from before");
    }

    /// By file: where each page lies, however lines were cut.
    fn pages(found: Vec<(Entry, Vec<Segment>)>) -> Vec<(Entry, Vec<(Extent, u8)>)> {
        let of = |segment: &Segment| segment.extents.iter().map(|e| (*e, segment.ids[0])).collect::<Vec<_>>();
        found.into_iter().map(|(entry, segments)| (entry, segments.iter().flat_map(of).collect())).collect()
    }
}
