//! `mode = "logical"`: dumps under load, proven by another server, and loaded into new databases. 13 with the programs of 15, Debian's 15, and the newest two.

use super::support::binary::{Ran, command, expect, finish};
use super::support::postgres::{Cluster, Setup, installed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A home with a source `pg` that dumps `cluster` as `user`.
fn home(cluster: &Cluster, user: &str, more: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    expect(home.path(), &["init", "--repo", "repo"], 0);
    configure(home.path(), cluster, user, more);
    home
}

/// Writes the source anew. `more` stands in `[source.postgres]`.
fn configure(home: &Path, cluster: &Cluster, user: &str, more: &str) {
    let path = home.join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split("[[source]]").next().unwrap();
    // Newer programs dump an older server, and what they have dumped goes into a server of theirs.
    let bin = installed(cluster.major.max(15));
    fs::write(
        path,
        format!(
            "{before}[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = \"{}\"\n[source.postgres]\nmode = \"logical\"\nbin = \"{}\"\n{more}",
            cluster.url(user),
            bin.display()
        ),
    )
    .unwrap();
}

fn report(ran: &Ran) -> Value {
    ran.json()["report"]["sources"][0].clone()
}

/// The tables of a database as the facts of a backup have them.
fn rows(report: &Value, database: usize) -> &Value {
    &report["facts"]["databases"][database]["tables"]
}

#[test]
fn dumps_under_load_are_proven_row_by_row() {
    for major in [13, 15, 17, 18] {
        let cluster = Cluster::new(major);
        cluster.pgbench_init(2);
        cluster.sql("create role clerk login password 'x'; create role \"Odd Name\"");
        cluster.sql("create database \"odd/name.%\" owner clerk");
        cluster.sql("create table public.mine (n int); alter table mine owner to clerk; grant select on mine to \"Odd Name\"; insert into mine select generate_series(1, 1000)");
        let home = home(&cluster, "postgres", "check = [\"select count(*) = 200000 from pgbench_accounts\"]\n");
        let at = home.path();
        let load = cluster.pgbench(60);
        let first = report(&expect(at, &["backup", "--json"], 0));
        let history = rows(&first, 1)["public.pgbench_history"].as_u64().unwrap();
        assert_eq!(rows(&first, 1)["public.mine"], 1000, "{first}");
        assert_eq!(first["facts"]["role_passwords"], true);
        let drill = expect(at, &["drill"], 0);
        assert!(drill.out.contains("rows in the snapshot that was dumped"), "{}", drill.out);
        assert!(drill.out.contains("postgres: roles: all there"), "{}", drill.out);
        // What was dumped is one moment of the load: the sums of pgbench agree with its history only inside one transaction.
        expect(at, &["backup"], 0);
        drop(load);
        let now: u64 = cluster.value("select count(*) from pgbench_history").parse().unwrap();
        assert!(now > history, "there was no load");
        expect(at, &["restore", "pg", "--snapshot", "1", "--to", "out"], 0);
        let mut files: Vec<String> = fs::read_dir(at.join("out/databases"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["odd%2Fname.%25.dump", "postgres.dump"]);
        assert!(fs::read_to_string(at.join("out/globals.sql")).unwrap().contains("CREATE ROLE clerk;"));
    }
}

#[test]
fn a_second_dump_stores_what_changed() {
    let cluster = Cluster::new(15);
    cluster.pgbench_init(10);
    let home = home(&cluster, "postgres", "");
    let at = home.path();
    let first = report(&expect(at, &["backup", "--json"], 0));
    cluster.sql("update pgbench_accounts set abalance = 1 where aid % 100000 < 100; insert into pgbench_history select 1, 1, g, 1, now(), '' from generate_series(1, 1000) g");
    let second = report(&expect(at, &["backup", "--json"], 0));
    let stored = |report: &Value| report["stats"]["bytes_stored"].as_f64().unwrap();
    let share = stored(&second) / stored(&first);
    assert!(share < 0.25, "a change of 0.1 % stored {share} of a full dump");
}

#[test]
fn a_selection_is_dumped_and_nothing_else() {
    let cluster = Cluster::new(17);
    cluster.sql("create database shop");
    cluster.sql("create database other");
    let select = "[source.postgres.select]\ndatabases = [\"postgres\"]\nschemas = [\"a b\"]\nexclude_tables = [\"a b.secret\"]\n";
    cluster.sql("create schema \"a b\"; create table \"a b\".t (n int); insert into \"a b\".t values (1), (2); create table \"a b\".secret (n int); insert into \"a b\".secret values (7); create table public.u (n int)");
    let home = home(&cluster, "postgres", select);
    let at = home.path();
    let report = report(&expect(at, &["backup", "--json"], 0));
    assert_eq!(report["facts"]["databases"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(*rows(&report, 0), serde_json::json!({"a b.t": 2}));
    expect(at, &["drill"], 0);
    let into = format!("{}&x=1", cluster.url("postgres")).replace("&x=1", "").replace("/postgres?", "/chosen?");
    expect(at, &["restore", "pg", "--into", &into], 0);
    assert_eq!(
        in_database(
            &cluster,
            "chosen",
            "select string_agg(relname, ',') from pg_class where relkind = 'r' and relnamespace::regnamespace::text !~ 'pg_|information'"
        ),
        "t"
    );
    configure(at, &cluster, "postgres", "[source.postgres.select]\ndatabases = [\"nowhere\"]\n");
    let missing = expect(at, &["backup"], 78);
    assert!(missing.err.contains("the server has no database nowhere"), "{}", missing.err);
}

/// `pg_dump --table` of a partitioned table takes no rows, and says nothing of a table that is not there where another is.
#[test]
fn a_table_that_is_named_comes_with_all_its_rows_or_not_at_all() {
    let cluster = Cluster::new(15);
    cluster.sql(
        "create schema cold; create table events (n int, at int) partition by range (at); \
         create table events_1 partition of events for values from (0) to (10) partition by range (n); \
         create table events_1_low partition of events_1 for values from (0) to (1000); \
         create table cold.events_2 partition of events for values from (10) to (20); \
         insert into events select g, g % 20 from generate_series(0, 499) g; create table other (n int); create table orders as select 1 n",
    );
    let home =
        home(&cluster, "postgres", "[source.postgres.select]\ntables = [\"public.events\", \"public.orders\"]\n");
    let at = home.path();
    let report = report(&expect(at, &["backup", "--json"], 0));
    assert_eq!(
        *rows(&report, 0),
        serde_json::json!({"public.events_1_low": 250, "cold.events_2": 250, "public.orders": 1}),
        "{report}"
    );
    expect(at, &["drill"], 0);
    expect(at, &["restore", "pg", "--into", &cluster.url("postgres").replace("/postgres?", "/chosen?")], 0);
    assert_eq!(in_database(&cluster, "chosen", "select count(*) from events"), "500");
    let keeps_rows = "keeps rows in cold.events_2, whose schema is not selected";
    for (select, says) in [
        ("tables = [\"public.orders\", \"public.customers\"]", "no database has public.customers"),
        ("schemas = [\"public\", \"nowhere\"]", "no database has nowhere"),
        ("schemas = [\"public\"]", keeps_rows),
        ("exclude_schemas = [\"cold\"]", keeps_rows),
    ] {
        configure(at, &cluster, "postgres", &format!("[source.postgres.select]\n{select}\n"));
        let refused = expect(at, &["backup"], 78);
        assert!(refused.err.contains(says), "{select}: {}", refused.err);
    }
    let select = "[source.postgres.select]\nexclude_schemas = [\"cold\"]\nexclude_tables = [\"public.events\"]\n";
    configure(at, &cluster, "postgres", select);
    let report = crate::logical::report(&expect(at, &["backup", "pg", "--accept-change", "--json"], 0));
    assert_eq!(*rows(&report, 1), serde_json::json!({"public.orders": 1, "public.other": 0}), "{report}");
}

fn in_database(cluster: &Cluster, database: &str, sql: &str) -> String {
    let output = cluster.tool(
        "psql",
        &[
            "-h",
            cluster.directory.to_str().unwrap(),
            "-p",
            &cluster.port.to_string(),
            "-U",
            "postgres",
            "-d",
            database,
            "-Atc",
            sql,
        ],
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn dumps_go_into_new_databases_and_never_into_used_ones() {
    let cluster = Cluster::new(15);
    cluster.pgbench_init(1);
    cluster.sql(
        "create role clerk; create table mine (n int); alter table mine owner to clerk; insert into mine values (1)",
    );
    let home = home(&cluster, "postgres", "");
    let at = home.path();
    expect(at, &["backup"], 0);
    let into = |name: &str| cluster.url("postgres").replace("/postgres?", &format!("/{name}?"));
    let used = expect(at, &["restore", "pg", "--into", &into("postgres")], 64);
    assert!(
        used.err.contains("is there already, and has tables") && used.err.contains("Nothing was restored"),
        "{}",
        used.err
    );
    let done = expect(at, &["restore", "pg", "--into", &into("again"), "--json"], 0).json();
    assert_eq!(done["report"]["checks"][0]["passed"], true, "{done}");
    assert_eq!(in_database(&cluster, "again", "select count(*) from pgbench_accounts"), "100000");
    assert_eq!(in_database(&cluster, "again", "select tableowner from pg_tables where tablename = 'mine'"), "clerk");
    // One that is there and empty will do.
    cluster.sql("create database empty");
    expect(at, &["restore", "pg", "--into", &into("empty")], 0);
    assert_eq!(in_database(&cluster, "empty", "select count(*) from mine"), "1");
    expect(at, &["restore", "pg", "--into", &into("again")], 64);
    cluster.sql("create role modest login; grant clerk to modest");
    let modest = cluster.url("modest").replace("/postgres?", "/theirs?");
    let refused = expect(at, &["restore", "pg", "--into", &modest], 1);
    assert!(
        refused.err.contains("may not make the database theirs") && refused.err.contains("alter role modest createdb"),
        "who may not make a database hears so before anything is fetched: {}",
        refused.err
    );
    let files = expect(at, &["restore", "pg", "--to", "files"], 0);
    assert!(files.out.contains("pg_restore -d NAME"), "what to do with dumps is said: {}", files.all());

    // Another server, of a newer version, has not the roles yet.
    let newer = Cluster::new(18);
    configure(at, &newer, "postgres", "");
    let there = newer.url("postgres").replace("/postgres?", "/moved?");
    let roles = expect(at, &["restore", "pg", "--into", &there], 1);
    assert!(roles.err.contains("the server has not all roles") && roles.err.contains("clerk"), "{}", roles.err);
    assert_eq!(in_database(&newer, "postgres", "select count(*) from pg_database where datname = 'moved'"), "0");
    expect(at, &["restore", "pg", "--into", &there, "--globals"], 0);
    assert_eq!(in_database(&newer, "moved", "select count(*) from pgbench_accounts"), "100000");
    // Another server behind the address of the source.
    let other = expect(at, &["backup"], 1);
    assert!(other.err.contains("is another server than before"), "{}", other.err);
    expect(at, &["backup", "--accept-change"], 0);
}

#[test]
fn what_cannot_be_dumped_says_why() {
    let cluster = Setup::new(17).start();
    cluster.sql("create role reader login");
    cluster.sql("create database closed");
    cluster.sql("revoke connect on database closed from public; create table t (n int); insert into t values (1)");
    let home = home(&cluster, "reader", "");
    let at = home.path();
    let denied = expect(at, &["backup"], 1);
    assert!(
        denied.err.contains("permission denied for table t") && denied.err.contains("Nothing was committed"),
        "{}",
        denied.err
    );
    // With the right to read, but not everywhere: partial, and without the passwords of roles.
    cluster.sql("grant select on t to reader");
    let partial = expect(at, &["backup", "--json"], 3);
    assert!(partial.out.contains("reader may not connect to it"), "{}", partial.all());
    assert_eq!(report(&partial)["facts"]["role_passwords"], false);
    configure(at, &cluster, "reader", "[source.postgres.select]\nexclude_databases = [\"closed\"]\n");
    let whole = expect(at, &["backup"], 0);
    assert!(whole.err.contains("without their passwords"), "{}", whole.all());
    expect(at, &["drill"], 0);

    // An older pg_dump refuses a newer server; that is said before it does.
    let text = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let old = installed(15);
    fs::write(at.join("blackstart.toml"), text.replace(installed(17).to_str().unwrap(), old.to_str().unwrap()))
        .unwrap();
    let checked = super::support::binary::run(at, &["check"]);
    assert!(checked.all().contains("the newest pg_dump here is 15"), "{}", checked.all());
    let older = expect(at, &["backup"], 1);
    assert!(older.err.contains("the server is PostgreSQL 17, and the newest pg_dump here is 15"), "{}", older.err);
    let environment = expect(at, &["drill"], 1);
    assert!(environment.err.contains("nothing was fetched"), "{}", environment.err);
    assert!(environment.err.contains("says nothing of the backup"), "{}", environment.err);
}

#[test]
fn a_server_that_dies_in_the_middle_leaves_nothing_behind() {
    let mut cluster = Cluster::new(17);
    cluster.pgbench_init(1);
    let home = home(&cluster, "postgres", "");
    let at = home.path();
    expect(at, &["backup"], 0);
    // A dump that waits for a lock; then the server goes.
    let mut holder = cluster.client();
    holder.query("begin; lock table pgbench_tellers in access exclusive mode").unwrap();
    let waiting = command(at, &["backup"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    cluster.kill();
    let ran = finish(&waiting.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.all());
    let listed = expect(at, &["snapshots", "--json"], 0).json();
    assert_eq!(listed["report"]["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn passwords_reach_the_programs_and_nothing_else() {
    let hba = "local all secretive scram-sha-256\nhost all secretive 127.0.0.1/32 scram-sha-256";
    let cluster = Setup { hba: hba.into(), ..Setup::new(17) }.start();
    cluster.sql("create role secretive superuser login password 'correct-horse'; create table t as select 1 n");
    let home = home(&cluster, "secretive", "");
    let at = home.path();
    let path = at.join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(at.join("password"), "correct-horse\n").unwrap();
    fs::write(&path, text.replace("[source.postgres]", "password = { file = \"password\" }\n[source.postgres]"))
        .unwrap();
    let ran = expect(at, &["backup", "--json"], 0);
    assert!(!ran.all().contains("correct-horse"), "{}", ran.all());
    fs::write(at.join("password"), "wrong-horse\n").unwrap();
    let wrong = expect(at, &["backup"], 1);
    assert!(!wrong.all().contains("wrong-horse") && wrong.err.contains("password"), "{}", wrong.all());
    // The way back asks for a password in the environment, never in the address.
    let into = cluster.url("secretive").replace("/postgres?", "/again?");
    let plain = into.replace("secretive@", "secretive:correct-horse@");
    let refused = expect(at, &["restore", "pg", "--into", &plain], 64);
    assert!(refused.err.contains("PGPASSWORD") && !refused.all().contains("correct-horse"), "{}", refused.all());
    let ran =
        finish(&command(at, &["restore", "pg", "--into", &into]).env("PGPASSWORD", "correct-horse").output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert_eq!(in_database(&cluster, "again", "select n from t"), "1");
}
