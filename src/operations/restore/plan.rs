//! What a restore has to fetch and write: a temporary SQLite table of extents by pack and of entries in path order, so that each
//! pack is fetched once and memory stays bounded whatever the source's size.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Request;
use crate::entry::{Entry, EntryKind, Name};
use crate::error::{Failure, Kind};
use crate::limits::FRAME_RAW_MAX;
use crate::operations::basis::pack_table;
use crate::repository::agefile::Identity;
use crate::repository::index::{Extent, IndexStore, LayerReader, Merge, PackLine};
use crate::repository::layout::Hash;
use crate::repository::snapshot::Snapshot;

/// `entry.pack` of a file whose extents lie in several packs.
const SEVERAL: i64 = -1;

pub struct Plan {
    db: Mutex<Connection>,
    pub totals: Totals,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub entries: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    pub packs: u64,
    /// Stored bytes of the packs touched.
    pub pack_bytes: u64,
}

/// One pack of the plan.
pub struct PackWork {
    pub name: Hash,
    pub size: u64,
    /// Stored length, raw length, SHA-256 of each frame, in order.
    pub frames: Vec<(u64, u64, String)>,
    /// By frame, then place in it.
    pub writes: Vec<Write>,
}

impl PackWork {
    /// The stored bytes, if they are this pack's.
    pub fn is(&self, bytes: &Bytes) -> Result<Bytes> {
        ensure!(Hash::of(bytes) == self.name, "does not match its SHA-256: its bytes have changed in the store");
        Ok(bytes.clone())
    }
}

/// Bytes of a frame that go into a file.
pub struct Write {
    pub extent: Extent,
    pub file: i64,
}

/// A file of the plan, as a worker needs it.
pub struct FileWork {
    pub entry: Entry,
    pub extents: u64,
    /// All extents lie in one pack: whoever writes that pack finishes the file.
    pub one_pack: bool,
}

impl Plan {
    /// Reads the snapshot's index. `paths` selects entries and what is below them; empty for all.
    pub fn read(index: &IndexStore, snapshot: &Snapshot, identities: &[Identity], paths: &[Name]) -> Result<Plan> {
        let db = Connection::open("").context("open a temporary table")?;
        db.execute_batch(
            "PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA cache_size=-16384;
             CREATE TABLE entry(id INTEGER PRIMARY KEY, json BLOB, extents INTEGER, pack INTEGER);
             CREATE TABLE pack(number INTEGER PRIMARY KEY, name BLOB, size INTEGER, frames BLOB);
             CREATE TABLE write(pack INTEGER, frame INTEGER, place INTEGER, file INTEGER, at INTEGER, len INTEGER,
                                PRIMARY KEY(pack, frame, place, file, at)) WITHOUT ROWID;
             BEGIN",
        )
        .context("open a temporary table")?;
        let mut totals = Totals::default();
        let shared = crate::operations::shared(identities);
        let layers =
            snapshot.layers.iter().map(|l| LayerReader::new(index.clone(), shared.clone(), &l.entries)).collect();
        read_entries(&db, Merge::new(layers), paths, &mut totals)?;
        pack_table(index, snapshot, identities, |line, _| note_pack(&db, line, &mut totals))?;
        let missing: Option<u64> = db
            .query_row("SELECT pack FROM write WHERE pack NOT IN (SELECT number FROM pack) LIMIT 1", [], |r| r.get(0))
            .optional()?;
        ensure!(missing.is_none(), "the index is damaged: pack {missing:?} is not in the pack table");
        Ok(Plan { db: Mutex::new(db), totals })
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of the packs to fetch, in order.
    pub fn pack_numbers(&self) -> Result<Vec<u64>> {
        let db = self.db();
        let mut rows = db.prepare("SELECT number FROM pack ORDER BY number")?;
        let numbers = rows.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
        Ok(numbers)
    }

    pub fn pack(&self, number: u64) -> Result<PackWork> {
        let db = self.db();
        let mut find = db.prepare_cached("SELECT name, size, frames FROM pack WHERE number=?1")?;
        let (name, size, frames): (Vec<u8>, u64, Vec<u8>) =
            find.query_row([number], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        let mut rows =
            db.prepare_cached("SELECT frame, place, file, at, len FROM write WHERE pack=?1 ORDER BY frame, place")?;
        let writes = rows.query_map([number], |r| {
            let extent = Extent { pack: number, frame: r.get(0)?, from: r.get(1)?, at: r.get(3)?, len: r.get(4)? };
            Ok(Write { extent, file: r.get(2)? })
        })?;
        let writes = writes.collect::<Result<_, _>>()?;
        let name = Hash(name.try_into().map_err(|_| anyhow::anyhow!("a hash has 32 bytes"))?);
        Ok(PackWork { name, size, frames: serde_json::from_slice(&frames)?, writes })
    }

    pub fn file(&self, id: i64) -> Result<FileWork> {
        let db = self.db();
        let mut find = db.prepare_cached("SELECT json, extents, pack FROM entry WHERE id=?1")?;
        let (json, extents, pack): (Vec<u8>, u64, i64) =
            find.query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        Ok(FileWork { entry: serde_json::from_slice(&json)?, extents, one_pack: pack != SEVERAL })
    }

    /// How many bytes come to lie where: the place of the restore first, then those of its branches.
    pub fn places(&self, request: &Request) -> Result<Vec<(PathBuf, u64)>> {
        let mut places: Vec<(PathBuf, u64)> = request.branches.iter().map(|b| (b.place.clone(), 0)).collect();
        if !places.is_empty() {
            self.each_entry(|entry, _| {
                let branch = request.branches.iter().position(|branch| branch.has(&entry.path));
                branch.into_iter().for_each(|i| places[i].1 += entry.size);
                Ok(())
            })?;
        }
        let elsewhere: u64 = places.iter().map(|(_, bytes)| bytes).sum();
        places.insert(0, (request.to.clone(), self.totals.bytes.saturating_sub(elsewhere)));
        Ok(places)
    }

    /// Calls `each` for every entry, in path order, with whether the file still needs its metadata once all packs are written.
    pub fn each_entry(&self, mut each: impl FnMut(&Entry, bool) -> Result<()>) -> Result<()> {
        let mut after = -1i64;
        loop {
            // In slices, so that the table is not locked while the caller works.
            let slice: Vec<(i64, Vec<u8>, u64, i64)> = {
                let db = self.db();
                let mut rows =
                    db.prepare_cached("SELECT id, json, extents, pack FROM entry WHERE id>?1 ORDER BY id LIMIT 1024")?;
                rows.query_map([after], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?
                    .collect::<Result<_, _>>()?
            };
            let Some(last) = slice.last() else { return Ok(()) };
            after = last.0;
            for (_, json, extents, pack) in slice {
                let entry: Entry = serde_json::from_slice(&json)?;
                let open = entry.kind == EntryKind::File && (extents == 0 || pack == SEVERAL);
                each(&entry, open)?;
            }
        }
    }
}

fn selected(path: &Name, kind: EntryKind, paths: &[Name]) -> bool {
    let below = |path: &[u8], top: &[u8]| {
        top.is_empty() || path == top || (path.starts_with(top) && path.get(top.len()) == Some(&b'/'))
    };
    let (path, is_dir) = (path.as_bytes(), kind == EntryKind::Dir);
    paths.is_empty() || paths.iter().any(|p| below(path, p.as_bytes()) || (is_dir && below(p.as_bytes(), path)))
}

fn read_entries(db: &Connection, mut merge: Merge, paths: &[Name], totals: &mut Totals) -> Result<()> {
    let mut add_entry = db.prepare("INSERT INTO entry VALUES(?1, ?2, ?3, ?4)")?;
    let mut add_write = db.prepare("INSERT INTO write VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut wanted: HashSet<&Name> = paths.iter().filter(|p| !p.is_empty()).collect();
    let mut id = 0i64;
    while let Some(merged) = merge.next_entry().context("read the index")? {
        let Some(entry) = merged.entry else { continue };
        if !selected(&entry.path, entry.kind, paths) {
            continue;
        }
        wanted.remove(&entry.path);
        let (mut extents, mut covered, mut pack) = (0u64, 0u64, None);
        while let Some(segment) = merge.next_segment().context("read the index")? {
            ensure!(entry.kind == EntryKind::File, "the index is damaged: {} has data and is no file", entry.path);
            for e in segment.extents {
                let end = e.from.checked_add(e.len).filter(|end| *end <= FRAME_RAW_MAX as u64);
                ensure!(
                    end.is_some() && e.end() <= entry.size,
                    "the index is damaged: an extent of {} is out of bounds",
                    entry.path
                );
                add_write
                    .execute(params![e.pack, e.frame, e.from, id, e.at, e.len])
                    .context("the index is damaged: an extent twice")?;
                extents += 1;
                covered += e.len;
                let here = i64::try_from(e.pack)?;
                pack = Some(pack.map_or(here, |p: i64| if p == here { here } else { SEVERAL }));
            }
        }
        // A paged file has no holes: a page that the index lost must not come back as zeros.
        let whole = entry.page.is_none() || covered == entry.size;
        ensure!(whole, "the index is damaged: it has {covered} of {} bytes of {}", entry.size, entry.path);
        add_entry.execute(params![id, serde_json::to_vec(&entry)?, extents, pack.unwrap_or(SEVERAL)])?;
        totals.entries += 1;
        totals.bytes += entry.size;
        id += 1;
    }
    let Some(absent) = wanted.into_iter().min() else { return Ok(()) };
    Err(Failure::new(
        Kind::Usage,
        format!("the snapshot has nothing at the path {absent}"),
        "Nothing was restored. Paths are relative to the root of the source and without wildcards, e.g. --path etc/app.toml; \
         an earlier snapshot may have it: --at TIME or --snapshot N.",
    ))
}

fn note_pack(db: &Connection, line: PackLine, totals: &mut Totals) -> Result<()> {
    let PackLine::Pack { pack, name, size, frames } = line else { return Ok(()) };
    let mut used = db.prepare_cached("SELECT 1 FROM write WHERE pack=?1 LIMIT 1")?;
    if !used.exists([pack])? {
        return Ok(());
    }
    let mut add = db.prepare_cached("INSERT INTO pack VALUES(?1, ?2, ?3, ?4)")?;
    add.execute(params![pack, &name.0[..], size, serde_json::to_vec(&frames)?])
        .context("the index is damaged: a pack twice")?;
    totals.packs += 1;
    totals.pack_bytes += size;
    Ok(())
}
