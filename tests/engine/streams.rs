//! Streams whose lengths only their ends tell, and what a source learns of its newest snapshot.

use super::roundtrip::{break_glass, noise};
use super::world::{World, name};
use anyhow::Result;
use blackstart::entry::{Entry, EntryKind, Name};
use blackstart::operations::backup::{self, BackupReport, Options};
use blackstart::operations::restore::Pick;
use blackstart::operations::verify;
use blackstart::report::Skip;
use blackstart::source::{Before, Finished, Piece, Source};
use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

/// Streams by name; one of `None` is lost in its middle.
#[derive(Clone)]
struct Streams<'a> {
    streams: Vec<(&'static str, Option<Vec<u8>>)>,
    next: usize,
    at: usize,
    heard: &'a Mutex<Option<(u64, u64, bool)>>,
}

impl Source for Streams<'_> {
    fn kind(&self) -> &'static str {
        "test"
    }

    fn root(&self) -> String {
        "test".into()
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        *self.heard.lock().unwrap() = Some((before.seq, before.facts["total"].as_u64().unwrap(), before.accept_change));
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.next += 1;
        self.at = 0;
        let Some((name, _)) = self.streams.get(self.next - 1) else { return Ok(None) };
        Ok(Some(Entry {
            path: Name::new(*name),
            kind: EntryKind::File,
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            user: Name::default(),
            group: Name::default(),
            mtime: (1_700_000_000, 0),
            size: 0,
            page: None,
            target: None,
            rdev: None,
            xattrs: BTreeMap::new(),
            stat: None,
        }))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let Some(bytes) = &self.streams[self.next - 1].1 else {
            self.at += 1;
            return Ok(if self.at > 40 { Piece::Lost } else { Piece::Data(buffer.len().min(100_000)) });
        };
        let n = buffer.len().min(bytes.len() - self.at).min(77_777);
        buffer[..n].copy_from_slice(&bytes[self.at..self.at + n]);
        self.at += n;
        Ok(if n == 0 { Piece::StreamEnd } else { Piece::Data(n) })
    }

    fn finish(&mut self) -> Result<Finished> {
        let total: usize = self.streams.iter().flat_map(|(_, bytes)| bytes).map(Vec::len).sum();
        let lost = self.streams.iter().filter(|(_, bytes)| bytes.is_none());
        Ok(Finished {
            data_time: jiff::Timestamp::UNIX_EPOCH,
            skipped: lost.map(|(name, _)| Skip::new(&Name::new(*name), "lost")).collect(),
            facts: serde_json::json!({ "total": total }),
        })
    }
}

fn back_up(
    world: &World,
    streams: &[(&'static str, Option<Vec<u8>>)],
    options: Options,
) -> (BackupReport, Option<(u64, u64, bool)>) {
    // A boxed source borrows for ever.
    let heard: &'static Mutex<_> = Box::leak(Box::new(Mutex::new(None)));
    let streams = streams.to_vec();
    let open = move || -> Result<Box<dyn Source>> {
        Ok(Box::new(Streams { streams: streams.clone(), next: 0, at: 0, heard }))
    };
    let report = backup::backup(&world.host, &name("dump"), &open, options).unwrap();
    (report, *heard.lock().unwrap())
}

/// Fails unless the newest snapshot is exactly `streams`, for the engine and without it.
fn comes_back(world: &World, streams: &[(&'static str, Option<Vec<u8>>)], to: &str) {
    world.restore("dump", &Pick::Latest, to).unwrap();
    let kept: Vec<_> = streams.iter().filter_map(|(name, bytes)| Some((*name, bytes.as_ref()?))).collect();
    assert_eq!(fs::read_dir(world.path(to)).unwrap().count(), kept.len());
    for (name, bytes) in kept {
        assert!(fs::read(world.path(to).join(name)).unwrap() == *bytes, "{name} differs");
    }
}

#[test]
fn streams_get_their_sizes_at_their_ends() {
    let world = World::local();
    let mut streams = vec![
        ("a", Some(noise(1, 5_000_001))),
        ("b", Some(noise(2, 3))),
        ("empty", Some(Vec::new())),
        ("z", Some(noise(3, 2 << 20))),
    ];
    let (first, heard) = back_up(&world, &streams, Options::default());
    let total = 5_000_001 + 3 + (2 << 20);
    assert_eq!((first.stats.bytes, first.stats.bytes_read, heard), (total, total, None));
    comes_back(&world, &streams, "one");

    // An insertion moves everything behind it; the stream becomes longer, another shorter, one is new and one is gone.
    streams[0].1.as_mut().unwrap().splice(1_000_000..1_000_000, noise(9, 1000));
    streams[3].1.as_mut().unwrap().truncate(1 << 20);
    streams[1] = ("c", Some(noise(5, 70_000)));
    let (second, heard) = back_up(&world, &streams, Options { accept_change: true, ..Options::default() });
    assert_eq!(heard, Some((1, total, true)));
    assert!(second.stats.bytes_new < 1_200_000, "{:?}", second.stats);
    comes_back(&world, &streams, "two");
    for _ in 0..20 {
        back_up(&world, &streams, Options::default());
    }
    comes_back(&world, &streams, "many");
    let keys = Some(vec![world.recovery.identity.clone()]);
    let report = verify::verify(&world.host.open, None, &verify::Options { hashes: false, read_data: keys }).unwrap();
    assert!(report.sound(), "{report:?}");
    assert!(world.drill("dump").unwrap().passed);
    break_glass(&world, "dump");
}

#[test]
fn a_lost_stream_between_others_leaves_them_whole() {
    let world = World::local();
    let streams = [("a", Some(noise(1, 3_000_000))), ("b", None), ("c", Some(noise(2, 3_000_000))), ("d", None)];
    let (report, _) = back_up(&world, &streams, Options::default());
    assert_eq!(report.outcome, blackstart::report::Outcome::Partial);
    comes_back(&world, &streams, "out");
}
