//! The `redis` source against Redis 7, Valkey 8 and Valkey 9.

use super::{copy_all, failed, protect, recover, report, said};
use crate::support::engines::{Server, program};
use blackstart::source::Source;
use blackstart::source::redis::connection::Reply;
use blackstart::source::redis::proof::prove;
use blackstart::source::redis::{Options, RIGHTS};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Every type in several shapes, in several databases.
pub fn fill(server: &Server) {
    let mut c = server.connect();
    let mut run = |words: &[&str]| drop(c.command(words).unwrap());
    let long = "compressible ".repeat(2000);
    for i in 0..3000 {
        run(&["SET", &format!("key:{i}"), &format!("value {i} {}", &long[..i % 900])]);
    }
    for (name, value) in
        [("int", "42"), ("negative", "-70000"), ("big", "9007199254740993"), ("empty", ""), ("long", &long)]
    {
        run(&["SET", name, value]);
    }
    c.command_bytes(&[b"SET", b"bin\x00\xff\r\nary", b"\x00\x01\xfe\xff\r\n$-1\r\n"]).unwrap();
    let mut run = |words: &[&str]| drop(c.command(words).unwrap());
    for i in 0..700 {
        let (n, member) = (i.to_string(), format!("member {i}"));
        run(&["RPUSH", "list:large", &member]);
        run(&["SADD", "set:large", &member]);
        run(&["SADD", "set:ints", &n]);
        run(&["ZADD", "zset:large", &n, &member]);
        run(&["HSET", "hash:large", &member, &long[..i]]);
        run(&["XADD", "stream", "*", "n", &n, "text", &member]);
    }
    for words in ["RPUSH list a b c", "SADD set a b", "ZADD zset 1.5 a inf b", "HSET hash a 1 b 2"] {
        run(&words.split(' ').collect::<Vec<_>>());
    }
    run(&["XGROUP", "CREATE", "stream", "readers", "0"]);
    run(&["XREADGROUP", "GROUP", "readers", "one", "COUNT", "5", "STREAMS", "stream", ">"]);
    run(&["SET", "soon", "gone", "PX", "700"]);
    run(&["SET", "later", "stays", "EX", "100000"]);
    run(&["SELECT", "3"]);
    run(&["SET", "in three", "x"]);
    run(&["SELECT", "20"]);
    run(&["SET", "in twenty", "x"]);
}

/// Changes two keys together, without pause, until it is dropped.
struct Load(Arc<AtomicBool>, Option<std::thread::JoinHandle<u64>>);

impl Load {
    fn start(server: &Server) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut c, told) = (server.connect(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !told.load(Ordering::Relaxed) {
                for words in
                    [vec!["MULTI"], vec!["INCR", "a"], vec!["SET", "key:7", "changed"], vec!["INCR", "b"], vec!["EXEC"]]
                {
                    c.command(&words).unwrap();
                }
                rounds += 1;
            }
            rounds
        });
        Load(stop, Some(thread))
    }

    fn stop(mut self) -> u64 {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap()
    }
}

fn value(server: &Server, key: &str) -> i64 {
    server.connect().command(&["GET", key]).unwrap().text().map_or(0, |t| t.parse().unwrap())
}

/// Backup under load, drill, restore by blackstart and by `recover.py`, a server started on the result as an operator would.
fn round_trip(name: &str, appendonly: &str, more: &[&[&str]]) {
    let server = Server::start(name, &format!("--databases 32 --appendonly {appendonly}"));
    fill(&server);
    for words in more {
        server.connect().command(words).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let engine = program(name);
    protect(
        home.path(),
        &format!("kind = \"redis\"\nurl = \"{}\"\n[source.redis]\nserver = \"{}\"", server.url(), engine.display()),
    );
    let load = Load::start(&server);
    let backup = report(home.path(), &["backup"], 0);
    assert!(load.stop() > 0, "the writer got nowhere");
    assert_eq!(backup["outcome"], "complete", "{backup}");
    let facts = &backup["facts"];
    assert!(
        facts["rdb"]["checksum"] == true && facts["rdb"]["uncounted"].is_null() && facts["by"] == "sync",
        "{facts}"
    );
    assert!(
        facts["rdb"]["databases"]["0"]["keys"].as_u64().unwrap() > 3000 && facts["rdb"]["databases"]["20"]["keys"] == 1,
        "{facts}"
    );
    std::thread::sleep(Duration::from_millis(800));
    let drill = report(home.path(), &["drill"], 0);
    let names: Vec<&str> = drill["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert!(
        names.contains(&"keys of database 20") && names.iter().any(|n| n.starts_with("sample of keys")),
        "{names:?}"
    );
    assert_eq!(names.contains(&"keys from the append-only file of database 3"), appendonly == "yes", "{names:?}");
    let restored = crate::support::binary::expect(home.path(), &["restore", "store", "--to", "back"], 0);
    assert!(restored.out.contains("or newer"), "it is not said what loads the file: {}", restored.out);
    let by_hand = recover(home.path(), "by-hand");
    let same = |path: &str| {
        std::fs::read(home.path().join("back").join(path)).unwrap() == std::fs::read(by_hand.join(path)).unwrap()
    };
    assert!(same("dump.rdb"));
    let directory = tempfile::tempdir_in(home.path()).unwrap();
    assert!(Command::new("cp").arg("-a").arg(by_hand.join(".")).arg(directory.path()).status().unwrap().success());
    let again = Server::on(directory, name, &format!("--databases 32 --appendonly {appendonly}"));
    assert_eq!(value(&again, "a"), value(&again, "b"));
    assert!(value(&again, "a") <= value(&server, "a"));
    assert_eq!(again.run("GET int"), Reply::Text("42".into()));
    assert_eq!(again.run("XLEN stream"), Reply::Text("700".into()));
    assert_eq!(again.run("EXISTS soon"), Reply::Text("0".into()));
}

#[test]
fn redis_7_with_an_append_only_file() {
    let library = "#!lua name=l\nredis.register_function('f', function() return 1 end)";
    round_trip("redis-server", "yes", &[&["FUNCTION", "LOAD", library]]);
}

#[test]
fn valkey_8_without() {
    round_trip("valkey-8", "no", &[]);
}

/// Without telling our version, a Valkey 9 with fields that expire ends the sync with nothing.
#[test]
fn valkey_9_with_fields_that_expire() {
    round_trip("valkey-9", "yes", &[&["HEXPIRE", "hash", "100000", "FIELDS", "1", "a"]]);
}

/// A chunk holds some dozen keys, so that one key in a hundred does not touch nearly all of them.
#[test]
fn scattered_changes_of_small_keys_store_little_again() {
    let server = Server::start("redis-server", "--rdbcompression no");
    let (mut connection, mut seed) = (server.connect(), 1u64);
    for n in 0..20_000 {
        let mut word = || {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            format!("{:08x}", seed >> 32)
        };
        let value: String = (0..38).map(|_| word()).collect();
        connection.command(&["SET", &format!("key:{n}"), &value]).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    protect(home.path(), &format!("kind = \"redis\"\nurl = \"{}\"", server.url()));
    let share = |report: serde_json::Value| {
        report["stats"]["bytes_new"].as_f64().unwrap() / report["stats"]["bytes"].as_f64().unwrap()
    };
    report(home.path(), &["backup"], 0);
    let unchanged = share(report(home.path(), &["backup"], 0));
    for n in (0..20_000).step_by(100) {
        connection.command(&["SETRANGE", &format!("key:{n}"), "20", "changed"]).unwrap();
    }
    let changed = share(report(home.path(), &["backup"], 0));
    assert!(unchanged < 0.02 && changed > 0.01 && changed < 0.25, "{unchanged} and {changed} of the bytes were new");
    let (back, by_hand) = (home.path().join("back"), recover(home.path(), "by-hand"));
    crate::support::binary::expect(home.path(), &["restore", "store", "--to", "back"], 0);
    let rdb = |directory: &std::path::Path| std::fs::read(directory.join("dump.rdb")).unwrap();
    assert!(rdb(&back) == rdb(&by_hand), "the two restores differ");
}

#[test]
fn tls_and_a_user_with_no_right_but_to_replicate() {
    let directory = tempfile::tempdir().unwrap();
    crate::support::servers::certify(directory.path());
    let [port] = crate::support::servers::free_ports::<1>();
    let tls =
        "--tls-cert-file DIR/leaf.pem --tls-key-file DIR/leaf.key --tls-ca-cert-file DIR/ca.pem --tls-auth-clients no";
    let server = Server::on(directory, "redis-server", &format!("--port 0 --tls-port {port} --bind 127.0.0.1 {tls}"));
    server.run("SET key value");
    for command in [
        RIGHTS,
        &RIGHTS.replace("backup", "poor").replace("+sync", ""),
        &RIGHTS.replace("backup", "saver").replace("+sync +psync +replconf", "+bgsave +lastsave"),
    ] {
        server.run(&command.replace("PASSWORD", "hunter2"));
    }
    let dir = server.directory.path();
    std::fs::write(dir.join("password"), "hunter2\n").unwrap();
    std::fs::write(dir.join("wrong"), "hunter3\n").unwrap();
    let home = tempfile::tempdir().unwrap();
    let url = |user: &str, port: u16| format!("rediss://{user}@127.0.0.1:{port}");
    let config = |user: &str, password: &str, ca: &str| {
        format!(
            "kind = \"redis\"\nurl = \"{}\"\npassword = {{ file = \"{}\" }}\n[source.redis]\nca = \"{}\"",
            url(user, port),
            dir.join(password).display(),
            dir.join(ca).display()
        )
    };
    protect(home.path(), &config("backup", "password", "ca.pem"));
    let done = report(home.path(), &["backup"], 0);
    assert_eq!(done["facts"]["rdb"]["databases"]["0"]["keys"], 1, "{done}");
    // The same rights are enough for following its stream.
    let follow = || crate::support::binary::expect(home.path(), &["wal-receive", "store", "--once"], 0);
    follow();
    server.run("SET key value");
    assert!(follow().out.contains("the log is stored up to"));
    let try_it = |config: &str| {
        let home = tempfile::tempdir().unwrap();
        protect(home.path(), config);
        let ran = crate::support::binary::expect(home.path(), &["backup"], 1).all();
        assert!(!ran.contains("hunter"), "a password is shown: {ran}");
        ran
    };
    let wrong = try_it(&config("backup", "wrong", "ca.pem"));
    assert!(wrong.contains("does not accept this user and password"), "{wrong}");
    let poor = try_it(&config("poor", "password", "ca.pem"));
    assert!(poor.contains("ACL SETUSER") && poor.contains("[source.redis] file"), "{poor}");
    let stranger = try_it(&config("backup", "password", "leaf.pem"));
    assert!(stranger.contains("cannot reach") && stranger.contains("certificate"), "{stranger}");
    // The right to save is enough where the file can be read.
    let saved = tempfile::tempdir().unwrap();
    protect(
        saved.path(),
        &format!("{}\nfile = \"{}\"", config("saver", "password", "ca.pem"), dir.join("dump.rdb").display()),
    );
    let done = report(saved.path(), &["backup"], 0);
    assert!(done["facts"]["by"] == "bgsave" && done["facts"]["rdb"]["databases"]["0"]["keys"] == 1, "{done}");
    report(saved.path(), &["drill"], 0);
    std::fs::copy(dir.join("dump.rdb"), dir.join("old.rdb")).unwrap();
    let old =
        try_it(&format!("{}\nfile = \"{}\"", config("saver", "password", "ca.pem"), dir.join("old.rdb").display()));
    assert!(old.contains("older than the save"), "{old}");
}

/// `protect` with the password in the environment, where `redis-cli` looks for it.
#[test]
fn protect_takes_the_password_as_redis_cli_does() {
    use crate::support::binary::{command, finish};
    let server = Server::start("redis-server", "");
    server.run("SET key value");
    server.run(&RIGHTS.replace("PASSWORD", "hunter2"));
    let home = tempfile::tempdir().unwrap();
    let url = server.url().replace("unix://", "unix://backup@");
    let protect = |password: &str| {
        let mut command = command(home.path(), &["protect", &url, "--repo", "repo"]);
        finish(&command.env("REDISCLI_AUTH", password).output().unwrap())
    };
    let wrong = protect("hunter3");
    assert!(wrong.code == 1 && wrong.all().contains("does not accept this user and password"), "{}", wrong.all());
    let proven = protect("hunter2");
    assert!(proven.code == 0 && proven.all().contains("The password is read from $REDISCLI_AUTH"), "{}", proven.all());
    let written = std::fs::read_to_string(home.path().join("blackstart.toml")).unwrap();
    assert!(written.contains("password = { env = \"REDISCLI_AUTH\" }"), "{written}");
    assert_eq!(written.matches("[[source]]").count(), 1, "{written}");
    assert!(!format!("{written}{}", proven.all()).contains("hunter"), "the password is shown");
}

/// Times of saves are whole seconds: right after the turn of one, a file of the second before is the hardest to tell from a new one.
#[test]
fn a_save_of_the_second_before_is_an_old_one() {
    let server = Server::start("redis-server", "");
    server.run("SET key value");
    let directory = server.directory.path();
    let turn = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        std::thread::sleep(Duration::from_nanos(u64::from(1_000_005_000 - now.subsec_nanos())));
    };
    for _ in 0..3 {
        server.run("SAVE");
        std::fs::copy(directory.join("dump.rdb"), directory.join("old.rdb")).unwrap();
        turn();
        let old = Options { file: Some(directory.join("old.rdb")), ..Options::default() };
        let copy = tempfile::tempdir().unwrap();
        let refused = copy_all(&mut server.source(old), &copy.path().join("copy")).map(|finished| finished.facts);
        assert!(said(&refused.unwrap_err()).contains("older than the save"));
    }
    let current = Options { file: Some(directory.join("dump.rdb")), ..Options::default() };
    let copy = tempfile::tempdir().unwrap();
    assert_eq!(copy_all(&mut server.source(current), &copy.path().join("copy")).unwrap().facts["by"], "bgsave");
}

#[test]
fn a_replica_only_if_it_is_meant_and_current() {
    let master = Server::start("redis-server", "");
    master.run("SET key value");
    let path = master.directory.path().join("s");
    // A replica follows by TCP: a small relay, which can be cut.
    let [port, relay] = crate::support::servers::free_ports::<2>();
    let second = Server::start("redis-server", &format!("--port {port} --bind 127.0.0.1"));
    second.run("SET key value");
    assert!(path.exists());
    let replica = Server::start("redis-server", &format!("--replicaof 127.0.0.1 {port}"));
    let until = Instant::now() + Duration::from_secs(60);
    while replica
        .connect()
        .command(&["INFO", "replication"])
        .unwrap()
        .text()
        .is_none_or(|t| !t.contains("master_link_status:up"))
    {
        assert!(Instant::now() < until, "the replica does not follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    let refused = said(&replica.source(Options::default()).next().unwrap_err());
    assert!(refused.contains("is a replica of") && refused.contains("from_replica"), "{refused}");
    let copy = tempfile::tempdir().unwrap();
    let meant = Options { from_replica: true, ..Options::default() };
    let finished = copy_all(&mut replica.source(meant.clone()), &copy.path().join("copy")).unwrap();
    assert_eq!(finished.facts["role"], "slave");
    assert_eq!(
        failed(&prove(&copy.path().join("copy"), &finished.facts, &Options::default(), &mut |_| {}).unwrap()),
        Vec::<&blackstart::report::Check>::new()
    );
    replica.run(&format!("REPLICAOF 127.0.0.1 {relay}"));
    let refused = said(&replica.source(meant).next().unwrap_err());
    assert!(refused.contains("lost its master"), "{refused}");
}

#[test]
fn an_empty_server_does_not_follow_a_full_one_unnoticed() {
    let server = Server::start("redis-server", "");
    server.run("SET key value");
    let home = tempfile::tempdir().unwrap();
    protect(home.path(), &format!("kind = \"redis\"\nurl = \"{}\"", server.url()));
    report(home.path(), &["backup"], 0);
    server.run("FLUSHALL");
    let refused = crate::support::binary::expect(home.path(), &["backup"], 1).err;
    assert!(refused.contains("had 1 keys") && refused.contains("--accept-change"), "{refused}");
    report(home.path(), &["backup", "--accept-change"], 0);
    report(home.path(), &["drill"], 0);
}

/// The proof must see what is wrong with a copy.
#[test]
fn a_proof_that_can_fail() {
    let server = Server::start("redis-server", "--databases 32");
    fill(&server);
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("copy");
    let finished = copy_all(&mut server.source(Options::default()), &copy).unwrap();
    let whole = std::fs::read(copy.join("dump.rdb")).unwrap();
    let prove_with = |bytes: &[u8], facts: &serde_json::Value| {
        std::fs::write(copy.join("dump.rdb"), bytes).unwrap();
        let checks = prove(&copy, facts, &Options::default(), &mut |_| {}).unwrap();
        failed(&checks).iter().map(|c| c.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(prove_with(&whole, &finished.facts), Vec::<String>::new());
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    assert_eq!(prove_with(&flipped, &finished.facts), ["checksum of the RDB file"]);
    assert_eq!(prove_with(&whole[..whole.len() - 20], &finished.facts), ["checksum of the RDB file"]);
    let mut facts = finished.facts.clone();
    facts["rdb"]["databases"]["0"]["keys"] = 7.into();
    assert_eq!(prove_with(&whole, &facts), ["keys in the file"]);
    // A server that is too old or of another line says nothing of the backup.
    facts = finished.facts.clone();
    facts["rdb"]["magic"] = "VALKEY".into();
    facts["rdb"]["version"] = 80.into();
    std::fs::write(copy.join("dump.rdb"), &whole).unwrap();
    let error = prove(
        &copy,
        &facts,
        &Options { server: Some("/usr/bin/redis-server".into()), ..Options::default() },
        &mut |_| {},
    )
    .unwrap_err();
    assert_eq!(blackstart::error::kind_of(&error), blackstart::error::Kind::Environment, "{error:#}");
    assert!(said(&error).contains("Valkey 9.0 or newer"), "{}", said(&error));
}
