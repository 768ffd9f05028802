//! `restore_command` on a long log: a file that is there costs a look at its neighbourhood, and what is told of it is what the whole log would tell.

use super::faults::hooked;
use super::log::{Lab, bytes, time};
use super::world::name;
use blackstart::operations::Open;
use blackstart::operations::wal::get::{Got, get};
use blackstart::repository::log::{Begin, Writer};
use blackstart::source::postgres::wal::WalFile;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const MIB: u64 = 1 << 20;

/// Appends up to `to`, in pieces of a quarter of a segment.
fn grow(writer: &mut Writer, to: u64) {
    while writer.head().end < to {
        let (timeline, from) = (writer.head().timeline, writer.head().end);
        let end = (from + MIB / 4).min(to).min((from / MIB + 1) * MIB);
        writer.append(&bytes(timeline, from, end), time(end)).unwrap();
    }
}

struct Server {
    lab: Lab,
    /// A repository seen through a store that counts.
    open: Open,
    whole: Arc<AtomicUsize>,
    listed: Arc<Mutex<Vec<String>>>,
}

/// 60 segments on the first timeline, the second from the middle of the 41st to the middle of the 70th; behind a gap, a stretch on the second
/// goes on, with a successor.
fn server() -> Server {
    let lab = Lab::new();
    let begin = |timeline, start, continues| {
        let facts = serde_json::json!({"system_identifier": "1", "segment_size": MIB});
        let (kind, why) = ("postgres".to_owned(), "a test".to_owned());
        let begin = Begin { kind, timeline, start, unit: MIB, continues, id: None, facts, why };
        Writer::begin(lab.author(lab.store()), &lab.log(lab.store()).unwrap(), begin).unwrap()
    };
    let mut writer = begin(1, MIB, false);
    grow(&mut writer, 61 * MIB);
    writer.switch(2, 41 * MIB + MIB / 2, b"1\t0/2980000\treason\n").unwrap();
    grow(&mut writer, 70 * MIB + MIB / 2);
    grow(&mut begin(2, 80 * MIB, false), 90 * MIB);
    grow(&mut begin(2, 90 * MIB, true), 100 * MIB);
    let (whole, listed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (count, note) = (Arc::clone(&whole), Arc::clone(&listed));
    let store = hooked(&lab.memory, move |operation, prefix| {
        if operation == "list" {
            count.fetch_add(usize::from(prefix == "wal/db/"), Ordering::SeqCst);
            note.lock().unwrap().push(prefix.to_owned());
        }
    });
    let open = Open { store, state: None, ..lab.world.host.open.clone() };
    Server { lab, open, whole, listed }
}

impl Server {
    /// What is got of a segment, and how often the whole log was listed for it.
    fn get(&self, timeline: u32, segment: u64) -> (anyhow::Result<Got>, Vec<u8>, usize) {
        let to = self.lab.world.path("RECOVERYXLOG");
        fs::remove_file(&to).ok();
        let before = self.whole.load(Ordering::SeqCst);
        let file = WalFile::Segment { timeline, start: segment * MIB }.name(MIB);
        let identities = std::slice::from_ref(&self.lab.world.recovery.identity);
        let got = get(&self.open, identities, &name("db"), &file, &to);
        (got, fs::read(&to).unwrap_or_default(), self.whole.load(Ordering::SeqCst) - before)
    }

    fn is_got(&self, timeline: u32, segment: u64, expected: &[u8], lists: usize) {
        let what = format!("segment {segment} of timeline {timeline}");
        let (got, bytes, listed) = self.get(timeline, segment);
        assert_eq!(got.unwrap(), Got::Written(expected.len() as u64), "{what}");
        let padded = [expected, &vec![0; (MIB - expected.len() as u64) as usize]].concat();
        assert!(bytes == padded, "{what} differs");
        assert_eq!(listed, lists, "{what}: listings of the whole log");
    }
}

#[test]
fn a_segment_that_is_there_is_found_without_the_whole_log() {
    let server = server();
    for (timeline, segment) in
        [(1, 1), (1, 15), (1, 16), (1, 41), (1, 60), (2, 42), (2, 69), (2, 80), (2, 89), (2, 90), (2, 99)]
    {
        server.is_got(timeline, segment, &bytes(timeline, segment * MIB, (segment + 1) * MIB), 0);
    }
    let longest = server
        .listed
        .lock()
        .unwrap()
        .iter()
        .filter(|prefix| !prefix.contains("stretches") && !prefix.contains("histories"))
        .map(String::len)
        .min();
    assert_eq!(longest, Some("wal/db/0000000001/00000001/0000000001".len()), "a listing takes in 16 segments at most");
    // Of two timelines, or the log's last: then the whole log tells.
    let fork = 41 * MIB + MIB / 2;
    server.is_got(2, 41, &[bytes(1, 41 * MIB, fork), bytes(2, fork, 42 * MIB)].concat(), 1);
    server.is_got(2, 70, &bytes(2, 70 * MIB, 70 * MIB + MIB / 2), 1);
    for (timeline, segment) in [(1, 61), (2, 100), (3, 100)] {
        let (got, bytes, _) = server.get(timeline, segment);
        assert_eq!((got.unwrap(), bytes.len()), (Got::NotThere, 0), "segment {segment} of timeline {timeline}");
    }
    let (gap, bytes, _) = server.get(2, 75);
    assert!(gap.unwrap_err().to_string().contains("a gap") && bytes.is_empty(), "a gap is not the end of the log");
}

/// What is lost or damaged is an error with its help, as ever, and never an end of the log; nothing half is left where the server looks.
#[test]
fn what_is_lost_near_a_segment_is_no_end_of_the_log() {
    for lost in [true, false] {
        let server = server();
        let store = server.lab.store();
        let there = store.list("wal/db/0000000001/00000001/").unwrap();
        let from = format!("{:016x}", 20 * MIB + MIB / 2);
        let until = format!("{:016x}", 21 * MIB);
        let hurt = |key: &str| {
            let at = key.rsplit('/').next().unwrap();
            let (start, end) = at.split_once('-').unwrap_or((at, at));
            (start >= from.as_str() && start < until.as_str())
                || (end > from.as_str() && start < until.as_str() && start != end)
        };
        let hurt: Vec<_> = there.into_iter().filter(|object| hurt(object.key.as_str())).collect();
        assert!(hurt.len() >= 2, "{hurt:?}");
        for object in &hurt {
            match lost {
                true => store.delete(&object.key).unwrap(),
                false => server.lab.memory.tamper(&object.key, |b| {
                    let middle = b.len() / 2;
                    b[middle] ^= 1;
                }),
            }
        }
        let (got, _, lists) = server.get(1, 20);
        assert!(got.is_err() && lists == 1, "lost: {lost}: {got:?}");
        server.is_got(1, 19, &bytes(1, 19 * MIB, 20 * MIB), 0);
        server.is_got(1, 21, &bytes(1, 21 * MIB, 22 * MIB), 0);
        // A record that does not verify may have been what tells how the rest belongs together.
        let record = blackstart::repository::layout::log_stretch(&name("db"), 2);
        server.lab.memory.tamper(&record, |b| b[20] ^= 1);
        server.is_got(1, 21, &bytes(1, 21 * MIB, 22 * MIB), 1);
    }
}
