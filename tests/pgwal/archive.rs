//! A server whose `archive_command` is `wal-push`, and a copy of it that somebody starts beside it.

use crate::recovery::Home;
use crate::support::postgres::{Cluster, Setup, own_all};
use crate::world::wait;
use std::fs;

/// How far the log is stored, as `snapshots` says it: timeline and position.
fn stored(home: &Home) -> (u64, String) {
    let windows = home.run(&["snapshots", "pg", "--json"], 0).json()["report"]["windows"].clone();
    let last = windows.as_array().unwrap().last().unwrap().clone();
    (last["timeline"].as_u64().unwrap(), last["position"].as_str().unwrap().to_owned())
}

fn archived(cluster: &Cluster) -> String {
    cluster.sql("create table if not exists moves (n int); insert into moves values (1)");
    let file = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    cluster.sql("select pg_switch_wal()");
    wait(&format!("{file} is archived: {}", cluster.log()), || {
        cluster.value(&format!("select last_archived_wal >= '{file}' from pg_stat_archiver")) == "t"
    });
    file
}

#[test]
fn a_copy_that_is_started_beside_its_server_does_not_take_the_log_over() {
    let setup = Setup { segment: 1, ..Setup::new(15) }.config("archive_mode = on\narchive_command = ''");
    let server = setup.start();
    let home = Home::new(&server);
    // The server's user writes the log.
    own_all(home.0.path());
    let command = format!(
        "{} wal-push pg %p --config {}",
        env!("CARGO_BIN_EXE_blackstart"),
        home.0.path().join("blackstart.toml").display()
    );
    server.configure(&format!("archive_command = '{command}'"));
    server.sql("select pg_reload_conf()");
    archived(&server);
    assert_eq!(home.run(&["backup", "--json"], 0).json()["report"]["sources"][0]["facts"]["archive_mode"], "on");
    archived(&server);
    // A drill recovers a copy of it to a timeline of its own, and that archives nothing either.
    let proven = home.run(&["drill", "pg"], 0).all();
    assert!(proven.contains("log replayed"), "{proven}");
    assert_eq!(stored(&home).0, 1, "the log is still the server's");

    let mut copy = Cluster::empty(15);
    let said = home.run(&["restore", "pg", "--immediate", "--to", copy.data.to_str().unwrap()], 0).all();
    assert!(
        said.contains("It archives nothing and waits") && said.contains("alter system reset archive_command"),
        "{said}"
    );
    copy.configure("");
    copy.start();
    copy.await_recovery();
    assert_eq!(copy.value("select current_setting('archive_mode')"), "on", "its own settings stay");
    assert_eq!(copy.value("select current_setting('archive_command')"), "", "and it has nothing to archive with");
    copy.sql("create table only_here (n int); select pg_switch_wal()");
    let before = stored(&home);
    archived(&server);
    let after = stored(&home);
    assert!(
        before.0 == 1 && after.0 == 1 && after.1 > before.1,
        "the log is the server's still: {before:?}, {after:?}"
    );

    // Told to archive, while its server still runs: the server's segments must not be taken for archived.
    copy.sql("alter system reset archive_command");
    copy.sql("select pg_reload_conf()");
    archived(&copy);
    assert_eq!(stored(&home).0, 2);
    server.sql("insert into moves values (2)");
    server.sql("select pg_switch_wal()");
    wait("the server hears that its segment is not stored", || {
        server.log().contains("two servers archive into one log")
    });
    let waiting = fs::read_dir(server.data.join("pg_wal/archive_status")).unwrap();
    assert!(
        waiting.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".ready")),
        "the server keeps what was not stored"
    );
}

/// The command that a server had by ALTER SYSTEM is not lost, and no other setting is touched, however often a copy of a copy is made.
#[test]
fn what_alter_system_had_set_can_be_found_again() {
    let server = Setup { segment: 1, ..Setup::new(14) }.start();
    let home = Home::new(&server);
    server.sql("alter system set archive_command = 'test ! -f /mnt/%f && cp %p /mnt/%f'");
    server.sql("alter system set work_mem = '5MB'");
    // Not in force here, but in the copy.
    server.sql("alter system set synchronous_standby_names = 'blackstart'");
    home.run(&["backup"], 0);
    let mut copy = Cluster::empty(14);
    let said = home.run(&["restore", "pg", "--to", copy.data.to_str().unwrap()], 0).all();
    assert!(said.contains("postgresql.auto.conf.before-restore") && !said.contains("archive_library"), "{said}");
    let before = fs::read_to_string(copy.data.join("postgresql.auto.conf.before-restore")).unwrap();
    assert_eq!(
        before,
        fs::read_to_string(server.data.join("postgresql.auto.conf")).unwrap(),
        "whole, for ALTER SYSTEM drops comments"
    );
    let settings = fs::read_to_string(copy.data.join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains("\n# archive_command = 'test ! -f /mnt/%f && cp %p /mnt/%f'\n"), "{settings}");
    assert!(settings.contains("\nwork_mem = '5MB'\n") && !settings.contains("archive_library"), "{settings}");
    copy.configure("");
    copy.start();
    copy.await_recovery();
    assert_eq!(copy.value("select current_setting('archive_command') || current_setting('work_mem')"), "(disabled)5MB");
    assert_eq!(
        copy.value("show synchronous_standby_names"),
        "",
        "nothing follows it: its first commit would wait for ever"
    );
}
