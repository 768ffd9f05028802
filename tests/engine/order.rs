//! Sources whose entries come as the engine sends them: the index, the incrementals and the restore are as if they had come in order.

use super::roundtrip::{break_glass, noise};
use super::world::{World, name};
use anyhow::Result;
use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::operations::verify;
use blackstart::source::{Finished, Order, Piece, Source};
use std::collections::BTreeMap;
use std::fs;

const PAGE: usize = 8192;

/// Files by path, those with an extension streamed, the others paged.
#[derive(Clone, Default)]
struct Shuffled {
    files: Vec<(String, Vec<u8>)>,
    next: usize,
    at: usize,
}

impl Shuffled {
    fn entry(&self, path: &str, kind: EntryKind, size: usize) -> Entry {
        let paged = kind == EntryKind::File && !path.contains('.');
        Entry {
            path: Name::new(path),
            kind,
            mode: if kind == EntryKind::Dir { 0o700 } else { 0o600 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            user: Name::default(),
            group: Name::default(),
            mtime: (1_700_000_000, 0),
            size: size as u64,
            page: paged.then_some(PAGE as u32),
            target: None,
            rdev: None,
            xattrs: BTreeMap::new(),
            stat: None,
        }
    }
}

impl Source for Shuffled {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn root(&self) -> String {
        "test".into()
    }

    fn order(&self) -> Order {
        Order::AsTheyCome
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.next += 1;
        self.at = 0;
        Ok(match self.files.get(self.next - 1) {
            Some((path, bytes)) if path.ends_with('/') || path.is_empty() => {
                assert!(bytes.is_empty());
                Some(self.entry(path.trim_end_matches('/'), EntryKind::Dir, 0))
            }
            Some((path, bytes)) => Some(self.entry(path, EntryKind::File, bytes.len())),
            None => None,
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let bytes = &self.files[self.next - 1].1;
        let n = buffer.len().min(bytes.len() - self.at).min(30 * PAGE);
        buffer[..n].copy_from_slice(&bytes[self.at..self.at + n]);
        self.at += n;
        Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
    }

    fn finish(&mut self) -> Result<Finished> {
        Ok(Finished { data_time: jiff::Timestamp::UNIX_EPOCH, skipped: Vec::new(), facts: serde_json::Value::Null })
    }
}

fn take(world: &World, source: &Shuffled, options: Options) -> Result<BackupReport> {
    backup::backup(&world.host, &name("tree"), &|| Ok(Box::new(source.clone())), options)
}

fn check(world: &World, source: &Shuffled, to: &str) {
    world.restore("tree", &Pick::Latest, to).unwrap();
    let root = world.path(to);
    let mut files = 0;
    for (path, bytes) in source.files.iter().filter(|(path, _)| !path.ends_with('/') && !path.is_empty()) {
        assert!(fs::read(root.join(path)).unwrap() == *bytes, "{path} differs");
        files += 1;
    }
    let found = std::process::Command::new("find").arg(root).args(["-type", "f"]).output().unwrap();
    assert_eq!(found.stdout.iter().filter(|b| **b == b'\n').count(), files);
}

#[test]
fn entries_in_any_order_make_the_same_index() {
    let world = World::local();
    let mut source = Shuffled::default();
    let mut add = |path: &str, bytes: Vec<u8>| source.files.push((path.to_owned(), bytes));
    add("", Vec::new());
    add("z/", Vec::new());
    // More than a segment of pages, after a path that sorts behind it, and names around the separator.
    add("z/1", noise(1, 5000 * PAGE));
    add("a-b.conf", b"between".to_vec());
    add("a/", Vec::new());
    add("a/x.log", noise(2, 700_000));
    add("a/2", noise(3, 100 * PAGE));
    add("PG_VERSION.txt", b"15\n".to_vec());
    add("a/gone", noise(4, 10 * PAGE));
    add("a/empty", Vec::new());
    take(&world, &source, Options::default()).unwrap();
    check(&world, &source, "first");
    // Another order; pages changed at both ends, a file shrunk, one grown, one gone, one new.
    source.files.reverse();
    source.files.retain(|(path, _)| path != "a/gone");
    for (path, bytes) in &mut source.files {
        match path.as_str() {
            "z/1" => {
                bytes[17] ^= 1;
                let end = bytes.len() - 1;
                bytes[end] ^= 1;
            }
            "a/2" => bytes.truncate(40 * PAGE),
            "a/empty" => *bytes = noise(5, 3 * PAGE),
            _ => {}
        }
    }
    source.files.insert(1, ("b.new".to_owned(), noise(6, 5000)));
    let report = take(&world, &source, Options::default()).unwrap();
    assert!(report.stats.bytes_new < 100_000, "{:?}", report.stats);
    check(&world, &source, "second");
    let report = take(&world, &source, Options::default()).unwrap();
    assert_eq!(report.stats.bytes_new, 0);
    check(&world, &source, "third");
    verify::verify(&world.host.open, Some(&name("tree")), &verify::Options::default()).unwrap();
    break_glass(&world, "tree");
}

#[test]
fn a_path_that_comes_twice_ends_the_run() {
    let world = World::local();
    let files = ["", "a.txt", "b.txt", "a.txt"].map(|path| (path.to_owned(), Vec::new())).to_vec();
    let error = take(&world, &Shuffled { files, ..Shuffled::default() }, Options::default()).unwrap_err();
    assert!(format!("{error:#}").contains("a.txt twice"), "{error:#}");
}
