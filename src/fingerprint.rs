//! What a snapshot looks like in a few numbers, and whether that fits what came before. Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::report::Stats;

/// Good fingerprints that a snapshot carries on, its own included.
pub const REMEMBERED: usize = 10;
/// Less than this share of what is usual is a shrink.
const SHRINK: f64 = 0.5;
/// Differences below these are everyday: bytes, entries, rows.
const FEW: (f64, f64, f64) = (65_536.0, 10.0, 10.0);
/// Below this many new bytes, how they compress says nothing.
const SAMPLE: f64 = 1_048_576.0;
/// Stored ÷ raw: encrypted or compressed data on one side, everything that compresses on the other.
const INCOMPRESSIBLE: f64 = 0.97;
const COMPRESSIBLE: f64 = 0.80;
/// Share of the data that changed in one run.
const MUCH_CHANGED: f64 = 0.30;

/// In bytes and counts. It travels in the sealed part of the commit: the store learns nothing from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub entries: u64,
    pub bytes: u64,
    /// Raw bytes that were new in the run, and what they took in the store.
    pub bytes_new: u64,
    pub bytes_stored: u64,
    /// Rows, keys or records by table, collection or database, as far as the engine counted them.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// That the engine's data could not be counted: none is not zero then.
    #[serde(default)]
    pub uncounted: bool,
    /// Bytes of users' tables, where the engine's own files would hide them in `bytes`.
    #[serde(default)]
    pub table_bytes: u64,
    /// What stays the same for as long as the source is the same one: a system identifier, an application id.
    #[serde(default)]
    pub identity: BTreeMap<String, String>,
}

type Measure = fn(&Fingerprint) -> f64;

/// Facts whose members are counts, and facts that identify.
const COUNTS: [&str; 4] = ["tables", "rows", "keys", "collections"];
const IDENTITY: [&str; 3] = ["system", "system_identifier", "application_id"];

impl Fingerprint {
    pub fn of(stats: &Stats, facts: &Value) -> Fingerprint {
        let mut counts = BTreeMap::new();
        for of in COUNTS {
            for (name, value) in facts[of].as_object().into_iter().flatten() {
                counts.extend(value.as_u64().map(|n| (format!("{of}: {name}"), n)));
            }
        }
        counts.extend(nested(facts));
        // What is written for us must not make a source look full that has lost all else.
        if let Some(canary) = facts["canary"]["at"].as_str() {
            counts.retain(|name, _| !name.ends_with(&format!(" {canary}")));
            if let Some(keys) = counts.get_mut("keys").filter(|_| facts["canary"]["written"].is_string()) {
                *keys = keys.saturating_sub(1);
            }
        }
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let known = |value: &&Value| !value.is_null() && value.as_i64() != Some(0);
        let identity =
            IDENTITY.iter().filter_map(|key| Some(((*key).to_owned(), text(facts.get(*key).filter(known)?))));
        Fingerprint {
            entries: stats.entries,
            bytes: stats.bytes,
            bytes_new: stats.bytes_new,
            bytes_stored: stats.bytes_stored,
            counts,
            uncounted: !facts["rdb"]["uncounted"].is_null(),
            table_bytes: facts["table_bytes"].as_u64().unwrap_or(0),
            identity: identity.collect(),
        }
    }

    fn rows(&self) -> f64 {
        self.counts.values().sum::<u64>() as f64
    }

    /// Stored ÷ raw of what was new, if it was enough to tell.
    fn ratio(&self) -> Option<f64> {
        (self.bytes_new as f64 >= SAMPLE).then(|| self.bytes_stored as f64 / self.bytes_new as f64)
    }

    fn changed(&self) -> f64 {
        self.bytes_new as f64 / self.bytes.max(1) as f64
    }

    /// Why this does not fit the good fingerprints before it, the oldest first; empty if it does. The first of a source fits.
    pub fn suspicions(&self, before: &[Fingerprint]) -> Vec<String> {
        let Some(last) = before.last() else { return Vec::new() };
        let mut why = Vec::new();
        for (key, value) in &self.identity {
            if let Some(other) = last.identity.get(key).filter(|other| *other != value) {
                why.push(format!("another source: its {key} is {value}, and was {other}"));
            }
        }
        let names = |f: &Fingerprint| f.counts.keys().cloned().collect::<Vec<_>>();
        if last.counts.len() > 1 && !self.counts.is_empty() && names(self).iter().all(|n| !last.counts.contains_key(n))
        {
            why.push(format!("another source: none of its {} tables was in the last good snapshot", self.counts.len()));
        }
        if self.bytes == 0 && last.bytes > 0 {
            why.push(format!("empty: 0 bytes, and {} before", last.bytes));
        }
        let usual = |f: Measure| median(before.iter().map(f).collect());
        let shrunk = |now: f64, usual: f64, few: f64| now < SHRINK * usual && usual - now >= few;
        let measures: [(&str, Measure, f64); 4] = [
            ("bytes", |f| f.bytes as f64, FEW.0),
            ("bytes of tables", |f| f.table_bytes as f64, FEW.0),
            ("entries", |f| f.entries as f64, FEW.1),
            ("rows", Fingerprint::rows, FEW.2),
        ];
        for (what, measure, few) in measures {
            let (now, usual) = (measure(self), usual(measure));
            if what == "rows" && self.uncounted {
                continue;
            }
            if now == 0.0 && usual > 0.0 && what == "rows" {
                why.push(format!("zero rows: 0, and {usual:.0} before"));
            } else if now == 0.0 && usual > 0.0 && what == "bytes of tables" {
                why.push(format!("its tables are empty: 0 bytes, and {usual:.0} before"));
            } else if now > 0.0 && shrunk(now, usual, few) {
                why.push(format!("a sudden shrink: {now:.0} {what}, and {usual:.0} before"));
            }
        }
        why.extend(self.emptied(before));
        let compressed = median(before.iter().filter_map(Fingerprint::ratio).collect());
        if let Some(ratio) = self.ratio()
            && ratio >= INCOMPRESSIBLE
            && compressed > 0.0
            && compressed < COMPRESSIBLE
            && self.changed() >= MUCH_CHANGED
        {
            why.push(format!(
                "an entropy jump: {:.0} % of the data is new and does not compress (to {ratio:.2} of its size, {compressed:.2} before): \
                 it may have been encrypted",
                100.0 * self.changed()
            ));
        }
        why
    }

    /// A large table that always had rows and has none now, while others still do.
    fn emptied(&self, before: &[Fingerprint]) -> Vec<String> {
        if self.rows() == 0.0 {
            return Vec::new();
        }
        let always = |name: &String| before.iter().all(|f| f.counts.get(name).is_some_and(|n| *n >= 1000));
        let empty = self.counts.iter().filter(|(name, n)| **n == 0 && always(name));
        empty.map(|(name, _)| format!("zero rows in {name}, which had 1000 and more in every snapshot")).collect()
    }
}

/// Counts that lie deeper: rows of dumped databases, ids of Chroma's collections, keys of Redis. Keys that expire by themselves come and go.
fn nested(facts: &Value) -> BTreeMap<String, u64> {
    let list = |of: &str| facts[of].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let mut counts = BTreeMap::new();
    for database in list("databases") {
        for (table, rows) in database["tables"].as_object().into_iter().flatten() {
            counts.extend(rows.as_u64().map(|n| (format!("tables: {} {table}", name(&database)), n)));
        }
    }
    for collection in list("collections") {
        counts.extend(collection["count"].as_u64().map(|n| (format!("collections: {}", name(&collection)), n)));
    }
    if facts["rdb"]["uncounted"].is_null() && facts["rdb"].is_object() {
        let count = |database: &Value, what: &str| database[what].as_u64().unwrap_or(0);
        let databases = facts["rdb"]["databases"].as_object().cloned().unwrap_or_default();
        let lasting = databases.values().map(|d| count(d, "keys").saturating_sub(count(d, "expiring"))).sum();
        counts.insert("keys".to_owned(), lasting);
    }
    counts
}

/// 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(entries: u64, bytes: u64) -> Fingerprint {
        Fingerprint { entries, bytes, bytes_new: bytes / 100, bytes_stored: bytes / 200, ..Fingerprint::default() }
    }

    fn database(tables: Value, id: i64) -> Fingerprint {
        let stats = Stats { entries: 1, bytes: 1 << 20, ..Stats::default() };
        Fingerprint::of(&stats, &json!({"tables": tables, "application_id": id, "page_size": 4096}))
    }

    fn says(found: &Fingerprint, before: &[Fingerprint], words: &[&str]) {
        let why = found.suspicions(before);
        assert_eq!(why.len(), words.len(), "{why:?}");
        for (why, words) in why.iter().zip(words) {
            assert!(why.contains(words), "{why:?} lacks {words:?}");
        }
    }

    #[test]
    fn everyday_changes_are_not_suspect() {
        let usual = vec![plain(100, 10 << 20), plain(110, 12 << 20), plain(105, 11 << 20)];
        says(&plain(90, 8 << 20), &usual, &[]);
        says(&plain(300, 90 << 20), &usual, &[]);
        says(&plain(1, 10), &[], &[]);
        says(&plain(2, 900), &[plain(8, 40_000)], &[]);
        let rows = |n: u64| database(json!({"orders": n, "jobs": 3}), 7);
        says(&rows(900), &[rows(1000), rows(1010)], &[]);
        // A queue that runs empty.
        says(&database(json!({"orders": 1000, "jobs": 0}), 7), &[rows(1000), rows(1000)], &[]);
    }

    #[test]
    fn a_shrink_an_empty_source_and_zero_rows() {
        let usual = vec![plain(100, 10 << 20), plain(110, 12 << 20), plain(105, 11 << 20)];
        says(&plain(0, 0), &usual, &["empty: 0 bytes"]);
        says(&plain(100, 3 << 20), &usual, &["a sudden shrink: 3145728 bytes"]);
        says(&plain(20, 11 << 20), &usual, &["a sudden shrink: 20 entries"]);
        let rows = |n: u64| database(json!({"orders": n}), 7);
        says(&rows(0), &[rows(12)], &["zero rows: 0, and 12 before"]);
        says(&rows(300), &[rows(1000), rows(1010), rows(990)], &["a sudden shrink: 300 rows"]);
        let two = |orders: u64| database(json!({"orders": orders, "log": 90_000}), 7);
        says(&two(0), &[two(1000), two(1001)], &["zero rows in tables: orders"]);
    }

    #[test]
    fn every_engine_is_counted() {
        let of = |facts: Value| Fingerprint::of(&Stats { bytes: 40 << 20, ..Stats::default() }, &facts);
        let dumped = |n: u64| of(json!({"databases": [{"name": "shop", "tables": {"public.a": n, "public.b": null}}]}));
        assert_eq!(dumped(7).counts, [("tables: shop public.a".to_owned(), 7)].into());
        says(&dumped(0), &[dumped(7)], &["zero rows: 0, and 7 before"]);
        let vectors = |name: &str, n: u64| {
            of(json!({"collections": [{"name": name, "count": n}, {"name": format!("{name}2"), "count": 3}]}))
        };
        says(&vectors("a", 100), &[vectors("a", 900)], &["a sudden shrink: 103 rows"]);
        says(&vectors("b", 900), &[vectors("a", 900)], &["another source: none of its 2 tables"]);
        let keys =
            |keys: u64, expiring: u64| of(json!({"rdb": {"databases": {"0": {"keys": keys, "expiring": expiring}}}}));
        says(&keys(3, 3), &[keys(9, 2)], &["zero rows: 0, and 7 before"]);
        let canary = |keys: u64| {
            let written = json!({"at": "k", "every_seconds": 60, "written": "2026-11-23T09:00:00Z"});
            of(json!({"rdb": {"databases": {"0": {"keys": keys, "expiring": 0}}}, "canary": written}))
        };
        says(&canary(1), &[canary(9)], &["zero rows: 0, and 8 before"]);
        let rows =
            |n: u64| of(json!({"tables": {"orders": n, "beat": 1}, "canary": {"at": "beat", "every_seconds": 60}}));
        says(&rows(0), &[rows(12)], &["zero rows: 0, and 12 before"]);
        // A cache that runs empty by itself.
        says(&keys(0, 0), &[keys(900, 900)], &[]);
        says(&of(json!({"rdb": {"databases": {}, "uncounted": "a module"}})), &[keys(9, 0)], &[]);
        let cluster = |bytes: u64| of(json!({"system": "7", "databases": ["postgres"], "table_bytes": bytes}));
        says(&cluster(0), &[cluster(90_000)], &["its tables are empty: 0 bytes, and 90000 before"]);
        says(&cluster(90_000), &[cluster(900_000)], &["a sudden shrink: 90000 bytes of tables"]);
    }

    #[test]
    fn one_odd_snapshot_does_not_move_what_is_usual() {
        let usual = vec![plain(100, 10 << 20), plain(100, 1 << 30), plain(100, 10 << 20)];
        says(&plain(100, 9 << 20), &usual, &[]);
    }

    #[test]
    fn another_source_in_the_same_place() {
        let before = [database(json!({"orders": 10, "users": 5}), 7)];
        says(&database(json!({"orders": 10, "users": 5}), 8), &before, &["another source: its application_id is 8"]);
        says(&database(json!({"films": 10, "actors": 9}), 7), &before, &["none of its 2 tables"]);
    }

    #[test]
    fn encryption_shows_in_what_does_not_compress_any_more() {
        let run = |new: u64, stored: u64| Fingerprint {
            entries: 10,
            bytes: 10 << 20,
            bytes_new: new,
            bytes_stored: stored,
            ..Fingerprint::default()
        };
        let usual = vec![run(10 << 20, 4 << 20), run(2 << 20, 1 << 20)];
        says(&run(9 << 20, 9 << 20), &usual, &["an entropy jump: 90 %"]);
        // New data that compresses, a little that does not, and a source that never compressed.
        says(&run(9 << 20, 4 << 20), &usual, &[]);
        says(&run(2 << 20, 2 << 20), &usual, &[]);
        says(&run(9 << 20, 9 << 20), &[run(10 << 20, 10 << 20)], &[]);
    }
}
