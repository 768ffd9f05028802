//! An index that lies, correctly sealed and signed: what it leaves out must not come back as zeros, and what is out of bounds is refused.

use super::world::{World, name};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::restore::{self, Pick};
use blackstart::repository::agefile;
use blackstart::repository::index::decode_object;
use blackstart::repository::layout::{self, Hash};
use blackstart::storage::memory::Memory;
use serde_json::{Value, json};
use std::sync::Arc;

/// One snapshot of a database of several pages.
fn world() -> (World, Memory) {
    let memory = Memory::default();
    let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
    let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
    db.execute_batch(
        "PRAGMA page_size=512; CREATE TABLE t(body BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<6000) INSERT INTO t SELECT randomblob(400) FROM n",
    )
    .unwrap();
    world.backup_sqlite(&world.path("app.db"), Options { workers: 1, ..Options::default() }).unwrap();
    (world, memory)
}

/// Puts the lines of one list of the only layer through `change`, and makes the commit name the result.
fn forge(world: &World, memory: &Memory, list: &str, change: impl Fn(&mut Vec<Value>)) {
    let (store, source) = (&world.host.open.store, name("db"));
    let commit = layout::snapshot(&source, 1);
    let object = store.get(&commit).unwrap();
    let mut line: Value = serde_json::from_slice(object.split(|b| *b == b'\n').next().unwrap()).unwrap();
    let mut lines = Vec::new();
    for object in line["layers"][0][list].as_array().unwrap() {
        let hash = Hash::parse(object[0].as_str().unwrap()).unwrap();
        let stored = store.get(&layout::index(&source, &hash)).unwrap().to_vec();
        let raw = decode_object(stored, std::slice::from_ref(&world.recovery.identity)).unwrap();
        lines.extend(raw.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()));
    }
    change(&mut lines);
    let raw: String = lines.iter().map(|line: &Value| format!("{line}\n")).collect();
    let recipients = world.host.open.trust.recovery_recipients().unwrap();
    let stored = agefile::seal(&recipients, &zstd::bulk::compress(raw.as_bytes(), 3).unwrap()).unwrap().bytes;
    let hash = Hash::of(&stored);
    line["layers"][0][list] = json!([[hash.to_string(), stored.len()]]);
    store.create(&layout::index(&source, &hash), stored.into(), &hash.0).unwrap();
    let body = world.host.keys.signing.sign_line(&line).unwrap();
    memory.tamper(&commit, |b| *b = body);
}

fn refused(world: &World, why: &str) {
    // Without a copy of an index object.
    let (commit, snapshot) = restore::find(&world.host.open, &name("db"), &Pick::Latest).unwrap();
    let request = restore::Request::new(world.path("out"), 1);
    let identities = std::slice::from_ref(&world.recovery.identity);
    let error = restore::restore(&world.host.open, identities, &commit, &snapshot, &request).unwrap_err();
    assert!(format!("{error:#}").contains(why), "{error:#}");
    assert!(!world.path("out").exists());
}

#[test]
fn pages_that_the_index_leaves_out_do_not_come_back_as_zeros() {
    let (world, memory) = world();
    forge(&world, &memory, "entries", |lines| {
        assert!(lines.len() > 2, "{}", lines.len());
        lines.pop();
    });
    refused(&world, "the index is damaged: it has");
    let (world, memory) = self::world();
    // One page, in the middle.
    forge(&world, &memory, "entries", |lines| {
        let extent = &mut lines[1]["extents"][0];
        let length = extent[1].as_u64().unwrap() - 512;
        extent[1] = json!(length);
        let ids = &mut lines[1]["ids"];
        let shorter = {
            use base64::prelude::{BASE64_STANDARD, Engine};
            let mut bytes = BASE64_STANDARD.decode(ids.as_str().unwrap()).unwrap();
            let at = length as usize / 512 * 8;
            bytes.drain(at..at + 8);
            BASE64_STANDARD.encode(bytes)
        };
        *ids = json!(shorter);
    });
    refused(&world, "the index is damaged: it has");
}

#[test]
fn a_pack_that_the_index_leaves_out_is_missed() {
    let (world, memory) = world();
    forge(&world, &memory, "packs", |lines| lines.retain(|line| line["pack"] != 0));
    refused(&world, "is not in the pack table");
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let frame = |stored: u64, raw: u64| json!([stored, raw, "x"]);
    let cases: [(&str, Value); 4] = [
        ("size", json!((18 << 20) + 1)),
        ("frames", Value::Array(vec![frame(1, 1); 4097])),
        ("frames", json!([frame(1, (1 << 20) + 1)])),
        ("frames", json!([frame((18 << 20) + 1, 1)])),
    ];
    for (field, value) in cases {
        let (world, memory) = world();
        forge(&world, &memory, "packs", |lines| lines[0][field] = value.clone());
        refused(&world, "out of bounds");
    }
    // An unforged copy of the same comes back, so that it is the forgery that is refused.
    let (world, memory) = world();
    forge(&world, &memory, "packs", |_| ());
    forge(&world, &memory, "entries", |_| ());
    world.restore("db", &Pick::Latest, "out").unwrap();
}
