//! Where a log ends and begins: how old each end is, what is damaged there, and what archiving brings late.

use crate::support::postgres::{Cluster, Setup, own_all};
use crate::world::{World, base, on_copy, options, source, wait};
use blackstart::operations::wal::check::check;
use blackstart::operations::wal::get::{Got, get};
use blackstart::operations::wal::keep::{Anchor, spare};
use blackstart::operations::wal::push::push;
use blackstart::operations::wal::receive::{Event, Options};
use blackstart::repository::log::{Position, fetch};
use blackstart::repository::snapshot::LogRange;
use blackstart::source::postgres::wal::{Lsn, WalFile};
use jiff::Timestamp;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const SEGMENT: u64 = 1 << 20;

fn setup() -> Setup {
    let mut setup = Setup::new(15).config("wal_keep_size = 1GB\nmax_wal_size = 2GB\nautovacuum = off");
    setup.segment = 1;
    setup
}

fn lsn(cluster: &Cluster) -> u64 {
    cluster.value("select pg_current_wal_insert_lsn()").parse::<Lsn>().unwrap().0
}

/// The server's clock.
fn clock(cluster: &Cluster) -> Timestamp {
    let format = "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    cluster.value(format).parse().unwrap()
}

/// Writes so many bytes of log, and a commit.
fn write(cluster: &Cluster, bytes: u64) {
    cluster.sql(&format!("select pg_logical_emit_message(true, 'x', repeat('x', {bytes}))"));
}

/// Where each piece ends, and a moment at which the server had nothing beyond it; with the object's key.
fn pieces(world: &World) -> Vec<(u64, Timestamp, PathBuf)> {
    let (log, open) = (world.log(), &world.host.open);
    let spans = log.stretches.iter().flat_map(|s| s.timelines.values()).flatten().filter(|s| s.end.is_none());
    let read = |span| {
        let line = fetch(&open.store, &open.trust, &log.source, span).unwrap().line;
        (line.end.0, line.time, world.path("repository").join(span.object.key.as_str()))
    };
    spans.map(read).collect()
}

/// A server and a receiver are lost when a piece has been stored that was cut at the end of a segment, while more had come: what is said of how
/// far the log reaches must hold.
#[test]
fn a_piece_is_as_old_as_its_own_end_and_not_as_what_had_come_after_it() {
    let (world, cluster) = (World::new(), setup().start());
    let receiver = world.receiver(&cluster, Options { seal_every: Duration::from_secs(4), ..options() });
    receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
    cluster.sql("checkpoint");
    receiver.wait_for_all(&cluster);
    let begun = lsn(&cluster);
    let border = (begun / SEGMENT + 1) * SEGMENT;
    assert!(border - begun > 100_000, "the segment is nearly full by chance");
    write(&cluster, border - begun - 50_000);
    std::thread::sleep(Duration::from_millis(1500));
    let before = clock(&cluster);
    std::thread::sleep(Duration::from_millis(300));
    write(&cluster, 100_000);
    let end = lsn(&cluster);
    assert!(end > border);
    wait("all of it is stored", || receiver.stored() >= end);
    receiver.stop().unwrap();
    let all = pieces(&world);
    let cut = all.iter().find(|(at, ..)| *at == border).expect("no piece ends with the segment");
    let after: Vec<_> = all.iter().filter(|(at, ..)| *at > border).collect();
    assert!(cut.1 < before, "at {} the server had written beyond it; it says {}", before, cut.1);
    assert!(after.iter().any(|(_, time, _)| *time > before), "what came after it is of after it: {after:?}");
    // Everything behind it is lost.
    after.iter().for_each(|(.., path)| fs::remove_file(path).unwrap());
    let until = world.windows()[0].until;
    assert!(until < before, "said to reach {until}, and what was committed after {before} is gone");
}

/// A new stretch takes up an older place: what it catches up on is not as young as its beginning.
#[test]
fn what_a_new_stretch_catches_up_on_is_not_dated_by_its_beginning() {
    let (world, cluster) = (World::new(), setup().start());
    cluster.sql("select pg_create_physical_replication_slot('blackstart', true)");
    let from = lsn(&cluster);
    write(&cluster, 3 * SEGMENT);
    cluster.sql("select pg_switch_wal()");
    write(&cluster, 2 * SEGMENT);
    let (end, before) = (lsn(&cluster), clock(&cluster));
    std::thread::sleep(Duration::from_millis(50));
    world.receive_once(&cluster, &Options { from: Some((1, from)), ..options() }).unwrap();
    let all = pieces(&world);
    let behind: Vec<_> = all.iter().filter(|(at, ..)| *at < end).collect();
    assert!(behind.len() > 3, "{all:?}");
    for (at, time, _) in behind {
        assert!(
            *time < before,
            "at {before} the server was at {}, and the piece up to {} says {time}",
            Lsn(end),
            Lsn(*at)
        );
    }
    let until = world.windows()[0].until;
    assert!(until >= before, "all is there, and it says {until}");
}

fn segments(cluster: &Cluster) -> Vec<PathBuf> {
    let current = cluster.value("select pg_walfile_name(pg_switch_wal())");
    let all = fs::read_dir(cluster.data.join("pg_wal")).unwrap().map(|e| e.unwrap().path());
    let is_segment = |p: &PathBuf| matches!(WalFile::parse(&name(p), SEGMENT), Some(WalFile::Segment { .. }));
    let mut found: Vec<PathBuf> = all.filter(|p| is_segment(p) && name(p) <= current).collect();
    found.sort();
    found
}

fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn start_of(path: &std::path::Path) -> u64 {
    match WalFile::parse(&name(path), SEGMENT) {
        Some(WalFile::Segment { start, .. }) => start,
        other => panic!("{other:?}"),
    }
}

/// Gets a segment as a server does, and compares it with the server's own.
fn comes_back(world: &World, path: &std::path::Path) {
    let to = world.path("RECOVERYXLOG");
    let identities = std::slice::from_ref(&world.recovery.identity);
    let got = get(&world.host.open, identities, &source(), &name(path), &to).unwrap();
    assert_eq!(got, Got::Written(SEGMENT), "{}", path.display());
    assert!(fs::read(&to).unwrap() == fs::read(path).unwrap(), "{}", path.display());
}

fn damage(path: &PathBuf) {
    let mut body = fs::read(path).unwrap();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    fs::write(path, body).unwrap();
}

fn faults(world: &World) -> usize {
    check(&world.host.open, &source(), true).unwrap().faults.len()
}

#[test]
fn a_damaged_last_object_does_not_keep_archiving_from_going_on() {
    let (world, cluster) = (World::new(), setup().start());
    write(&cluster, 5 * SEGMENT);
    let files = segments(&cluster);
    assert!(files.len() >= 6, "{files:?}");
    for file in &files[..4] {
        push(&world.host, &source(), file, 1).unwrap();
    }
    damage(&pieces(&world).pop().map(|(.., path)| path).unwrap());
    // The server has forgotten the fourth: a gap that is told, and named by verify.
    let report = push(&world.host, &source(), &files[4], 1).unwrap();
    assert!(report.notes.len() == 1 && report.notes[0].contains("a gap in the log"), "{report:?}");
    assert_eq!((world.windows().len(), faults(&world)), (2, 1));
    for file in &files[4..] {
        assert_eq!(push(&world.host, &source(), file, 1).unwrap().notes, [] as [String; 0], "{}", file.display());
    }
    assert_eq!(world.windows().len(), 2);
    files[..3].iter().chain(&files[4..]).for_each(|file| comes_back(&world, file));
    let missing = get(
        &world.host.open,
        std::slice::from_ref(&world.recovery.identity),
        &source(),
        &name(&files[3]),
        &world.path("never"),
    );
    assert!(missing.is_err(), "what is damaged is not the end of the log");
    // Nothing else is stored, so that nobody can say where the log ended.
    let other = World::new();
    push(&other.host, &source(), &files[0], 1).unwrap();
    damage(&pieces(&other).pop().map(|(.., path)| path).unwrap());
    let report = push(&other.host, &source(), &files[1], 1).unwrap();
    assert!(report.notes.len() == 1 && report.notes[0].contains("a gap in the log"), "{report:?}");
    assert_eq!(push(&other.host, &source(), &files[2], 1).unwrap().notes, [] as [String; 0]);
    files[1..3].iter().for_each(|file| comes_back(&other, file));
}

/// What the server still has is stored again, by either way, and there is no gap.
#[test]
fn a_damaged_last_piece_is_stored_again_from_what_the_server_has() {
    for by_push in [true, false] {
        let (world, cluster) = (World::new(), setup().start());
        write(&cluster, SEGMENT);
        world.receive_once(&cluster, &options()).unwrap();
        write(&cluster, 1000);
        world.receive_once(&cluster, &options()).unwrap();
        damage(&pieces(&world).pop().map(|(.., path)| path).unwrap());
        let files = segments(&cluster);
        if by_push {
            let last = files.iter().rev().take(2).rev();
            let notes: Vec<String> =
                last.flat_map(|file| push(&world.host, &source(), file, 1).unwrap().notes).collect();
            assert!(notes.iter().any(|note| note.contains("stored again: nothing is missing")), "{notes:?}");
        } else {
            let report = world.receive_once(&cluster, &options()).unwrap();
            assert!(report.gaps.is_empty(), "{report:?}");
        }
        let windows = world.windows();
        assert_eq!((windows.len(), windows[0].last, faults(&world)), (1, 1, 1), "by push: {by_push}: {windows:?}");
        let first = files.iter().find(|file| start_of(file) >= windows[0].from.1.0).unwrap();
        comes_back(&world, first);
        comes_back(&world, files.last().unwrap());
    }
}

/// Segments of a new timeline that was left its parent in a segment that nobody pushed.
#[test]
fn a_timeline_that_began_before_the_first_pushed_segment_is_pushed() {
    let (world, primary) = (World::new(), setup().start());
    write(&primary, SEGMENT);
    for file in segments(&primary) {
        push(&world.host, &source(), &file, 1).unwrap();
    }
    let copy = base(&primary, "base");
    let mut standby = on_copy(&copy, &primary);
    standby.configure(&format!(
        "primary_conninfo = 'host={} port={} user=postgres'\nwal_keep_size = 1GB\n",
        primary.directory.display(),
        primary.port
    ));
    fs::write(standby.data.join("standby.signal"), "").unwrap();
    own_all(&standby.data);
    standby.start();
    primary.sql("create table last (n int)");
    wait("the standby has it", || standby.value("select to_regclass('last') is not null") == "t");
    standby.sql("select pg_promote()");
    write(&standby, 3 * SEGMENT);
    let files: Vec<PathBuf> =
        segments(&standby).into_iter().filter(|file| name(file).starts_with("00000002")).collect();
    assert!(files.len() >= 3, "{files:?}");
    // The old primary has gone on for a while, beyond the first of them that is archived.
    write(&primary, 4 * SEGMENT);
    for file in segments(&primary) {
        push(&world.host, &source(), &file, 1).unwrap();
    }
    assert!(world.windows()[0].to.1.0 > start_of(&files[1]));
    // The one in which the timeline began was never archived.
    let report = push(&world.host, &source(), &files[1], 1).unwrap();
    assert!(report.notes.len() == 1 && report.notes[0].contains("a gap in the log"), "{report:?}");
    for file in &files[2..] {
        assert_eq!(push(&world.host, &source(), file, 1).unwrap().notes, [] as [String; 0]);
    }
    let windows = world.windows();
    assert_eq!((windows.len(), windows[1].from, windows[1].to.0), (2, (2, Position(start_of(&files[1]))), 2));
    files[1..].iter().for_each(|file| comes_back(&world, file));
}

/// What archiving brings from before the part that a receiver writes does not end that part.
#[test]
fn an_old_segment_does_not_end_what_a_receiver_is_writing() {
    let (world, cluster) = (World::new(), setup().start());
    write(&cluster, 3 * SEGMENT);
    let old = segments(&cluster);
    let receiver = world.receiver(&cluster, options());
    receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
    write(&cluster, 1000);
    receiver.wait_for_all(&cluster);
    let begun = world.windows()[0].from.1.0;
    let before: Vec<&PathBuf> = old.iter().filter(|file| start_of(file) + SEGMENT <= begun).collect();
    assert!(before.len() >= 3, "{begun:x} {old:?}");
    for file in before {
        let report = push(&world.host, &source(), file, 1).unwrap();
        assert!(report.notes.len() == 1 && report.notes[0].contains("not stored"), "{report:?}");
    }
    assert_eq!(world.log().stretches.len(), 1, "the receiver's stretch is still the newest");
    write(&cluster, SEGMENT);
    receiver.wait_for_all(&cluster);
    receiver.stop().unwrap();
    assert_eq!(world.windows().len(), 1);
    // What it has itself is compared.
    for file in segments(&cluster).iter().filter(|file| start_of(file) >= begun) {
        assert_eq!(push(&world.host, &source(), file, 1).unwrap().notes, [] as [String; 0], "{}", file.display());
    }
}

/// A server that recovers from a snapshot asks for the segment in which the backup began, and gets all of it.
#[test]
fn after_a_prune_the_segment_in_which_the_oldest_snapshot_began_is_whole() {
    let (world, cluster) = (World::new(), setup().start());
    write(&cluster, 4 * SEGMENT);
    let files = segments(&cluster);
    for file in &files {
        push(&world.host, &source(), file, 1).unwrap();
    }
    let (begun, ended) = (start_of(&files[2]) + 500, start_of(&files[3]) + 77);
    let kept = Anchor {
        range: LogRange { timeline: 1, id: None, start: Position(begun), end: Position(ended) },
        reaches_from: clock(&cluster),
        good: true,
    };
    let found = spare(&world.host.open, &world.log(), &[kept], None, Timestamp::MAX).unwrap();
    assert_eq!(found.objects.len(), 2, "{:?}", found.objects);
    found.objects.iter().for_each(|object| world.host.open.store.delete(&object.key).unwrap());
    files[2..].iter().for_each(|file| comes_back(&world, file));
}
