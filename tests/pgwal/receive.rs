//! The receiver: what it stores is what the server wrote, through restarts, promotions, lost slots and wrong servers.

use crate::faults::{Gate, OpensAtEnd, gated};
use crate::support::postgres::{Cluster, MAJORS, Setup};
use crate::world::{World, certificate, flushed, options, source, wait};
use blackstart::error::{Kind, kind_of};
use blackstart::operations::wal::get::Files;
use blackstart::operations::wal::receive::{Event, Options};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::log::Window;
use blackstart::repository::trust::TrustRecord;
use blackstart::source::postgres::wal::{Lsn, WalFile};
use blackstart::storage::memory::Memory;
use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// Every stored segment of the window is, byte for byte, the server's own. Gives their number.
fn compare_with_server(world: &World, cluster: &Cluster, window: &Window, timeline: u32) -> usize {
    let identities = std::slice::from_ref(&world.recovery.identity);
    let files = Files::open(&world.host.open, identities, &source()).unwrap().unwrap();
    let (mut at, mut compared) = (window.from.1.0, 0);
    while at < window.to.1.0 {
        let path = world.path("segment");
        let mut file = File::create(&path).unwrap();
        let bytes = files.segment(window, timeline, at, &mut file).unwrap();
        let name = WalFile::Segment { timeline, start: at }.name(files.segment_size);
        if let Ok(theirs) = fs::read(cluster.data.join("pg_wal").join(&name)) {
            let ours = fs::read(&path).unwrap();
            assert_eq!(ours.len() as u64, files.segment_size, "{name}");
            let n = usize::try_from(bytes).unwrap();
            assert!(ours[..n] == theirs[..n], "{name} differs");
            assert!(ours[n..].iter().all(|b| *b == 0), "{name} is padded with zeros");
            compared += 1;
        }
        at += files.segment_size;
    }
    compared
}

fn setup(major: u32) -> Setup {
    let mut setup = Setup::new(major).config("wal_keep_size = 1GB\nmax_wal_size = 2GB");
    setup.segment = 1;
    setup
}

#[test]
fn every_major_streams_what_it_writes() {
    std::thread::scope(|scope| {
        for major in MAJORS {
            scope.spawn(move || {
                let (world, cluster) = (World::new(), setup(major).start());
                let receiver = world.receiver(&cluster, options());
                receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
                cluster.sql("create table t as select g, repeat('x', 200) s from generate_series(1, 20000) g");
                receiver.wait_for_all(&cluster);
                receiver.stop().unwrap();
                cluster.sql("insert into t select g, repeat('y', 200) from generate_series(1, 5000) g");
                let report = world.catch_up(&cluster).unwrap();
                assert!(report.gaps.is_empty() && report.pieces > 0, "{report:?}");
                let windows = world.windows();
                assert_eq!(windows.len(), 1);
                assert!(windows[0].to.1.0 >= flushed(&cluster));
                let compared = compare_with_server(&world, &cluster, &windows[0], 1);
                assert!(compared >= 3, "major {major}: only {compared} segments compared");
                assert_eq!(cluster.value("select wal_status from pg_replication_slots"), "reserved");
            });
        }
    });
}

#[test]
fn a_synchronous_commit_returns_only_when_it_is_stored() {
    let (world, cluster) = (World::new(), setup(15).start());
    cluster.sql("create table t (n int)");
    let receiver = world.receiver(&cluster, Options { seal_every: Duration::ZERO, ..options() });
    receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
    cluster.sql("alter system set synchronous_standby_names = 'blackstart'");
    cluster.sql("select pg_reload_conf()");
    wait("synchronous", || cluster.value("select sync_state from pg_stat_replication") == "sync");
    let mut client = cluster.client();
    for n in 0..50 {
        let rows = client.query(&format!("insert into t values ({n}); select pg_current_wal_insert_lsn()")).unwrap();
        // The position after the commit was taken is beyond the commit's own record only by what others wrote.
        let _ = rows;
        let commit = client.value("select pg_current_wal_flush_lsn()").unwrap().unwrap();
        assert!(receiver.stored() > 0, "{commit}");
    }
    let stored = receiver.stored();
    let flushed_then = flushed(&cluster);
    assert!(stored + 8192 >= flushed_then, "{stored} {flushed_then}");
    receiver.stop().unwrap();
    // Nobody stores any more: the next commit waits.
    let mut waiting = cluster.client();
    waiting.begin("insert into t values (1000)").unwrap();
    assert!(waiting.poll(Duration::from_millis(700)).unwrap().is_none(), "it did not wait for the repository");
    let receiver = world.receiver(&cluster, Options { seal_every: Duration::ZERO, ..options() });
    assert!(waiting.poll(Duration::from_secs(20)).unwrap().is_some(), "it waits although it is stored");
    receiver.stop().unwrap();
}

/// Received is not stored: whatever else is said to the server meanwhile, it must not let go of what the store has not taken.
#[test]
fn what_the_store_has_not_taken_is_not_confirmed() {
    let (memory, gate) = (Memory::default(), Gate::new());
    let _opens = OpensAtEnd(&gate);
    // The stretch's record passes; pieces wait.
    let world = World::on(gated(&memory, "wal/db/0", &gate), tempfile::tempdir().unwrap());
    let cluster = setup(15).start();
    let receiver = world.receiver(&cluster, options());
    receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
    cluster.sql("create table t as select g, repeat('x', 200) s from generate_series(1, 2000) g");
    let end = cluster.value("select pg_current_wal_flush_lsn()");
    let stands = |what: &str| cluster.value(&format!("select count(*) from pg_stat_replication where {what}")) == "1";
    wait("all is sent", || stands(&format!("sent_lsn >= '{end}'")));
    // It says how it stands every two seconds, whatever has come.
    std::thread::sleep(Duration::from_millis(200));
    let now = cluster.value("select clock_timestamp()");
    wait("it has said how it stands", || stands(&format!("reply_time > timestamptz '{now}' + interval '100 ms'")));
    assert!(stands(&format!("flush_lsn < '{end}'")), "the server was told that it is stored: {}", receiver.stored());
    gate.open();
    wait("it is confirmed once it is stored", || stands(&format!("flush_lsn >= '{end}'")));
    assert!(receiver.stored() >= end.parse::<Lsn>().unwrap().0, "confirmed before it was stored");
    receiver.stop().unwrap();
}

#[test]
fn an_idle_primary_costs_nothing_and_is_known_to_be_whole() {
    let (world, cluster) = (World::new(), setup(15).start());
    cluster.sql("checkpoint");
    world.catch_up(&cluster).unwrap();
    let receiver = world.receiver(&cluster, options());
    receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
    std::thread::sleep(Duration::from_millis(800));
    let before = world.host.open.store.list("wal/").unwrap().len();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(world.host.open.store.list("wal/").unwrap().len() <= before + 2);
    receiver.stop().unwrap();
    assert!(world.windows()[0].to.1.0 >= flushed(&cluster));
}

/// A standby is promoted in the middle of a segment; the receiver that streams from it goes over to the new timeline.
#[test]
fn a_promotion_in_the_middle_of_a_segment_is_followed() {
    for while_connected in [true, false] {
        let (world, primary) = (World::new(), setup(15).start());
        primary.sql("create table t as select generate_series(1, 10000) n");
        primary.sql("select pg_create_physical_replication_slot('standby', true)");
        let base = crate::world::base(&primary, "base");
        let mut standby = crate::world::on_copy(&base, &primary);
        let conninfo = format!("host={} port={} user=postgres", primary.directory.display(), primary.port);
        standby.configure(&format!(
            "primary_conninfo = '{conninfo}'\nprimary_slot_name = 'standby'\nhot_standby = on\nwal_keep_size = 1GB\n"
        ));
        fs::write(standby.data.join("standby.signal"), "").unwrap();
        crate::support::postgres::own_all(&standby.data);
        standby.start();
        let receiver = world.receiver(&standby, options());
        receiver.wait_for("streaming", |e| matches!(e, Event::Streaming { .. }));
        primary.sql("insert into t select generate_series(1, 20000)");
        let end = flushed(&primary);
        wait("the standby's log is stored", || receiver.stored() >= end);
        let receiver = if while_connected { Some(receiver) } else { receiver.stop().ok().and(None) };
        primary.sql("insert into t values (1)");
        wait("the standby has it", || standby.value("select count(*) from t where n = 1") == "3");
        standby.sql("select pg_promote()");
        standby.sql("insert into t select generate_series(1, 30000)");
        match receiver {
            Some(receiver) => {
                receiver.wait_for_all(&standby);
                receiver.wait_for("the new timeline", |e| matches!(e, Event::Timeline { timeline: 2, .. }));
                receiver.stop().unwrap();
            }
            None => drop(world.catch_up(&standby).unwrap()),
        }
        let windows = world.windows();
        assert_eq!((windows.len(), windows[0].to.0), (1, 2), "while connected: {while_connected}");
        let log = world.log();
        let start = log.stretches[0].histories[&2].start.0;
        assert_ne!(start % (1 << 20), 0, "the switch is in the middle of a segment");
        assert!(compare_with_server(&world, &standby, &windows[0], 2) >= 2);
        assert_eq!(world.catch_up(&standby).unwrap().timeline, 2);
    }
}

#[test]
fn a_lost_slot_is_a_gap_that_is_said() {
    let mut setup = Setup::new(15)
        .config("max_slot_wal_keep_size = 2MB\nwal_keep_size = 0\nmax_wal_size = 4MB\nmin_wal_size = 2MB");
    setup.segment = 1;
    let (world, cluster) = (World::new(), setup.start());
    cluster.sql("create table t as select generate_series(1, 1000) n");
    world.catch_up(&cluster).unwrap();
    cluster.sql("insert into t select generate_series(1, 300000)");
    cluster.sql("checkpoint");
    cluster.sql("checkpoint");
    wait("the slot is lost", || {
        cluster.sql("select pg_switch_wal(); checkpoint");
        matches!(cluster.value("select wal_status from pg_replication_slots").as_str(), "lost" | "unreserved")
            && !cluster
                .data
                .join("pg_wal")
                .join(WalFile::Segment { timeline: 1, start: world.windows()[0].to.1.0 >> 20 << 20 }.name(1 << 20))
                .exists()
    });
    let report = world.catch_up(&cluster).unwrap();
    assert_eq!(report.gaps.len(), 1, "{report:?}");
    assert!(report.gaps[0].contains("slot blackstart"), "{report:?}");
    assert_eq!(world.windows().len(), 2);
    cluster.sql("insert into t values (1)");
    assert!(world.catch_up(&cluster).unwrap().gaps.is_empty(), "the renewed slot keeps the log");
    assert_eq!(cluster.value("select wal_status from pg_replication_slots"), "reserved");
}

#[test]
fn another_server_another_key_and_a_server_set_back_are_refused() {
    let (world, mut cluster) = (World::new(), setup(15).start());
    cluster.sql("create table t as select generate_series(1, 1000) n");
    world.catch_up(&cluster).unwrap();
    // Another server behind the address.
    let other = setup(15).start();
    let error = world.catch_up(&other).unwrap_err();
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");
    assert!(format!("{error:#}").contains("system identifier"), "{error:#}");
    // The machine is set back, and goes another way.
    cluster.stop();
    let copy = cluster.directory.join("copy");
    assert!(std::process::Command::new("cp").arg("-a").arg(&cluster.data).arg(&copy).status().unwrap().success());
    cluster.start();
    cluster.sql("insert into t select generate_series(1, 3000)");
    world.catch_up(&cluster).unwrap();
    let objects = world.host.open.store.list("wal/").unwrap().len();
    cluster.stop();
    fs::remove_dir_all(&cluster.data).unwrap();
    fs::rename(&copy, &cluster.data).unwrap();
    cluster.start();
    let error = world.catch_up(&cluster).unwrap_err();
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");
    cluster.sql("insert into t select generate_series(5, 30000)");
    let error = world.catch_up(&cluster).unwrap_err();
    assert_eq!(kind_of(&error), Kind::CheckFailed, "{error:#}");
    assert!(format!("{error:#}").contains("different ways"), "{error:#}");
    assert_eq!(world.host.open.store.list("wal/").unwrap().len(), objects, "nothing was written");
    world.receive_once(&cluster, &Options { anew: true, ..options() }).unwrap();
    assert_eq!(world.windows().len(), 2);
    // Another host's key.
    let mut world = world;
    let keys = KeyPair::generate().unwrap();
    let host = Arc::get_mut(&mut world.host).unwrap();
    let record = TrustRecord { keys: vec![certificate(&keys)], ..TrustRecord::default() };
    host.open.trust.append(&host.open.store, &world.recovery.signing, record, host.open.clock.now()).unwrap();
    host.keys = keys;
    assert_eq!(kind_of(&world.catch_up(&cluster).unwrap_err()), Kind::Busy);
    world.receive_once(&cluster, &Options { anew: true, ..options() }).unwrap();
    assert_eq!(world.windows().len(), 3);
}

#[test]
fn new_recipients_begin_a_stretch_without_a_gap() {
    let (world, cluster) = (World::new(), setup(15).start());
    world.catch_up(&cluster).unwrap();
    let mut world = world;
    let second = KeyPair::generate().unwrap();
    let host = Arc::get_mut(&mut world.host).unwrap();
    let recipients = vec![second.identity.to_public().to_string()];
    let record = TrustRecord { recipients, ..TrustRecord::default() };
    host.open.trust.append(&host.open.store, &world.recovery.signing, record, host.open.clock.now()).unwrap();
    cluster.sql("create table t as select generate_series(1, 1000) n");
    world.catch_up(&cluster).unwrap();
    let (windows, log) = (world.windows(), world.log());
    assert_eq!((windows.len(), log.stretches.len()), (1, 2));
    let identities = [world.recovery.identity.clone(), second.identity.clone()];
    let files = Files::open(&world.host.open, &identities, &source()).unwrap().unwrap();
    let mut file = File::create(world.path("segment")).unwrap();
    let from = windows[0].from.1.0;
    assert_eq!(files.segment(&windows[0], 1, from, &mut file).unwrap(), (windows[0].to.1.0 - from).min(1 << 20));
    let mut bytes = Vec::new();
    File::open(world.path("segment")).unwrap().read_to_end(&mut bytes).unwrap();
    let name = WalFile::Segment { timeline: 1, start: from }.name(1 << 20);
    let n = usize::try_from((windows[0].to.1.0 - from).min(1 << 20)).unwrap();
    assert!(bytes[..n] == fs::read(cluster.data.join("pg_wal").join(name)).unwrap()[..n]);
    let _ = Lsn(from);
}
