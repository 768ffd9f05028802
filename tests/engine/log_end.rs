//! Whoever writes on looks at the end of a log only, and finds there what the whole log would tell; `archive_command` on a long log costs as little as on a
//! short one.

use super::log::{Lab, START, UNIT, bytes, grow, time};
use super::world::{World, name};
use async_trait::async_trait;
use blackstart::bridge::Store;
use blackstart::clock::SystemClock;
use blackstart::operations::Host;
use blackstart::operations::wal::push::{PushReport, push};
use blackstart::repository::layout;
use blackstart::repository::log::{Author, Begin, Log, Tail, Writer};
use blackstart::source::postgres::wal::WalFile;
use blackstart::storage::local::Local;
use blackstart::storage::memory::Memory;
use blackstart::storage::{Kept, Key, Object, Page, Result, Storage, Version, VersionId};
use bytes::Bytes;
use proptest::prelude::*;
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// Keys of a page of a listing, as S3 has them.
const PAGE: usize = 1000;
const MIB: u64 = 1 << 20;

/// A store that counts what S3 would be asked.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Storage>,
    requests: AtomicUsize,
    keys: AtomicUsize,
}

impl Counting {
    fn on(inner: Arc<dyn Storage>) -> Arc<Counting> {
        Arc::new(Counting { inner, requests: AtomicUsize::new(0), keys: AtomicUsize::new(0) })
    }

    fn asked(&self, requests: usize, keys: usize) {
        self.requests.fetch_add(requests, Ordering::SeqCst);
        self.keys.fetch_add(keys, Ordering::SeqCst);
    }

    /// Requests and keys listed since the last call.
    fn take(&self) -> (usize, usize) {
        (self.requests.swap(0, Ordering::SeqCst), self.keys.swap(0, Ordering::SeqCst))
    }
}

#[async_trait]
impl Storage for Counting {
    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        self.asked(1, 0);
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.asked(1, 0);
        self.inner.get_range(key, range).await
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        self.asked(1, 0);
        self.inner.create(key, body, sha256).await
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        self.asked(1, 0);
        self.inner.replace(key, seen, body).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let all = self.inner.list(prefix).await?;
        self.asked(1 + all.len() / PAGE, all.len());
        Ok(all)
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        let all = self.inner.list_versions(prefix).await?;
        self.asked(1 + all.len() / PAGE, all.len());
        Ok(all)
    }

    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        let page = self.inner.list_page(prefix, after, most).await?;
        self.asked(1, page.rows.len());
        Ok(page)
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.asked(1, 0);
        self.inner.get_version(key, id).await
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.inner.delete_version(key, id).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

fn author(host: &Host) -> Author<'_> {
    let open = &host.open;
    Author { store: &open.store, trust: &open.trust, keys: &host.keys, host: "test", clock: &SystemClock, level: 1 }
}

fn whole(host: &Host) -> anyhow::Result<Log> {
    Log::list(&host.open.store, &host.open.trust, &name("db"))
}

fn end(host: &Host, near: u64) -> anyhow::Result<Log> {
    Log::list_end(&host.open.store, &host.open.trust, &name("db"), near)
}

/// All that whoever writes on asks of a log.
fn verdict(host: &Host, log: anyhow::Result<Log>) -> String {
    let (store, trust) = (&host.open.store, &host.open.trust);
    let log = match log {
        Ok(log) => log,
        Err(e) => return format!("{e:#}"),
    };
    let tail = match log.tail(store, trust) {
        Ok(Tail::At(last)) => format!("{:?} {:?} {:?}", last.line, last.hash, last.signer),
        Ok(Tail::Nothing) => "nothing".to_owned(),
        Ok(Tail::Lost(why)) => format!("lost: {why}"),
        Err(e) => format!("{e:#}"),
    };
    let newest = log.stretches.last().map(|stretch| {
        let last = stretch.last_sound(store, trust).map(|last| last.map(|(last, at)| (last.hash, at)));
        (&stretch.line, stretch.hash, &stretch.signer, &stretch.histories, format!("{last:?}"))
    });
    let resumed = match Writer::resume(author(host), &log) {
        Ok(writer) => format!(
            "{:?} from {:x}, {:?}, beside: {}",
            writer.head(),
            writer.show_from(),
            writer.time(),
            writer.goes_on_beside()
        ),
        Err(e) => format!("{e:#}"),
    };
    format!("{:?}\n{newest:?}\n{tail}\n{resumed}\n{:?}", log.numbered, log.owes_history())
}

#[derive(Debug, Clone)]
enum Step {
    /// Pieces of so many bytes, that many of them.
    Grow(u64, u64),
    /// The next timeline, so many bytes back.
    Switch(u64),
    Stretch {
        continues: bool,
        jump: u64,
    },
    /// Of the newest objects of the log, or of all.
    Damage(usize, bool),
    Delete(usize, bool),
    Cover(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (20u64..2000, 1u64..40).prop_map(|(size, n)| Step::Grow(size, n)),
        2 => (0u64..6000).prop_map(Step::Switch),
        2 => (any::<bool>(), 0u64..40 * UNIT).prop_map(|(continues, jump)| Step::Stretch { continues, jump }),
        2 => (0usize..400, any::<bool>()).prop_map(|(n, end)| Step::Damage(n, end)),
        1 => (0usize..400, any::<bool>()).prop_map(|(n, end)| Step::Delete(n, end)),
        1 => (0usize..400, any::<bool>()).prop_map(|(n, end)| Step::Cover(n, end)),
    ]
}

/// One of the log's objects, or of the last written ones.
fn object(lab: &Lab, n: usize, end: bool) -> Option<Key> {
    let mut there = lab.store().list("wal/db/").unwrap();
    if end {
        there.sort_by_key(|object| object.modified);
        there.drain(..there.len().saturating_sub(4));
    }
    let at = n.checked_rem(there.len())?;
    Some(there.swap_remove(at).key)
}

fn carry_out(lab: &Lab, steps: &[Step]) {
    let mut writer: Option<Writer> = None;
    for step in steps {
        let on = writer.as_ref().map(Writer::head);
        match step {
            Step::Stretch { continues, jump } => {
                let continues = *continues && on.is_some();
                let (timeline, at) = on.map_or((1, START), |head| (head.timeline, head.end));
                let start = if continues { at } else { (at + jump) / 2 };
                writer = lab.begin_on(lab.store(), timeline, start, continues).ok();
            }
            Step::Damage(n, end) => {
                let Some(key) = object(lab, *n, *end) else { continue };
                lab.memory.tamper(&key, |b| {
                    let middle = b.len() / 2;
                    b[middle] ^= 1;
                });
            }
            Step::Delete(n, end) => {
                object(lab, *n, *end).into_iter().for_each(|key| lab.store().delete(&key).unwrap());
            }
            Step::Cover(n, end) => {
                let Some(key) = object(lab, *n, *end) else { continue };
                lab.memory.cover(&key, (n % 2 == 0).then_some(&b"other"[..]));
            }
            Step::Grow(..) | Step::Switch(_) => {
                let Some(mut open) = writer.take().or_else(|| lab.begin(lab.store(), START, false).ok()) else {
                    continue;
                };
                let head = open.head();
                let done = match step {
                    Step::Grow(size, n) => grow(&mut open, head.end + size * n, *size),
                    Step::Switch(back) => {
                        let at = head.end.saturating_sub(*back).max(open.stretch.start.0);
                        open.switch(head.timeline + 1, at, b"1\t0/0\treason\n")
                    }
                    _ => Ok(()),
                };
                // A place that is taken, by what was damaged behind its back: it goes on in another stretch.
                writer = done.is_ok().then_some(open);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever has become of a log, and wherever its end is looked for.
    #[test]
    fn the_end_tells_what_the_whole_log_tells(steps in proptest::collection::vec(step(), 1..14)) {
        let lab = Lab::on(Memory::versioned(Arc::new(SystemClock)));
        carry_out(&lab, &steps);
        let host = &lab.world.host;
        let expected = verdict(host, whole(host));
        for near in [0, START, START + 3 * UNIT, START + 20 * UNIT, 1 << 40, u64::MAX] {
            prop_assert_eq!(&verdict(host, end(host, near)), &expected, "looked for near {:x}", near);
        }
    }
}

/// On memory, which lists as S3 does, and on a directory.
fn counted() -> [(World, Arc<Counting>, &'static str); 2] {
    let directory = tempfile::tempdir().unwrap();
    let local: Arc<dyn Storage> = Arc::new(Local::new(directory.path().join("repository")));
    [
        (Arc::new(Memory::default()) as Arc<dyn Storage>, tempfile::tempdir().unwrap(), "memory"),
        (local, directory, "directory"),
    ]
    .map(|(inner, directory, what)| {
        let counting = Counting::on(inner);
        let store = Store::new(counting.clone()).unwrap();
        (World::on(store, directory), counting, what)
    })
}

fn begin<'a>(host: &'a Host, (timeline, start): (u32, u64), unit: u64, continues: bool) -> Writer<'a> {
    let facts = serde_json::json!({"system_identifier": "1", "segment_size": unit});
    let (kind, why) = ("postgres".to_owned(), "a test".to_owned());
    let begin = Begin { kind, timeline, start, unit, continues, id: None, facts, why };
    Writer::begin(author(host), &whole(host).unwrap(), begin).unwrap()
}

#[test]
fn the_end_of_a_long_log_is_found_with_few_requests() {
    for (world, counting, what) in counted() {
        let host = &world.host;
        begin(host, (1, 7 * UNIT), UNIT, false);
        let mut writer = begin(host, (1, 10 * UNIT), UNIT, false);
        grow(&mut writer, 2510 * UNIT, UNIT).unwrap();
        writer.switch(2, 2509 * UNIT + 100, b"1\t0/0\treason\n").unwrap();
        grow(&mut writer, 4010 * UNIT - 10, UNIT).unwrap();
        let expected = verdict(host, whole(host));
        counting.take();
        let (at, there) = (4010 * UNIT - 10, 4003);
        // Where a server that archives, or is streamed from, says; and where nobody would guess.
        for (near, requests, keys) in [
            (at, 10, 20),
            (at + UNIT, 12, 20),
            (at - 300 * UNIT, 10, 400),
            (at - 1100 * UNIT, 25, 1100),
            (at + 1000 * UNIT, 30, 50),
            (0, 40, 1100),
            (u64::MAX, 120, 120),
        ] {
            let found = end(host, near).unwrap();
            let (asked, listed) = counting.take();
            assert!(
                asked <= requests && listed <= keys,
                "{what}, near {near:x}: {asked} requests and {listed} keys, not {requests} and {keys} of {there}"
            );
            assert_eq!(verdict(host, Ok(found)), expected, "{what}, near {near:x}");
            counting.take();
        }
        let (asked, listed) = (whole(host).map(drop).unwrap(), counting.take()).1;
        assert!(asked >= 5 && listed > there - 10, "the whole log is {listed} keys in {asked} requests");
    }
}

/// A segment as a server writes it: its system identifier is in its first page.
fn segment(timeline: u32, start: u64) -> Vec<u8> {
    let mut bytes = bytes(timeline, start, start + MIB);
    bytes[24..32].copy_from_slice(&1u64.to_le_bytes());
    bytes
}

fn pushed(world: &World, timeline: u32, start: u64, change: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<PushReport> {
    let path = world.path(&WalFile::Segment { timeline, start }.name(MIB));
    let mut bytes = segment(timeline, start);
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    push(&world.host, &name("db"), &path, 1)
}

/// The same answers as ever, at a price that does not grow.
#[test]
fn a_push_on_a_long_log_asks_little() {
    let most = (32, 1100);
    for (world, counting, what) in counted() {
        let host = &world.host;
        let mut writer = begin(host, (1, 4 * MIB), MIB, false);
        // As a receiver leaves it: many pieces, and runs of them.
        for n in 4..36 {
            let bytes = segment(1, n * MIB);
            for part in bytes.chunks(16 << 10) {
                writer.append(part, time(n * MIB)).unwrap();
            }
        }
        assert!(whole(host).unwrap().stretches[0].timelines[&1].len() > 2000);
        counting.take();
        let cheap = |case: &str| {
            let (asked, listed) = counting.take();
            assert!(
                asked <= most.0 && listed <= most.1,
                "{what}, {case}: {asked} requests and {listed} keys listed, not {most:?}"
            );
        };
        let done = pushed(&world, 1, 36 * MIB, |_| ()).unwrap();
        assert_eq!((done.bytes, done.notes), (MIB, vec![]), "the next segment");
        cheap("the next segment");
        for n in [36, 35, 20, 4] {
            assert_eq!(pushed(&world, 1, n * MIB, |_| ()).unwrap().bytes, 0, "segment {n} again");
            counting.take();
        }
        assert_eq!(pushed(&world, 1, 36 * MIB, |_| ()).unwrap().bytes, 0);
        cheap("the newest segment again");
        let forked = pushed(&world, 1, 20 * MIB, |bytes| bytes[9000] ^= 1).unwrap_err();
        assert!(format!("{forked:#}").contains("forked"), "{forked:#}");
        let other = pushed(&world, 1, 37 * MIB, |bytes| bytes[24] = 2).unwrap_err();
        assert!(format!("{other:#}").contains("system identifier"), "{other:#}");
        counting.take();
        let early = pushed(&world, 1, 2 * MIB, |_| ()).unwrap();
        assert!(early.notes[0].contains("it comes before"), "{early:?}");
        cheap("a segment from before the log");
        // The next timeline: its history first, as a server archives it.
        fs::write(world.path("00000002.history"), b"1\t0/2480000\tno recovery target specified\n").unwrap();
        push(host, &name("db"), &world.path("00000002.history"), 1).unwrap();
        cheap("a history");
        let both = |bytes: &mut Vec<u8>| {
            let old = segment(1, 36 * MIB);
            bytes[..(MIB / 2) as usize].copy_from_slice(&old[..(MIB / 2) as usize]);
        };
        let switched = pushed(&world, 2, 36 * MIB, both).unwrap();
        assert!(switched.notes[0].contains("was left at 0/2480000"), "{switched:?}");
        cheap("the segment of a promotion");
        assert_eq!(pushed(&world, 2, 37 * MIB, |_| ()).unwrap().bytes, MIB);
        cheap("the one after it");
        let split = pushed(&world, 1, 37 * MIB, |_| ()).unwrap_err();
        assert!(format!("{split:#}").contains("two servers archive into one log"), "{split:#}");
        cheap("one that was written on the timeline that was left");
        let old = world.path(&WalFile::Segment { timeline: 1, start: 37 * MIB }.name(MIB));
        let hour = Duration::from_secs(3600);
        fs::File::options().write(true).open(&old).unwrap().set_modified(SystemTime::now() - hour).unwrap();
        let stale = push(host, &name("db"), &old, 1).unwrap();
        assert!(stale.notes[0].contains("has gone on to timeline 2"), "{stale:?}");
        cheap("one that was left over");
        let hole = pushed(&world, 2, 50 * MIB, |_| ()).unwrap();
        assert!(hole.notes[0].contains("a gap in the log"), "{hole:?}");
        cheap("a gap");
        assert_eq!(pushed(&world, 2, 51 * MIB, |_| ()).unwrap().bytes, MIB);
        cheap("the one after a gap");
        is_gone_on_from_beside_damage(&world, what);
    }
}

/// An end that does not verify: what it held is stored again, beside it.
fn is_gone_on_from_beside_damage(world: &World, what: &str) {
    let host = &world.host;
    let log = whole(host).unwrap();
    let windows = log.windows(&host.open.store, &host.open.trust).unwrap();
    let ranges: Vec<_> = windows.iter().map(|w| (w.from.0, w.from.1.0 / MIB, w.to.0, w.to.1.0 / MIB)).collect();
    assert_eq!(ranges, [(1, 4, 2, 38), (2, 50, 2, 52)], "{what}");
    let last = layout::log_piece(&name("db"), 2, 2, 51 * MIB, None);
    let object = host.open.store.get(&last).unwrap();
    host.open.store.delete(&last).unwrap();
    let mut hurt = object.to_vec();
    hurt[object.len() - 1] ^= 1;
    let hash = layout::Hash::of(&hurt);
    host.open.store.create(&last, hurt.into(), &hash.0).unwrap();
    let beside = pushed(world, 2, 51 * MIB, |_| ()).unwrap();
    assert!(beside.notes[0].contains("nothing is missing") && beside.bytes == MIB, "{beside:?}");
    assert_eq!(pushed(world, 2, 52 * MIB, |_| ()).unwrap().bytes, MIB);
    let log = whole(host).unwrap();
    let windows = log.windows(&host.open.store, &host.open.trust).unwrap();
    assert_eq!((windows.len(), windows[1].to.1.0), (2, 53 * MIB), "{what}: nothing is missing behind the damage");
}
