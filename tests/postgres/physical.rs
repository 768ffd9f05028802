//! Physical snapshots from the command line: backup under load, drill with a real server, restore, start, compare.

use crate::support::binary::{self, Ran};
use crate::support::postgres::{Cluster, Setup, installed, own};
use blackstart::source::postgres::client::{Address, Client, Session};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use std::time::Duration;

/// A directory with a repository and a configuration for one cluster.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new(cluster: &Cluster, lines: &str) -> Home {
        Home::with_url(cluster.major, &cluster.url("postgres"), lines)
    }

    pub fn with_url(major: u32, url: &str, lines: &str) -> Home {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
        binary::expect(home.path(), &["init", "--repo", "./repository"], 0);
        let bin = installed(major).display().to_string();
        binary::configure(
            home.path(),
            &format!(
                "\n[[source]]\nname = \"pg\"\nkind = \"postgres\"\nurl = \"{url}\"\n[source.postgres]\nbin = \"{bin}\"\n{lines}\n"
            ),
        );
        Home(home)
    }

    pub fn run(&self, arguments: &[&str], code: i32) -> Ran {
        binary::expect(self.0.path(), arguments, code)
    }

    /// Backs up; the report of the one source.
    pub fn backup(&self, code: i32) -> serde_json::Value {
        self.run(&["backup", "--json"], code).json()["report"]["sources"][0].clone()
    }

    /// Restores into a cluster that does not run yet.
    pub fn restore(&self, to: &Cluster) {
        let said = self.run(&["restore", "pg", "--to", to.data.to_str().unwrap()], 0).out;
        assert!(said.contains(&format!("Start PostgreSQL {} on it", to.major)), "{said}");
        assert!(said.contains("Never remove backup_label"), "{said}");
    }
}

/// Restores and starts a server on it, on a port of its own.
pub fn revive(home: &Home, major: u32) -> Cluster {
    let mut copy = Cluster::empty(major);
    home.restore(&copy);
    copy.configure("archive_mode = off");
    copy.start();
    copy.await_recovery();
    copy
}

/// `pgbench` moves money: the four sums are always equal in a consistent copy.
fn sums(cluster: &Cluster) -> String {
    cluster.value(
        "select concat_ws(' ', (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
         (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history))",
    )
}

fn is_consistent(cluster: &Cluster) -> bool {
    let sums = sums(cluster);
    let first = sums.split(' ').next().unwrap();
    sums.split(' ').count() == 4 && sums.split(' ').all(|sum| sum == first)
}

/// A tablespace outside the data directory, with a table in it.
pub fn with_tablespace(cluster: &Cluster) -> std::path::PathBuf {
    let place = cluster.directory.join("fast disk");
    fs::create_dir(&place).unwrap();
    own(&place);
    cluster.sql(&format!("create tablespace fast location '{}'", place.display()));
    cluster.sql("create table elsewhere (n int primary key) tablespace fast; insert into elsewhere select generate_series(1, 20000)");
    place
}

#[test]
fn a_cluster_under_load_comes_back_over_the_connection() {
    comes_back("stream", vec![13, 15, 16, 17, 18]);
}

#[test]
fn a_cluster_under_load_comes_back_from_its_files() {
    comes_back("files", vec![14, 15, 18]);
}

fn comes_back(transport: &str, majors: Vec<u32>) {
    for major in majors {
        // The old grammar with small segments, in MB.
        let segment = if major <= 14 { 1 } else { 16 };
        let setup = Setup { segment, ..Setup::new(major) };
        let cluster = setup.start();
        cluster.pgbench_init(2);
        let place = with_tablespace(&cluster);
        cluster.sql("create unlogged table fleeting as select generate_series(1, 1000) n");
        let check = "check = [\"select count(*) = 20000 from elsewhere\"]";
        let home = Home::new(&cluster, &format!("{check}\ntransport = \"{transport}\""));
        let load = cluster.pgbench(120);
        let first = home.backup(0);
        assert_eq!(first["outcome"], "complete", "{first}");
        assert_eq!(first["facts"]["transport"], transport);
        assert_eq!(first["facts"]["tablespaces"][0]["location"], place.to_str().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let second = home.backup(0);
        drop(load);
        assert_eq!(second["mode"], "incremental");
        let stored = |report: &serde_json::Value| report["stats"]["bytes_new"].as_u64().unwrap();
        // All of the WAL is new (how much there is, the machine's speed decides), and the pages that changed; the rest is not stored again.
        let position = |what: &str| u64::from_str_radix(second["facts"]["log"][what].as_str().unwrap(), 16).unwrap();
        let wal = position("end") - position("start") + ((4 * u64::from(segment)) << 20);
        assert!(stored(&second) < stored(&first) / 2 + wal, "{major}: {first}\n{second}");
        let drill = home.run(&["drill", "pg", "--json"], 0);
        let checks = drill.json()["report"]["sources"][0]["checks"].clone();
        let expected =
            |name: &str| checks.as_array().unwrap().iter().find(|c| c["name"] == name).map(|c| &c["expected"]);
        assert!(expected("server").is_some(), "the server's start is a check: {checks}");
        assert!(
            expected("select count(*) = 20000 from elsewhere").is_some(),
            "the operator's query is a check: {checks}"
        );
        // The program exists from version 14 on. That it was not run is said.
        let amcheck = if major >= 14 { "nothing wrong" } else { "not run" };
        assert_eq!(expected("pg_amcheck"), Some(&amcheck.into()), "{major}: {checks}");
        // What the live cluster has is not what a copy may touch.
        let before = fs::metadata(&place).unwrap().modified().unwrap();
        let copy = revive(&home, major);
        let data = copy.data.to_str().unwrap();
        let in_place = home.run(&["restore", "pg", "--to", data, "--in-place", "--confirm", "pg"], 64).err;
        assert!(in_place.contains("swap the directories") && !in_place.contains("-wal"), "{in_place}");
        assert!(is_consistent(&copy), "{major}: {}", sums(&copy));
        assert_eq!(copy.value("select count(*) from elsewhere"), "20000");
        assert_eq!(copy.value("select count(*) from fleeting"), "0", "unlogged tables are empty after a recovery");
        assert_eq!(copy.value("select timeline_id from pg_control_checkpoint()"), "2", "a timeline of its own");
        let link = fs::read_dir(copy.data.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
        assert!(fs::read_link(&link).unwrap().starts_with(copy.data.join("tablespaces")), "{}", link.display());
        assert_eq!(fs::metadata(&place).unwrap().modified().unwrap(), before);
        assert!(is_consistent(&cluster));
    }
}

#[test]
fn what_keeps_a_backup_from_running_is_said_with_its_cure() {
    let setup = Setup::new(15).config("wal_level = minimal\nmax_wal_senders = 0");
    let cluster = setup.start();
    let home = Home::new(&cluster, "");
    let minimal = home.run(&["backup"], 1).all();
    assert!(minimal.contains("wal_level = replica") || minimal.contains("max_wal_senders"), "{minimal}");
    let protect = binary::run(home.0.path(), &["protect", &cluster.url("postgres")]).all();
    assert!(
        protect.contains("mode logical") && protect.contains("alter system set wal_level = replica"),
        "a server that writes too little WAL is dumped, however near its files are: {protect}"
    );
    let cluster = Cluster::new(15);
    cluster.sql("create role weak login");
    let home = Home::with_url(15, &cluster.url("weak"), "");
    let weak = home.run(&["backup"], 1).all();
    assert!(weak.contains("alter role weak replication"), "{weak}");
    let home = Home::with_url(15, "postgres://u:hunter2@127.0.0.1/postgres", "");
    let plain = home.run(&["backup"], 78).all();
    assert!(plain.contains("password in plain text") && !plain.contains("hunter2"), "{plain}");
    // Nothing half-done is in the repository.
    assert!(
        home.run(&["snapshots", "--json"], 0).out.contains("\"sources\":[]")
            || home.run(&["snapshots"], 0).all().contains("no")
    );
}

#[test]
fn another_cluster_behind_the_address_stops_the_run() {
    let mut cluster = Cluster::new(15);
    let homes = ["stream", "files"].map(|transport| Home::new(&cluster, &format!("transport = \"{transport}\"")));
    homes.iter().for_each(|home| drop(home.backup(0)));
    cluster.stop();
    fs::remove_dir_all(&cluster.data).unwrap();
    let initdb = ["-U", "postgres", "-A", "trust", "--no-sync", "-D", cluster.data.to_str().unwrap()];
    cluster.tool("initdb", &initdb);
    cluster.configure("");
    cluster.start();
    for home in homes {
        let asked = home.run(&["backup"], 1).all();
        assert!(asked.contains("system identifier") && asked.contains("--accept-change"), "{asked}");
        let report = home.run(&["backup", "--accept-change", "--json"], 0).json();
        assert_eq!(report["report"]["sources"][0]["seq"], 2);
        home.run(&["drill", "pg"], 0);
    }
}

/// What keeps a server from starting on a copy that is silently damaged must be there.
#[test]
fn a_copy_without_its_label_is_refused() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
    fs::create_dir(data.path().join("pg_tblspc")).unwrap();
    let settle = || blackstart::source::postgres::restored::settle(data.path(), data.path(), &[]);
    assert!(format!("{:#}", settle().unwrap_err()).contains("backup_label"));
    fs::write(data.path().join("backup_label"), "START WAL LOCATION: …").unwrap();
    settle().unwrap();
}

#[test]
fn damaged_pages_make_a_partial_snapshot_that_names_them() {
    for (major, transport) in [(14, "stream"), (15, "stream"), (17, "files")] {
        let mut cluster = Cluster::new(major);
        cluster.sql(
            "create table broken as select generate_series(1, 5000) n; create table sound as select 1 n; checkpoint",
        );
        let path = cluster.value("select pg_relation_filepath('broken')");
        cluster.stop();
        let file = cluster.data.join(&path);
        let mut bytes = fs::read(&file).unwrap();
        bytes[8192 + 4000] ^= 0xff;
        fs::write(&file, bytes).unwrap();
        cluster.start();
        let home = Home::new(&cluster, &format!("transport = \"{transport}\""));
        let report = home.backup(3);
        assert_eq!(report["outcome"], "partial");
        let why = report["skipped"][0]["why"].as_str().unwrap();
        let named = format!("{} {why}", report["skipped"][0]["path"]);
        assert!(why.contains("checksum") && named.contains(&path), "{major}: {named}");
        // It is kept, and what is sound in it comes back.
        let copy = Cluster::empty(major);
        home.run(&["restore", "pg", "--to", copy.data.to_str().unwrap()], 3);
        let mut copy = copy;
        copy.configure("");
        copy.start();
        assert_eq!(copy.value("select count(*) from sound"), "1");
        let drill = home.run(&["drill", "pg", "--json"], 4).json();
        let failed = drill["report"]["sources"][0]["checks"].to_string();
        assert!(failed.contains("public.broken"), "{failed}");
    }
}

#[test]
fn a_server_that_dies_meanwhile_leaves_no_snapshot() {
    let mut cluster = Cluster::new(15);
    cluster.pgbench_init(15);
    for transport in ["stream", "files"] {
        let home = Home::new(&cluster, &format!("transport = \"{transport}\""));
        let mut backup = binary::command(home.0.path(), &["backup"]);
        let backup = backup.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut watch = cluster.client();
        let copying = match transport {
            "stream" => "select count(*) from pg_stat_progress_basebackup where phase = 'streaming database files'",
            _ => "select count(*) from pg_stat_activity where state = 'idle' and query like '%catalog_version_no%'",
        };
        while watch.value(copying).unwrap().unwrap() == "0" {
            std::thread::sleep(Duration::from_millis(2));
        }
        cluster.kill();
        let ran = binary::finish(&backup.wait_with_output().unwrap());
        assert_eq!(ran.code, 1, "{transport}: {}", ran.all());
        assert!(binary::files_below(&home.0.path().join("repository/snapshots"), |_| true).is_empty());
        cluster.start();
        home.backup(0);
    }
}

#[test]
fn a_standby_is_backed_up_and_its_copy_is_no_standby() {
    let primary = Setup { segment: 1, ..Setup::new(15) }.config("wal_keep_size = '64MB'").start();
    primary.pgbench_init(1);
    let mut standby = Cluster::empty(15);
    let mut arguments: Vec<String> = primary.reach().to_vec();
    arguments.extend([
        "-D".into(),
        standby.data.display().to_string(),
        "-c".into(),
        "fast".into(),
        "-R".into(),
        "--no-sync".into(),
    ]);
    primary.tool("pg_basebackup", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    standby.configure("");
    standby.start();
    let home = Home::new(&standby, "");
    // The primary is idle: nothing moves on, and the backup ends all the same.
    let report = home.backup(0);
    assert_eq!(report["facts"]["is_standby"], true);
    home.run(&["drill", "pg"], 0);
    // It comes out of recovery, as a standby never does.
    let copy = revive(&home, 15);
    assert_eq!(copy.value("select count(*) from pgbench_accounts"), "100000");
}

#[test]
fn protect_finds_a_server_and_proves_it_at_once() {
    let hba = "host all keeper 127.0.0.1/32 scram-sha-256\nhost replication keeper 127.0.0.1/32 scram-sha-256";
    let cluster = Setup { hba: hba.into(), ..Setup::new(15) }.start();
    cluster.sql("create role keeper login replication password 'hunter2'; create table t as select 1 n");
    let home = tempfile::tempdir().unwrap();
    let url = cluster.tcp_url("keeper", "");
    let output = binary::command(home.path(), &["protect", &url, "--repo", "./backups"])
        .env("PGPASSWORD", "hunter2")
        .output()
        .unwrap();
    let ran = binary::finish(&output);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(ran.all().contains("PROVEN") && ran.all().contains("mode physical"), "{}", ran.all());
    assert!(ran.all().contains("grant execute on function pg_backup_start"), "a better way is named: {}", ran.all());
    let config = fs::read_to_string(home.path().join("blackstart.toml")).unwrap();
    assert!(config.contains("password = { env = \"PGPASSWORD\" }"), "{config}");
    assert!(!format!("{config}{}", ran.all()).contains("hunter2"), "a secret shows");
    // How it is done is a note; what a timer will lack is said.
    assert!(ran.out.contains("note: PostgreSQL 15") && !ran.err.contains("mode physical"), "{}", ran.all());
    assert!(ran.out.contains("The password is read from $PGPASSWORD"), "{}", ran.all());
    let without = binary::expect(tempfile::tempdir().unwrap().path(), &["protect", &url, "--repo", "./backups"], 78);
    assert!(without.err.contains("PGPASSWORD in its environment"), "{}", without.err);
    let with = binary::run(home.path(), &["protect", &cluster.tcp_url("keeper:hunter2", "")]);
    assert!(with.code == 64 && !with.all().contains("hunter2"), "{} {}", with.code, with.all());
}

#[test]
fn protect_dumps_where_the_role_may_not_replicate() {
    let cluster = Setup::new(15).start();
    cluster.sql("create role reader login; grant pg_read_all_data to reader; create table t as select n from generate_series(1, 77) n");
    let home = tempfile::tempdir().unwrap();
    let ran = binary::expect(home.path(), &["protect", &cluster.url("reader"), "--repo", "./backups"], 0).all();
    assert!(ran.contains("mode logical") && ran.contains("PROVEN"), "{ran}");
    assert!(ran.contains("alter role reader replication"), "what would allow a better mode is named: {ran}");
    let config = fs::read_to_string(home.path().join("blackstart.toml")).unwrap();
    assert!(config.contains("mode = \"logical\""), "{config}");
    // The next one goes the same way, and asks nothing.
    let again = binary::expect(home.path(), &["backup", "--json"], 0).json();
    assert_eq!(again["report"]["sources"][0]["kind"], "postgres-logical", "{again}");
    // What is in the way only for now is no reason to choose for good.
    let full = Setup::new(15).config("max_wal_senders = 1\nmax_replication_slots = 1").start();
    full.sql("create role keeper login replication");
    let taken = Client::connect(&Address::parse(&full.url("keeper")).unwrap(), Session::Replication).unwrap();
    let home = tempfile::tempdir().unwrap();
    let ran = binary::run(home.path(), &["protect", &full.url("keeper"), "--repo", "./backups"]);
    assert!(ran.code == 1 && ran.all().contains("max_wal_senders"), "{}", ran.all());
    drop(taken);
}

/// Version 13 has no `pg_read_all_data`: what is named there can be granted there.
#[test]
fn what_would_help_a_role_is_what_its_server_knows() {
    let cluster = Cluster::new(13);
    cluster.sql("create role reader login; create table t as select n from generate_series(1, 77) n; grant select on t to reader");
    let home = tempfile::tempdir().unwrap();
    let ran = binary::expect(home.path(), &["protect", &cluster.url("reader"), "--repo", "./backups"], 0).all();
    assert!(ran.contains("mode logical") && ran.contains("PROVEN"), "{ran}");
    let cure = "grant select on all tables in schema public to reader";
    assert!(ran.contains(cure) && !ran.contains("pg_read_all_data"), "the cure is one for version 13: {ran}");
    cluster.sql(cure);
}

#[test]
fn a_missing_server_program_is_no_fault_of_the_backup() {
    let cluster = Cluster::new(17);
    let home = Home::new(&cluster, "");
    home.backup(0);
    let path = home.0.path().join("blackstart.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("/postgresql/17/bin", "/postgresql/17/nowhere")).unwrap();
    let drill = home.run(&["drill", "pg"], 1).all();
    assert!(drill.contains("nothing was fetched"), "{drill}");
    assert!(
        drill.contains("no program `postgres` of version 17") && drill.contains("says nothing of the backup"),
        "{drill}"
    );
    assert!(!drill.contains("FAILED"), "{drill}");
}

/// The tree that `recover.py` brings back is a data directory, once its tablespaces are linked as the README in the repository says.
#[test]
fn a_snapshot_comes_back_without_us() {
    let cluster = Cluster::new(15);
    with_tablespace(&cluster);
    // As a server has it that was once restored itself: not in force before the next recovery, which would end at once.
    cluster.sql("alter system set recovery_target_lsn = '0/1'");
    cluster.sql("alter system set recovery_target_timeline = '1'");
    cluster.sql("alter system set synchronous_standby_names = 'somebody'");
    let home = Home::new(&cluster, "");
    home.backup(0);
    let repository = home.0.path().join("repository");
    let mut copy = Cluster::empty(15);
    let output = std::process::Command::new("python3")
        .arg(repository.join("recover.py"))
        .arg("--repository")
        .arg(&repository)
        .arg("--identity")
        .arg(home.0.path().join("blackstart/keys/recovery.key"))
        .args(["--root", &binary::root_of(home.0.path()), "restore", "pg"])
        .arg(&copy.data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Word for word.
    let page = fs::read_to_string(repository.join("README.txt")).unwrap();
    let lines = page.split("in that directory:\n\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    assert!(lines.lines().count() >= 5 && lines.lines().all(|line| line.starts_with("     ")), "{lines}");
    let script = format!("set -e; cd \"$0\"; {lines}");
    assert!(std::process::Command::new("sh").args(["-c", &script]).arg(&copy.data).status().unwrap().success());
    crate::support::postgres::own_all(&copy.data);
    copy.configure("");
    copy.start();
    copy.await_recovery();
    assert_eq!(copy.value("show synchronous_standby_names"), "", "its first commit would wait for ever");
    assert_eq!(copy.value("select count(*) from elsewhere"), "20000");
    copy.tool(
        "pg_amcheck",
        &copy.reach().iter().map(String::as_str).chain(["--all", "--install-missing"]).collect::<Vec<_>>(),
    );
}

/// Debian keeps the configuration in `/etc/postgresql`: it comes along, and the restored directory starts by itself.
#[test]
fn configuration_outside_the_data_directory_comes_along() {
    for transport in ["stream", "files"] {
        let mut cluster = Cluster::new(15);
        cluster.configure_outside("work_mem = '7MB'\n");
        let home = Home::new(&cluster, &format!("transport = \"{transport}\""));
        let report = home.backup(0);
        assert_eq!(report["facts"]["config_files"].as_array().unwrap().len(), 4, "{report}");
        home.run(&["drill", "pg"], 0);
        let copy = revive(&home, 15);
        assert_eq!(copy.value("show work_mem"), "7MB");
        assert_eq!(copy.value("show hba_file"), copy.data.join("pg_hba.conf").to_str().unwrap());
    }
}

/// A role that may not see the configuration: that is told, and the copy starts all the same, with as many connections as the old server's log asks for.
#[test]
fn configuration_that_cannot_be_taken_along_is_told_and_the_copy_starts() {
    let hba = "local replication replicator trust\nlocal all replicator reject";
    let mut cluster = Setup { hba: hba.into(), ..Setup::new(15) }.start();
    cluster.configure_outside("max_connections = 250\n");
    cluster.sql("create role keeper login replication; create role replicator login replication");
    for role in ["keeper", "replicator"] {
        let home = Home::with_url(15, &cluster.url(role), "transport = \"stream\"");
        let told = home.run(&["backup"], 0).out;
        let why = format!("was not all taken along: {role} may not see where it lies");
        assert!(told.contains(&why), "{told}");
        let mut copy = Cluster::empty(15);
        let told = home.run(&["restore", "pg", "--to", copy.data.to_str().unwrap()], 0).out;
        assert!(told.contains("The old server's configuration lay outside the data directory"), "{told}");
        // It lets in the operating system's users only.
        fs::write(copy.data.join("pg_hba.conf"), "local all all trust\n").unwrap();
        copy.configure("archive_mode = off");
        copy.start();
        copy.await_recovery();
        assert_eq!(copy.value("show max_connections"), "250", "with less, its log is refused");
    }
    // With the rights that the documentation names, it comes along.
    cluster.sql(
        "grant pg_read_all_settings, pg_read_server_files to keeper; \
         grant execute on function pg_read_binary_file(text, bigint, bigint) to keeper",
    );
    let home = Home::with_url(15, &cluster.url("keeper"), "transport = \"stream\"");
    let report = home.backup(0);
    assert_eq!(report["facts"]["config_files"].as_array().unwrap().len(), 4, "{report}");
    assert!(report["facts"]["config_missing"].is_null(), "{report}");
}

/// The least that copying files needs: two functions, and sight of where the data is. Without a slot the WAL is looked for in the end.
#[test]
fn grants_allow_the_copy_of_files_without_a_superuser() {
    let cluster = Setup { segment: 1, ..Setup::new(15) }.start();
    cluster.sql(
        "create role keeper login; grant pg_read_all_settings to keeper; \
         grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to keeper",
    );
    let home = Home::with_url(15, &cluster.url("keeper"), "transport = \"files\"");
    let report = home.backup(0);
    assert_eq!(report["facts"]["transport"], "files");
    home.run(&["drill", "pg"], 0);
    home.run(&["check", "--identity", "blackstart/keys/recovery.key"], 0);
    // Nothing has changed, so nothing of the tables is read again, and hardly anything is stored.
    std::thread::sleep(Duration::from_millis(2500));
    home.backup(0);
    std::thread::sleep(Duration::from_millis(2500));
    let third = home.backup(0);
    let (bytes, read) = (third["stats"]["bytes"].as_u64().unwrap(), third["stats"]["bytes_read"].as_u64().unwrap());
    assert!(read < bytes / 4, "{read} of {bytes} bytes were read again");
    home.run(&["drill", "pg"], 0);
}
