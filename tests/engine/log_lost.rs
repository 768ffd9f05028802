//! What cannot be used of a log, and of the commits that it passes by: a restore to the newest state never takes it for the end.

use super::faults::{Fault, Faulty};
use super::log::{Lab, bytes, put};
use super::log_ends::{Standing, place};
use super::world::name;
use blackstart::bridge::Store;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::operations::Open;
use blackstart::operations::backup::Options;
use blackstart::operations::reach;
use blackstart::operations::wal::behind;
use blackstart::operations::wal::get::{Got, get};
use blackstart::operations::wal::recover::{Recovery, Target, Then, has_log, route};
use blackstart::repository::layout;
use blackstart::repository::log::{Author, Begin, Writer};
use blackstart::repository::series::Series;
use blackstart::repository::snapshot::Snapshot;
use blackstart::source::postgres::wal::WalFile;
use blackstart::storage::{self, Key};
use jiff::{SignedDuration, Timestamp};

const MIB: u64 = 1 << 20;

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(minutes)
}

/// A log with snapshots of `db`, each of which ends at a position, so many minutes ago.
fn lab(snapshots: &[(u64, i64)]) -> Lab {
    let lab = Lab::new();
    let db = rusqlite::Connection::open(lab.world.path("app.db")).unwrap();
    db.execute_batch("CREATE TABLE t(n)").unwrap();
    for _ in snapshots {
        db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        lab.world.backup_sqlite(&lab.world.path("app.db"), Options { workers: 1, ..Options::default() }).unwrap();
    }
    place(&lab, snapshots, None);
    lab
}

/// A stretch from segment to segment, begun and ended so many minutes ago.
fn stretch(lab: &Lab, (from, to): (u64, u64), (began, ended): (i64, i64), continues: bool) {
    let clock = Standing(ago(began));
    let author = Author { clock: &clock, ..lab.author(lab.store()) };
    let facts = serde_json::json!({"system_identifier": "1", "segment_size": MIB});
    let (kind, why) = ("postgres".to_owned(), "a test".to_owned());
    let begin = Begin { kind, timeline: 1, start: from * MIB, unit: MIB, continues, id: None, facts, why };
    let mut writer = Writer::begin(author, &lab.log(lab.store()).unwrap(), begin).unwrap();
    for segment in from..to {
        writer.append(&bytes(1, segment * MIB, (segment + 1) * MIB), ago(ended)).unwrap();
    }
}

fn flip(lab: &Lab, key: &Key) {
    lab.memory.tamper(key, |b| {
        let middle = b.len() / 2;
        b[middle] ^= 1;
    });
}

/// The number of the snapshot, or the error.
fn to(lab: &Lab, open: &Open, target: Target) -> anyhow::Result<u64> {
    let identities = std::slice::from_ref(&lab.world.recovery.identity);
    let recovery = Recovery { target, before: false, then: Then::Promote, timeline: None };
    route(open, identities, &name("db"), &recovery).map(|(_, snapshot, _)| snapshot.seq)
}

fn newest(open: &Open) -> Snapshot {
    let whole = Series::list(&open.store, &open.trust, &name("db")).unwrap().whole();
    whole.snapshots().last().unwrap().1.clone()
}

fn got(lab: &Lab, segment: u64) -> anyhow::Result<Got> {
    let file = WalFile::Segment { timeline: 1, start: segment * MIB }.name(MIB);
    let identities = std::slice::from_ref(&lab.world.recovery.identity);
    get(&lab.world.host.open, identities, &name("db"), &file, &lab.world.path("RECOVERYXLOG"))
}

/// A stretch that cannot be used is no end: neither for a restore, nor for a server that recovers, nor for who asks how far data reaches.
#[test]
fn a_stretch_that_cannot_be_used_is_not_taken_for_the_end_of_the_log() {
    for what in ["the record", "no record", "every object"] {
        let lab = lab(&[(MIB + 500, 20)]);
        stretch(&lab, (1, 3), (30, 15), false);
        stretch(&lab, (3, 5), (10, 5), true);
        let open = &lab.world.host.open;
        assert_eq!(to(&lab, open, Target::Latest).unwrap(), 1, "{what}");
        assert_eq!((got(&lab, 4).unwrap(), got(&lab, 5).unwrap()), (Got::Written(MIB), Got::NotThere), "{what}");
        let record = layout::log_stretch(&name("db"), 2);
        let kept = lab.store().get(&record).unwrap();
        match what {
            "the record" => flip(&lab, &record),
            "no record" => lab.store().delete(&record).unwrap(),
            _ => lab.store().list("wal/db/0000000002/").unwrap().iter().for_each(|object| flip(&lab, &object.key)),
        }
        for target in [Target::Latest, Target::Time(ago(7))] {
            let error = to(&lab, open, target).unwrap_err();
            assert_eq!(kind_of(&error), Kind::CheckFailed, "{what}: {error:#}");
            let help = help_of(&error).unwrap();
            assert!(help.contains("`--lsn 0/300000`") && help.contains("`--snapshot 1`"), "{what}: {help}");
        }
        for target in [Target::Lsn(3 * MIB), Target::Immediate, Target::Time(ago(16))] {
            assert_eq!(to(&lab, open, target).unwrap(), 1, "{what}: what comes before is reached");
        }
        let snapshot = newest(open);
        assert!(behind::whole(open, &snapshot).is_err(), "{what}");
        let way = reach::way_after(open, &snapshot).unwrap();
        assert!(way.lost.is_some() && way.log.is_some_and(|log| log.position.0 == 3 * MIB), "{what}");
        assert_eq!(got(&lab, 2).unwrap(), Got::Written(MIB), "{what}");
        assert!(got(&lab, 3).is_err(), "{what}: a server would open for writing");
        // What is behind a gap is reached from a snapshot there, whatever was lost before it.
        stretch(&lab, (8, 9), (3, 2), false);
        lab.world.backup_sqlite(&lab.world.path("app.db"), Options { workers: 1, ..Options::default() }).unwrap();
        place(&lab, &[(MIB + 500, 20), (8 * MIB + 500, 2)], None);
        assert_eq!(to(&lab, open, Target::Latest).unwrap(), 2, "{what}");
        assert_eq!(reach::way_after(open, &newest(open)).unwrap().lost, None, "{what}");
        match what {
            "the record" => lab.memory.tamper(&record, |b| *b = kept.to_vec()),
            "no record" => put(lab.store(), &record, &kept),
            _ => lab.store().list("wal/db/0000000002/").unwrap().iter().for_each(|object| flip(&lab, &object.key)),
        }
        assert_eq!(to(&lab, open, Target::Time(ago(7))).unwrap(), 1, "{what}");
    }
}

/// What the store refuses is no damage, and no end either: its own error is told.
#[test]
fn a_stretch_that_the_store_refuses_is_not_taken_for_the_end_of_the_log() {
    let lab = lab(&[(MIB + 500, 20)]);
    stretch(&lab, (1, 3), (30, 15), false);
    stretch(&lab, (3, 5), (10, 5), true);
    for n in [1, 2] {
        let area = if n == 1 { "wal/db/stretches/0000000001" } else { "wal/db/stretches/0000000002" };
        let fault = Fault::Silent("get", area, storage::Kind::Denied);
        let store = Store::new(Faulty::new(lab.memory.clone(), fault)).unwrap();
        let open = Open { store, ..lab.world.host.open.clone() };
        let error = to(&lab, &open, Target::Latest).unwrap_err();
        assert_eq!(
            (kind_of(&error), storage::kind_of(&error)),
            (Kind::Failed, Some(storage::Kind::Denied)),
            "{error:#}"
        );
        assert!(help_of(&error).unwrap().contains("--snapshot 1"), "{error:#}");
        assert!(behind::whole(&open, &newest(&open)).is_err_and(|e| storage::is_silence(&e)));
    }
}

/// The same where there is no other stretch.
#[test]
fn a_log_of_which_nothing_can_be_used_is_not_taken_for_none() {
    let lab = lab(&[(MIB + 500, 20)]);
    stretch(&lab, (1, 3), (30, 15), false);
    let open = &lab.world.host.open;
    let fault = Fault::Silent("get", "wal/db/stretches/", storage::Kind::Denied);
    let store = Store::new(Faulty::new(lab.memory.clone(), fault)).unwrap();
    let error = to(&lab, &Open { store, ..open.clone() }, Target::Latest).unwrap_err();
    assert_eq!((kind_of(&error), storage::kind_of(&error)), (Kind::Failed, Some(storage::Kind::Denied)), "{error:#}");
    let record = layout::log_stretch(&name("db"), 1);
    flip(&lab, &record);
    for gone in [false, true] {
        if gone {
            lab.store().delete(&record).unwrap();
        }
        assert!(has_log(open, &name("db")).unwrap(), "gone: {gone}");
        let error = to(&lab, open, Target::Latest).unwrap_err();
        assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");
        assert!(help_of(&error).unwrap().contains("`--snapshot 1`"), "{error:#}");
        assert!(got(&lab, 1).is_err() && got(&lab, 3).is_err());
    }
}

/// A newest commit that does not verify is passed over only where the log demonstrably goes on beyond it.
#[test]
fn the_log_passes_over_a_broken_commit_only_if_it_goes_on_beyond_it() {
    let lab = lab(&[(MIB + 500, 20), (2 * MIB + 500, 10)]);
    stretch(&lab, (1, 4), (30, 5), false);
    let open = &lab.world.host.open;
    assert_eq!(to(&lab, open, Target::Latest).unwrap(), 2);
    flip(&lab, &layout::snapshot(&name("db"), 2));
    let error = to(&lab, open, Target::Latest).unwrap_err();
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");
    let help = help_of(&error).unwrap();
    assert!(error.to_string().contains("commit 2 of db") && help.contains("`--lsn 0/400000`"), "{error:#} {help}");
    for target in [Target::Time(ago(7)), Target::Lsn(4 * MIB)] {
        assert_eq!(to(&lab, open, target).unwrap(), 1, "the log brings all of it");
    }
    // The log goes on, and has everything that the snapshot had.
    stretch(&lab, (4, 5), (1, 0), true);
    assert_eq!(to(&lab, open, Target::Latest).unwrap(), 1);
    // Behind a gap nothing is known of what was in it.
    stretch(&lab, (7, 8), (0, 0), false);
    assert_eq!(kind_of(&to(&lab, open, Target::Latest).unwrap_err()), Kind::CheckFailed);
}
