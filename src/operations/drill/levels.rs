//! The cheap levels of a drill: they read the repository and write nothing. Each fault is an object by name.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

use crate::interrupt;
use crate::operations::basis::{index_store, pack_table};
use crate::operations::restore::{self, PackWork};
use crate::operations::{Open, place};
use crate::report::{Check, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::index::PackLine;
use crate::repository::layout::{self, Hash};
use crate::repository::series;
use crate::repository::snapshot::Snapshot;
use crate::storage::{self, Key};

/// What it means that a drill does not go on.
const NOTHING_SAID: &str = "Nothing was changed, and nothing is said of the backup.";
/// Faults named in a check.
const NAMED: usize = 5;

/// That every object is listed at its size.
pub fn existence(open: &Open, snapshot: &Snapshot, times: &Stopwatch) -> Result<Check> {
    let needed = series::objects_of(&open.store, snapshot)?;
    let mut there: BTreeMap<Key, u64> = BTreeMap::new();
    for area in ["packs", "index"] {
        let listed = times
            .time("locate", || open.store.list(&layout::content_prefix(area, &snapshot.source)))
            .context("list objects")?;
        there.extend(listed.into_iter().map(|o| (o.key, o.size)));
    }
    let faults = needed.iter().filter_map(|(key, (_, size))| match there.get(key) {
        None => Some(format!("{key} is missing")),
        Some(found) if found != size => Some(format!("{key} has {found} bytes, not {size}")),
        Some(_) => None,
    });
    Ok(named(format!("{} objects exist at their size", needed.len()), faults.collect()))
}

/// That the stored bytes of every object have the hash that names them. Gives the bytes fetched, too.
pub fn hashes(open: &Open, snapshot: &Snapshot, times: &Stopwatch) -> Result<(Check, u64)> {
    let needed = series::objects_of(&open.store, snapshot)?;
    let (mut faults, mut fetched) = (Vec::new(), 0);
    for (key, (hash, _)) in &needed {
        interrupt::check(NOTHING_SAID)?;
        match times.time("fetch", || open.store.get(key)) {
            Ok(body) => {
                fetched += body.len() as u64;
                if times.time("hash", || Hash::of(&body)) != *hash {
                    faults.push(format!("{key} does not match its SHA-256"));
                }
            }
            Err(e) if matches!(e.kind, storage::Kind::NotFound | storage::Kind::Truncated) => {
                faults.push(format!("{key}: {e}"));
            }
            Err(e) => return Err(e).with_context(|| format!("read {key}")),
        }
    }
    Ok((named(format!("{} objects match their SHA-256", needed.len()), faults), fetched))
}

/// That every frame of every pack decrypts and decompresses.
pub fn decode(
    open: &Open,
    snapshot: &Snapshot,
    identities: &[Identity],
    times: &Stopwatch,
) -> Result<(Vec<Check>, u64)> {
    let (mut faults, mut fetched, mut packs) = (Vec::new(), 0, 0);
    let index = index_store(open, &snapshot.source, false);
    let table = pack_table(&index, snapshot, identities, |line, _| {
        let PackLine::Pack { name, size, frames, .. } = line else { return Ok(()) };
        interrupt::check(NOTHING_SAID)?;
        let pack = PackWork { name, size, frames, writes: Vec::new() };
        match times.time("decode", || restore::read_pack(open, &snapshot.source, &pack, identities)) {
            Ok(()) => fetched += size,
            Err(e) if place::is_to_blame(&e) => return Err(e),
            Err(e) => faults.push(format!("{}: {e:#}", layout::pack(&snapshot.source, &name))),
        }
        packs += 1;
        Ok(())
    });
    let index = match table {
        Ok(_) => Check::compare("the index decodes", "yes", "yes"),
        Err(e) if place::is_to_blame(&e) => return Err(e),
        Err(e) => Check::compare("the index decodes", "yes", format!("{e:#}")),
    };
    Ok((vec![index, named(format!("{packs} packs decrypt and decompress"), faults)], fetched))
}

fn named(name: String, faults: Vec<String>) -> Check {
    let actual = match faults.len() {
        0 => "all".to_owned(),
        n => format!("{n} do not: {}", faults.into_iter().take(NAMED).collect::<Vec<_>>().join("; ")),
    };
    Check::compare(name, "all", actual)
}
