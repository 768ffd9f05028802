//! What happened, read from the log: commits, restore points, and what destroys data: dropped and emptied tables, many deleted rows, dropped
//! databases (PostgreSQL's `access/xact.h`, `storage/standbydefs.h`, `catalog/storage_xlog.h`, `commands/dbcommands_xlog.h`).
//!
//! Names are known as far as the log itself has shown the rows of `pg_class`: where a row was written, or a page of it was logged whole.

use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::records::{Block, Record, u16_at, u32_at, u64_at};
use super::{Lsn, stream};

/// Transactions under way that are followed at once, relations of one of them, and names that are kept.
const OPEN_MAX: usize = 20_000;
const RELATIONS_MAX: usize = 256;
const NAMES_MAX: usize = 200_000;
/// The file node that `pg_class` has until it is rewritten.
const PG_CLASS: u32 = 1259;
/// Deleted rows of one table from which a commit is worth a line.
pub const MANY_ROWS: u64 = 1000;

/// One thing that happened. To undo it, restore to just before: to `before`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Happened {
    pub time: Option<Timestamp>,
    /// Where its record begins: recovery to this position, exclusive, has everything before it.
    pub position: String,
    pub xid: u32,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    Commit { destroyed: Vec<Destroyed> },
    RestorePoint { name: String },
    DropDatabase { oid: u32 },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::RestorePoint { name } => write!(f, "restore point {name:?}"),
            What::DropDatabase { oid } => write!(f, "DROP DATABASE (database {oid})"),
            What::Commit { destroyed } if destroyed.is_empty() => f.write_str("commit"),
            What::Commit { destroyed } => {
                let each: Vec<String> = destroyed.iter().map(Destroyed::to_string).collect();
                f.write_str(&each.join("; "))
            }
        }
    }
}

impl fmt::Display for Destroyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = match (&self.table, self.oid) {
            (Some(name), _) => name.clone(),
            (None, Some(oid)) => format!("a table (oid {oid})"),
            (None, None) => "a table".to_owned(),
        };
        match self.how {
            How::Drop => write!(f, "DROP of {table} in database {}", self.database),
            How::TruncateOrRewrite => write!(f, "TRUNCATE or rewrite of {table} in database {}", self.database),
            How::Delete => write!(f, "{} rows deleted from {table} in database {}", self.rows, self.database),
        }
    }
}

/// What a commit did to a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Destroyed {
    pub how: How,
    /// `None`: the log has not shown it.
    pub table: Option<String>,
    pub oid: Option<u32>,
    pub database: u32,
    /// Rows deleted one by one.
    pub rows: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    Drop,
    /// `TRUNCATE`, or a command that writes the table anew (`VACUUM FULL`, `CLUSTER`, some `ALTER TABLE`).
    TruncateOrRewrite,
    Delete,
}

impl Happened {
    pub fn is_commit(&self) -> bool {
        matches!(self.what, What::Commit { .. })
    }

    /// Whether it is more than an ordinary commit.
    pub fn is_notable(&self) -> bool {
        !matches!(&self.what, What::Commit { destroyed } if destroyed.is_empty())
    }
}

/// Follows the records of a log.
#[derive(Default)]
pub struct Follower {
    open: HashMap<u32, Transaction>,
    names: Names,
}

/// What a transaction has done so far.
#[derive(Default)]
struct Transaction {
    /// (database, table) under an exclusive lock.
    locked: Vec<(u32, u32)>,
    /// File nodes made: (database, node).
    made: Vec<(u32, u32)>,
    /// Rows deleted by (database, file node).
    deleted: BTreeMap<(u32, u32), u64>,
}

/// Names of tables by object id and by file node, each with its database.
#[derive(Default)]
struct Names {
    by_oid: HashMap<(u32, u32), Row>,
    by_node: HashMap<(u32, u32), u32>,
}

#[derive(Clone, PartialEq, Eq)]
struct Row {
    name: String,
    /// `r`: a table, `i`: an index, …
    kind: u8,
}

impl Follower {
    /// What a record tells; most tell nothing.
    pub fn take(&mut self, record: &Record) -> Option<Happened> {
        let info = record.info;
        match (record.manager, info & 0xf0) {
            (0, 0x70) => restore_point(record),
            (1, _) => self.transaction(record),
            (2, 0x10) => self.made(record),
            (4, kind) if kind == (if record.major >= 15 { 0x20 } else { 0x10 }) => dropped_database(record),
            (8, 0x00) => self.locked(record),
            (0, 0xa0 | 0xb0) | (9 | 10, _) => self.heap(record),
            _ => None,
        }
    }

    fn of(&mut self, xid: u32) -> &mut Transaction {
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&xid) {
            // More cannot be under way at once: these have ended with the server, without a record.
            self.open.clear();
        }
        self.open.entry(xid).or_default()
    }

    fn made(&mut self, record: &Record) -> Option<Happened> {
        let (_, main) = record.parts()?;
        let (database, node) = (u32_at(main, 4)?, u32_at(main, 8)?);
        let made = &mut self.of(record.xid).made;
        if made.len() < RELATIONS_MAX {
            made.push((database, node));
        }
        None
    }

    /// `XLOG_STANDBY_LOCK`: exclusive locks are logged for standbys.
    fn locked(&mut self, record: &Record) -> Option<Happened> {
        let (_, main) = record.parts()?;
        let count = (u32_at(main, 0)? as usize).min(RELATIONS_MAX);
        for lock in main.get(4..)?.chunks_exact(12).take(count) {
            let (xid, table) = (u32_at(lock, 0)?, (u32_at(lock, 4)?, u32_at(lock, 8)?));
            let locked = &mut self.of(xid).locked;
            if locked.len() < RELATIONS_MAX && !locked.contains(&table) {
                locked.push(table);
            }
        }
        None
    }

    /// Deleted rows; and rows of `pg_class`, for the names.
    fn heap(&mut self, record: &Record) -> Option<Happened> {
        let (blocks, _) = record.parts()?;
        let block = blocks.first()?;
        let (_, database, node) = block.relation;
        let operation = if record.manager == 10 { record.info & 0x70 } else { 0xff };
        if operation == 0x10 && node >= 16_384 {
            let deleted = &mut self.of(record.xid).deleted;
            if deleted.len() < RELATIONS_MAX || deleted.contains_key(&(database, node)) {
                *deleted.entry((database, node)).or_default() += 1;
            }
        }
        for block in blocks.iter().filter(|b| b.relation.2 == PG_CLASS && b.fork == 0) {
            self.names.learn(block, database, matches!(operation, 0x00 | 0x20 | 0x40), record);
        }
        None
    }

    fn transaction(&mut self, record: &Record) -> Option<Happened> {
        let (prepared, aborted) = match record.info & 0x70 {
            0x00 => (false, false),
            0x20 => (false, true),
            0x30 => (true, false),
            0x40 => (true, true),
            _ => return None,
        };
        let (_, main) = record.parts()?;
        let end = Ending::read(main, record, prepared)?;
        let mut whole = self.open.remove(&end.xid).unwrap_or_default();
        for sub in &end.children {
            let Some(child) = self.open.remove(sub) else { continue };
            whole.locked.extend(child.locked);
            whole.made.extend(child.made);
            for (relation, rows) in child.deleted {
                *whole.deleted.entry(relation).or_default() += rows;
            }
        }
        if aborted {
            return None;
        }
        Some(Happened {
            time: stream::timestamp(end.time).ok(),
            position: Lsn(record.start).to_string(),
            xid: end.xid,
            what: What::Commit { destroyed: self.destroyed(&whole, &end) },
        })
    }

    fn destroyed(&self, whole: &Transaction, end: &Ending) -> Vec<Destroyed> {
        let mut found = Vec::new();
        for (relation, rows) in whole.deleted.iter().filter(|(_, rows)| **rows >= MANY_ROWS) {
            let oid = self.names.by_node.get(relation).copied();
            found.push(self.entry(How::Delete, relation.0, oid, *rows));
        }
        if end.removed.is_empty() {
            return found;
        }
        let database = end.removed[0].0;
        // What was made and removed within the transaction is nobody's loss.
        let lost = |relation: &&(u32, u32)| !whole.made.contains(relation);
        if !end.removed.iter().any(|relation| lost(&relation)) {
            return found;
        }
        let rewritten = whole.made.iter().any(|made| made.0 == database && !end.removed.contains(made));
        let how = if rewritten { How::TruncateOrRewrite } else { How::Drop };
        // Indexes and TOAST tables go with their table; a table has no exclusive lock logged only if it was made just now.
        let is_table = |oid: u32| {
            let row = self.names.by_oid.get(&(database, oid));
            row.is_none_or(|row| matches!(row.kind, b'r' | b'm' | b'p') && !row.name.starts_with("pg_toast"))
        };
        let mut tables: Vec<u32> = whole
            .locked
            .iter()
            .filter(|(d, oid)| *d == database && *oid >= 16_384 && is_table(*oid))
            .map(|(_, oid)| *oid)
            .collect();
        if tables.iter().any(|oid| self.names.by_oid.contains_key(&(database, *oid))) {
            tables.retain(|oid| self.names.by_oid.contains_key(&(database, *oid)));
        }
        if tables.is_empty() {
            found.push(self.entry(how, database, None, 0));
        }
        found.extend(tables.into_iter().map(|oid| self.entry(how, database, Some(oid), 0)));
        found
    }

    fn entry(&self, how: How, database: u32, oid: Option<u32>, rows: u64) -> Destroyed {
        let row = oid.and_then(|oid| self.names.by_oid.get(&(database, oid)));
        Destroyed { how, table: row.map(|row| row.name.clone()), oid, database, rows }
    }
}

impl Names {
    /// Learns from a block of `pg_class`: a row written to it, or an image of the page.
    fn learn(&mut self, block: &Block, database: u32, wrote: bool, record: &Record) {
        if self.by_oid.len() >= NAMES_MAX {
            return;
        }
        if let Some((image, hole, missing)) = block.image {
            self.learn_page(image, hole, missing, (database, record.major));
        }
        // A row as `xl_heap_header` has it: 5 bytes, of which the last is where the values begin in the whole tuple. An update may leave out
        // what the row has in common with the old one; then its name is known from there.
        if wrote && record.info & 0x70 == 0x00 && block.data.len() > 5 {
            let values = usize::from(block.data[4]).checked_sub(23).and_then(|skip| block.data.get(5 + skip..));
            if let Some(values) = values {
                self.learn_row(values, (database, record.major));
            }
        }
    }

    /// A heap page whose hole has been left out.
    fn learn_page(&mut self, image: &[u8], hole: usize, missing: usize, of: (u32, u32)) {
        let Some((front, back)) = image.split_at_checked(hole.min(image.len())) else { return };
        let mut page = front.to_vec();
        page.resize(front.len() + missing, 0);
        page.extend_from_slice(back);
        let Some(lower) = u16_at(&page, 12) else { return };
        for at in (24..usize::from(lower)).step_by(4) {
            let Some(item) = u32_at(&page, at) else { return };
            let (offset, flags, length) = ((item & 0x7fff) as usize, (item >> 15) & 3, (item >> 17) as usize);
            let Some(tuple) = page.get(offset..offset + length).filter(|_| flags == 1) else { continue };
            let values = tuple.get(22).and_then(|start| tuple.get(usize::from(*start)..));
            if let Some(values) = values {
                self.learn_row(values, of);
            }
        }
    }

    /// The values of a row of `pg_class`: oid, relname (64 bytes), …, relfilenode at 88, and relkind further on.
    fn learn_row(&mut self, values: &[u8], (database, major): (u32, u32)) -> Option<()> {
        let oid = u32_at(values, 0)?;
        let name = values.get(4..68)?.split(|b| *b == 0).next()?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?.to_owned();
        let node = u32_at(values, 88)?;
        // relpages, reltuples, relallvisible, since 18 relallfrozen, reltoastrelid, then three flags before the kind.
        let kind = *values.get(if major >= 18 { 119 } else { 115 }).filter(|kind| b"rimptvcSIf".contains(kind))?;
        self.by_node.insert((database, node), oid);
        self.by_oid.insert((database, oid), Row { name, kind });
        Some(())
    }
}

/// The end of a transaction: `xl_xact_commit` and `xl_xact_abort`.
struct Ending {
    time: u64,
    xid: u32,
    children: Vec<u32>,
    /// Files removed with it: (database, node).
    removed: Vec<(u32, u32)>,
}

impl Ending {
    fn read(main: &[u8], record: &Record, prepared: bool) -> Option<Ending> {
        let mut end = Ending { time: u64_at(main, 0)?, xid: record.xid, children: Vec::new(), removed: Vec::new() };
        if record.info & 0x80 == 0 {
            return Some(end);
        }
        let flags = u32_at(main, 8)?;
        let mut at = 12;
        let count = |at: usize| u32_at(main, at).map(|n| n as usize).filter(|n| n.saturating_mul(4) <= main.len());
        if flags & 1 != 0 {
            at += 8;
        }
        if flags & 2 != 0 {
            let n = count(at)?;
            end.children = main.get(at + 4..at + 4 + 4 * n)?.chunks_exact(4).filter_map(|x| u32_at(x, 0)).collect();
            at += 4 + 4 * n;
        }
        if flags & 4 != 0 {
            let n = count(at)?;
            let nodes = main.get(at + 4..at + 4 + 12 * n)?.chunks_exact(12);
            end.removed = nodes.filter_map(|x| Some((u32_at(x, 4)?, u32_at(x, 8)?))).collect();
            at += 4 + 12 * n;
        }
        if flags & 0x100 != 0 {
            let size = if record.major >= 18 { 16 } else { 12 };
            at += 4 + size * count(at)?;
        }
        if flags & 8 != 0 {
            at += 4 + 16 * count(at)?;
        }
        if flags & 0x10 != 0 || prepared {
            end.xid = u32_at(main, at)?;
        }
        Some(end)
    }
}

fn restore_point(record: &Record) -> Option<Happened> {
    let (_, main) = record.parts()?;
    let name = main.get(8..)?.split(|b| *b == 0).next()?;
    Some(Happened {
        time: stream::timestamp(u64_at(main, 0)?).ok(),
        position: Lsn(record.start).to_string(),
        xid: record.xid,
        what: What::RestorePoint { name: String::from_utf8_lossy(name).into_owned() },
    })
}

fn dropped_database(record: &Record) -> Option<Happened> {
    let (_, main) = record.parts()?;
    Some(Happened {
        time: None,
        position: Lsn(record.start).to_string(),
        xid: record.xid,
        what: What::DropDatabase { oid: u32_at(main, 0)? },
    })
}
