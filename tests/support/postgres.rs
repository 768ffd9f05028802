//! Real PostgreSQL clusters, each in a fresh directory, on a socket and a loopback port of its own, run by an unprivileged user.
//! `scripts/test-servers` installs the servers; a missing one fails the test.

use blackstart::source::postgres::client::{Address, Client, Session};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::servers::free_ports;

/// All majors that are supported: 13 and 14 with the old grammars, Debian 12's own, and what came after.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// A cluster and, while it runs, its server. Everything ends and goes with it, however this process ends.
pub struct Cluster {
    pub major: u32,
    pub directory: PathBuf,
    pub data: PathBuf,
    pub port: u16,
    /// Where `postgresql.conf` lies when that is not the data directory.
    pub config_file: Option<PathBuf>,
    server: Option<Child>,
    _broom: Child,
}

/// How to make a cluster.
#[derive(Clone)]
pub struct Setup {
    pub major: u32,
    /// MB of a WAL segment.
    pub segment: u32,
    pub checksums: bool,
    /// Lines of `postgresql.conf`.
    pub config: String,
    /// Lines of `pg_hba.conf` before those that trust everybody on the socket.
    pub hba: String,
}

impl Setup {
    pub fn new(major: u32) -> Setup {
        Setup { major, segment: 16, checksums: true, config: String::new(), hba: String::new() }
    }

    pub fn config(mut self, lines: &str) -> Setup {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// Makes the cluster and starts it.
    pub fn start(self) -> Cluster {
        let mut cluster = Cluster::empty(self.major);
        let mut initdb = vec!["-U".to_owned(), "postgres".into(), "-A".into(), "trust".into(), "--no-sync".into()];
        initdb.push(format!("--wal-segsize={}", self.segment));
        match (self.checksums, self.major >= 18) {
            (true, false) => initdb.push("--data-checksums".into()),
            (false, true) => initdb.push("--no-data-checksums".into()),
            _ => {}
        }
        initdb.extend(["-D".to_owned(), cluster.data.display().to_string()]);
        cluster.tool("initdb", &initdb.iter().map(String::as_str).collect::<Vec<_>>());
        let hba = fs::read_to_string(cluster.data.join("pg_hba.conf")).unwrap();
        fs::write(cluster.data.join("pg_hba.conf"), format!("{}\n{hba}", self.hba)).unwrap();
        cluster.configure(&self.config);
        cluster.start();
        cluster
    }
}

impl Cluster {
    /// A running cluster with nothing special about it.
    pub fn new(major: u32) -> Cluster {
        Setup::new(major).start()
    }

    /// A directory and a port for a cluster that is yet to be: `data` does not exist.
    pub fn empty(major: u32) -> Cluster {
        let directory = tempfile::Builder::new().prefix("blackstart-pg-").tempdir().unwrap().keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        own(&directory);
        let [port] = free_ports();
        let broom = leashed(Command::new("sh").args(["-c", r#"read -r _; sleep 0.3; rm -rf "$0""#]).arg(&directory));
        Cluster { major, data: directory.join("data"), directory, port, config_file: None, server: None, _broom: broom }
    }

    /// Adds lines to `postgresql.conf`: those that every cluster here has, and these.
    pub fn configure(&self, lines: &str) {
        let path = self.config_file.clone().unwrap_or_else(|| self.data.join("postgresql.conf"));
        let old = fs::read_to_string(&path).unwrap();
        let directory = self.directory.display();
        let ours = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{directory}'\nfsync = off\nmax_connections = 30\n\
             shared_buffers = 16MB\nlog_min_messages = warning\n",
            self.port
        );
        fs::write(&path, format!("{old}\n{ours}{lines}\n")).unwrap();
    }

    /// Moves the configuration out of the data directory, as Debian has it, and adds `lines` to a file of `conf.d`.
    pub fn configure_outside(&mut self, lines: &str) {
        self.stop();
        let etc = self.directory.join("etc");
        fs::create_dir_all(etc.join("conf.d")).unwrap();
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::rename(self.data.join(name), etc.join(name)).unwrap();
        }
        fs::write(etc.join("conf.d/local.conf"), lines).unwrap();
        let (data, etc) = (self.data.display().to_string(), etc.display().to_string());
        self.config_file = Some(format!("{etc}/postgresql.conf").into());
        self.configure(&format!(
            "data_directory = '{data}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\ninclude_dir = 'conf.d'"
        ));
        own_all(&self.directory);
        self.start();
    }

    pub fn start(&mut self) {
        self.launch();
        let started = Instant::now();
        while let Err(error) = self.try_client("postgres") {
            assert!(started.elapsed() < Duration::from_secs(60), "{error:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a restored copy has recovered: it takes connections before that.
    pub fn await_recovery(&self) {
        let started = Instant::now();
        while self.value("select pg_is_in_recovery()") != "f" {
            assert!(started.elapsed() < Duration::from_secs(60), "recovery does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the server without waiting for it.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        // A shell waits for the end of its input, which comes when this process ends, however it ends; then it stops the server by its pid.
        const LEASH: &str = r#""$@" & server=$!; read -r _; kill -QUIT "$server"; wait "$server""#;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", LEASH, "sh"]).args(as_user()).arg(self.bin("postgres")).arg("-D").arg(&self.data);
        if let Some(file) = &self.config_file {
            shell.arg("-c").arg(format!("config_file={}", file.display()));
        }
        shell.env("LC_ALL", "C").stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(leashed(&mut shell));
    }

    /// Stops the server in an orderly way.
    pub fn stop(&mut self) {
        self.signal("-INT");
        self.await_end();
    }

    /// Ends the server as a crash does.
    pub fn kill(&mut self) {
        self.signal("-QUIT");
        self.await_end();
    }

    fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).unwrap().lines().next().unwrap().to_owned();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn await_end(&mut self) {
        let started = Instant::now();
        while self.data.join("postmaster.pid").exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(mut shell) = self.server.take() {
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// A URL of the socket.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@/postgres?host={}&port={}", self.directory.display(), self.port)
    }

    /// A URL over TCP; `tail` such as `?sslmode=require`.
    pub fn tcp_url(&self, user: &str, tail: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres{tail}", self.port)
    }

    pub fn client(&self) -> Client {
        self.try_client("postgres").unwrap()
    }

    pub fn try_client(&self, user: &str) -> anyhow::Result<Client> {
        Client::connect(&Address::parse(&self.url(user))?, Session::Plain)
    }

    /// Runs statements as the superuser.
    pub fn sql(&self, sql: &str) {
        self.client().query(sql).unwrap();
    }

    /// The one value of a query, as the superuser; empty for NULL.
    pub fn value(&self, sql: &str) -> String {
        self.client().value(sql).unwrap().unwrap_or_default()
    }

    pub fn bin(&self, tool: &str) -> PathBuf {
        installed(self.major).join(tool)
    }

    /// Runs one of PostgreSQL's programs as the user that owns the cluster.
    pub fn tool(&self, tool: &str, arguments: &[&str]) -> Output {
        let output = self.tool_unchecked(tool, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {text}\n{}", self.log());
        output
    }

    pub fn tool_unchecked(&self, tool: &str, arguments: &[&str]) -> Output {
        command(&self.bin(tool)).args(arguments).current_dir(&self.directory).output().unwrap()
    }

    /// Tables of `pgbench`; a scale of 1 is 15 MB.
    pub fn pgbench_init(&self, scale: u32) {
        let output = command(&self.bin("pgbench"))
            .args(self.reach())
            .args(["-i", "-q", "-s", &scale.to_string(), "postgres"])
            .current_dir(&self.directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A load in the background, until it is dropped.
    pub fn pgbench(&self, seconds: u32) -> Load {
        let mut load = command(&self.bin("pgbench"));
        load.args(self.reach()).args(["-n", "-c", "2", "-T", &seconds.to_string(), "postgres"]);
        load.current_dir(&self.directory).stdout(Stdio::null()).stderr(Stdio::null());
        Load(load.spawn().unwrap())
    }

    /// How PostgreSQL's programs reach the server.
    pub fn reach(&self) -> [String; 6] {
        let words = ["-h", self.directory.to_str().unwrap(), "-p", &self.port.to_string(), "-U", "postgres"];
        words.map(str::to_owned)
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let mut lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.reverse();
        lines.join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut shell) = self.server.take() {
            drop(shell.stdin.take());
            shell.wait().ok();
        }
    }
}

/// A running `pgbench`.
pub struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The programs of a major version.
pub fn installed(major: u32) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers/venv");
    let unpacked = std::env::var_os("BLACKSTART_TEST_SERVERS").map_or_else(default, PathBuf::from);
    let places = [unpacked.join(format!("postgresql/{major}/bin")), format!("/usr/lib/postgresql/{major}/bin").into()];
    places.iter().find(|bin| bin.join("postgres").exists()).cloned().unwrap_or_else(|| {
        panic!("PostgreSQL {major} is missing: run scripts/test-servers, which installs the servers for tests")
    })
}

/// A program of PostgreSQL, as the unprivileged user. It finds its own libraries; `PGPORT` and the like do not reach it.
fn command(program: &Path) -> Command {
    let mut words: Vec<String> = as_user();
    words.push(program.display().to_string());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("LC_ALL", "C").env_remove("PGPORT").env_remove("PGHOST").env_remove("PGPASSWORD");
    command
}

/// The words before a command that must not run as root.
pub fn as_user() -> Vec<String> {
    match unprivileged() {
        None => vec!["env".to_owned()],
        Some((uid, gid)) => {
            vec!["setpriv".into(), format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]
        }
    }
}

/// Whom servers run as when the tests run as root: `nobody`.
pub fn unprivileged() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((65534, 65534))
}

/// Gives `path` to the user that servers run as.
pub fn own(path: &Path) {
    if let Some((uid, gid)) = unprivileged() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// As [`own`], with everything below.
pub fn own_all(path: &Path) {
    own(path);
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| own_all(&entry.unwrap().path()));
    }
}

/// Starts a process whose standard input ends with this process.
fn leashed(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).process_group(0).spawn().unwrap()
}
