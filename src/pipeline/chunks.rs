//! Where chunks of the basis and of this run lie, by chunk id: a temporary SQLite table, so that memory stays bounded
//! whatever the source's size (it spills to disk by itself).

use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Mutex;

use super::pack::Place;

pub struct ChunkTable {
    db: Mutex<Connection>,
}

impl ChunkTable {
    pub fn new() -> Result<ChunkTable> {
        let db = Connection::open("").context("open a temporary table")?;
        db.execute_batch(
            "PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA cache_size=-16384;
             CREATE TABLE chunk(id BLOB PRIMARY KEY, pack INTEGER, frame INTEGER, place INTEGER) WITHOUT ROWID; BEGIN",
        )
        .context("open a temporary table")?;
        Ok(ChunkTable { db: Mutex::new(db) })
    }

    pub fn get(&self, id: &[u8; 32]) -> Result<Option<Place>> {
        let db = self.db.lock().unwrap_or_else(|e| e.into_inner());
        let mut find = db.prepare_cached("SELECT pack, frame, place FROM chunk WHERE id=?1")?;
        let row = find.query_row([&id[..]], |r| Ok(Place { pack: r.get(0)?, frame: r.get(1)?, from: r.get(2)? }));
        row.optional().context("look up a chunk")
    }

    /// The newest place of a chunk counts: an older one may be in a pack to avoid.
    pub fn insert(&self, id: &[u8], place: Place) -> Result<()> {
        let db = self.db.lock().unwrap_or_else(|e| e.into_inner());
        let mut add = db.prepare_cached("INSERT OR REPLACE INTO chunk VALUES(?1, ?2, ?3, ?4)")?;
        add.execute(params![id, place.pack, place.frame, place.from]).context("note a chunk")?;
        Ok(())
    }
}
