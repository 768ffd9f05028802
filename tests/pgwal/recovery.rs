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
    pub fn back_to(&self, like: &Cluster, arguments: &[&str]) -> Cluster {
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
    a_dry_run_tells_of_the_log(&home, &hundred);
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

/// The oldest major that is supported, whose functions for backups are named otherwise: a moment from the log, on its own programs.
#[test]
fn the_oldest_major_goes_back_to_a_moment() {
    let cluster = Setup { segment: 1, ..Setup::new(13) }.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int)");
    let backup = home.run(&["backup", "--json"], 0).json();
    assert_eq!(backup["report"]["sources"][0]["facts"]["transport"], "files", "beside the server, its files are read");
    cluster.sql("insert into t select generate_series(1, 100)");
    let hundred = mark(&cluster);
    cluster.sql("delete from t");
    home.receive();
    let copy = home.back_to(&cluster, &["--at", &hundred.0]);
    ready(&copy);
    assert_eq!(copy.value("select count(*) || ' ' || sum(n) from t"), "100 5050", "as it was before the delete");
    let drilled = home.run(&["drill", "pg"], 0).all();
    assert!(drilled.contains("log replayed"), "the drill replays the log on 13: {drilled}");
}

/// As Debian has it: `postgresql.conf` does not lie in the data directory, and the copy needs one all the same.
#[test]
fn a_moment_of_a_server_whose_configuration_lies_elsewhere() {
    let mut cluster = Setup { segment: 1, ..Setup::new(15) }.start();
    cluster.configure_outside("work_mem = '7MB'\n");
    let home = Home::new(&cluster);
    cluster.sql("create table t as select 1 n");
    home.run(&["backup"], 0);
    cluster.sql("insert into t values (2)");
    let two = mark(&cluster);
    cluster.sql("drop table t");
    home.receive();
    let copy = home.back_to(&cluster, &["--at", &two.0]);
    ready(&copy);
    assert_eq!(copy.value("select sum(n) from t"), "3", "as it was before the drop");
    assert_eq!(copy.value("show work_mem"), "7MB", "the server's own configuration");
}

/// The log could not be read when all else was laid out, tablespaces moved to their place: the same command goes on once it can be.
#[test]
fn a_restore_that_failed_in_its_log_is_gone_on_with() {
    fails_in_its_log_and_goes_on(None);
}

#[test]
fn a_restore_to_several_disks_that_failed_in_its_log_is_gone_on_with() {
    let disk = tempfile::tempdir().unwrap();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o711)).unwrap();
    fails_in_its_log_and_goes_on(Some(&disk.path().join("fast")));
}

fn fails_in_its_log_and_goes_on(elsewhere: Option<&std::path::Path>) {
    let cluster = Setup { segment: 1, ..Setup::new(15) }.start();
    let home = Home::new(&cluster);
    let place = cluster.directory.join("fast");
    fs::create_dir(&place).unwrap();
    crate::support::postgres::own(&place);
    cluster.sql(&format!("create tablespace fast location '{}'", place.display()));
    cluster.sql("create table t (n int) tablespace fast; insert into t select generate_series(1, 1000)");
    home.run(&["backup"], 0);
    cluster.sql("insert into t select generate_series(1001, 3000)");
    home.receive();
    let log = home.0.path().join("repository/wal");
    let listed = std::process::Command::new("find").arg(&log).args(["-type", "f"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let last = listed.lines().filter(|path| path.contains("/00000001/")).max().expect("a piece of the log");
    let sound = fs::read(last).unwrap();
    let mut torn = sound.clone();
    let middle = torn.len() - 100;
    torn[middle] ^= 1;
    fs::write(last, torn).unwrap();
    let mut copy = Cluster::empty(15);
    let moved = elsewhere.map(|elsewhere| format!("{}={}", place.display(), elsewhere.display()));
    let mut restore = vec!["restore", "pg", "--to", copy.data.to_str().unwrap()];
    moved.iter().for_each(|moved| restore.extend(["--tablespace", moved]));
    let failed = binary::run(home.0.path(), &restore);
    assert!(failed.code != 0 && !copy.data.exists(), "{}", failed.all());
    fs::write(last, sound).unwrap();
    let resumed = home.run(&[&restore[..], &["--json"]].concat(), 0).json();
    assert_eq!(resumed["report"]["resumed"], true, "{resumed}");
    copy.configure("archive_mode = off");
    copy.start();
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "3000");
    if let Some(elsewhere) = elsewhere {
        let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'";
        assert_eq!(copy.value(location), elsewhere.to_str().unwrap());
    }
}

/// What was damaged on the server, before it was pushed: every hash in the repository is right, and a server would stop there without a word.
#[test]
fn a_log_that_makes_no_sense_is_no_way_to_what_lies_behind() {
    let cluster = Setup { segment: 1, ..Setup::new(15).config("wal_keep_size = 1GB\nmax_wal_size = 2GB") }.start();
    let home = Home::new(&cluster);
    cluster.sql("create table t (n int, filler text)");
    home.run(&["backup"], 0);
    let insert = |from: u32| {
        cluster.sql(&format!("insert into t select g, repeat('x', 300) from generate_series({from}, {from} + 9999) g"));
    };
    insert(1);
    let early = mark(&cluster);
    // Only a later commit tells that a time was reached.
    cluster.sql("insert into t values (0)");
    insert(10_001);
    let middle = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn() - (2 << 20)::numeric)");
    insert(20_001);
    let late = mark(&cluster);
    let current = cluster.value("select pg_walfile_name(pg_switch_wal())");
    let mut files: Vec<std::path::PathBuf> =
        fs::read_dir(cluster.data.join("pg_wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.retain(|path| name(path).len() == 24 && name(path) <= current);
    files.sort();
    let pushed = home.0.path().join("pushed");
    fs::create_dir(&pushed).unwrap();
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        if name(file) == middle {
            bytes[500_000..500_064].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        let copy = pushed.join(name(file));
        fs::write(&copy, bytes).unwrap();
        home.run(&["wal-push", "pg", copy.to_str().unwrap()], 0);
    }
    let drilled = home.run(&["drill", "pg"], 4).all();
    assert!(drilled.contains("makes no sense at"), "the drill must fail, though a server comes up: {drilled}");
    for aim in [
        &["--at", &late.0][..],
        &["--lsn", &late.1],
        &["--xid", &cluster.value("select max(xmin::text::int) from t")],
        &[],
    ] {
        let refused = home.run(&[&["restore", "pg", "--to", "never"], aim].concat(), 4).all();
        assert!(refused.contains("makes no sense at") && refused.contains("--lsn"), "{aim:?}: {refused}");
        let left: Vec<_> = fs::read_dir(home.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_str().unwrap().contains("never")), "{aim:?} left {left:?}");
    }
    let told = home.run(&["timeline", "pg", "--json"], 3).json();
    let place = told["report"]["windows"][0]["broken"][0].as_str().unwrap().to_owned();
    assert!(told["report"]["commits"].as_u64() >= Some(3), "what comes behind is told of, too: {told}");
    // What a refused restore has laid out is no part of another one to the same place.
    let mut copy = Cluster::empty(cluster.major);
    let to = copy.data.to_str().unwrap().to_owned();
    home.run(&["restore", "pg", "--to", &to, "--at", &late.0], 4);
    home.run(&["restore", "pg", "--to", &to, "--snapshot", "1"], 0);
    copy.configure("archive_mode = off");
    copy.start();
    ready(&copy);
    assert_eq!(copy.value("select count(*) from t"), "0", "the snapshot as it was, without the log after it");
    // What comes before is reached: before, and right up to the damage.
    for (aim, least) in [(["--at", &early.0], 10_000), (["--lsn", &place], 10_000)] {
        let copy = home.back_to(&cluster, &aim);
        ready(&copy);
        let rows: u32 = copy.value("select count(*) from t").parse().unwrap();
        assert!(rows >= least && rows < 30_000, "{aim:?}: {rows}");
    }
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

fn a_dry_run_tells_of_the_log(home: &Home, (time, position): &(String, String)) {
    let told = |aim: &[&str]| {
        let ran = home.run(&[&["restore", "pg", "--to", "never", "--dry-run", "--json"], aim].concat(), 0);
        ran.json()["report"]["log"].clone()
    };
    let window = home.run(&["snapshots", "pg", "--json"], 0).json()["report"]["windows"][0].clone();
    let at = |lsn: &serde_json::Value| lsn.as_str().unwrap().parse::<Lsn>().unwrap().0;
    let exact = told(&["--lsn", position]);
    assert_eq!((exact["to"].as_str(), &exact["at_most"]), (Some(position.as_str()), &false.into()), "{exact}");
    assert_eq!(exact["bytes"], at(&exact["to"]) - at(&exact["from"]), "{exact}");
    let some = told(&["--at", time]);
    assert_eq!((&some["to"], &some["at_most"]), (&window["position"], &true.into()), "{some}");
    assert!(some["bytes"].as_u64() > exact["bytes"].as_u64() && some["from"] == exact["from"], "{some} {exact}");
    assert_eq!(told(&["--immediate"]), serde_json::Value::Null, "the snapshot needs no log");
    let said = home.run(&["restore", "pg", "--to", "never", "--dry-run", "--lsn", position], 0).out;
    assert!(said.contains(&format!("Then the log from {} to {position}", exact["from"].as_str().unwrap())), "{said}");
    assert!(!home.0.path().join("never").exists(), "a dry run writes nothing");
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
