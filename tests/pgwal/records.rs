//! Reading records: the same as `pg_waldump` finds, on every major; and what happened, with names.

use crate::support::postgres::{Cluster, MAJORS, Setup};
use crate::world::{World, options, source};
use blackstart::operations::wal::get::Files;
use blackstart::operations::wal::recover::each;
use blackstart::source::postgres::wal::WalFile;
use blackstart::source::postgres::wal::events::{Happened, How, What};
use blackstart::source::postgres::wal::records::{Record, Records};
use std::fs;

fn loaded(major: u32) -> (World, Cluster) {
    let mut setup = Setup::new(major).config("wal_keep_size = 1GB\nmax_wal_size = 2GB\nmax_prepared_transactions = 5");
    setup.segment = 1;
    let (world, cluster) = (World::new(), setup.start());
    world.catch_up(&cluster).unwrap();
    cluster.sql("checkpoint");
    cluster.sql("create table orders (id int primary key, what text)");
    cluster.sql("insert into orders select g, repeat(md5(g::text), 20) from generate_series(1, 4000) g");
    cluster.sql("create table other as select repeat('x', 1000000) long from generate_series(1, 3)");
    cluster.sql("begin; insert into orders values (-1, 'aborted'); rollback");
    cluster.sql("begin; insert into orders values (-2, 'prepared'); prepare transaction 'two'");
    cluster.sql("commit prepared 'two'");
    cluster.sql("select pg_switch_wal()");
    cluster.sql("select pg_create_restore_point('before the mistake')");
    cluster.sql("begin; savepoint a; delete from orders where id > 1000; release a; commit");
    cluster.sql("vacuum orders");
    cluster.sql("truncate orders");
    cluster.sql("create database scrap");
    cluster.sql("drop database scrap");
    cluster.sql("drop table orders");
    world.receive_once(&cluster, &options()).unwrap();
    (world, cluster)
}

/// (position, length, transaction, resource manager's number) of every record.
fn ours(world: &World) -> Vec<(u64, u32, u32)> {
    let identities = std::slice::from_ref(&world.recovery.identity);
    let files = Files::open(&world.host.open, identities, &source()).unwrap().unwrap();
    let window = &files.windows[0];
    let mut found = Vec::new();
    let mut records = Records::new(files.segment_size, window.from.1.0);
    let mut sink = |r: Record| found.push((r.start, r.length, r.xid));
    let mut at = window.from.1.0;
    // In odd portions: nothing may depend on how the bytes come.
    let mut step = 1;
    while at < window.to.1.0 {
        let to = (at + step).min((at / files.segment_size + 1) * files.segment_size).min(window.to.1.0);
        step = step * 7 % 100_003 + 1;
        let bytes = files.reader().range(&files.log, window, 1, at, to).unwrap();
        records.feed(&bytes, &mut sink);
        at = to;
    }
    records.finish(&mut sink);
    found
}

fn waldump(world: &World, cluster: &Cluster) -> Vec<(u64, u32, u32)> {
    let window = &world.windows()[0];
    let wal = cluster.data.join("pg_wal");
    let start = format!("{:X}/{:X}", window.from.1.0 >> 32, window.from.1.0 as u32);
    let end = format!("{:X}/{:X}", window.to.1.0 >> 32, window.to.1.0 as u32);
    let output = cluster.tool_unchecked("pg_waldump", &["-p", wal.to_str().unwrap(), "-s", &start, "-e", &end]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.len() > 1000, "pg_waldump says: {}", String::from_utf8_lossy(&output.stderr));
    let field = |line: &str, before: &str| {
        let rest = &line[line.find(before).unwrap() + before.len()..];
        rest.trim_start().split([',', '/', ' ']).next().unwrap().parse::<u32>().unwrap()
    };
    let position = |line: &str| {
        let lsn = line.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
        lsn.parse::<blackstart::source::postgres::wal::Lsn>().unwrap().0
    };
    let total = |line: &str| {
        let rest = line.split("len (rec/tot):").nth(1).unwrap();
        rest.split('/').nth(1).unwrap().split(',').next().unwrap().trim().parse::<u32>().unwrap()
    };
    text.lines().filter(|l| l.starts_with("rmgr:")).map(|l| (position(l), total(l), field(l, "tx:"))).collect()
}

#[test]
fn every_record_is_the_one_that_pg_waldump_finds() {
    std::thread::scope(|scope| {
        for major in MAJORS {
            scope.spawn(move || {
                let (world, cluster) = loaded(major);
                let (ours, theirs) = (ours(&world), waldump(&world, &cluster));
                assert!(theirs.len() > 5000, "major {major}: {}", theirs.len());
                let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                assert_eq!(differs, None, "major {major}: {:?} {:?}", ours[differs.unwrap()], theirs[differs.unwrap()]);
                assert_eq!(ours.len(), theirs.len(), "major {major}");
                tells_what_happened(&world, &cluster, major);
            });
        }
    });
}

/// What was dropped, emptied, deleted and marked is told, with its time and, where the log shows it, its name.
fn tells_what_happened(world: &World, cluster: &Cluster, major: u32) {
    let identities = std::slice::from_ref(&world.recovery.identity);
    let files = Files::open(&world.host.open, identities, &source()).unwrap().unwrap();
    let window = &files.windows[0];
    let mut all: Vec<Happened> = Vec::new();
    each(&files, window, 1, window.from.1.0, &mut |happened| {
        all.push(happened);
        true
    })
    .unwrap();
    let commits = all.iter().filter(|h| matches!(h.what, What::Commit { .. })).count();
    let wal = cluster.data.join("pg_wal");
    let lsn = |at: u64| format!("{:X}/{:X}", at >> 32, at as u32);
    let (start, end) = (lsn(window.from.1.0), lsn(window.to.1.0));
    let arguments = ["-r", "Transaction", "-p", wal.to_str().unwrap(), "-s", &start, "-e", &end];
    let theirs = cluster.tool_unchecked("pg_waldump", &arguments);
    let theirs = String::from_utf8_lossy(&theirs.stdout).lines().filter(|l| l.contains("desc: COMMIT")).count();
    assert_eq!(commits, theirs, "major {major}: commits");
    let notable: Vec<&Happened> = all.iter().filter(|h| h.is_notable()).collect();
    let restore_point =
        notable.iter().position(|h| matches!(&h.what, What::RestorePoint { name } if name == "before the mistake"));
    let of = |how: How, table: &str| {
        notable.iter().position(|h| match &h.what {
            What::Commit { destroyed } => destroyed.iter().any(|d| d.how == how && d.table.as_deref() == Some(table)),
            _ => false,
        })
    };
    let order = [
        restore_point,
        of(How::Delete, "orders"),
        of(How::TruncateOrRewrite, "orders"),
        notable.iter().position(|h| matches!(h.what, What::DropDatabase { .. })),
        of(How::Drop, "orders"),
    ];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "major {major}: {order:?} {notable:#?}");
    let deleted = notable[order[1].unwrap()];
    assert!(matches!(&deleted.what, What::Commit { destroyed } if destroyed[0].rows == 3000), "{deleted:?}");
    assert!(deleted.time.is_some());
}

#[test]
fn a_log_that_is_cut_or_damaged_ends_there() {
    let (world, cluster) = loaded(15);
    let window = &world.windows()[0];
    let start = window.from.1.0 >> 20 << 20;
    let name = WalFile::Segment { timeline: 1, start }.name(1 << 20);
    let whole = fs::read(cluster.data.join("pg_wal").join(name)).unwrap();
    let read = |bytes: &[u8]| {
        let mut records = Records::new(1 << 20, start);
        let mut found = Vec::new();
        records.feed(bytes, &mut |r: Record| found.push((r.start, r.end)));
        records.finish(&mut |r: Record| found.push((r.start, r.end)));
        found
    };
    let all = read(&whole);
    assert!(all.len() > 100);
    for at in (0..whole.len()).step_by(9973) {
        let cut = read(&whole[..at]);
        assert!(all.starts_with(&cut), "cut at {at}");
        assert!(cut.iter().all(|(start_of, _)| start_of - start < at as u64));
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        let found = read(&flipped);
        let before = all.iter().take_while(|(_, end)| end - start <= at as u64 / 8192 * 8192).count();
        assert!(found.len() >= before && found.len() <= all.len(), "flipped at {at}");
    }
}
