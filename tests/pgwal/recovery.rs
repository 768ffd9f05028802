//! Points in time from the command line: back up, receive, destroy, look when, go back to just before.

use crate::support::binary::{self, Ran};
use crate::support::postgres::{Cluster, Setup, installed};
use crate::world::wait;
use blackstart::source::postgres::wal::Lsn;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new(cluster: &Cluster) -> Home {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
        binary::expect(home.path(), &["init", "--repo", "./repository"], 0);
        let (url, bin) = (cluster.url("postgres"), installed(cluster.major).display().to_string());
        binary::configure(
            home.path(),
            &format!(
                "\n[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = \"{url}\"\n[source.postgres]\nbin = \"{bin}\"\nseal_every = \"50ms\"\n"
            ),
        );
        Home(home)
    }

    pub fn run(&self, arguments: &[&str], code: i32) -> Ran {
        binary::expect(self.0.path(), arguments, code)
    }

    pub fn receive(&self) {
        self.run(&["wal-receive", "pg", "--once"], 0);
    }

    /// Restores with `arguments` and starts a server on the copy. It must come up by itself.
    fn back_to(&self, like: &Cluster, arguments: &[&str]) -> Cluster {
        let mut copy = Cluster::empty(like.major);
        self.run(&[&["restore", "pg", "--to", copy.data.to_str().unwrap()], arguments].concat(), 0);
        copy.configure("archive_mode = off");
        copy.start();
        copy
    }
}

fn ready(cluster: &Cluster) {
    cluster.await_recovery();
}

/// Time and position, on the server.
fn mark(cluster: &Cluster) -> (String, String) {
    std::thread::sleep(Duration::from_millis(50));
    let time =
        cluster.value("select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    let position = cluster.value("select pg_current_wal_insert_lsn()");
    std::thread::sleep(Duration::from_millis(50));
    (time, position)
}

#[test]
fn every_kind_of_target_is_reached_and_nothing_beyond() {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB");
    setup.segment = 1;
    let cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int)");
    // As in a server that was once brought back to a point.
    cluster.sql("alter system set recovery_target_name = 'of an earlier recovery'");
    let too_early = mark(&cluster);
    home.run(&["backup"], 0);
    home.receive();
    std::thread::sleep(Duration::from_millis(1100));
    cluster.sql("insert into t select generate_series(1, 100)");
    let hundred = mark(&cluster);
    let xid = cluster.value("begin; insert into t values (0); select txid_current(); commit");
    let xid = if xid.is_empty() { cluster.value("select xmin from t where n = 0") } else { xid };
    cluster.sql("select pg_create_restore_point('before it''s gone')");
    cluster.sql("insert into t select generate_series(1000, 6000)");
    home.run(&["backup"], 0);
    cluster.sql("delete from t where n >= 1000");
    cluster.sql("drop table t");
    cluster.sql("create table after (n int)");
    home.receive();
    let last = mark(&cluster);

    let copy = home.back_to(&cluster, &["--at", &hundred.0]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "100");
    let copy = home.back_to(&cluster, &["--lsn", &hundred.1]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "100");
    let copy = home.back_to(&cluster, &["--xid", &xid]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "101");
    let copy = home.back_to(&cluster, &["--name", "before it's gone", "--pause"]);
    wait("it pauses", || copy.value("select pg_get_wal_replay_pause_state()") == "paused");
    assert_eq!(copy.value("select count(*) from t"), "101");
    copy.sql("select pg_wal_replay_resume()");
    ready(&copy);
    // Without a target: everything that is stored.
    let copy = home.back_to(&cluster, &[]);
    ready(&copy);
    assert_eq!(copy.value("select to_regclass('t') is null and to_regclass('after') is not null"), "t");
    assert_eq!(copy.value("show archive_mode"), "off");
    // A snapshot alone: what it was once recovered to is no aim of this recovery.
    let copy = home.back_to(&cluster, &["--snapshot", "1"]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "0");
    the_timeline_leads_to_just_before_a_mistake(&home, &cluster);
    what_cannot_be_reached_is_refused(&home, &too_early.0, &last.1);
    // The windows are shown.
    let shown = home.run(&["snapshots", "pg"], 0).all();
    assert!(shown.contains("Every moment from"), "{shown}");
    let windows = home.run(&["snapshots", "pg", "--json"], 0).json()["report"]["windows"].clone();
    assert_eq!(windows.as_array().unwrap().len(), 1, "{windows}");
    // The drill replays the log, too.
    let drilled = home.run(&["drill", "pg"], 0).all();
    assert!(drilled.contains("log replayed"), "{drilled}");
    // What the log destroyed later was there at the end of the backup, and is asked for there.
    assert!(drilled.contains("  ok      rows by table, as they were when the backup ended ("), "{drilled}");
}

fn the_timeline_leads_to_just_before_a_mistake(home: &Home, cluster: &Cluster) {
    let told = home.run(&["timeline", "pg", "--json"], 0).json();
    let happened = told["report"]["happened"].as_array().unwrap();
    let of = |how: &str| {
        let found =
            happened.iter().find(|h| h["destroyed"].as_array().is_some_and(|d| d.iter().any(|d| d["how"] == how)));
        found.unwrap_or_else(|| panic!("{how}: {happened:#?}"))["position"].as_str().unwrap().to_owned()
    };
    let copy = home.back_to(cluster, &["--lsn", &of("drop"), "--before"]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "101");
    let copy = home.back_to(cluster, &["--lsn", &of("delete"), "--before"]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "5102");
}

/// Refused, the window named, nothing written.
fn what_cannot_be_reached_is_refused(home: &Home, too_early: &str, end: &str) {
    let to = home.0.path().join("never").display().to_string();
    let far = (end.parse::<Lsn>().unwrap().0 + (1 << 30)).to_string();
    let far = Lsn(far.parse().unwrap()).to_string();
    for arguments in [
        ["--at", too_early],
        ["--at", "2099-01-01T00:00:00Z"],
        ["--lsn", &far],
        ["--xid", "4000000"],
        ["--name", "nowhere"],
    ] {
        let ran = home.run(&[&["restore", "pg", "--to", &to], &arguments[..]].concat(), 64);
        assert!(
            ran.all().contains("can be reached") && ran.all().contains("(snapshot 1)"),
            "{arguments:?}: {}",
            ran.all()
        );
        assert!(!std::path::Path::new(&to).exists());
    }
}

/// The real server stops at the moment, by its own word, and the operator's query sees the data of then.
#[test]
fn a_drill_goes_to_a_moment_and_no_further() {
    let mut setup = Setup::new(15);
    setup.segment = 1;
    let cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int)");
    // As in a server that was once brought back to a point.
    cluster.sql("alter system set recovery_target_name = 'of an earlier recovery'");
    let too_early = mark(&cluster);
    home.run(&["backup"], 0);
    home.receive();
    std::thread::sleep(Duration::from_millis(1100));
    cluster.sql("insert into t select generate_series(1, 100)");
    let hundred = mark(&cluster);
    cluster.sql("insert into t select generate_series(1000, 1499)");
    cluster.sql("create table later (n int)");
    home.receive();
    binary::configure(home.0.path(), "check = [\"select count(*) = 100 from t\"]\n");
    let drill = |arguments: &[&str], code: i32| {
        home.run(&[&["drill", "pg", "--json"], arguments].concat(), code).json()["report"]["sources"][0].clone()
    };
    let to_time = drill(&["--point", &hundred.0], 0);
    assert_eq!((&to_time["level"], to_time["rpo_met"].is_null()), (&"point".into(), true), "{to_time}");
    let checks = to_time["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name}: {checks:#?}"));
    let last = check("last transaction that the server replayed");
    assert!(last["actual"].as_str().unwrap() < hundred.0.as_str() && last["passed"] == true, "{last}");
    assert!(check("last position that the server replayed")["passed"] == true, "{checks:#?}");
    assert_eq!(drill(&["--point", &hundred.1], 0)["level"], "point");
    // As far as the log goes there are more rows: the query that held at the moment does not hold there.
    assert_eq!(drill(&[], 4)["level"], "engine");
    for arguments in [["--point", too_early.0.as_str()], ["--point", "2099-01-01T00:00:00Z"], ["--point", "offset:7"]] {
        home.run(&[&["drill", "pg"], &arguments[..]].concat(), 64);
    }
    home.run(&["drill", "pg", "--level", "hashes", "--point", &hundred.0], 64);
    what_is_drawn_is_named_and_can_be_had_again(&home, &drill);
    // The log that leads there is damaged: the backup's fault, and called so.
    let mut pieces = binary::files_below(&home.0.path().join("repository/wal/pg/0000000001"), |_| true);
    pieces.sort();
    // Without its last object the log would be seen to end.
    pieces.pop();
    assert!(!pieces.is_empty(), "the log has several pieces");
    for piece in pieces {
        let mut bytes = fs::read(&piece).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::remove_file(&piece).unwrap();
        fs::write(&piece, bytes).unwrap();
    }
    let damaged = drill(&["--point", &hundred.0], 4);
    assert!(damaged["checks"].to_string().contains("log after the snapshot"), "{damaged}");
}

fn what_is_drawn_is_named_and_can_be_had_again(home: &Home, drill: &dyn Fn(&[&str], i32) -> serde_json::Value) {
    let file = home.0.path().join("blackstart.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("count(*) = 100 from t", "count(*) in (0, 100, 600) from t")).unwrap();
    let drawn = drill(&["--level", "point"], 0);
    let why = drawn["point"].as_str().unwrap();
    assert!(drawn["level"] == "point" && why.contains("drawn at random from 1 complete snapshots"), "{drawn}");
    let (_, again) = why.split_once("the same again: blackstart drill pg ").expect(why);
    let again = drill(&again.split(' ').collect::<Vec<_>>(), 0);
    assert_eq!((&again["seq"], &again["log_until"]), (&drawn["seq"], &drawn["log_until"]));
}

/// A restore to a time at which nothing has happened since: the newest state is that of the time.
#[test]
fn an_idle_database_is_restored_to_any_time_that_the_log_covers() {
    let cluster = Setup::new(17).start();
    let home = Home::new(&cluster);
    cluster.sql("create table t as select generate_series(1, 10) n");
    home.run(&["backup"], 0);
    home.receive();
    std::thread::sleep(Duration::from_millis(1100));
    cluster.sql("insert into t values (11)");
    let idle = mark(&cluster);
    // Something that is no transaction moves the log, and its clock, on.
    cluster.sql("select pg_switch_wal(); checkpoint");
    home.receive();
    let mut copy = Cluster::empty(cluster.major);
    let ran = home.run(&["restore", "pg", "--at", &idle.0, "--to", copy.data.to_str().unwrap()], 0);
    assert!(ran.all().contains("no transaction committed after"), "{}", ran.all());
    copy.configure("archive_mode = off");
    copy.start();
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "11");
}

/// A server recovers through `wal-get`; the repository goes away in the middle: it must not open with half of the log.
#[test]
fn a_repository_that_vanishes_during_recovery_is_not_the_end_of_the_log() {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB");
    setup.segment = 1;
    let cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int)");
    home.run(&["backup"], 0);
    home.receive();
    cluster.sql("insert into t select generate_series(1, 60000)");
    home.receive();
    let path = home.0.path();
    for broken in [true, false] {
        let mut copy = Cluster::empty(cluster.major);
        home.run(&["restore", "pg", "--snapshot", "1", "--to", copy.data.to_str().unwrap()], 0);
        let command = format!(
            "cd {} && {} wal-get pg %f {}/%p --repo {} --root {} --identity {}",
            path.display(),
            env!("CARGO_BIN_EXE_blackstart"),
            copy.data.display(),
            path.join("repository").display(),
            binary::root_of(path),
            path.join("blackstart/keys/recovery.key").display(),
        );
        // The test's server runs as another user: let it read what the operator's would.
        let open = |p: &std::path::Path| {
            std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(p).status().unwrap();
        };
        open(path);
        copy.configure(&format!("archive_mode = off\nrestore_command = '{command}'"));
        let auto = copy.data.join("postgresql.auto.conf");
        let settings = fs::read_to_string(&auto).unwrap();
        fs::write(&auto, settings.lines().filter(|l| !l.starts_with("restore_command")).collect::<Vec<_>>().join("\n"))
            .unwrap();
        if broken {
            // One unit in the middle is out of reach: not missing, unreadable.
            let folder = path.join("repository/wal/pg/0000000001/00000001");
            let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            fs::rename(&folder, path.join("away")).unwrap();
            fs::create_dir(&folder).unwrap();
            for (n, name) in names.iter().enumerate() {
                let from = path.join("away").join(name.file_name().unwrap());
                let mut bytes = fs::read(from).unwrap();
                if n >= names.len() / 2 {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }
                fs::write(name, bytes).unwrap();
            }
            open(&folder);
            copy.launch();
            wait("the server gives up", || {
                copy.log().contains("terminated by signal") || copy.log().contains("could not restore file")
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!copy.log().contains("database system is ready to accept connections"), "{}", copy.log());
            fs::remove_dir_all(&folder).unwrap();
            fs::rename(path.join("away"), &folder).unwrap();
        } else {
            copy.start();
            ready(&copy);
            assert_eq!(copy.value("select count(*) from t"), "60000");
        }
    }
    // A command line that cannot be understood must not look like the end of the log either.
    assert_eq!(binary::run(path, &["wal-get", "pg", "--no-such-option"]).code, 200);
    let nowhere = path.join("x").display().to_string();
    assert_eq!(
        binary::run(path, &["wal-get", "pg", "000000010000000000000001", &nowhere, "--repo", "/nowhere/at/all"]).code,
        200
    );
    assert_eq!(binary::run(path, &["wal-get", "pg", "0000000100000000000000FF", &nowhere]).code, 1);
}

/// The signed report of the newest drill.
fn report(home: &Home) -> serde_json::Value {
    let mut reports: Vec<_> =
        fs::read_dir(home.0.path().join("repository/drills/pg")).unwrap().map(|e| e.unwrap().path()).collect();
    reports.sort();
    serde_json::from_str(fs::read_to_string(reports.last().unwrap()).unwrap().lines().next().unwrap()).unwrap()
}

/// After a promotion the log goes on with another timeline: a drill of a snapshot from before it replays its own, and claims no more.
#[test]
fn a_drill_of_an_older_timeline_claims_nothing_of_the_log_that_it_did_not_replay() {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB\nwal_keep_size = 1GB");
    setup.segment = 1;
    let mut cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t as select generate_series(1, 100) n");
    home.run(&["backup"], 0);
    home.receive();
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    home.run(&["drill", "pg"], 0);
    let before = report(&home);
    assert!(before["log_until"].as_str() > before["data_time"].as_str(), "its own timeline is replayed: {before}");
    cluster.stop();
    fs::write(cluster.data.join("standby.signal"), "").unwrap();
    crate::support::postgres::own_all(&cluster.data);
    cluster.start();
    cluster.sql("select pg_promote()");
    ready(&cluster);
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    home.run(&["drill", "pg", "--point", "1"], 0);
    let older = report(&home);
    assert_eq!((older["seq"].as_u64(), older["passed"].as_bool()), (Some(1), Some(true)), "{older}");
    assert!(older["log_until"].is_null(), "it has not replayed the newer timeline: {older}");
    home.run(&["backup"], 0);
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    home.run(&["drill", "pg"], 0);
    let newer = report(&home);
    assert!(newer["log_until"].as_str() > newer["data_time"].as_str(), "its own timeline is replayed: {newer}");
}

/// The last of the log is damaged: every target before it is reached all the same, and the newest state is not claimed to be there.
#[test]
fn what_comes_before_damage_is_reached() {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB");
    setup.segment = 1;
    let cluster = setup.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int)");
    home.run(&["backup"], 0);
    std::thread::sleep(Duration::from_millis(1100));
    cluster.sql("insert into t select generate_series(1, 100)");
    let hundred = mark(&cluster);
    cluster.sql("select pg_create_restore_point('here')");
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    cluster.sql("insert into t select generate_series(1, 100)");
    home.receive();
    let mut pieces: Vec<_> = fs::read_dir(home.0.path().join("repository/wal/pg/0000000001/00000001"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| !path.file_name().unwrap().to_str().unwrap().contains('-'))
        .collect();
    pieces.sort();
    let last = pieces.last().unwrap();
    let mut body = fs::read(last).unwrap();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    fs::write(last, body).unwrap();
    for (aim, rows) in [(["--at", &hundred.0], "100"), (["--lsn", &hundred.1], "100"), (["--name", "here"], "100")] {
        let copy = home.back_to(&cluster, &aim);
        ready(&copy);
        assert_eq!(copy.value("select count(*) from t"), rows, "{aim:?}");
    }
    let to = home.0.path().join("never").display().to_string();
    let refused = home.run(&["restore", "pg", "--to", &to], 1);
    assert!(refused.err.contains("Points in time after it cannot be reached"), "{}", refused.err);
    assert!(!std::path::Path::new(&to).exists());
}
