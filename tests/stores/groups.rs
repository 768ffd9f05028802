//! Groups end to end: an application writes a counter to SQLite, PostgreSQL, Redis and a file, one after the other and without a pause, and is
//! backed up as a group meanwhile. What comes back must be of the moments that the common point states.

use crate::support::binary::{configure, expect};
use crate::support::engines::{Leashed, Server, make, writer};
use crate::support::postgres::{Cluster, installed};
use blackstart::clock::{Clock, SystemClock};
use blackstart::source::redis::connection::Reply;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const MAJOR: u32 = 17;
/// Between the clock of the writer and the monotonic one of the barrier.
const SLACK: SignedDuration = SignedDuration::from_millis(2);

/// When each write of one store began and was acknowledged, by the number written.
type Log = Vec<(Timestamp, Timestamp)>;

/// The application, and the stores that it writes to in this order.
struct App {
    home: tempfile::TempDir,
    cluster: Cluster,
    redis: Server,
    logs: Arc<Mutex<[Log; 4]>>,
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl App {
    fn start(delay: &str) -> App {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(home.path().join("etc")).unwrap();
        fs::write(home.path().join("etc/n"), "0").unwrap();
        let (cluster, redis) = (Cluster::new(MAJOR), Server::start("redis-server", ""));
        redis.run(&format!("CONFIG SET repl-diskless-sync-delay {delay}"));
        cluster.sql("create table counter (n int); insert into counter values (0)");
        let db = rusqlite::Connection::open(home.path().join("app.db")).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = wal; PRAGMA synchronous = off; CREATE TABLE t(n); INSERT INTO t VALUES (0)",
        )
        .unwrap();
        expect(home.path(), &["init", "--repo", "repo"], 0);
        let bin = installed(MAJOR).display().to_string();
        let pg = |name: &str, options: &str| {
            let url = cluster.url("postgres");
            format!(
                "\n[[source]]\nname = \"{name}\"\nkind = \"postgres\"\nurl = \"{url}\"\n[source.postgres]\nbin = \"{bin}\"\n{options}\n"
            )
        };
        let group = |name: &str, pg: &str| {
            format!("\n[[group]]\nname = \"{name}\"\nsources = [\"sql\", \"{pg}\", \"cache\", \"etc\"]\n")
        };
        let lines = [
            "\n[[source]]\nname = \"sql\"\nkind = \"sqlite\"\npath = \"app.db\"\n".to_owned(),
            "\n[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"etc\"\ntolerate_changing = [\"*\"]\n".into(),
            format!("\n[[source]]\nname = \"cache\"\nkind = \"redis\"\nurl = \"{}\"\n", redis.url()),
            pg("dumped", "mode = \"logical\""),
            pg("beside", "transport = \"files\""),
            pg("streamed", "transport = \"stream\""),
            group("dump", "dumped"),
            group("copy", "beside"),
            group("stream", "streamed"),
        ];
        configure(home.path(), &lines.concat());
        let (logs, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut app = App { home, cluster, redis, logs, stop, writer: None };
        app.writer = Some(app.write());
        app
    }

    fn write(&self) -> JoinHandle<()> {
        let db = rusqlite::Connection::open(self.path().join("app.db")).unwrap();
        let (mut pg, mut redis) = (self.cluster.client(), self.redis.connect());
        let file = fs::OpenOptions::new().write(true).open(self.path().join("etc/n")).unwrap();
        let (logs, stop) = (Arc::clone(&self.logs), Arc::clone(&self.stop));
        std::thread::spawn(move || {
            for n in 0.. {
                let note = |store: usize, write: &mut dyn FnMut()| {
                    let began = SystemClock.now();
                    write();
                    logs.lock().unwrap()[store].push((began, SystemClock.now()));
                };
                note(0, &mut || assert_eq!(db.execute("UPDATE t SET n = ?1", [n]).unwrap(), 1));
                note(1, &mut || drop(pg.query(&format!("update counter set n = {n}")).unwrap()));
                note(2, &mut || drop(redis.command(&["SET", "n", &n.to_string()]).unwrap()));
                // In place and at one go: a file that is replaced between the look at it and its opening is told as skipped.
                note(3, &mut || file.write_all_at(format!("{n:010}").as_bytes(), 0).unwrap());
                if stop.load(Ordering::SeqCst) && n > 100 {
                    break;
                }
            }
        })
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }

    /// The common point that a backup of `group` makes.
    fn back_up(&self, group: &str) -> Value {
        let ran = expect(self.path(), &["backup", "--group", group, "--json"], 0);
        ran.json()["report"]["groups"][0]["point"].clone()
    }

    /// That `n` was what the member's store held at some moment between `from` and `to`.
    fn holds_at(&self, store: usize, n: usize, member: &Value) {
        let logs = self.logs.lock().unwrap();
        let log = &logs[store];
        let time = |name: &str| member[name].as_str().unwrap().parse::<Timestamp>().unwrap();
        let (from, to) = (time("from"), time("to"));
        assert!(from <= to && n < log.len(), "{n} {member}");
        assert!(log[n].0 <= to + SLACK, "{n} was written after {member}: {:?}", log[n]);
        let next = log.get(n + 1);
        assert!(
            next.is_none_or(|(_, acknowledged)| *acknowledged + SLACK >= from),
            "{n} was gone before {member}: {next:?}"
        );
    }

    /// That all values lie within what the skew allows: so many rounds as were begun in that time, and the one under way.
    fn fits(&self, values: &[usize], point: &Value) {
        let members = point["members"].as_array().unwrap().iter().filter(|m| m["throughout"].is_null());
        let time = |member: &Value, name: &str| member[name].as_str().unwrap().parse::<Timestamp>().unwrap();
        let from = members.clone().map(|m| time(m, "from")).min().unwrap();
        let to = members.map(|m| time(m, "to")).max().unwrap();
        let skew = SignedDuration::from_millis(point["skew_ms"].as_i64().unwrap());
        assert!(
            to.duration_since(from) <= skew && skew < to.duration_since(from) + SignedDuration::from_millis(1),
            "{point}"
        );
        let logs = self.logs.lock().unwrap();
        let rounds = logs[0].iter().filter(|(began, _)| *began >= from - SLACK && *began <= to + SLACK).count();
        let apart = values.iter().max().unwrap() - values.iter().min().unwrap();
        assert!(apart <= rounds + 1, "{values:?}: {rounds} rounds in {skew:#}");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn member<'a>(point: &'a Value, source: &str) -> &'a Value {
    point["members"].as_array().unwrap().iter().find(|m| m["source"] == source).unwrap()
}

fn in_sqlite(file: &Path) -> usize {
    rusqlite::Connection::open(file).unwrap().query_row("SELECT n FROM t", [], |row| row.get(0)).unwrap()
}

/// Asks a server of its own that is started on the restored files.
fn in_redis(restored: &Path) -> usize {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(restored.join("dump.rdb"), directory.path().join("dump.rdb")).unwrap();
    let Reply::Text(n) = Server::on(directory, "redis-server", "").run("GET n") else { panic!("no counter") };
    n.parse().unwrap()
}

/// The counter in a dump, as the program that takes it back reads it.
fn in_dump(restored: &Path) -> usize {
    let mut restore = Command::new(installed(MAJOR).join("pg_restore"));
    restore.args(["--data-only", "--table=counter", "-f", "-"]).arg(restored.join("databases/postgres.dump"));
    let text = String::from_utf8(restore.output().unwrap().stdout).unwrap();
    let rows = text.split("FROM stdin;\n").nth(1).unwrap_or_else(|| panic!("{text}"));
    rows.lines().next().unwrap().parse().unwrap()
}

#[test]
fn an_application_comes_back_from_one_moment() {
    let mut app = App::start("0");
    let points = ["dump", "copy", "stream"].map(|group| app.back_up(group));
    app.end();
    for (group, point) in ["dump", "copy", "stream"].into_iter().zip(&points) {
        let mut copy = Cluster::empty(MAJOR);
        let to = copy.directory.join("group");
        let restored = expect(app.path(), &["restore", "--group", group, "--to", to.to_str().unwrap()], 0);
        assert!(restored.out.contains("Its points lie within"), "{}", restored.out);
        let (pg, in_pg) = match group {
            "dump" => ("dumped", in_dump(&to.join("dumped"))),
            _ => {
                let pg = if group == "copy" { "beside" } else { "streamed" };
                copy.data = to.join(pg);
                copy.configure("");
                copy.start();
                copy.await_recovery();
                (pg, copy.value("select n from counter").parse().unwrap())
            }
        };
        let in_file: usize = fs::read_to_string(to.join("etc/n")).unwrap().parse().unwrap();
        let values = [in_sqlite(&to.join("sql/app.db")), in_pg, in_redis(&to.join("cache")), in_file];
        for (store, source) in ["sql", pg, "cache", "etc"].into_iter().enumerate() {
            app.holds_at(store, values[store], member(point, source));
        }
        assert_eq!(member(point, "etc")["throughout"], true);
        app.fits(&values[..3], point);
    }
    // The same points, proven by the real engines.
    let drill = expect(app.path(), &["drill", "--group", "copy"], 0);
    assert!(drill.out.contains("Group copy: point 1: all members came back"), "{}", drill.out);
    let shown = expect(app.path(), &["snapshots"], 0);
    assert!(shown.out.contains("sql 2, beside 1, cache 2, etc 2") && shown.out.contains("verified"), "{}", shown.out);
    assert!(app.path().join("repo/groups/copy/0000000001").is_file());
}

/// A server that waits before it forks: the rest waits for the fork, and its moment is known better than by when it was asked.
#[test]
fn a_slow_fork_draws_nothing_apart() {
    let mut app = App::start("5");
    let point = app.back_up("dump");
    app.end();
    let to = app.path().join("out");
    expect(app.path(), &["restore", "--group", "dump", "--to", "out"], 0);
    let values = [in_sqlite(&to.join("sql/app.db")), in_dump(&to.join("dumped")), in_redis(&to.join("cache"))];
    for (store, source) in ["sql", "dumped", "cache"].into_iter().enumerate() {
        app.holds_at(store, values[store], member(&point, source));
    }
    app.fits(&values, &point);
    let times =
        ["from", "to"].map(|name| member(&point, "cache")[name].as_str().unwrap().parse::<Timestamp>().unwrap());
    // The server forks four seconds after it was asked at the earliest: its delay of five has a grain of one.
    assert!(times[1].duration_since(times[0]) < SignedDuration::from_millis(3500), "the fork was not seen: {times:?}");
    assert!(member(&point, "sql")["from"].as_str().unwrap().parse::<Timestamp>().unwrap() >= times[1]);
}

#[test]
fn a_store_that_is_down_costs_the_point_and_nothing_else() {
    let mut app = App::start("0");
    app.end();
    app.back_up("dump");
    // Another server's address, where nobody listens.
    let path = app.path().join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&app.redis.url(), "unix:///nonexistent/s")).unwrap();
    let ran = expect(app.path(), &["backup", "--group", "dump"], 1);
    assert!(ran.err.contains("NO common point") && ran.err.contains("cache failed"), "{}", ran.err);
    assert!(ran.err.contains("cannot reach") && ran.out.contains("sql: snapshot 2"), "{}{}", ran.out, ran.err);
    let json = expect(app.path(), &["backup", "--group", "dump", "--json"], 1).json();
    let report = &json["report"]["groups"][0];
    assert!(report["point"].is_null() && report["no_point"] == "cache failed", "{report}");
    let shown = expect(app.path(), &["snapshots", "--json"], 0).json();
    assert_eq!(shown["report"]["groups"].as_array().unwrap().len(), 1);
    // The point of before is whole, until one of its members goes.
    fs::remove_file(app.path().join("repo/snapshots/etc/0000000001")).unwrap();
    let refused = expect(app.path(), &["restore", "--group", "dump", "--to", "out"], 4);
    assert!(refused.err.contains("not whole: etc: snapshot 1") && !app.path().join("out").exists(), "{}", refused.err);
    let asked = expect(app.path(), &["restore", "--group", "dump", "--snapshot", "1", "--to", "out"], 4);
    assert!(asked.err.contains("etc: snapshot 1"), "{}", asked.err);
    for (arguments, code) in [
        (&["backup", "--group"][..], 64),
        (&["backup", "--group", "nothing"], 64),
        (&["drill", "--group", "nothing"], 64),
        (&["restore", "--group", "dump", "--to", "x", "--path", "y"], 64),
        (&["restore", "--group", "dump", "--to", "x", "--in-place", "--confirm", "dump"], 64),
    ] {
        expect(app.path(), arguments, code);
    }
}

/// Vectors and their metadata, from one moment.
#[test]
fn vectors_join() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    make("1.5.9", &at.join("vectors"), 16, 300);
    fs::create_dir(at.join("etc")).unwrap();
    fs::write(at.join("etc/model"), "small").unwrap();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        "\n[[source]]\nname = \"vectors\"\nkind = \"chroma\"\npath = \"vectors\"\n[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"etc\"\n\
         [[group]]\nname = \"rag\"\nsources = [\"vectors\", \"etc\"]\n",
    );
    let load = Leashed::start(&writer("1.5.9", "load", &at.join("vectors"), 16, 300), &at.join("log"));
    let point = expect(at, &["backup", "--group", "rag", "--json"], 0).json()["report"]["groups"][0]["point"].clone();
    drop(load);
    assert_eq!(
        (member(&point, "vectors")["throughout"].clone(), point["outcome"].clone()),
        (Value::Null, "complete".into())
    );
    expect(at, &["restore", "--group", "rag", "--to", "out"], 0);
    assert_eq!(fs::read_to_string(at.join("out/etc/model")).unwrap(), "small");
    let (checks, _) =
        blackstart::source::chroma::verify::Copy::open(&at.join("out/vectors")).and_then(|copy| copy.verify()).unwrap();
    assert!(super::failed(&checks).is_empty(), "{checks:?}");
}
