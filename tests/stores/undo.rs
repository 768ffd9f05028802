//! A mistake is found in the stored stream of Redis or Valkey, and gone back to just before; whatever prune has taken before it, and whatever other
//! histories have the same offsets.

use super::stream::{DEBUG, Home, contents, differing, number, offset, wait};
use crate::support::binary::{files_below, flip};
use crate::support::engines::Server;
use blackstart::clock::{Clock, SystemClock};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

type Contents = BTreeMap<(u32, Vec<u8>), String>;

fn told(home: &Home, more: &[&str]) -> Value {
    home.run(&[&["timeline", "store", "--json"], more].concat(), 0).json()["report"].clone()
}

fn list(report: &Value) -> Vec<Value> {
    report["happened"].as_array().unwrap().clone()
}

/// What the printed command restores: the words between `restore store` and `--to DIR`.
fn gone_back(home: &Home, program: &str, told: &Value) -> Contents {
    let command = told["restore"].as_str().unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let aim = words.strip_prefix(&["blackstart", "restore", "store"]).and_then(|w| w.strip_suffix(&["--to", "DIR"]));
    contents(&home.restore(program, aim.unwrap_or_else(|| panic!("no command to copy: {command}"))))
}

fn same(found: &Contents, expected: &Contents, what: &str) {
    assert_eq!(differing(found, expected), Vec::<String>::new(), "just before {what}");
}

/// Each mistake in turn: what was there before it comes back by the command that is printed for it.
fn every_mistake(program: &str) {
    let server = Server::start(program, DEBUG);
    server.run("SET first 1");
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let mut c = server.connect();
    let mut run = |words: &[&str]| drop(c.command(words).unwrap());
    for database in ["0", "3"] {
        run(&["SELECT", database]);
        for key in ["a", "b", "c", "d", "e", "f"] {
            run(&["SET", key, "one"]);
        }
    }
    let mistakes: [(&str, &[&str], &str); 7] = [
        ("delete", &["DEL", "a", "b"], "deleted: 2 keys in database 3 (\"a\", \"b\")"),
        ("rename", &["RENAME", "c", "d"], "renamed in database 3: \"c\" to \"d\""),
        ("move", &["MOVE", "e", "5"], "moved from database 3 to 5: \"e\""),
        ("expire", &["EXPIRE", "f", "1000"], "given an expiry: 1 key in database 3 (\"f\")"),
        ("swap-databases", &["SWAPDB", "0", "3"], "SWAPDB: databases 0 and 3 change places"),
        ("flush-database", &["FLUSHDB"], "FLUSHDB: every key of database 3"),
        ("flush-all", &["FLUSHALL"], "FLUSHALL: every key of every database"),
    ];
    let mut before = Vec::new();
    for (_, command, _) in &mistakes {
        before.push(contents(&server));
        run(command);
        run(&["SET", "since", "then"]);
    }
    home.run(&["wal-receive", "store", "--once"], 0);
    let report = told(&home, &[]);
    let happened = list(&report);
    assert_eq!(happened.len(), mistakes.len(), "{report:#}");
    let shown = home.run(&["timeline", "store"], 0).out;
    for ((mistake, before), (what, _, line)) in happened.iter().zip(&before).zip(&mistakes) {
        assert_eq!(mistake["what"], *what, "{report:#}");
        assert!(shown.contains(line), "{line} is not in {shown}");
        assert!(shown.contains(mistake["restore"].as_str().unwrap()), "{shown}");
        same(&gone_back(&home, program, mistake), before, what);
    }
    // Each command, by itself.
    let all = list(&told(&home, &["--all"]));
    assert_eq!(all.len(), 12 + 2 * mistakes.len(), "{all:?}");
    assert_eq!(list(&told(&home, &["--all", "--limit", "3"])).len(), 3);
    let later = (SystemClock.now() + jiff::SignedDuration::from_mins(1)).to_string();
    assert!(list(&told(&home, &["--from", &later])).is_empty());
    assert!(list(&told(&home, &["--to", "2020-01-01T00:00:00Z"])).is_empty());
}

#[test]
fn every_mistake_is_found_in_the_stream_of_redis_7() {
    every_mistake("redis-server");
}

#[test]
fn every_mistake_is_found_in_the_stream_of_valkey_9() {
    every_mistake("valkey-9");
}

/// What expires is deleted in the stream one key at a time: it is told of as one, and that it may be that.
#[test]
fn keys_that_expire_are_told_of_as_one() {
    let server = Server::start("redis-server", DEBUG);
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let mut c = server.connect();
    for n in 0..200 {
        c.command(&["SET", &format!("session:{n}"), "x", "PX", "100"]).unwrap();
    }
    wait("they are gone", || server.run("DBSIZE").text() == Some("0"));
    home.run(&["wal-receive", "store", "--once"], 0);
    let happened = list(&told(&home, &[]));
    assert!(happened.len() < 5, "{happened:?}");
    assert_eq!(happened.iter().map(|h| h["keys"].as_u64().unwrap()).sum::<u64>(), 200, "{happened:?}");
    let shown = home.run(&["timeline", "store"], 0).out;
    assert!(shown.contains("one by one, or expired, or evicted"), "{shown}");
}

/// A server that lost its history counts anew: the same offset means something else after the gap, and the printed command says which.
#[test]
fn an_offset_of_an_earlier_history_is_not_taken_for_the_same_of_a_later() {
    let server = Server::start("redis-server", DEBUG);
    let home = Home::of(&server);
    let filler = "x".repeat(2000);
    let round = |server: &Server, value: &str| {
        let mut c = server.connect();
        // A first replica makes the stream count; without a filler the second history would be behind the first.
        home.run(&["backup", "--accept-change"], 0);
        c.command(&["SET", "before", &filler]).unwrap();
        c.command(&["SET", "which", value]).unwrap();
        c.command(&["FLUSHALL"]).unwrap();
        let flushed = offset(server);
        c.command(&["SET", "after", &filler]).unwrap();
        c.command(&["SET", "after", &filler]).unwrap();
        flushed
    };
    home.run(&["wal-receive", "store", "--once"], 0);
    let first = round(&server, "1");
    home.run(&["wal-receive", "store", "--once"], 0);
    let directory = server.kill();
    std::fs::remove_file(directory.path().join("dump.rdb")).ok();
    let server = Server::on(directory, "redis-server", DEBUG);
    home.run(&["wal-receive", "store", "--once"], 3);
    let second = round(&server, "2");
    home.run(&["wal-receive", "store", "--once"], 0);
    assert_eq!(home.windows().len(), 2, "{:?}", home.windows());
    let happened = list(&told(&home, &[]));
    let flushes: Vec<&Value> = happened.iter().filter(|h| h["what"] == "flush-all").collect();
    assert_eq!(flushes.iter().map(|f| f["position"].as_u64().unwrap()).collect::<Vec<_>>(), [first, second]);
    assert!(flushes[0]["history"] != flushes[1]["history"]);
    assert!((second - 1500..second + 1500).contains(&first), "{first} and {second} do not overlap: change the test");
    for (flush, value) in flushes.iter().zip(1..) {
        let words: Vec<&str> = flush["restore"].as_str().unwrap().split(' ').collect();
        let copy = home.restore("redis-server", &words[3..words.len() - 2]);
        assert_eq!(number(&copy, "which"), value, "{flush}");
    }
    let unknown =
        home.run(&["restore", "store", "--offset", &first.to_string(), "--history", "0123abcd", "--to", "x"], 64);
    assert!(unknown.err.contains("of history 0123abcd"), "{}", unknown.err);
}

/// Prune takes whole units of the stream, within a command too; every moment of the promised time is still there, and the timeline goes on.
#[test]
fn after_a_prune_every_promised_moment_and_every_mistake_of_it_can_be_reached() {
    let server = Server::start("redis-server", &format!("{DEBUG} --repl-backlog-size 64mb"));
    server.run("SET first 1");
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    let mut c = server.connect();
    let large = "y".repeat(3 << 20);
    // Units of 4 MiB begin in the middle of a value.
    for n in 0..5 {
        c.command(&["SET", &format!("large{n}"), &large]).unwrap();
        home.run(&["wal-receive", "store", "--once"], 0);
    }
    home.run(&["backup"], 0);
    c.command(&["SET", "second", "2"]).unwrap();
    home.run(&["wal-receive", "store", "--once"], 0);
    let (promised, good) = (SystemClock.now(), contents(&server));
    // So late may prune begin.
    std::thread::sleep(Duration::from_secs(5));
    c.command(&["FLUSHALL"]).unwrap();
    c.command(&["SET", "third", "3"]).unwrap();
    home.run(&["wal-receive", "store", "--once"], 0);
    home.run(&["backup", "--accept-change"], 0);
    c.command(&["SET", "fourth", "4"]).unwrap();
    home.run(&["wal-receive", "store", "--once"], 0);
    let stored = || -> usize {
        let objects = std::fs::read_dir(home.0.path().join("repo/wal/store/0000000001/00000001")).unwrap();
        objects.count()
    };
    let before = stored();
    // Every moment since then is promised.
    let file = home.0.path().join("blackstart.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let since = SystemClock.now().duration_since(promised).as_millis();
    let retention = format!("[source.retention]\nlast = 1\npoints_in_time = \"{since}ms\"\n[source.redis]");
    std::fs::write(&file, format!("grace = \"1s\"\n{}", config.replace("[source.redis]", &retention))).unwrap();
    home.run(&["prune"], 0);
    assert!(stored() < before, "prune took nothing of the stream");
    let snapshots = home.run(&["snapshots", "store", "--json"], 0).json();
    let kept: Vec<u64> =
        snapshots["report"]["snapshots"].as_array().unwrap().iter().map(|s| s["seq"].as_u64().unwrap()).collect();
    assert_eq!(kept.len(), 2, "the newest, and the newest from before the promised time: {snapshots:#}");
    home.run(&["verify", "store"], 0);
    let copy = home.restore("redis-server", &["--at", &promised.to_string()]);
    same(&contents(&copy), &good, "the flush, by time");
    let report = told(&home, &[]);
    let happened = list(&report);
    assert_eq!(happened.len(), 1, "{report:#}");
    assert_eq!(report["windows"][0]["snapshot"], kept[0], "it is read from the oldest snapshot on: {report:#}");
    same(&gone_back(&home, "redis-server", &happened[0]), &good, "the flush, by the printed command");
}

/// Where the newest snapshot looks wrong, the log behind the last good one would bring the same wrong back: without a point it is not followed,
/// whatever is broken besides.
#[test]
fn a_restore_without_a_point_does_not_follow_the_log_into_what_looks_wrong() {
    let server = Server::start("redis-server", DEBUG);
    for key in 0..50 {
        server.run(&format!("SET key{key} 1"));
    }
    let home = Home::of(&server);
    home.run(&["backup"], 0);
    home.run(&["wal-receive", "store", "--once"], 0);
    server.run("FLUSHALL");
    server.run("SET left 1");
    let end = offset(&server).to_string();
    home.run(&["wal-receive", "store", "--once"], 0);
    home.run(&["backup"], 4);
    let back = home.0.path().join("back");
    let ran = home.run(&["restore", "store", "--to", back.to_str().unwrap()], 0);
    assert!(ran.all().contains("snapshot 1 of store"), "{}", ran.all());
    assert!(!back.join("appendonlydir").exists(), "the log was followed: {}", ran.all());
    let copy = home.restore("redis-server", &["--offset", &end]);
    assert_eq!((number(&copy, "key1"), number(&copy, "left")), (0, 1), "who asks for a point gets it");
    home.run(&["backup"], 4);
    let commits = files_below(&home.0.path().join("repo/snapshots/store"), |_| true);
    flip(commits.iter().max().expect("commits of the source"));
    let nowhere = home.0.path().join("nowhere");
    let ran = home.run(&["restore", "store", "--to", nowhere.to_str().unwrap()], 4);
    assert!(ran.all().contains("does not verify") && !nowhere.exists(), "{}", ran.all());
}
