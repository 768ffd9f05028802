//! What `chroma.sqlite3` says is in a persistent directory.

use anyhow::{Context, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use std::ffi::OsStr;
use std::path::Path;

use crate::error::{Failure, Kind};

/// The database of a persistent directory.
pub const DATABASE: &str = "chroma.sqlite3";
/// The id maps of a vector segment.
pub const MAPS: &str = "index_metadata.pickle";
/// The vectors of a vector segment.
pub const VECTORS: &str = "data_level0.bin";

/// Directories of segments, as a pattern in the syntax of `.gitignore`.
pub const SEGMENTS: &str = "????????-????-????-????-????????????/";

/// Tables that every known layout has; the last since 0.5.
const TABLES: [&str; 7] = [
    "migrations",
    "collections",
    "segments",
    "embeddings",
    "embeddings_queue",
    "max_seq_id",
    "embeddings_queue_config",
];

/// One collection with its two segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    pub id: String,
    pub name: String,
    pub database: String,
    pub tenant: String,
    /// The directory of its vectors, once there are any.
    pub vectors: String,
    pub metadata: String,
}

/// Refuses a layout that is not known: copying it in a wrong order could lose vectors.
pub fn refuse_unknown(connection: &Connection, path: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for table in TABLES {
        let query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let found: i64 = connection.query_row(query, [table], |row| row.get(0)).context("read the schema")?;
        if found == 0 {
            missing.push(table);
        }
    }
    let old = missing == [TABLES[6]];
    if missing.is_empty() {
        return Ok(());
    }
    let what =
        if old { "was written by Chroma 0.4".to_owned() } else { format!("has no table {}", missing.join(", ")) };
    Err(Failure::new(
        Kind::Failed,
        format!("{} is of a layout that is not known here: {DATABASE} {what}", path.display()),
        "Nothing was backed up. Known are Chroma 0.5, 0.6 and 1.x. Until it is upgraded, stop what uses the directory and back it up with a source of kind `files`.",
    ))
}

/// All collections, by id.
pub fn collections(connection: &Connection) -> Result<Vec<Collection>> {
    let query = "SELECT c.id, c.name, d.name, d.tenant_id,
                        (SELECT s.id FROM segments s WHERE s.collection = c.id AND s.scope = 'VECTOR'),
                        (SELECT s.id FROM segments s WHERE s.collection = c.id AND s.scope = 'METADATA')
                 FROM collections c JOIN databases d ON d.id = c.database_id ORDER BY c.id";
    let mut statement = connection.prepare(query).context("read the collections")?;
    let text =
        |row: &Row, i: usize| -> rusqlite::Result<String> { Ok(row.get::<_, Option<String>>(i)?.unwrap_or_default()) };
    let rows = statement.query_map([], |row| {
        Ok(Collection {
            id: text(row, 0)?,
            name: text(row, 1)?,
            database: text(row, 2)?,
            tenant: text(row, 3)?,
            vectors: text(row, 4)?,
            metadata: text(row, 5)?,
        })
    });
    rows.and_then(Iterator::collect).context("read the collections")
}

/// The last operation of the queue that a segment has taken in; 0 for none.
pub fn max_seq(connection: &Connection, segment: &str) -> Result<u64> {
    let query = "SELECT seq_id FROM max_seq_id WHERE segment_id = ?1";
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query([segment])?;
    rows.next()?.map_or(Ok(0), |row| seq(row.get_ref(0)?))
}

/// A sequence number: an integer, or up to 0.6 a blob, big-endian.
pub fn seq(value: ValueRef) -> Result<u64> {
    match value {
        ValueRef::Integer(n) => Ok(n.max(0).cast_unsigned()),
        ValueRef::Blob(bytes) => Ok(bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b))),
        ValueRef::Null => Ok(0),
        _ => anyhow::bail!("a sequence number is no number"),
    }
}

/// Whether a name is that of a segment's directory: a UUID.
pub fn is_segment(name: &str) -> bool {
    let groups: Vec<&str> = name.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    lengths == [8, 4, 4, 4, 12] && groups.concat().chars().all(|c| c.is_ascii_hexdigit())
}

/// Whether a SQLite database is that of a persistent directory.
pub fn is_database(database: &Path) -> bool {
    database.file_name() == Some(OsStr::new(DATABASE))
}

/// Whether a directory holds what belongs to Chroma alone.
pub fn is_alone_in(directory: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let name = entry.with_context(|| format!("list {}", directory.display()))?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(DATABASE) && !is_segment(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}
