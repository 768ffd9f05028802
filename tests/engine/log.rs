//! The log of a source: what is acknowledged can be read, whatever happens to the writer, the store, or a second writer.

use super::faults::{Fault, Faulty, hooked};
use super::world::{World, name};
use blackstart::bridge::Store;
use blackstart::clock::SystemClock;
use blackstart::error::{Kind, kind_of};
use blackstart::repository::log::{Author, Begin, Log, Reader, Writer};
use blackstart::storage::Key;
use blackstart::storage::memory::Memory;
use jiff::Timestamp;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const UNIT: u64 = 4096;
pub(super) const START: u64 = 10_000;

/// The engine's log: what it would show at each position of a timeline.
fn byte(timeline: u32, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (timeline as u8).wrapping_mul(31)
}

pub(super) fn bytes(timeline: u32, from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|at| byte(timeline, at)).collect()
}

pub(super) struct Lab {
    pub(super) world: World,
    pub(super) memory: Memory,
}

impl Lab {
    pub(super) fn new() -> Lab {
        Lab::on(Memory::default())
    }

    pub(super) fn on(memory: Memory) -> Lab {
        let store = Store::new(Arc::new(memory.clone())).unwrap();
        Lab { world: World::on(store, tempfile::tempdir().unwrap()), memory }
    }

    pub(super) fn store(&self) -> &Store {
        &self.world.host.open.store
    }

    pub(super) fn author<'a>(&'a self, store: &'a Store) -> Author<'a> {
        let host = &self.world.host;
        Author { store, trust: &host.open.trust, keys: &host.keys, host: "test", clock: &SystemClock, level: 1 }
    }

    pub(super) fn log(&self, store: &Store) -> anyhow::Result<Log> {
        Log::list(store, &self.world.host.open.trust, &name("db"))
    }

    pub(super) fn begin<'a>(&'a self, store: &'a Store, at: u64, continues: bool) -> anyhow::Result<Writer<'a>> {
        self.begin_on(store, 1, at, continues)
    }

    pub(super) fn begin_on<'a>(
        &'a self,
        store: &'a Store,
        timeline: u32,
        start: u64,
        continues: bool,
    ) -> anyhow::Result<Writer<'a>> {
        let facts = serde_json::json!({"system_identifier": "1"});
        let why = "a test".to_owned();
        let begin = Begin { kind: "test".into(), timeline, start, unit: UNIT, continues, id: None, facts, why };
        Writer::begin(self.author(store), &self.log(store)?, begin)
    }

    /// A writer on the newest stretch that has compared what the engine shows; or on a new one.
    pub(super) fn writer<'a>(&'a self, store: &'a Store) -> anyhow::Result<Writer<'a>> {
        let log = self.log(store)?;
        if log.is_empty() {
            return self.begin(store, START, false);
        }
        let mut writer = Writer::resume(self.author(store), &log)?;
        let (from, head) = (writer.show_from(), writer.head());
        assert!(writer.compare(&shown(&log, head.timeline, from, head.end))?, "forked");
        Ok(writer)
    }

    /// Reads everything from `from` on, as timeline `timeline` has it.
    pub(super) fn read(&self, window: usize, timeline: u32, from: u64) -> anyhow::Result<Vec<u8>> {
        let open = &self.world.host.open;
        let log = self.log(&open.store)?;
        let identities = std::slice::from_ref(&self.world.recovery.identity);
        let reader = Reader { store: &open.store, trust: &open.trust, identities };
        let windows = log.windows(&open.store, &open.trust)?;
        let window = windows.get(window).ok_or_else(|| anyhow::anyhow!("no such window: {:?}", log.faults))?;
        let (mut out, mut at) = (Vec::new(), from);
        loop {
            let to = (at / UNIT + 1) * UNIT;
            let more = reader.range(&log, window, timeline, at, to)?;
            out.extend_from_slice(&more);
            at += more.len() as u64;
            if at < to {
                return Ok(out);
            }
        }
    }
}

/// What the engine shows on `timeline`: before it began, its parent's bytes.
fn shown(log: &Log, timeline: u32, from: u64, to: u64) -> Vec<u8> {
    let stretch = log.stretches.last().unwrap();
    (from..to).map(|at| byte(stretch.timeline_at(timeline, at), at)).collect()
}

pub(super) fn time(at: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(at).unwrap()).unwrap()
}

/// Appends the engine's bytes up to `to`, in pieces of at most `step`.
pub(super) fn grow(writer: &mut Writer, to: u64, step: u64) -> anyhow::Result<()> {
    while writer.head().end < to {
        let head = writer.head();
        let end = (head.end + step).min(to).min((head.end / UNIT + 1) * UNIT);
        writer.append(&bytes(head.timeline, head.end, end), time(end))?;
    }
    Ok(())
}

#[test]
fn what_is_appended_is_read_and_stays_few_objects() {
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 3 * UNIT, 7).unwrap();
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 3 * UNIT));
    assert!(lab.read(0, 1, START + 5000).unwrap() == bytes(1, START + 5000, START + 3 * UNIT));
    let log = lab.log(lab.store()).unwrap();
    let spans = &log.stretches[0].timelines[&1];
    let whole = |s: &&blackstart::repository::log::Span| s.end == Some(s.start + UNIT);
    assert_eq!(spans.iter().filter(whole).count(), 2, "each full unit is one object");
    // Everything that a run stands for may go: the rest reads the same.
    let covered = |s: &&blackstart::repository::log::Span| {
        spans.iter().any(|r| r.end > s.end.or(Some(s.start)) && r.start <= s.start && r.end.is_some() && r != *s)
    };
    let gone: Vec<_> = spans.iter().filter(covered).collect();
    assert!(gone.len() > 1000 && spans.len() - gone.len() < 100, "{} of {}", gone.len(), spans.len());
    gone.iter().for_each(|s| lab.store().delete(&s.object.key).unwrap());
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 3 * UNIT));
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 4 * UNIT, 900).unwrap();
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 4 * UNIT));
}

#[test]
fn the_chain_goes_on_through_runs_restarts_and_timelines() {
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 500, 10).unwrap();
    let before = writer.head();
    drop(writer);
    let mut writer = lab.writer(lab.store()).unwrap();
    assert_eq!(writer.head(), before);
    let fork = START + 450;
    writer.switch(2, fork, b"1\t0/0\treason\n").unwrap();
    grow(&mut writer, START + 2 * UNIT, 1000).unwrap();
    drop(writer);
    let mut writer = lab.writer(lab.store()).unwrap();
    assert_eq!(writer.head().timeline, 2);
    grow(&mut writer, START + 2 * UNIT + 1, 1000).unwrap();
    let expected = [bytes(1, START, fork), bytes(2, fork, START + 2 * UNIT + 1)].concat();
    assert!(lab.read(0, 2, START).unwrap() == expected);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 500), "the old timeline ends where it was left");
    let open = &lab.world.host.open;
    let log = lab.log(&open.store).unwrap();
    let identities = std::slice::from_ref(&lab.world.recovery.identity);
    let reader = Reader { store: &open.store, trust: &open.trust, identities };
    let window = &log.windows(&open.store, &open.trust).unwrap()[0];
    let history = reader.history(&log, window, 2).unwrap().unwrap();
    assert_eq!((history.bytes.as_slice(), history.line.start.0), (&b"1\t0/0\treason\n"[..], fork));
}

#[test]
fn a_gap_is_a_new_window_and_a_change_of_keys_is_none() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 100, 50).unwrap();
    grow(&mut lab.begin(lab.store(), START + 100, true).unwrap(), START + 300, 50).unwrap();
    grow(&mut lab.begin(lab.store(), START + 900, false).unwrap(), START + 1000, 50).unwrap();
    let open = &lab.world.host.open;
    let windows = lab.log(lab.store()).unwrap().windows(&open.store, &open.trust).unwrap();
    let ranges: Vec<_> = windows.iter().map(|w| (w.first, w.last, w.from.1.0 - START, w.to.1.0 - START)).collect();
    assert_eq!(ranges, [(0, 1, 0, 300), (2, 2, 900, 1000)]);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 300));
    assert!(lab.read(1, 1, START + 900).unwrap() == bytes(1, START + 900, START + 1000));
}

/// The writer acknowledges across it, so that readers must not see a gap.
#[test]
fn a_stretch_that_went_on_and_got_no_piece_is_no_gap() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 100, 50).unwrap();
    drop(lab.begin(lab.store(), START + 100, true).unwrap());
    grow(&mut lab.begin(lab.store(), START + 100, true).unwrap(), START + 300, 50).unwrap();
    let open = &lab.world.host.open;
    let ranges = |log: &Log| -> Vec<_> {
        let windows = log.windows(&open.store, &open.trust).unwrap();
        windows.iter().map(|w| (w.first, w.last, w.from.1.0 - START, w.to.1.0 - START)).collect()
    };
    assert_eq!(ranges(&lab.log(lab.store()).unwrap()), [(0, 2, 0, 300)]);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 300));
    // One that began behind a gap and got none still leaves the gap.
    drop(lab.begin(lab.store(), START + 900, false).unwrap());
    grow(&mut lab.begin(lab.store(), START + 900, true).unwrap(), START + 950, 50).unwrap();
    assert_eq!(ranges(&lab.log(lab.store()).unwrap()), [(0, 2, 0, 300), (4, 4, 900, 950)]);
}

/// Of each timeline and stretch prune leaves the last object, which leads into nothing.
#[test]
fn what_prune_has_left_of_earlier_timelines_is_not_where_the_log_begins() {
    let lab = Lab::new();
    let open = &lab.world.host.open;
    let begins = || lab.log(&open.store).unwrap().windows(&open.store, &open.trust).unwrap()[0].from;
    let take = |n: usize, timeline: u32, below: u64| {
        let log = lab.log(&open.store).unwrap();
        let spans = &log.stretches[n].timelines[&timeline];
        let (last, front) = spans.split_last().unwrap();
        for span in front.iter().filter(|span| span.start < below && span.start < last.start) {
            open.store.delete(&span.object.key).unwrap();
        }
    };
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 2 * UNIT, 1000).unwrap();
    let fork = START + 2 * UNIT - 100;
    writer.switch(2, fork, b"1\t0/0\treason\n").unwrap();
    let mut behind = |to: u64| grow(&mut writer, to, 1000).unwrap();
    behind(START + 6 * UNIT);
    assert_eq!((begins().0, begins().1.0), (1, START));
    // The front of the first timeline alone is the front of all.
    take(0, 1, START + UNIT);
    let (timeline, at) = begins();
    assert!(timeline == 1 && at.0 > START, "{at:?}");
    assert!(lab.read(0, 2, at.0).unwrap() == [bytes(1, at.0, fork), bytes(2, fork, START + 6 * UNIT)].concat());
    // The first timeline's last object stays, and what follows it is gone.
    take(0, 1, u64::MAX);
    take(0, 2, START + 4 * UNIT);
    let (timeline, at) = begins();
    assert!(timeline == 2 && at.0 > fork, "{at:?}");
    assert!(lab.read(0, 2, at.0).unwrap() == bytes(2, at.0, START + 6 * UNIT));
    // So it is where a later stretch has lost its front.
    drop(writer);
    let facts = serde_json::json!({"system_identifier": "1"});
    let why = "a test".to_owned();
    let begin = Begin {
        kind: "test".into(),
        timeline: 2,
        start: START + 6 * UNIT,
        unit: UNIT,
        continues: true,
        id: None,
        facts,
        why,
    };
    let mut writer = Writer::begin(lab.author(lab.store()), &lab.log(lab.store()).unwrap(), begin).unwrap();
    grow(&mut writer, START + 9 * UNIT, 1000).unwrap();
    assert_eq!(begins(), (timeline, at));
    take(1, 2, START + 8 * UNIT);
    assert!(begins().1.0 > START + 6 * UNIT, "{:?}", begins());
    assert!(lab.read(0, 2, begins().1.0).unwrap() == bytes(2, begins().1.0, START + 9 * UNIT));
}

#[test]
fn an_engine_that_shows_other_bytes_is_a_fork() {
    let lab = Lab::new();
    grow(&mut lab.writer(lab.store()).unwrap(), START + 300, 50).unwrap();
    let log = lab.log(lab.store()).unwrap();
    for at in [0, 149, 299] {
        let mut writer = Writer::resume(lab.author(lab.store()), &log).unwrap();
        let mut shown = bytes(1, writer.show_from(), writer.head().end);
        shown[at] ^= 1;
        assert!(!writer.compare(&shown).unwrap(), "a change at {at}");
    }
}

#[test]
fn of_two_writers_one_stops() {
    let lab = Lab::new();
    let mut first = lab.writer(lab.store()).unwrap();
    grow(&mut first, START + 100, 50).unwrap();
    let mut second = lab.writer(lab.store()).unwrap();
    grow(&mut first, START + 150, 50).unwrap();
    assert_eq!(kind_of(&grow(&mut second, START + 150, 20).unwrap_err()), Kind::Busy);
    assert!(lab.read(0, 1, START).unwrap() == bytes(1, START, START + 150));
    // Two that begin a stretch at once.
    let log = lab.log(lab.store()).unwrap();
    let begin = |start| Begin {
        kind: "test".into(),
        timeline: 1,
        start,
        unit: UNIT,
        continues: false,
        id: None,
        facts: serde_json::Value::Null,
        why: String::new(),
    };
    Writer::begin(lab.author(lab.store()), &log, begin(START + 500)).unwrap();
    let late = Writer::begin(lab.author(lab.store()), &log, begin(START + 600)).err().unwrap();
    assert_eq!(kind_of(&late), Kind::Busy);
}

/// Two writers in lockstep: whatever the order of their calls, what is acknowledged to one is in the log, once.
#[test]
fn writers_that_meet_never_interleave() {
    for turn in 1..12 {
        let lab = Lab::new();
        grow(&mut lab.writer(lab.store()).unwrap(), START + 100, 50).unwrap();
        let busy = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let memory = lab.memory.clone();
        let plain = Store::new(Arc::new(memory)).unwrap();
        let (other, seen) = (busy.clone(), calls.clone());
        let marks = Arc::new(std::sync::Mutex::new(Vec::new()));
        let noted = marks.clone();
        let store = hooked(&lab.memory, move |operation, key| {
            if operation == "create" && seen.fetch_add(1, Ordering::SeqCst) + 1 == turn {
                noted.lock().unwrap().push(key.to_owned());
                other.store(true, Ordering::SeqCst);
            }
        });
        let mut slow = lab.writer(&store).unwrap();
        let mut stopped = None;
        while slow.head().end < START + 600 && stopped.is_none() {
            if busy.swap(false, Ordering::SeqCst) {
                grow(&mut lab.writer(&plain).unwrap(), slow.head().end + 70, 35).unwrap();
            }
            let to = (slow.head().end + 50).min(START + 600);
            stopped = grow(&mut slow, to, 50).err();
        }
        if let Some(error) = &stopped {
            assert_eq!(kind_of(error), Kind::Busy, "{error:#}");
        }
        assert!(stopped.is_some() || turn > 9, "turn {turn}: nobody noticed the other");
        let read = lab.read(0, 1, START).unwrap();
        assert!(read == bytes(1, START, START + read.len() as u64), "turn {turn}");
        assert!(START + read.len() as u64 >= slow.head().end);
    }
}

/// The store dies at the n-th call. What was acknowledged is there, and the next writer goes on.
#[test]
fn a_writer_that_dies_anywhere_has_stored_what_it_acknowledged() {
    let kinds: [fn(usize) -> Fault; 2] = [Fault::Call, Fault::Unanswered];
    for kind in kinds {
        for n in 1..120 {
            let lab = Lab::new();
            let faulty = Faulty::new(lab.memory.clone(), kind(n));
            let broken = Store::new(faulty.clone()).unwrap();
            let mut acknowledged = START;
            let mut act = || -> anyhow::Result<()> {
                let mut writer = lab.writer(&broken)?;
                for step in [300u64, 40, 7, 3000, 900, 11] {
                    for _ in 0..12 {
                        let to = writer.head().end + step;
                        grow(&mut writer, to, step)?;
                        acknowledged = writer.head().end;
                    }
                }
                let end = writer.head().end;
                writer.switch(2, end, b"history")?;
                grow(&mut writer, end + 50, 10)?;
                acknowledged = writer.head().end;
                Ok(())
            };
            let result = act();
            assert!(result.is_ok() || faulty.struck(), "{result:?}");
            if result.is_ok() && !faulty.struck() {
                assert!(n > 60, "the round made only {n} calls");
                break;
            }
            let mut next = lab.writer(lab.store()).unwrap();
            assert!(next.head().end >= acknowledged, "{:?}: acknowledged bytes are gone", kind(n));
            let to = next.head().end + 2 * UNIT;
            grow(&mut next, to, 333).unwrap();
            let timeline = next.head().timeline;
            let read = lab.read(0, timeline, START).unwrap();
            let log = lab.log(lab.store()).unwrap();
            assert!(read == shown(&log, timeline, START, to), "{:?}", kind(n));
        }
    }
}

/// Every object, every damage: what is read is right or refused, and never short without a word.
#[test]
fn damage_is_noticed_and_a_run_falls_back_to_its_pieces() {
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + UNIT, 100).unwrap();
    writer.switch(2, START + UNIT, b"history").unwrap();
    grow(&mut writer, START + 2 * UNIT, 700).unwrap();
    let whole = [bytes(1, START, START + UNIT), bytes(2, START + UNIT, START + 2 * UNIT)].concat();
    assert!(lab.read(0, 2, START).unwrap() == whole);
    let objects: Vec<_> = lab.store().list("wal/").unwrap().into_iter().map(|o| o.key).collect();
    let last =
        objects.iter().filter(|k| k.as_str().contains("/00000002/")).max_by_key(|k| k.as_str().to_owned()).cloned();
    let (mut survived, mut refused) = (0, 0);
    for key in &objects {
        let body = lab.store().get(key).unwrap();
        for damage in ["delete", "flip", "cut", "swap"] {
            lab.store().delete(key).unwrap();
            let mut changed = body.to_vec();
            match damage {
                "delete" => changed.clear(),
                "flip" => changed[body.len() - 1 - body.len() / 4] ^= 1,
                "cut" => drop(changed.pop()),
                _ => changed = lab.store().get(objects.iter().find(|k| *k != key).unwrap()).unwrap().to_vec(),
            }
            if damage != "delete" {
                put(lab.store(), key, &changed);
            }
            match lab.read(0, 2, START) {
                Ok(read) if read == whole => survived += 1,
                // The end of a log is where it ends: a receiver that comes back notices, a reader cannot.
                Ok(read) => assert!(
                    damage == "delete" && Some(key) == last.as_ref() && whole.starts_with(&read),
                    "{damage} {key}"
                ),
                Err(_) => refused += 1,
            }
            lab.store().delete(key).unwrap();
            put(lab.store(), key, &body);
        }
    }
    assert!(survived > objects.len() && refused > 10, "{survived} survived, {refused} refused");
}

pub(super) fn put(store: &Store, key: &Key, body: &[u8]) {
    let hash = blackstart::repository::layout::Hash::of(body);
    store.create(key, body.to_vec().into(), &hash.0).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_history_of_a_log_reads_as_the_engine_wrote_it(steps in prop::collection::vec((1u64..3000, 1u64..2000, 0u8..8), 1..14)) {
        let lab = Lab::new();
        let mut writer = lab.writer(lab.store()).unwrap();
        let mut timeline = 1;
        for (grown, step, what) in steps {
            let to = writer.head().end + grown;
            grow(&mut writer, to, step).unwrap();
            match what {
                0 | 1 => writer = lab.writer(lab.store()).unwrap(),
                2 => {
                    timeline += 1;
                    let from = writer.head().end - grown.min(5);
                    writer.switch(timeline, from, b"history").unwrap();
                    grow(&mut writer, to + 3, 2).unwrap();
                }
                _ => {}
            }
        }
        let end = writer.head().end;
        let log = lab.log(lab.store()).unwrap();
        prop_assert!(log.faults.is_empty());
        prop_assert!(lab.read(0, timeline, START).unwrap() == shown(&log, timeline, START, end));
    }
}

#[test]
fn verify_names_what_is_damaged_and_prune_takes_what_runs_stand_for() {
    use blackstart::operations::retention::Policy;
    use blackstart::operations::wal::check::check;
    use blackstart::operations::{prune, verify};
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 2 * UNIT, 50).unwrap();
    writer.switch(2, START + 2 * UNIT, b"history").unwrap();
    grow(&mut writer, START + 3 * UNIT, 400).unwrap();
    drop(writer);
    let open = &lab.world.host.open;
    let whole = check(open, &name("db"), true).unwrap();
    assert!(whole.faults.is_empty() && whole.objects > 100, "{whole:?}");
    // Nothing that names a snapshot: everything stays, but for what runs stand for.
    let before = lab.store().list("wal/").unwrap().len();
    let policy = Policy { last: 1, ..Policy::default() };
    let plan = prune::plan(open, &name("db"), &policy, jiff::SignedDuration::ZERO).unwrap();
    assert!(plan.log.is_empty() && plan.unnamed.len() > 60, "{plan:?}");
    prune::sweep(&lab.world.host, plan).unwrap();
    assert!(lab.store().list("wal/").unwrap().len() < before / 2);
    let all = [bytes(1, START, START + 2 * UNIT), bytes(2, START + 2 * UNIT, START + 3 * UNIT)].concat();
    assert!(lab.read(0, 2, START).unwrap() == all);
    let whole = check(open, &name("db"), true).unwrap();
    assert!(whole.faults.is_empty(), "{:?}", whole.faults);
    assert!(
        verify::verify(open, Some(&name("db")), &verify::Options { hashes: true, ..verify::Options::default() })
            .unwrap()
            .sound()
    );
    let objects: Vec<_> = lab.store().list("wal/").unwrap().into_iter().map(|o| o.key).collect();
    let last =
        objects.iter().filter(|k| k.as_str().contains("/00000002/")).max_by_key(|k| k.as_str().to_owned()).unwrap();
    for key in objects.iter().filter(|k| *k != last) {
        let body = lab.store().get(key).unwrap();
        lab.store().delete(key).unwrap();
        let first = objects.iter().find(|k| k.as_str().contains("/00000001/")).unwrap();
        let found = check(open, &name("db"), true).unwrap().faults.len();
        // Prune takes from the front: what is missing there is prune's work.
        assert!(found > 0 || key == first || key.as_str().contains("/00000002/"), "deleted {key}");
        let mut flipped = body.to_vec();
        flipped[body.len() / 2] ^= 1;
        put(lab.store(), key, &flipped);
        assert!(!check(open, &name("db"), true).unwrap().faults.is_empty(), "flipped {key}");
        lab.store().delete(key).unwrap();
        put(lab.store(), key, &body);
    }
}

/// What kept snapshots need stays, and not one unit before.
#[test]
fn prune_keeps_the_log_from_the_oldest_snapshot_that_the_window_needs() {
    use blackstart::operations::wal::keep::{Anchor, spare};
    use blackstart::repository::log::Position;
    use blackstart::repository::snapshot::LogRange;
    let lab = Lab::new();
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + 10 * UNIT, 1000).unwrap();
    let open = &lab.world.host.open;
    let log = lab.log(lab.store()).unwrap();
    let anchor = |at: u64| Anchor {
        range: LogRange { timeline: 1, id: None, start: Position(at - 10), end: Position(at) },
        reaches_from: time(at),
        good: true,
    };
    let partial = |at: u64| Anchor { good: false, ..anchor(at) };
    let snapshots = [anchor(START + 3 * UNIT), anchor(START + 6 * UNIT), anchor(START + 9 * UNIT)];
    let late = Timestamp::from_second(4_000_000_000).unwrap();
    let below = |kept: &[Anchor], horizon: Option<Timestamp>, old: Timestamp| {
        let spare = spare(open, &log, kept, horizon, old).unwrap();
        spare.gone.first().map_or(0, |gone| gone.below.0)
    };
    let units = |at: u64| at / UNIT * UNIT;
    assert_eq!(below(&snapshots, None, late), units(START + 3 * UNIT));
    assert_eq!(below(&snapshots[1..], None, late), units(START + 6 * UNIT));
    assert_eq!(below(&snapshots, Some(time(START + 7 * UNIT)), late), units(START + 6 * UNIT));
    assert_eq!(below(&snapshots, Some(time(START + 20 * UNIT)), late), units(START + 9 * UNIT));
    // A horizon before every snapshot: the oldest counts. Without a snapshot the newest window waits for one.
    assert_eq!(below(&snapshots, Some(time(START)), late), units(START + 3 * UNIT));
    assert_eq!(below(&[], None, late), 0);
    // No restore to a point in time begins with a partial one: it does not stand for the whole one before it.
    let partials = [anchor(START + 3 * UNIT), partial(START + 6 * UNIT), partial(START + 9 * UNIT)];
    assert_eq!(below(&partials, Some(time(START + 8 * UNIT)), late), units(START + 3 * UNIT));
    // Nothing young goes.
    assert_eq!(below(&snapshots, None, Timestamp::UNIX_EPOCH), 0);
    // A window that a gap has closed, and no snapshot lies in: of no use but for its last object.
    grow(&mut lab.begin(lab.store(), START + 20 * UNIT, false).unwrap(), START + 21 * UNIT, 1000).unwrap();
    let log = lab.log(lab.store()).unwrap();
    let found = spare(open, &log, &[], None, late).unwrap();
    assert!(
        found.gone.iter().all(|gone| gone.stretch == 1) && found.gone[0].below.0 > START + 9 * UNIT,
        "{:?}",
        found.gone
    );
}

/// Somebody who may write and delete, but not delete versions, hides or covers the whole log.
#[test]
fn a_log_behind_markers_or_garbage_is_read_as_it_was() {
    use blackstart::operations::wal::{check::check, recover};
    for cover in [None, Some(&b"gone, ha"[..])] {
        let lab = Lab::on(Memory::versioned(Arc::new(SystemClock)));
        let mut writer = lab.writer(lab.store()).unwrap();
        grow(&mut writer, START + UNIT, 300).unwrap();
        writer.switch(2, START + UNIT, b"1\tbegan\n").unwrap();
        grow(&mut writer, START + 3 * UNIT, 300).unwrap();
        let before = lab.read(0, 2, START).unwrap();
        assert_eq!(before.len() as u64, 3 * UNIT);
        let listed = lab.store().list("wal/").unwrap();
        listed.iter().for_each(|object| lab.memory.cover(&object.key, cover));
        assert!(lab.read(0, 2, START).unwrap() == before, "{cover:?}");
        let open = &lab.world.host.open;
        let found = check(open, &name("db"), true).unwrap();
        assert_eq!((found.faults.as_slice(), found.covers.len()), (&[][..], listed.len()), "{found:?}");
        assert!(!recover::has_log(open, &name("db")).unwrap(), "there is no snapshot in it");
        // The writer goes on where it was.
        let mut writer = lab.writer(lab.store()).unwrap();
        grow(&mut writer, START + 4 * UNIT, 300).unwrap();
        assert_eq!(lab.read(0, 2, START).unwrap().len() as u64, 4 * UNIT);
    }
}

/// With the host's own key another piece is written over one that is there: what was written first counts.
#[test]
fn a_piece_forged_over_another_does_not_count() {
    let lab = Lab::on(Memory::versioned(Arc::new(SystemClock)));
    let mut writer = lab.writer(lab.store()).unwrap();
    grow(&mut writer, START + UNIT / 2, 300).unwrap();
    let before = lab.read(0, 1, START).unwrap();
    let key = lab.log(lab.store()).unwrap().stretches[0].timelines[&1][0].object.key.clone();
    let forged = lab.store().get(&lab.log(lab.store()).unwrap().stretches[0].timelines[&1][1].object.key).unwrap();
    lab.memory.cover(&key, Some(&forged));
    assert!(lab.read(0, 1, START).unwrap() == before);
}

/// A crash between a stretch and the history of its first timeline: said, owed, and stored before anything else.
#[test]
fn a_history_that_a_crash_kept_from_being_stored_is_owed() {
    use blackstart::operations::wal::check::check;
    let lab = Lab::new();
    let (facts, why) = (serde_json::json!({"system_identifier": "1"}), "a test".to_owned());
    let begin =
        Begin { kind: "test".into(), timeline: 2, start: START, unit: UNIT, continues: false, id: None, facts, why };
    drop(Writer::begin(lab.author(lab.store()), &lab.log(lab.store()).unwrap(), begin).unwrap());
    let log = lab.log(lab.store()).unwrap();
    assert_eq!(log.owes_history(), Some(2));
    assert_eq!(check(&lab.world.host.open, &name("db"), false).unwrap().faults.len(), 1);
    Writer::resume(lab.author(lab.store()), &log).unwrap().keep_history(2, START, b"1\tbegan\n").unwrap();
    assert_eq!(lab.log(lab.store()).unwrap().owes_history(), None);
    assert_eq!(check(&lab.world.host.open, &name("db"), false).unwrap().faults, []);
}
