//! Sources whose entries come as the engine sends them: the index, the incrementals and the restore are as if they had come in order.

use super::roundtrip::break_glass;
use super::world::{World, name, noise};
use anyhow::Result;
use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::operations::verify;
use blackstart::repository::layout;
use blackstart::source::{BasisFiles, Finished, Order, Piece, Source};
use std::collections::BTreeMap;
use std::fs;

const PAGE: usize = 8192;

/// Files by path, those with an extension streamed, the others paged.
#[derive(Clone, Default)]
pub struct Shuffled {
    pub files: Vec<(String, Vec<u8>)>,
    next: usize,
    at: usize,
}

impl Shuffled {
    pub fn of(files: Vec<(String, Vec<u8>)>) -> Shuffled {
        Shuffled { files, ..Shuffled::default() }
    }

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

/// As [`Shuffled`], of an engine that knows which pages have changed: the others it passes over, in the files that it may.
#[derive(Clone)]
struct Told {
    source: Shuffled,
    /// What the engine had at the basis.
    before: BTreeMap<String, Vec<u8>>,
    /// The files offered, with their sizes.
    offered: BTreeMap<String, u64>,
    /// Passes over pages of files that were not offered, too.
    is_careless: bool,
}

impl Source for Told {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn root(&self) -> String {
        "test".into()
    }

    fn order(&self) -> Order {
        Order::AsTheyCome
    }

    fn lean_on(&mut self, basis: &BasisFiles) -> Result<()> {
        basis(&mut |entry| {
            self.offered.insert(entry.path.to_string(), entry.size);
            Ok(())
        })
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.source.next()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let (path, now) = &self.source.files[self.source.next - 1];
        let may = self.is_careless || self.offered.contains_key(path);
        let old = self.before.get(path).filter(|_| may && !path.contains('.'));
        let page = |bytes: &[u8], n: usize| bytes.get(n * PAGE..(n + 1) * PAGE).map(<[u8]>::to_vec);
        let from = self.source.at / PAGE;
        let is_same = |n: &usize| old.is_some_and(|old| page(now, *n).is_some() && page(old, *n) == page(now, *n));
        let run = (from..).take_while(is_same).count();
        if run > 0 {
            self.source.at += run * PAGE;
            return Ok(Piece::Same((run * PAGE) as u64));
        }
        let changed = (from..now.len() / PAGE).take_while(|n| !is_same(n)).count();
        let room = if old.is_some() { buffer.len().min(changed * PAGE) } else { buffer.len() };
        self.source.read(&mut buffer[..room])
    }

    fn finish(&mut self) -> Result<Finished> {
        self.source.finish()
    }
}

pub fn take(world: &World, source: &Shuffled, options: Options) -> Result<BackupReport> {
    backup::backup(&world.host, &name("tree"), &|| Ok(Box::new(source.clone())), options)
}

pub fn check(world: &World, source: &Shuffled, to: &str) {
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
    // With several, it is chance which files share a pack; one of which little is left is emptied by the run after, which then stores those bytes again.
    let options = || Options { workers: 1, ..Options::default() };
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
    take(&world, &source, options()).unwrap();
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
    let report = take(&world, &source, options()).unwrap();
    assert!(report.stats.bytes_new < 100_000, "{:?}", report.stats);
    check(&world, &source, "second");
    let report = take(&world, &source, options()).unwrap();
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

/// FORMAT.md §4-8: pages that the engine passes over are the basis's, and only where they can be.
#[test]
fn pages_that_are_passed_over_are_those_of_the_basis() {
    let world = World::local();
    let mut files: BTreeMap<String, Vec<u8>> =
        [("", 0), ("a", 4500), ("b", 300), ("c", 200), ("d", 150), ("e.log", 20)]
            .map(|(path, pages)| (path.to_owned(), noise(pages + 1, pages as usize * PAGE)))
            .into();
    let run = |files: &BTreeMap<String, Vec<u8>>, before: &BTreeMap<String, Vec<u8>>, is_careless| {
        let source = Shuffled { files: files.clone().into_iter().collect(), ..Shuffled::default() };
        let told = Told { source, before: before.clone(), offered: BTreeMap::new(), is_careless };
        let open = || -> Result<Box<dyn Source>> { Ok(Box::new(told.clone())) };
        backup::backup(&world.host, &name("tree"), &open, Options { workers: 2, ..Options::default() })
    };
    let whole = |files: &BTreeMap<String, Vec<u8>>, to: &str| {
        check(&world, &Shuffled { files: files.clone().into_iter().collect(), ..Shuffled::default() }, to);
    };
    // Nothing to lean on yet, and a full leans on nothing.
    let first = run(&files, &BTreeMap::new(), false).unwrap();
    assert_eq!(first.stats.bytes_read, first.stats.bytes);
    for round in 0..4 {
        let before = files.clone();
        let file = |files: &mut BTreeMap<String, Vec<u8>>, path: &str| std::mem::take(files.get_mut(path).unwrap());
        for (path, pages) in [("a", [0, 4095, 4096, 4499]), ("d", [round, 7, 8, 9])] {
            let mut bytes = file(&mut files, path);
            pages.iter().for_each(|n| bytes[n * PAGE + 5] ^= 0x5a);
            files.insert(path.to_owned(), bytes);
        }
        // One shrinks, another grows by pages that the basis does not have.
        let mut shrunk = file(&mut files, "b");
        shrunk.truncate((250 - 30 * round) * PAGE);
        files.insert("b".to_owned(), shrunk);
        let mut grown = file(&mut files, "c");
        grown.extend(noise(70 + round as u64, 50 * PAGE));
        files.insert("c".to_owned(), grown);
        let report = run(&files, &before, false).unwrap();
        assert_eq!(report.stats.bytes_read, ((8 + 50 + 20) * PAGE) as u64, "{:?}", report.stats);
        assert_eq!(report.stats.bytes, files.values().map(|bytes| bytes.len() as u64).sum::<u64>());
        whole(&files, &format!("round {round}"));
    }
    let idle = run(&files, &files, false).unwrap();
    assert_eq!((idle.stats.bytes_read, idle.stats.bytes_new), (20 * PAGE as u64, 0));
    verify::verify(&world.host.open, Some(&name("tree")), &verify::Options::default()).unwrap();
    break_glass(&world, "tree");
    // A pack is lost: files with pages in it are not offered, and so they are stored again.
    let store = &world.host.open.store;
    let packs = store.list(&layout::content_prefix("packs", &name("tree"))).unwrap();
    store.delete(&packs.iter().max_by_key(|object| object.size).unwrap().key).unwrap();
    let error = run(&files, &files, true).unwrap_err();
    assert!(format!("{error:#}").contains("must be stored again"), "{error:#}");
    let healed = run(&files, &files, false).unwrap();
    assert_eq!(healed.lost_packs.len(), 1);
    assert!(healed.stats.bytes_new > 0 && healed.stats.bytes_read < healed.stats.bytes, "{:?}", healed.stats);
    whole(&files, "healed");
    // Pages of a file that the basis does not have cannot be passed over.
    let more: BTreeMap<String, Vec<u8>> =
        files.clone().into_iter().chain([("f".to_owned(), noise(9, 9 * PAGE))]).collect();
    let error = run(&more, &more, true).unwrap_err();
    assert!(format!("{error:#}").contains("this is a bug"), "{error:#}");
    let full = backup::backup(
        &world.host,
        &name("tree"),
        &|| {
            let source = Shuffled { files: files.clone().into_iter().collect(), ..Shuffled::default() };
            Ok(Box::new(Told { source, before: files.clone(), offered: BTreeMap::new(), is_careless: false }))
        },
        Options { full: true, ..Options::default() },
    )
    .unwrap();
    assert_eq!(full.stats.bytes_read, full.stats.bytes, "a full leans on nothing");
}
