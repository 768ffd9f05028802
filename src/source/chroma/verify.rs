//! The offline verifier: whether a copy of a persistent directory holds every vector that it says it holds. Chroma itself checks nothing.
//!
//! A collection is described twice. The metadata segment has the ids (`embeddings`), up to an operation M of the queue; the vector segment has
//! the vectors, up to an operation V, and maps each id to a label, which names an element of the index. After each, the queue has what came
//! later. So both, played forward, must name the same ids; each label must be a live element; and an operation after V must be in the queue.

use anyhow::{Context, Result, anyhow};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::hnsw;
use super::layout::{self, Collection, DATABASE, MAPS};
use super::pickle::{self, Value};
use crate::report::Check;
use crate::source::sqlite;

/// Problems of one collection that are told.
const TOLD: usize = 5;
/// Operations of the queue: add, update, upsert, delete.
const UPDATE: i64 = 1;
const DELETE: i64 = 3;

/// What was found in one collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub id: String,
    pub name: String,
    pub database: String,
    pub tenant: String,
    /// Ids with the queue played forward: what `count()` answers.
    pub count: u64,
    /// Vectors that are in the index, and operations that only the queue has.
    pub indexed: u64,
    pub queued: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A copy that nobody else has open, with temporary tables for what is being compared.
pub struct Copy<'a> {
    directory: &'a Path,
    connection: Connection,
}

impl<'a> Copy<'a> {
    pub fn open(directory: &'a Path) -> Result<Copy<'a>> {
        let database = directory.join(DATABASE);
        let connection = sqlite::open::open_immutable(&database).map_err(|e| sqlite::open::explain(&database, e))?;
        connection.execute_batch(
            "PRAGMA temp_store = file;
             CREATE TEMP TABLE item(map INTEGER, key, value);
             CREATE TEMP TABLE label(id TEXT PRIMARY KEY, label INTEGER NOT NULL) WITHOUT ROWID;
             CREATE TEMP TABLE element(label INTEGER PRIMARY KEY, deleted INTEGER NOT NULL);
             CREATE TEMP TABLE vectors(id TEXT PRIMARY KEY) WITHOUT ROWID;
             CREATE TEMP TABLE metadata(id TEXT PRIMARY KEY) WITHOUT ROWID;",
        )?;
        Ok(Copy { directory, connection })
    }

    /// SQLite's own check of every page, and at the same time that every collection is whole.
    pub fn verify(&self) -> Result<(Vec<Check>, Vec<Found>)> {
        let directory = self.directory;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("integrity".to_owned());
            let integrity = thread.spawn_scoped(scope, || integrity(directory)).context("start a thread")?;
            let collections = self.collections()?;
            let integrity = integrity.join().map_err(|_| anyhow!("the check of integrity panicked; this is a bug"))?;
            let integrity = Check::compare(format!("integrity of {DATABASE}"), "ok", integrity);
            Ok((std::iter::once(integrity).chain(collections.0).collect(), collections.1))
        })
    }

    fn collections(&self) -> Result<(Vec<Check>, Vec<Found>)> {
        let (mut checks, mut all) = (Vec::new(), Vec::new());
        let collections = match layout::collections(&self.connection) {
            Ok(collections) => collections,
            Err(e) => {
                checks.push(Check::compare("collections", "readable", format!("{e:#}")));
                return Ok((checks, all));
            }
        };
        let orphans = "SELECT count(*) FROM embeddings WHERE segment_id NOT IN (SELECT id FROM segments)";
        let no_orphans = self.number(orphans, []).is_ok_and(|n| n == 0);
        for collection in collections {
            // Chroma 0.5 deletes the segments first, in a transaction of their own, and cannot open what is left.
            if collection.vectors.is_empty() && collection.metadata.is_empty() && no_orphans {
                let why = "it was being deleted: it has no segment any more, and nothing is left of what was in it";
                checks.push(Check::not_run(format!("collection {}", collection.name), why));
                continue;
            }
            let mut found = self.collection(&collection).unwrap_or_else(|e| Found {
                name: collection.name.clone(),
                problems: vec![format!("{e:#}")],
                ..Found::default()
            });
            found.problems.truncate(TOLD);
            let whole = format!("{} ids, each with its vector", found.count);
            let actual = if found.problems.is_empty() { whole.clone() } else { found.problems.join("; ") };
            checks.push(Check::compare(format!("collection {}", collection.name), whole, actual));
            all.push(found);
        }
        Ok((checks, all))
    }

    fn collection(&self, collection: &Collection) -> Result<Found> {
        let mut found = Found {
            id: collection.id.clone(),
            name: collection.name.clone(),
            database: collection.database.clone(),
            tenant: collection.tenant.clone(),
            ..Found::default()
        };
        self.connection.execute_batch("BEGIN; DELETE FROM item; DELETE FROM label; DELETE FROM element; DELETE FROM vectors; DELETE FROM metadata;")?;
        let result = self.compare(collection, &mut found);
        self.connection.execute_batch("COMMIT")?;
        result.map(|()| found)
    }

    fn compare(&self, collection: &Collection, found: &mut Found) -> Result<()> {
        let noted = layout::max_seq(&self.connection, &collection.vectors)?;
        let persisted = self.load_index(&collection.vectors, noted, &mut found.problems)?;
        let metadata = layout::max_seq(&self.connection, &collection.metadata)?;
        let db = &self.connection;
        found.indexed = self.number("SELECT count(*) FROM label", [])?;
        db.execute("INSERT INTO vectors SELECT id FROM label", [])?;
        let insert = "INSERT OR IGNORE INTO metadata SELECT embedding_id FROM embeddings WHERE segment_id = ?1";
        db.execute(insert, [&collection.metadata])?;
        self.play(&collection.id, metadata, "metadata")?;
        found.queued = self.play(&collection.id, persisted, "vectors")?;
        found.count = self.number("SELECT count(*) FROM metadata", [])?;
        self.differences("metadata", "vectors", "ids have no vector", &mut found.problems)?;
        self.differences("vectors", "metadata", "vectors have no id", &mut found.problems)?;
        self.gap(collection, persisted, &mut found.problems)?;
        let dead =
            "SELECT count(*) FROM label l LEFT JOIN element e ON e.label = l.label WHERE e.label IS NULL OR e.deleted";
        let dead = self.number(dead, [])?;
        if dead > 0 {
            found.problems.push(format!("{dead} ids are mapped to no element of the index"));
        }
        Ok(())
    }

    /// Reads the maps and elements of a vector segment. Gives V, the last operation that is in the index.
    fn load_index(&self, segment: &str, noted: u64, problems: &mut Vec<String>) -> Result<u64> {
        let directory = self.directory.join(segment);
        let maps = layout::is_segment(segment).then(|| File::open(directory.join(MAPS)).ok()).flatten();
        let Some(maps) = maps else {
            if noted > 0 {
                problems.push(format!(
                    "its vectors up to operation {noted} should be in files, and {segment}/{MAPS} is missing"
                ));
            }
            return Ok(noted);
        };
        let mut element = self.connection.prepare("INSERT INTO element VALUES(?1, ?2)")?;
        let walked = hnsw::walk(&directory, &mut |e| {
            element.execute(params![e.label.cast_signed(), e.deleted]).context("a label twice").map(drop)
        });
        if let Err(e) = walked {
            problems.push(format!("{e:#}"));
        }
        let mut item = self.connection.prepare("INSERT INTO item VALUES(?1, ?2, ?3)")?;
        let root = pickle::read(BufReader::with_capacity(1 << 20, maps), &mut |map, key, value| {
            item.execute(params![map, sql(key), sql(value)]).map(drop).context("keep the maps")
        });
        let root = match root {
            Ok(root) => root,
            Err(e) => {
                problems.push(format!("{MAPS}: {e:#}"));
                return Ok(noted);
            }
        };
        let labels = "INSERT OR REPLACE INTO label SELECT key, value FROM item
                      WHERE map = (SELECT -value FROM item WHERE map = ?1 AND key = 'id_to_label') AND typeof(key) = 'text'";
        self.connection.execute(labels, [root]).context("read the labels")?;
        // `+` takes the column's affinity away, which would keep the index on keys from being used.
        let inverse = "SELECT count(*) FROM label l LEFT JOIN item i ON i.key = +l.label
                       AND i.map = (SELECT -value FROM item WHERE map = ?1 AND key = 'label_to_id') WHERE i.value IS NOT l.id";
        self.connection.execute("CREATE INDEX IF NOT EXISTS temp.item_key ON item(key, map)", [])?;
        let wrong = self.number(inverse, [root])?;
        if wrong > 0 {
            problems.push(format!("{wrong} labels are not mapped back to their ids"));
        }
        // Up to some 0.6 the maps say it, since then the database.
        let own =
            self.connection.query_row("SELECT value FROM item WHERE map = ?1 AND key = 'max_seq_id'", [root], |row| {
                row.get::<_, Option<u64>>(0)
            });
        Ok(if noted > 0 { noted } else { own.ok().flatten().unwrap_or(0) })
    }

    /// Plays the operations after `from` forward on a table of ids. Gives their number.
    fn play(&self, collection: &str, from: u64, table: &str) -> Result<u64> {
        let query =
            "SELECT id, operation FROM embeddings_queue WHERE seq_id > ?1 AND substr(topic, -36) = ?2 ORDER BY seq_id";
        let mut statement = self.connection.prepare(query)?;
        let mut rows = statement.query(params![from.cast_signed(), collection])?;
        let mut add = self.connection.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES(?1)"))?;
        let mut delete = self.connection.prepare(&format!("DELETE FROM {table} WHERE id = ?1"))?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            match row.get::<_, i64>(1)? {
                DELETE => delete.execute([&id])?,
                UPDATE => 0,
                _ => add.execute([&id])?,
            };
            count += 1;
        }
        Ok(count)
    }

    fn differences(&self, these: &str, those: &str, what: &str, problems: &mut Vec<String>) -> Result<()> {
        let query = format!("SELECT count(*), min(id) FROM (SELECT id FROM {these} EXCEPT SELECT id FROM {those})");
        let (count, first) = self
            .connection
            .query_row(&query, [], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, Option<String>>(1)?)))?;
        if let Some(first) = first {
            problems.push(format!("{count} {what}, such as {first:?}"));
        }
        Ok(())
    }

    /// Operations that the metadata know, the index does not, and the queue no longer has: changed vectors that are lost.
    fn gap(&self, collection: &Collection, persisted: u64, problems: &mut Vec<String>) -> Result<()> {
        let mut statement = self.connection.prepare("SELECT seq_id FROM embeddings WHERE segment_id = ?1")?;
        let mut queued = self.connection.prepare("SELECT 1 FROM embeddings_queue WHERE seq_id = ?1")?;
        let mut rows = statement.query([&collection.metadata])?;
        let mut lost = 0;
        while let Some(row) = rows.next()? {
            let seq = layout::seq(row.get_ref(0)?)?;
            if seq > persisted && !queued.exists([seq.cast_signed()])? {
                lost += 1;
            }
        }
        if lost > 0 {
            problems.push(format!(
                "{lost} ids were changed after operation {persisted}, and the queue does not have that any more"
            ));
        }
        Ok(())
    }

    fn number(&self, query: &str, params: impl rusqlite::Params) -> Result<u64> {
        Ok(self.connection.query_row(query, params, |row| row.get(0))?)
    }

    /// Some ids of a collection whose vectors are in the index and were not touched since, with the vectors as the files have them.
    pub fn sample(&self, found: &Found, most: usize) -> Result<Vec<(String, Vec<f32>)>> {
        let collections = layout::collections(&self.connection)?;
        let collection = collections.iter().find(|c| c.id == found.id).context("the collection is gone")?;
        self.collection(collection)?;
        let noted = layout::max_seq(&self.connection, &collection.vectors)?;
        let query = "SELECT id, label FROM label WHERE id NOT IN
                       (SELECT id FROM embeddings_queue WHERE seq_id > ?1 AND substr(topic, -36) = ?2)
                     AND id IN (SELECT id FROM metadata) ORDER BY (label * 40503) % 65536 LIMIT ?3";
        let mut statement = self.connection.prepare(query)?;
        let rows = statement.query_map(params![noted.cast_signed(), collection.id, most as u64], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, String>(0)?))
        });
        let wanted: std::collections::BTreeMap<i64, String> =
            rows.and_then(Iterator::collect).context("choose a sample")?;
        let mut sample = Vec::new();
        if !wanted.is_empty() {
            hnsw::walk(&self.directory.join(&collection.vectors), &mut |element| {
                if let Some(id) = wanted.get(&element.label.cast_signed()) {
                    let vector = element.vector.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    sample.push((id.clone(), vector.collect()));
                }
                Ok(())
            })?;
        }
        Ok(sample)
    }
}

/// What SQLite's check says, over a connection of its own.
fn integrity(directory: &Path) -> String {
    let check = || -> rusqlite::Result<String> {
        let connection = sqlite::open::open_immutable(&directory.join(DATABASE))?;
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    check().unwrap_or_else(|e| format!("error: {e}"))
}

/// As it is kept in a temporary table; another map by its number, negated.
fn sql(value: Value) -> Sql {
    match value {
        Value::Text(text) => Sql::Text(text),
        Value::Number(n) => Sql::Integer(n),
        Value::Dictionary(n) => Sql::Integer(-i64::from(n)),
        Value::Other => Sql::Null,
    }
}
