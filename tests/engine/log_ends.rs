//! The ends of a log: an end that does not verify, a front that prune has taken, and what must be there in between.

use super::log::{Lab, START, UNIT, bytes, grow, time};
use super::world::name;
use blackstart::clock::Clock;
use blackstart::operations::backup::Options;
use blackstart::operations::retention::{LogPart, Point, Policy, decide, keep_for_the_log};
use blackstart::operations::tiers::{Tier, Tiering, Tiers};
use blackstart::operations::wal::check::check;
use blackstart::operations::wal::goes_on_from;
use blackstart::operations::wal::keep::{Anchor, spare};
use blackstart::operations::{locks, prune};
use blackstart::repository::layout::{self, Hash};
use blackstart::repository::log::{Author, Begin, Log, Position, Tail, Writer};
use blackstart::repository::series::{self, Series};
use blackstart::repository::snapshot::LogRange;
use blackstart::storage::{Class, Key, Object};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Changes a byte in the middle of an object; gives what it was.
fn damage(lab: &Lab, key: &Key) -> Vec<u8> {
    let body = lab.store().get(key).unwrap().to_vec();
    lab.memory.tamper(key, |b| {
        let middle = b.len() / 2;
        b[middle] ^= 1;
    });
    body
}

fn log(lab: &Lab) -> Log {
    lab.log(lab.store()).unwrap()
}

/// The stored objects of one timeline of the stretch at this place, in the order of their names.
fn objects(lab: &Lab, stretch: usize, timeline: u32) -> Vec<Key> {
    log(lab).stretches[stretch].timelines[&timeline].iter().map(|span| span.object.key.clone()).collect()
}

fn windows(lab: &Lab) -> Vec<(usize, usize, u64, u64)> {
    let open = &lab.world.host.open;
    let windows = log(lab).windows(&open.store, &open.trust).unwrap();
    windows.iter().map(|w| (w.first, w.last, w.from.1.0, w.to.1.0)).collect()
}

fn tail_is_lost(lab: &Lab) -> bool {
    let open = &lab.world.host.open;
    matches!(log(lab).tail(&open.store, &open.trust).unwrap(), Tail::Lost(_))
}

/// What the damaged object held is stored again in a stretch that follows without a gap, and everything reads as it was written.
#[test]
fn a_damaged_last_object_is_gone_on_from_in_a_stretch_beside_it() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 500, 50).unwrap();
    damage(&lab, objects(&lab, 0, 1).last().unwrap());
    let mut writer = lab.writer(lab.store()).unwrap();
    assert_eq!(writer.head().end, START + 450, "the last object that verifies");
    assert!(writer.goes_on_beside());
    let refused = grow(&mut writer, START + 600, 50).unwrap_err();
    assert!(format!("{refused:#}").contains("does not verify"), "{refused:#}");
    let mut beside = lab.begin(lab.store(), START + 450, true).unwrap();
    assert_eq!(beside.time(), Some(time(START + 450)), "what is known of the end that it continues");
    grow(&mut beside, START + 2 * UNIT, 300).unwrap();
    assert_eq!(windows(&lab), [(0, 1, START, START + 2 * UNIT)]);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 2 * UNIT));
    // Verify names it still; whoever comes next goes on as ever.
    assert_eq!(check(&lab.world.host.open, &name("db"), true).unwrap().faults.len(), 1);
    let mut writer = lab.writer(lab.store()).unwrap();
    assert!(!writer.goes_on_beside());
    grow(&mut writer, START + 3 * UNIT, 300).unwrap();
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 3 * UNIT));
}

/// A server that archives a segment again still has it: what the log has lost of it must not be taken for stored.
#[test]
fn a_hole_in_what_is_shown_again_is_an_error() {
    let lab = Lab::new();
    let from = (START / UNIT + 1) * UNIT;
    grow(&mut lab.begin(lab.store(), from, false).unwrap(), from + 500, 50).unwrap();
    let writer = lab.writer(lab.store()).unwrap();
    assert_eq!(writer.holds(from, &bytes(1, from, from + 500)).unwrap(), Some(true));
    damage(&lab, &objects(&lab, 0, 1)[3]);
    let writer = lab.writer(lab.store()).unwrap();
    assert_eq!(writer.head().end, from + 500, "a hole in the middle is no reason not to go on");
    let held = writer.holds(from, &bytes(1, from, from + 500));
    assert!(held.is_err(), "{held:?}: the server would forget what is lost");
}

/// Pieces that are there make a damaged run no loss.
#[test]
fn a_damaged_run_at_the_end_is_no_end() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 32 * 10, 10).unwrap();
    let runs = log(&lab).stretches[0].timelines[&1].iter().filter(|s| s.end.is_some()).cloned().collect::<Vec<_>>();
    assert_eq!(runs.len(), 1);
    damage(&lab, &runs[0].object.key);
    let mut writer = lab.writer(lab.store()).unwrap();
    assert!(!writer.goes_on_beside() && writer.head().end == START + 320, "{:?}", writer.head());
    grow(&mut writer, START + 600, 10).unwrap();
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 600));
}

#[test]
fn where_nobody_can_say_where_the_log_ends_a_gap_begins_once() {
    for what in ["the record", "every object", "the history"] {
        let lab = Lab::new();
        let mut writer = lab.writer(lab.store()).unwrap();
        grow(&mut writer, START + 200, 100).unwrap();
        writer.switch(2, START + 200, b"1\t0/0\treason\n").unwrap();
        grow(&mut writer, START + 300, 50).unwrap();
        match what {
            "the record" => drop(damage(&lab, &layout::log_stretch(&name("db"), 1))),
            "the history" => drop(damage(&lab, &layout::log_history(&name("db"), 1, 2))),
            _ => objects(&lab, 0, 2).iter().for_each(|key| drop(damage(&lab, key))),
        }
        assert!(tail_is_lost(&lab), "{what}");
        let refused = Writer::resume(lab.author(lab.store()), &log(&lab)).err().map(|e| format!("{e:#}"));
        assert!(refused.is_some(), "{what}: went on with a log whose end nobody knows");
        let mut anew = lab.begin(lab.store(), START + UNIT, false).unwrap();
        assert_eq!(anew.stretch.n, 2, "{what}: a number that is not taken");
        grow(&mut anew, START + 2 * UNIT, 300).unwrap();
        // The old damage is no reason to begin again and again.
        assert!(!tail_is_lost(&lab), "{what}");
        let mut writer = lab.writer(lab.store()).unwrap();
        grow(&mut writer, START + 3 * UNIT, 300).unwrap();
        let newest = windows(&lab).len() - 1;
        assert!(lab.read(newest, 1, START + UNIT).unwrap() == bytes(1, START + UNIT, START + 3 * UNIT), "{what}");
        assert!(!check(&lab.world.host.open, &name("db"), true).unwrap().faults.is_empty(), "{what}: verify must tell");
    }
}

/// What came before a promotion is a log of its own, and the snapshots from before lead into it, whatever has become of what came after.
#[test]
fn an_older_timeline_is_read_where_nothing_of_the_newest_verifies() {
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 500, 100).unwrap();
    let fork = START + 450;
    writer.switch(2, fork, b"1\t0/0\treason\n").unwrap();
    grow(&mut writer, START + 800, 50).unwrap();
    // What follows the second timeline does not follow the first.
    grow(&mut lab.begin_on(lab.store(), 2, START + 800, true).unwrap(), START + 900, 50).unwrap();
    assert_eq!(windows(&lab), [(0, 1, START, START + 900)]);
    let sound: Vec<_> = objects(&lab, 0, 2).into_iter().map(|key| (damage(&lab, &key), key)).collect();
    assert_eq!(windows(&lab), [(0, 0, START, START + 500), (1, 1, START + 800, START + 900)]);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 500), "the first timeline, to its own end");
    assert!(lab.read(0, 2, START).is_err(), "what is lost of the second is not taken for its end");
    assert!(lab.read(1, 2, START + 800).unwrap() == bytes(2, START + 800, START + 900), "what comes after the loss");
    // A snapshot on the second does not lie in the window that ends on the first, though positions would have it so.
    let open = &lab.world.host.open;
    let (log, range) = (log(&lab), |timeline| LogRange { timeline, ..anchor(START + 470).range });
    let window = &log.windows(&open.store, &open.trust).unwrap()[0];
    let lies = |timeline| goes_on_from(&log, &window.into(), &range(timeline));
    assert_eq!((window.to.0, lies(1), lies(2)), (1, true, false));
    // Put right from another copy of the repository, all is as before.
    sound.into_iter().for_each(|(body, key)| lab.memory.tamper(&key, |b| *b = body.clone()));
    assert_eq!(windows(&lab), [(0, 1, START, START + 900)]);
    assert!(lab.read(0, 2, START).unwrap() == [bytes(1, START, fork), bytes(2, fork, START + 900)].concat());
}

fn anchor(at: u64) -> Anchor {
    let range = LogRange { timeline: 1, id: None, start: Position(at.saturating_sub(10)), end: Position(at) };
    Anchor { range, reaches_from: time(at), good: true }
}

const LATE: Timestamp = Timestamp::MAX;

fn take(lab: &Lab, kept: &[Anchor], horizon: Option<Timestamp>) -> Vec<Object> {
    let found = spare(&lab.world.host.open, &log(lab), kept, horizon, LATE).unwrap();
    found.objects.iter().for_each(|object| lab.store().delete(&object.key).unwrap());
    found.objects
}

#[test]
fn prune_takes_what_lies_before_the_kept_part_whatever_is_damaged_at_its_end() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 6 * UNIT, 1000).unwrap();
    let at = START + 4 * UNIT;
    let last = objects(&lab, 0, 1).last().unwrap().clone();
    let sound = damage(&lab, &last);
    let taken = take(&lab, &[anchor(at)], None);
    assert!(taken.len() > 10, "{taken:?}");
    assert!(lab.store().list("wal/").unwrap().iter().any(|o| o.key == last), "the last object stays, damaged or not");
    // Put right from another copy of the repository, nothing is missing.
    lab.memory.tamper(&last, |b| *b = sound);
    assert!(lab.read(0, 1, at).unwrap() == bytes(1, at, START + 6 * UNIT));
}

/// The first stretch cannot be read, and the second goes on from it: a snapshot in the first still needs all of the second.
#[test]
fn prune_keeps_what_follows_a_stretch_that_cannot_be_read() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 2 * UNIT, 1000).unwrap();
    grow(&mut lab.begin(lab.store(), START + 2 * UNIT, true).unwrap(), START + 8 * UNIT, 1000).unwrap();
    let record = layout::log_stretch(&name("db"), 1);
    let sound = damage(&lab, &record);
    take(&lab, &[anchor(START + UNIT), anchor(START + 7 * UNIT)], None);
    lab.memory.tamper(&record, |b| *b = sound);
    let read = lab.read(0, 1, START + UNIT);
    assert!(read.is_ok_and(|read| read == bytes(1, START + UNIT, START + 8 * UNIT)), "the way from the first is gone");
}

/// What a newer version wrote may be what tells how everything else belongs together.
#[test]
fn prune_takes_nothing_of_a_log_that_a_newer_version_has_written_to() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 3 * UNIT, 1000).unwrap();
    let key = layout::log_stretch(&name("db"), 1);
    let object = lab.store().get(&key).unwrap();
    let mut line: Value = serde_json::from_slice(object.split(|b| *b == b'\n').next().unwrap()).unwrap();
    (line["format"], line["n"], line["start"]) = (json!(2), json!(2), json!(Position(START + 4 * UNIT)));
    let body = lab.world.host.keys.signing.sign_line(&line).unwrap();
    let hash = Hash::of(&body);
    lab.store().create(&layout::log_stretch(&name("db"), 2), body.into(), &hash.0).unwrap();
    assert!(take(&lab, &[anchor(START + 3 * UNIT)], None).is_empty());
    let refused = log(&lab).tail(lab.store(), &lab.world.host.open.trust).err().map(|e| format!("{e:#}"));
    assert!(refused.as_ref().is_some_and(|e| e.contains("newer version")), "{refused:?}");
}

/// Another host, perhaps, that was let in since the trust was read: no damage to begin beside.
#[test]
fn what_a_stranger_signed_stops_a_writer_and_no_reader() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 3 * UNIT, 1000).unwrap();
    let last = objects(&lab, 0, 1).last().unwrap().clone();
    let object = lab.store().get(&last).unwrap();
    let lines: Vec<&[u8]> = object.splitn(3, |b| *b == b'\n').collect();
    let mut line: Value = serde_json::from_slice(lines[0]).unwrap();
    let stranger = blackstart::repository::keys::KeyPair::generate().unwrap();
    line["key"] = json!(stranger.signing.public().id());
    let forged = [stranger.signing.sign_line(&line).unwrap(), lines[2].to_vec()].concat();
    lab.memory.tamper(&last, |b| *b = forged);
    let refused = Writer::resume(lab.author(lab.store()), &log(&lab)).err().map(|e| format!("{e:#}"));
    assert!(refused.as_ref().is_some_and(|e| e.contains("has not certified")), "{refused:?}");
    assert!(take(&lab, &[anchor(START + 2 * UNIT)], None).is_empty());
    let (_, _, from, to) = windows(&lab)[0];
    assert!(from == START && to > START && to < START + 3 * UNIT, "what the host wrote is there: {to}");
}

/// A server's files are larger than a unit: what it asks for is whole files, from the one in which the oldest kept snapshot began.
#[test]
fn prune_keeps_the_whole_file_in_which_the_oldest_snapshot_began() {
    let lab = Lab::new();
    let (file, begun) = (4 * UNIT, 4 * UNIT);
    let facts = json!({"system_identifier": "1", "segment_size": file});
    let why = "a test".to_owned();
    let begin =
        Begin { kind: "test".into(), timeline: 1, start: begun, unit: UNIT, continues: false, id: None, facts, why };
    let mut writer = Writer::begin(lab.author(lab.store()), &log(&lab), begin).unwrap();
    assert_eq!(writer.stretch.segment, Some(file));
    grow(&mut writer, 5 * file, 1000).unwrap();
    // It began in one file and ended in the next.
    let kept = Anchor {
        range: LogRange {
            timeline: 1,
            id: None,
            start: Position(3 * file - UNIT - 5),
            end: Position(3 * file + UNIT + 5),
        },
        ..anchor(3 * file)
    };
    assert!(!take(&lab, &[kept], None).is_empty());
    assert_eq!(windows(&lab), [(0, 0, 2 * file, 5 * file)]);
    assert!(lab.read(0, 1, 2 * file).unwrap() == bytes(1, 2 * file, 5 * file));
}

#[derive(Debug, Clone)]
struct Taken {
    /// The log has a gap before it.
    gap: bool,
    at: u64,
    finished: u64,
}

/// Snapshots along a log: where they end, and where the log was when the last of them was stored.
fn snapshots() -> impl Strategy<Value = Vec<Taken>> {
    prop::collection::vec((8u64..1500, 0u64..2500, 0u8..6), 1..12).prop_map(|steps| {
        let mut at = START;
        let taken = |(step, upload, gap): (u64, u64, u8)| {
            at += step;
            Taken { gap: gap == 0, at, finished: at + upload }
        };
        steps.into_iter().map(taken).collect()
    })
}

/// The log in which they were taken, up to `end`.
fn log_of(lab: &Lab, taken: &[Taken], end: u64) {
    let mut begun = START;
    let mut before = START;
    for snapshot in taken {
        if snapshot.gap {
            let middle = before + (snapshot.at - before) / 2;
            grow(&mut lab.begin(lab.store(), begun, false).unwrap(), middle, 190).unwrap();
            begun = middle + 2;
        }
        before = snapshot.at;
    }
    grow(&mut lab.begin(lab.store(), begun, false).unwrap(), end, 190).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Every moment since the horizon that could be reached before can be reached after, however long uploads took, and across gaps.
    #[test]
    fn points_in_time_keeps_its_promise(taken in snapshots(), back in 1u64..9000, last in 1u32..3) {
        let lab = Lab::new();
        let end = taken.iter().map(|t| t.finished).max().unwrap() + 700;
        log_of(&lab, &taken, end);
        let before = windows(&lab);
        let part_of = |at: u64| before.iter().position(|w| w.2 <= at && at <= w.3).unwrap();
        let now = time(end);
        let span = jiff::Span::new().seconds(i64::try_from(back).unwrap());
        let policy = Policy { last, points_in_time: Some(span), ..Policy::default() };
        let horizon = now - SignedDuration::from_secs(i64::try_from(back).unwrap());
        let points: Vec<Point> = (1..).zip(&taken).map(|(seq, t)| Point {
            seq,
            data_time: time(t.at),
            complete: true,
            verified: false,
            suspect: false,
            reaches_from: Some(time(t.finished)),
        }).collect();
        let mut decisions = decide(&points, &policy, now);
        let parts: Vec<LogPart> = before.iter().enumerate().map(|(n, w)| {
            let inside = (1..).zip(&taken).filter(|(_, t)| part_of(t.at) == n).map(|(seq, _)| seq);
            LogPart { until: time(w.3), snapshots: inside.collect() }
        }).collect();
        keep_for_the_log(&mut decisions, &points, &parts, &policy, now);
        let kept: Vec<&Taken> = taken.iter().zip(&decisions).filter(|(_, d)| !d.keep.is_empty()).map(|(t, _)| t).collect();
        let anchors: Vec<Anchor> = kept.iter().map(|t| Anchor { reaches_from: time(t.finished), ..anchor(t.at) }).collect();
        take(&lab, &anchors, Some(horizon));
        let after = windows(&lab);
        prop_assert_eq!(after.len(), before.len());
        // A restore begins with the newest snapshot that was complete by then, and needs the log from its end on.
        for (n, (_, _, begun, ended)) in before.iter().copied().enumerate() {
            for moment in (begun..=ended).step_by(97).filter(|at| time(*at) >= horizon) {
                let reached = |t: &&Taken| part_of(t.at) == n && t.finished <= moment;
                if !taken.iter().any(|t| reached(&t)) {
                    continue;
                }
                let from = kept.iter().copied().filter(reached).max_by_key(|t| t.at);
                prop_assert!(from.is_some(), "no snapshot leads to {} any more: {:?} {:?}", moment, taken, kept);
                let from = from.unwrap().at;
                let read = lab.read(n, 1, from);
                prop_assert!(read.is_ok_and(|read| read == bytes(1, from, ended)), "the log from {} on is gone", from);
            }
        }
    }

    /// Whatever is damaged while prune works: once it is put right, each kept snapshot has its log, as far as it went.
    #[test]
    fn prune_takes_nothing_that_is_needed_once_damage_is_put_right(
        stretches in prop::collection::vec((1u64..3000, 0u64..4, 100u64..900), 1..6),
        hurt in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..3),
        anchors in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let lab = Lab::new();
        let (mut at, mut first) = (START, true);
        for (length, gap, step) in stretches {
            let continues = !first && gap > 0;
            at += if gap == 0 { 777 } else { 0 };
            grow(&mut lab.begin(lab.store(), at, continues).unwrap(), at + length, step).unwrap();
            (at, first) = (at + length, false);
        }
        let before = windows(&lab);
        // Somewhere in a window each.
        let places: Vec<(u64, u64)> = anchors.iter().map(|index| {
            let (_, _, from, to) = before[index.index(before.len())];
            (from + (index.index(usize::try_from(to - from).unwrap()) as u64), to)
        }).collect();
        let all: Vec<Key> = lab.store().list("wal/").unwrap().into_iter().map(|o| o.key).collect();
        let mut right = std::collections::BTreeMap::new();
        // Every other time the record of a stretch: it tells how everything else belongs together.
        let records: Vec<&Key> = all.iter().filter(|key| key.as_str().contains("/stretches/")).collect();
        for (index, record) in &hurt {
            let key = if *record { index.get(&records) } else { &all[index.index(all.len())] };
            if !right.contains_key(key) {
                right.insert(key.clone(), damage(&lab, key));
            }
        }
        let kept: Vec<Anchor> = places.iter().map(|(at, _)| anchor(*at)).collect();
        let taken: Vec<Key> = take(&lab, &kept, None).into_iter().map(|o| o.key).collect();
        for (key, body) in right.into_iter().filter(|(key, _)| !taken.contains(key)) {
            lab.memory.tamper(&key, |b| *b = body.clone());
        }
        let after = windows(&lab);
        for (from, to) in places {
            let window = after.iter().position(|w| w.2 <= from && from <= w.3 && w.3 == to);
            prop_assert!(window.is_some(), "the window of {from} is gone: {before:?} {after:?}");
            let read = lab.read(window.unwrap(), 1, from);
            prop_assert!(read.is_ok_and(|read| read == bytes(1, from, to)), "the log from {from} to {to} is gone");
        }
    }
}

/// Signs the snapshots anew, as a writer would have that had made them so many minutes ago, ending at these positions of the log.
pub(super) fn place(lab: &Lab, snapshots: &[(u64, i64)], suspect: Option<u64>) {
    let (world, source) = (&lab.world, name("db"));
    let mut previous: Option<Hash> = None;
    let now = world.host.open.now();
    for ((end, minutes), seq) in snapshots.iter().zip(1..) {
        let key = layout::snapshot(&source, seq);
        let object = lab.store().get(&key).unwrap();
        let mut line: Value = serde_json::from_slice(object.split(|b| *b == b'\n').next().unwrap()).unwrap();
        line["log"] = json!({"timeline": 1, "start": Position(end - 10), "end": Position(*end)});
        for field in ["data_time", "started", "finished"] {
            line[field] = json!(now - SignedDuration::from_mins(*minutes));
        }
        line["previous"] = json!(previous);
        if suspect == Some(seq) {
            line["suspect"] = json!(true);
        }
        let body = world.host.keys.signing.sign_line(&line).unwrap();
        previous = Some(Hash::of(&body));
        lab.memory.tamper(&key, |b| *b = body.clone());
    }
    // It has seen what was there before.
    std::fs::remove_dir_all(world.host.open.memory().unwrap()).unwrap();
}

/// A clock that stands.
pub(super) struct Standing(pub(super) Timestamp);

impl Clock for Standing {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// Behind a gap in the log its moments are reached from a snapshot that nothing else keeps: what only it and the newest need must not get cold.
#[test]
fn what_a_gap_in_the_log_keeps_stays_in_the_class_for_every_moment() {
    let lab = Lab::new();
    let (world, source) = (&lab.world, name("db"));
    let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
    db.execute_batch("CREATE TABLE t(n)").unwrap();
    for _ in 0..3 {
        db.execute_batch("INSERT INTO t VALUES (randomblob(100000))").unwrap();
        world.backup_sqlite(&world.path("app.db"), Options { workers: 1, ..Options::default() }).unwrap();
    }
    let ago = |minutes| Timestamp::now() - SignedDuration::from_mins(minutes);
    for (from, began) in [(START, 35), (START + 2 * UNIT, 24)] {
        let clock = Standing(ago(began));
        let author = Author { clock: &clock, ..lab.author(lab.store()) };
        let facts = json!({"system_identifier": "1"});
        let (kind, why) = ("test".to_owned(), "a test".to_owned());
        let begin = Begin { kind, timeline: 1, start: from, unit: UNIT, continues: false, id: None, facts, why };
        let mut writer = Writer::begin(author, &log(&lab), begin).unwrap();
        writer.append(&bytes(1, from, from + 100), ago(began - 1)).unwrap();
        writer.append(&bytes(1, from + 100, from + 200), ago(1)).unwrap();
    }
    // One before the gap, two behind it.
    let behind = START + 2 * UNIT;
    place(&lab, &[(START + 50, 30), (behind + 50, 20), (behind + 150, 10)], None);
    let policy = Policy { monthly: 12, points_in_time: Some(jiff::Span::new().minutes(25)), ..Policy::default() };
    let cold = Tier { storage_class: Class::GlacierIr, ..Tier::default() };
    let tiers = Tiers { monthly: Some(cold), ..Tiers::default() };
    let open = &world.host.open;
    let plan = prune::plan(open, &source, &policy, SignedDuration::ZERO).unwrap();
    assert!(plan.remove.is_empty(), "the second is kept for the moments behind the gap: {:?}", plan.remove);
    let settled = locks::settle(open, &source, Tiering { policy: &policy, tiers: &tiers }).unwrap();
    let whole = Series::list(&open.store, &open.trust, &source).unwrap().whole();
    let packs: Vec<_> = whole.snapshots().map(|(_, s)| series::packs_of(&open.store, s).unwrap()).collect();
    let only = |of: usize, not: &[usize]| {
        packs[of].keys().filter(|pack| not.iter().all(|n| !packs[*n].contains_key(pack))).count() as u64
    };
    assert!(only(1, &[0]) > 0 && only(2, &[0, 1]) > 0, "each run has stored a pack: {packs:?}");
    assert_eq!(settled.marked.get(&Class::GlacierIr), Some(&only(2, &[0, 1])), "the newest's own alone: {settled:?}");
}

/// Three snapshots in a log, signed as a writer signs them; the one that looks wrong does not stand for the one before it.
#[test]
fn a_suspect_snapshot_does_not_displace_the_log_before_it() {
    for (suspect, unreadable) in [(false, false), (true, false), (false, true)] {
        let lab = Lab::new();
        let (world, source) = (&lab.world, name("db"));
        rusqlite::Connection::open(world.path("app.db")).unwrap().execute_batch("CREATE TABLE t(n)").unwrap();
        for _ in 0..3 {
            world.backup_sqlite(&world.path("app.db"), Options { workers: 1, ..Options::default() }).unwrap();
        }
        grow(&mut lab.writer(lab.store()).unwrap(), START + 8 * UNIT, 1000).unwrap();
        let at = |n: u64| START + 2 * n * UNIT;
        place(&lab, &[(at(1), 30), (at(2), 20), (at(3), 10)], suspect.then_some(2));
        if unreadable {
            damage(&lab, &layout::log_stretch(&source, 1));
        }
        // Moments of the last 15 minutes: the second snapshot is from before that, if it is good.
        let span = jiff::Span::new().minutes(15);
        let policy = Policy { last: 1, points_in_time: Some(span), ..Policy::default() };
        let plan = prune::plan(&world.host.open, &source, &policy, SignedDuration::ZERO).unwrap();
        let goes: Vec<u64> = plan.remove.iter().map(|removed| removed.seq).collect();
        let below = plan.log.iter().map(|gone| gone.below.0).max().unwrap_or(0);
        if unreadable {
            assert!(goes.is_empty() && below == 0, "nobody knows what leads where: {goes:?} {below}");
            continue;
        }
        let needed = START + if suspect { 2 } else { 4 } * UNIT - 10;
        assert_eq!(goes, if suspect { vec![] } else { vec![1] }, "suspect: {suspect}");
        assert!(
            (needed - 2 * UNIT..=needed).contains(&below),
            "suspect: {suspect}: below {below}, needed from {needed}"
        );
    }
}
