//! The replication stream of Redis 7, Valkey 8 and Valkey 9 as a log: received, restored to any point, and whoever is killed when.

use super::redis::fill;
use super::{copy_all, failed, protect, report};
use crate::support::binary::{Ran, command, configure, expect};
use crate::support::engines::Server;
use crate::support::gate::Gate;
use crate::support::servers::{BUCKET, seaweedfs};
use blackstart::clock::{Clock, SystemClock};
use blackstart::net::Roots;
use blackstart::source::redis::Options;
use blackstart::source::redis::address::Address;
use blackstart::source::redis::connection::{Connection, Reply};
use blackstart::source::redis::proof::replayed;
use blackstart::source::redis::replication::aof::Append;
use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A repository with one source, which is `server`.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn of(server: &Server) -> Home {
        Home::proven_by(server, "redis-server")
    }

    /// In a bucket.
    fn kept_in(server: &Server, repo: &str) -> Home {
        let home = tempfile::tempdir().unwrap();
        expect(home.path(), &["init", "--repo", repo], 0);
        let source = format!("name = \"store\"\nkind = \"redis\"\nurl = \"{}\"", server.url());
        configure(home.path(), &format!("\n[[source]]\n{source}\n[source.redis]\nseal_every = \"50ms\"\n"));
        Home(home)
    }

    /// Whose drills start this program.
    fn proven_by(server: &Server, program: &str) -> Home {
        let home = tempfile::tempdir().unwrap();
        let (url, program) = (server.url(), crate::support::engines::program(program));
        let program = program.display();
        let own = format!("[source.redis]\nseal_every = \"50ms\"\nserver = \"{program}\"");
        protect(home.path(), &format!("kind = \"redis\"\nurl = \"{url}\"\n{own}"));
        Home(home)
    }

    pub fn run(&self, arguments: &[&str], code: i32) -> Ran {
        expect(self.0.path(), arguments, code)
    }

    /// Restores to a new place, and starts a server of that kind on it.
    pub fn restore(&self, program: &str, aim: &[&str]) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("restored");
        let ran = self.run(&[&["restore", "store", "--to", to.to_str().unwrap()], aim].concat(), 0);
        assert!(ran.out.contains("appendonly yes"), "{}", ran.all());
        start(directory, program)
    }

    /// Restores with stock tools alone, as recover/README.txt has it, and starts a server on that.
    fn without_blackstart(&self, program: &str) -> Server {
        let root = crate::support::binary::root_of(self.0.path());
        let python = |words: &[&str]| {
            let key = "blackstart/keys/recovery.key";
            let output = Command::new("python3")
                .args(["-B", &format!("repo/{}", words[0]), "--root", &root, "--identity", key])
                .args(&words[1..])
                .current_dir(self.0.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let said = python(&["recover-log.py", "store", "log"]);
        let seq = said.split("--seq ").nth(1).unwrap().split(')').next().unwrap().to_owned();
        python(&["recover.py", "restore", "store", "base", "--seq", &seq]);
        let directory = tempfile::tempdir().unwrap();
        let (home, to) = (self.0.path(), directory.path().join("restored/appendonlydir"));
        std::fs::create_dir(directory.path().join("restored")).unwrap();
        let mut moving = Command::new("cp");
        assert!(moving.arg("-r").arg(home.join("log")).arg(&to).status().unwrap().success());
        std::fs::copy(home.join("base/dump.rdb"), to.join("appendonly.aof.1.base.rdb")).unwrap();
        start(directory, program)
    }

    fn receiver(&self) -> Receiver {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.0.path().join("receiver")).unwrap();
        let mut receiver = command(self.0.path(), &["wal-receive", "store"]);
        Receiver(receiver.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.0.path().join("receiver")).unwrap_or_default()
    }

    pub fn windows(&self) -> Vec<serde_json::Value> {
        self.run(&["snapshots", "store", "--json"], 0).json()["report"]["windows"].as_array().unwrap().clone()
    }
}

/// A server on what a restore has written to `restored`.
fn start(directory: tempfile::TempDir, program: &str) -> Server {
    Server::on(
        directory,
        program,
        "--dir DIR/restored --appendonly yes --aof-load-truncated no --databases 32 --enable-debug-command yes",
    )
}

struct Receiver(Child);

impl Receiver {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub const DEBUG: &str = "--databases 32 --enable-debug-command yes";

pub fn text(reply: &Reply) -> String {
    reply.text().unwrap_or_default().to_owned()
}

pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether what this connection wrote last is in the repository.
fn stored(c: &mut Connection, milliseconds: &str) -> bool {
    text(&c.command(&["WAIT", "1", milliseconds]).unwrap()) == "1"
}

pub fn offset(server: &Server) -> u64 {
    let info = text(&server.run("INFO replication"));
    info.lines().find_map(|l| l.strip_prefix("master_repl_offset:")).unwrap().trim().parse().unwrap()
}

/// What a server has: each key of each database, with the digest of its value and whether it expires.
pub fn contents(server: &Server) -> BTreeMap<(u32, Vec<u8>), String> {
    let (mut c, mut all) = (server.connect(), BTreeMap::new());
    for database in 0..32 {
        c.command(&["SELECT", &database.to_string()]).unwrap();
        let Reply::List(keys) = c.command(&["KEYS", "*"]).unwrap() else { panic!("no keys") };
        for key in keys.iter().filter_map(Reply::text).filter(|key| key.is_ascii()) {
            let Reply::List(digest) = c.command(&["DEBUG", "DIGEST-VALUE", key]).unwrap() else { panic!("no digest") };
            let expires = text(&c.command(&["PEXPIRETIME", key]).unwrap());
            all.insert((database, key.as_bytes().to_vec()), format!("{} {expires}", text(&digest[0])));
        }
    }
    all
}

pub fn differing(one: &BTreeMap<(u32, Vec<u8>), String>, other: &BTreeMap<(u32, Vec<u8>), String>) -> Vec<String> {
    let keys = one.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
    let differs = keys.into_iter().filter(|key| one.get(*key) != other.get(*key));
    differs
        .take(5)
        .map(|k| format!("{} {}: {:?} {:?}", k.0, String::from_utf8_lossy(&k.1), one.get(k), other.get(k)))
        .collect()
}

fn now() -> String {
    SystemClock.now().to_string()
}

/// A server whose data comes and goes while it is followed; each moment of it comes back as it was.
fn every_moment(program: &str) {
    let server = Server::start(program, DEBUG);
    fill(&server);
    let home = Home::proven_by(&server, program);
    let receiver = home.receiver();
    let mut c = server.connect();
    // The first write that counts makes the snapshot that the log goes on from necessary: nothing is acknowledged before.
    c.command(&["SET", "after", "the fill"]).unwrap();
    wait("the log has a snapshot to go on from", || stored(&mut c, "200"));
    let mut run = |words: &[&str]| drop(c.command(words).unwrap());
    run(&["SELECT", "20"]);
    run(&["SET", "in twenty", "changed"]);
    run(&["SET", "gone soon", "x", "PX", "150"]);
    run(&["SELECT", "3"]);
    run(&["EVAL", "for i = 1, 50 do redis.call('RPUSH', 'scripted', i) end", "0"]);
    for words in [&["MULTI"][..], &["SET", "both", "a"], &["SELECT", "0"], &["INCR", "both too"], &["EXEC"]] {
        run(words);
    }
    run(&["SPOP", "set:large", "100"]);
    run(&["EXPIRE", "long", "1000"]);
    std::thread::sleep(Duration::from_millis(400));
    run(&["SET", "last", "one"]);
    // Keys that have expired count as there until somebody asks.
    wait("what expires is gone", || {
        let gone = |database: &str, key: &str| {
            let mut c = server.connect();
            c.command(&["SELECT", database]).unwrap();
            c.command(&["GET", key]).unwrap() == Reply::Nothing
        };
        gone("20", "gone soon") && gone("0", "soon")
    });
    run(&["SET", "really last", "one"]);
    assert!(stored(&mut c, "10000"), "{}", home.said());
    let (good, before) = (contents(&server), offset(&server));
    std::thread::sleep(Duration::from_millis(300));
    let time = now();
    std::thread::sleep(Duration::from_millis(300));
    let at = offset(&server);
    c.command(&["FLUSHALL"]).unwrap();
    let flushed = offset(&server);
    c.command(&["SET", "what", "now?"]).unwrap();
    assert!(stored(&mut c, "10000"), "{}", home.said());
    let bad = contents(&server);
    let ran = home.run(&["snapshots", "store"], 0);
    assert!(ran.out.contains("Every moment from") && ran.out.contains("offset"), "{}", ran.out);
    for (aim, expected) in [
        (vec!["--at", time.as_str()], &good),
        (vec!["--offset", &before.to_string()], &good),
        (vec!["--offset", &at.to_string()], &good),
        (vec!["--offset", &flushed.to_string(), "--before"], &good),
        (vec![], &bad),
    ] {
        let copy = home.restore(program, &aim);
        assert_eq!(differing(&contents(&copy), expected), Vec::<String>::new(), "{aim:?}");
        // It goes on from there.
        copy.run("SET more x");
    }
    drop(receiver);
    let drilled = report(home.0.path(), &["drill"], 0);
    let checks = drilled["checks"].to_string();
    assert!(checks.contains("commands in the log, refused") && checks.contains("replays it"), "{checks}");
    a_drill_goes_to_a_moment(&home, &time, (before, at));
    home.run(&["verify", "store"], 0);
    let copy = home.without_blackstart(program);
    assert_eq!(differing(&contents(&copy), &bad), Vec::<String>::new(), "recover-log.py");
}

/// What was written at the time is in it, and nothing of what came later.
fn a_drill_goes_to_a_moment(home: &Home, time: &str, (before, at): (u64, u64)) {
    let drilled = report(home.0.path(), &["drill", "--point", time], 0);
    assert_eq!(drilled["level"], "point", "{drilled}");
    let reached = replayed_to(&drilled);
    assert!((before..=at).contains(&reached), "{before} to {at}: {drilled}");
    let drilled = report(home.0.path(), &["drill", "--point", &format!("offset:{before}")], 0);
    assert_eq!(replayed_to(&drilled), before, "{drilled}");
    let drawn = report(home.0.path(), &["drill", "--point", "random"], 0);
    let why = drawn["point"].as_str().unwrap();
    let (_, again) = why.split_once("the same again: blackstart drill store ").expect(why);
    let again = report(home.0.path(), &[&["drill"], &again.split(' ').collect::<Vec<_>>()[..]].concat(), 0);
    assert_eq!(
        (&again["seq"], &again["log_until"], &again["level"]),
        (&drawn["seq"], &drawn["log_until"], &drawn["level"])
    );
    home.run(&["drill", "--point", "2099-01-01T00:00:00Z"], 64);
    home.run(&["drill", "--point", "0/1A2B3C"], 64);
}

/// Up to where a drill has replayed the stream, as its report says.
fn replayed_to(drilled: &serde_json::Value) -> u64 {
    let checks = drilled["checks"].as_array().unwrap();
    let mut names =
        checks.iter().filter_map(|check| check["name"].as_str()?.strip_prefix("log replayed up to offset "));
    names.next_back().unwrap_or_else(|| panic!("{checks:#?}")).parse().unwrap()
}

#[test]
fn every_moment_of_redis_7() {
    every_moment("redis-server");
}

#[test]
fn every_moment_of_valkey_8() {
    every_moment("valkey-8");
}

#[test]
fn every_moment_of_valkey_9() {
    every_moment("valkey-9");
}

/// Transactions without pause, one after the other: `a` and `b` are the same after each.
struct Transactions(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Transactions {
    fn start(server: &Server) -> Transactions {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut c, told) = (server.connect(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let filler = "x".repeat(500);
            for n in 0.. {
                for words in [
                    &["MULTI"][..],
                    &["INCR", "a"],
                    &["SET", &format!("f{}", n % 99), &filler],
                    &["INCR", "b"],
                    &["EXEC"],
                ] {
                    if told.load(Ordering::Relaxed) || c.command(words).is_err() {
                        return;
                    }
                }
            }
        });
        Transactions(stop, Some(thread))
    }

    fn stop(mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

pub fn number(server: &Server, key: &str) -> i64 {
    text(&server.run(&format!("GET {key}"))).parse().unwrap_or(0)
}

/// Wherever the stream is cut, and however large its commands are: whole transactions, in order.
#[test]
fn no_cut_tears_a_transaction() {
    let server = Server::start("redis-server", DEBUG);
    server.run("SELECT 7");
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let from = offset(&server);
    let receiver = home.receiver();
    let load = Transactions::start(&server);
    std::thread::sleep(Duration::from_millis(700));
    load.stop();
    // Larger than a unit of the log, and than what is read at once.
    let large = "y".repeat(9 << 20);
    let mut c = server.connect();
    c.command(&["SET", "large", &large]).unwrap();
    let (end, mut last) = (offset(&server), (0, 0));
    assert!(stored(&mut c, "20000"), "{}", home.said());
    drop(receiver);
    let before_large = end - large.len() as u64 - 100;
    let offsets = [from, from + 1, (from + before_large) / 2, before_large - 333, before_large, end - 1, end];
    for at in offsets {
        let copy = home.restore("redis-server", &["--offset", &at.to_string()]);
        let (a, b) = (number(&copy, "a"), number(&copy, "b"));
        assert!(a == b && (a, b) >= last, "offset {at}: {a} and {b} after {last:?}");
        let length = text(&copy.run("STRLEN large"));
        assert_eq!(length == large.len().to_string(), at == end, "offset {at}: {length}");
        last = (a, b);
    }
    assert!(last.0 > 50 && last.0 == number(&server, "a"), "{last:?}");
    let dry = ["restore", "store", "--to", "beyond", "--dry-run", "--json", "--offset", &before_large.to_string()];
    let log = home.run(&dry, 0).json()["report"]["log"].clone();
    assert_eq!((log["to"].as_str(), &log["at_most"]), (Some(&*before_large.to_string()), &false.into()), "{log}");
    assert!(log["bytes"].as_u64().unwrap() <= before_large && log["bytes"].as_u64() > Some(0), "{log}");
    let beyond = home.run(&["restore", "store", "--to", "beyond", "--offset", &(end + 1000).to_string()], 64);
    assert!(beyond.err.contains("cannot be reached") && beyond.err.contains("Everything from"), "{}", beyond.err);
    let postgres = home.run(&["restore", "store", "--to", "beyond", "--lsn", "0/1"], 64);
    assert!(postgres.err.contains("--lsn is for PostgreSQL"), "{}", postgres.err);
}

/// The proof of a log notices what a server would pass over in silence.
#[test]
fn a_command_that_does_not_fit_is_noticed_by_the_proof() {
    let server = Server::start("redis-server", "");
    server.run("RPUSH list a");
    let copy = tempfile::tempdir().unwrap();
    let copy = copy.path().join("copy");
    let finished = copy_all(&mut server.source(Options::default()), &copy).unwrap();
    let mut append = Append::beside(&copy, 0, 0).unwrap();
    append.take(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*2\r\n$4\r\nINCR\r\n$4\r\nlist\r\n").unwrap();
    let written = append.finish().unwrap();
    let checks = replayed(&copy, &finished.facts, &Options::default(), &written).unwrap();
    let [refused] = failed(&checks)[..] else { panic!("{checks:?}") };
    assert!(refused.name == "of 2 commands in the log, refused" && refused.actual == "1", "{refused:?}");
    std::fs::write(copy.join("appendonlydir/appendonly.aof.1.incr.aof"), b"*2\r\n$6\r\nSEL").unwrap();
    let checks = replayed(&copy, &finished.facts, &Options::default(), &written).unwrap();
    assert!(failed(&checks)[0].actual.contains("while it loaded the copy"), "{checks:?}");
}

/// Without a snapshot that the log goes on from, nothing that is stored can be brought back, and so nothing is acknowledged.
#[test]
fn nothing_is_acknowledged_before_there_is_a_snapshot() {
    let server = Server::start("redis-server", "--repl-backlog-size 16kb");
    let home = Home::of(&server);
    server.run("SET early 1");
    // The source refuses: it had keys. So the receiver's own snapshot fails.
    home.run(&["backup"], 0);
    server.run(&format!("SET large {}", "x".repeat(100_000)));
    server.run("FLUSHALL");
    let receiver = home.receiver();
    wait("the receiver follows", || home.said().contains("following from"));
    wait("it tells why there is no snapshot", || home.said().contains("had 1 keys"));
    let mut c = server.connect();
    c.command(&["SET", "later", "2"]).unwrap();
    assert!(!stored(&mut c, "500"), "{}", home.said());
    home.run(&["backup", "--accept-change"], 0);
    drop(receiver);
    let receiver = home.receiver();
    c.command(&["SET", "last", "3"]).unwrap();
    wait("the snapshot counts", || stored(&mut c, "200"));
    drop(receiver);
    let copy = home.restore("redis-server", &[]);
    assert_eq!((number(&copy, "early"), number(&copy, "later"), number(&copy, "last")), (0, 2, 3));
}

/// What the server keeps is bounded: what was missed is told, and a new snapshot begins a new window.
#[test]
fn a_gap_is_told_and_a_new_snapshot_follows_it() {
    let server = Server::start("redis-server", "--repl-backlog-size 16kb");
    server.run("SET before 1");
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    server.run("SET more 1");
    home.run(&["wal-receive", "store", "--once"], 0);
    assert_eq!(home.windows().len(), 1);
    server.run(&format!("SET large {}", "x".repeat(100_000)));
    let told = home.run(&["wal-receive", "store", "--once"], 3);
    assert!(told.err.contains("a gap in the log") && told.err.contains("repl-backlog-size"), "{}", told.err);
    let receiver = home.receiver();
    let mut c = server.connect();
    c.command(&["SET", "after", "1"]).unwrap();
    wait("a new snapshot carries the log on", || stored(&mut c, "200"));
    drop(receiver);
    assert_eq!(home.windows().len(), 2, "{:?}", home.windows());
    let copy = home.restore("redis-server", &[]);
    assert_eq!((text(&copy.run("STRLEN large")), number(&copy, "after")), ("100000".into(), 1));
    let until = home.windows()[0]["until"].as_str().unwrap().to_owned();
    let copy = home.restore("redis-server", &["--at", &until]);
    assert_eq!((number(&copy, "more"), number(&copy, "after")), (1, 0), "what came before the gap is still there");
}

/// A restart with its data, and a failover: the server says under which new name its history goes on.
#[test]
fn a_new_replication_id_is_followed_and_a_lost_history_is_not() {
    let [port] = crate::support::servers::free_ports::<1>();
    let master = Server::start("redis-server", &format!("--port {port} --bind 127.0.0.1"));
    let home = Home::of(&master);
    master.run("SET one 1");
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let replica = Server::start("valkey-8", &format!("--replicaof 127.0.0.1 {port}"));
    let mut c = master.connect();
    c.command(&["SET", "two", "2"]).unwrap();
    wait("the replica has it", || stored(&mut c, "200"));
    home.run(&["wal-receive", "store", "--once"], 0);
    let moved = |to: &Server| {
        let file = home.0.path().join("blackstart/blackstart.toml");
        let file = if file.exists() { file } else { home.0.path().join("blackstart.toml") };
        let config = std::fs::read_to_string(&file).unwrap();
        let at = config.find("url = \"unix").unwrap();
        let end = at + config[at..].find('\n').unwrap();
        std::fs::write(file, format!("{}url = \"{}\"{}", &config[..at], to.url(), &config[end..])).unwrap();
    };
    // The replica takes over, with all that is stored and more.
    c.command(&["SET", "three", "3"]).unwrap();
    wait("the replica has it", || stored(&mut c, "200"));
    drop(master);
    replica.run("REPLICAOF NO ONE");
    replica.run("SET four 4");
    moved(&replica);
    let told = home.run(&["wal-receive", "store", "--once"], 0);
    assert!(told.err.contains("another replication ID: nothing is missing"), "{}", told.all());
    assert_eq!(home.windows().len(), 1, "one window over the failover");
    let copy = home.restore("redis-server", &[]);
    assert_eq!((number(&copy, "one"), number(&copy, "three"), number(&copy, "four")), (1, 3, 4));
    // Another server altogether: nothing of its history is known.
    let other = Server::start("redis-server", "");
    other.run("SET four 5");
    moved(&other);
    let told = home.run(&["wal-receive", "store", "--once"], 3);
    assert!(told.err.contains("does not follow"), "{}", told.all());
    home.run(&["backup"], 0);
    let copy = home.restore("redis-server", &[]);
    assert_eq!((number(&copy, "one"), number(&copy, "four")), (0, 5));
}

/// A snapshot that was taken right after a mistake has it in it, and is nothing to go back to from before it.
#[test]
fn just_before_a_mistake_is_not_the_snapshot_right_after_it() {
    let server = Server::start("redis-server", "--repl-ping-replica-period 3600 --databases 32");
    server.run("SET good 1");
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    server.run("SET more 2");
    server.run("FLUSHALL");
    let flushed = offset(&server).to_string();
    home.run(&["wal-receive", "store", "--once"], 0);
    home.run(&["backup", "--accept-change"], 0);
    let newest = home.run(&["snapshots", "store", "--json"], 0).json();
    assert_eq!(offset(&server).to_string(), flushed, "the snapshot is not the one meant: {newest}");
    let copy = home.restore("redis-server", &["--offset", &flushed, "--before"]);
    assert_eq!((number(&copy, "good"), number(&copy, "more")), (1, 2));
    let copy = home.restore("redis-server", &["--offset", &flushed]);
    assert_eq!((number(&copy, "good"), number(&copy, "more")), (0, 0));
}

/// A replica has the stream of its master, under the same name, and may be followed where it is meant.
#[test]
fn a_replica_is_followed_only_if_it_is_meant() {
    let [port] = crate::support::servers::free_ports::<1>();
    let master = Server::start("redis-server", &format!("--port {port} --bind 127.0.0.1"));
    master.run("SET one 1");
    let replica = Server::start("redis-server", &format!("--replicaof 127.0.0.1 {port}"));
    wait("the replica has it", || number(&replica, "one") == 1);
    let home = Home::of(&replica);
    let refused = home.run(&["wal-receive", "store", "--once"], 1);
    assert!(refused.err.contains("is a replica of") && refused.err.contains("from_replica"), "{}", refused.err);
    let file = home.0.path().join("blackstart.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("[source.redis]", "[source.redis]\nfrom_replica = true")).unwrap();
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let mut c = master.connect();
    c.command(&["SET", "two", "2"]).unwrap();
    wait("the replica has it", || stored(&mut c, "200"));
    home.run(&["wal-receive", "store", "--once"], 0);
    let copy = home.restore("redis-server", &[]);
    assert_eq!((number(&copy, "one"), number(&copy, "two")), (1, 2));
}

/// Of a bucket that is away nothing is said to be stored, and nothing is missing when it is back.
#[test]
fn a_bucket_that_goes_away_delays_what_is_acknowledged_and_loses_nothing() {
    let bucket = seaweedfs();
    let gate = Gate::before(bucket.port);
    let server = Server::start("redis-server", "--repl-backlog-size 16mb");
    server.run("SET first 1");
    let prefix = bucket.options().prefix;
    let home = Home::kept_in(&server, &format!("s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}", gate.port));
    home.run(&["backup"], 0);
    let receiver = home.receiver();
    let mut c = server.connect();
    let mut set = |key: &str, milliseconds: &str| {
        c.command(&["SET", key, "1"]).unwrap();
        stored(&mut c, milliseconds)
    };
    wait("the log is received", || set("before", "200"));
    gate.shut();
    assert!(!set("during", "3000"), "acknowledged, and the bucket is away: {}", home.said());
    gate.open();
    // The attempt that is under way may rest for some seconds.
    assert!(set("after", "120000"), "{}", home.said());
    drop(receiver);
    assert_eq!(home.windows().len(), 1, "{:?}", home.windows());
    let copy = home.restore("redis-server", &[]);
    assert_eq!(["first", "before", "during", "after"].map(|key| number(&copy, key)), [1; 4]);
}

/// What a loading server has is a part of its data: no snapshot, and a receiver waits for the rest.
#[test]
fn a_server_that_still_loads_is_refused_by_a_backup_and_awaited_by_a_receiver() {
    let server = Server::start("redis-server", "--rdbcompression no");
    let home = Home::of(&server);
    let mut c = server.connect();
    for n in 0..400 {
        c.command(&["SET", &format!("key{n}"), &"x".repeat(1100)]).unwrap();
    }
    home.run(&["backup"], 0);
    // The backup's own fork may still end.
    wait("it is saved", || c.command(&["SAVE"]).is_ok());
    let directory = server.kill();
    let address = Address::parse(&format!("unix://{}/s", directory.path().display())).unwrap();
    // It takes 40 s, unless it is told to be quicker, and answers between any two keys.
    let slow = "--rdbcompression no --key-load-delay 100000 --loading-process-events-interval-bytes 1024";
    let loading = std::thread::spawn(move || Server::on(directory, "redis-server", slow));
    let ask = |words: &[&str]| Connection::open(&address, &Roots::System)?.command(words);
    wait("the server loads", || ask(&["INFO", "persistence"]).is_ok_and(|said| text(&said).contains("loading:1")));
    let refused = home.run(&["backup"], 1).err;
    assert!(refused.contains("still loading") && refused.contains("loading_eta_seconds"), "{refused}");
    let receiver = home.receiver();
    wait("the receiver waits", || home.said().contains("still loading"));
    ask(&["CONFIG", "SET", "key-load-delay", "0"]).unwrap();
    let server = loading.join().unwrap();
    let mut c = server.connect();
    c.command(&["SET", "later", "1"]).unwrap();
    assert!(stored(&mut c, "60000"), "{}", home.said());
    drop(receiver);
    let copy = home.restore("redis-server", &[]);
    assert_eq!((text(&copy.run("STRLEN key399")), number(&copy, "later")), ("1100".into(), 1));
}

fn rounds() -> u64 {
    std::env::var("BLACKSTART_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}

/// Writes numbers into a list and waits for each to be stored, until the server is gone; adds those that are to `acknowledged`.
fn writer(server: &Server, first: u64, acknowledged: &Arc<Mutex<Vec<u64>>>) -> std::thread::JoinHandle<()> {
    let (mut c, acknowledged) = (server.connect(), Arc::clone(acknowledged));
    std::thread::spawn(move || {
        for n in first.. {
            let number = n.to_string();
            let written = c.command(&["SADD", "numbers", &number]).and_then(|_| c.command(&["WAIT", "1", "0"]));
            match written {
                Ok(reply) if text(&reply) != "0" => acknowledged.lock().unwrap().push(n),
                _ => break,
            }
        }
    })
}

/// `WAIT 1` that returned 1: the write is in the repository, whoever is killed when, and comes back from there alone.
#[test]
fn what_was_acknowledged_survives_the_loss_of_the_server_and_of_the_receiver() {
    let seed = std::env::var("BLACKSTART_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut random = Random(seed);
    let mut directory = Some(tempfile::tempdir().unwrap());
    let mut home: Option<Home> = None;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for round in 0..rounds() {
        let server = Server::on(directory.take().unwrap(), "redis-server", "--appendonly yes --appendfsync always");
        let home = home.get_or_insert_with(|| Home::of(&server));
        let receiver = home.receiver();
        let load = Transactions::start(&server);
        let writers: Vec<_> = (0..4).map(|w| writer(&server, (round * 4 + w) * 1_000_000, &acknowledged)).collect();
        let mut c = server.connect();
        c.command(&["SET", "round", &round.to_string()]).unwrap();
        wait("the log has a snapshot to go on from", || stored(&mut c, "200"));
        let before = acknowledged.lock().unwrap().len();
        wait("writes return", || acknowledged.lock().unwrap().len() > before + 8);
        std::thread::sleep(Duration::from_millis(random.below(1000)));
        // One of both goes first.
        let receiver = if random.below(2) == 0 {
            receiver.kill();
            std::thread::sleep(Duration::from_millis(random.below(100)));
            None
        } else {
            Some(receiver)
        };
        directory = Some(server.kill());
        std::thread::sleep(Duration::from_millis(random.below(100)));
        drop(receiver);
        load.stop();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let copy = home.restore("redis-server", &[]);
        let Reply::List(there) = copy.run("SMEMBERS numbers") else { panic!("no numbers") };
        let there: std::collections::HashSet<u64> = there.iter().map(|n| text(n).parse().unwrap()).collect();
        let due = acknowledged.lock().unwrap();
        let missing: Vec<&u64> = due.iter().filter(|n| !there.contains(n)).collect();
        assert!(missing.is_empty(), "seed {seed}, round {round}: {missing:?} of {}: {}", due.len(), home.said());
        assert_eq!(number(&copy, "a"), number(&copy, "b"), "a transaction is torn");
    }
}

/// A small generator, so that a round can be told from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}
