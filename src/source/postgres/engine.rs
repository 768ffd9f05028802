//! A real server on a restored data directory, for a proof: reachable over a socket in scratch alone, archiving nothing, replicating nothing, running nothing
//! in the background. It is stopped by its pid, and killed with its owner.
//!
//! Every setting goes on the command line, which counts before `postgresql.conf` and `postgresql.auto.conf`: what those say must not reach the
//! production that the copy came from.

use anyhow::{Context, Result};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{Address, Client, ServerError, Session};
use crate::accounts::Accounts;
use crate::child::{Child, Ended, Spec};
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::interrupt;

/// How long recovery may take until connections are accepted.
const RECOVERY_MAX: Duration = Duration::from_secs(6 * 3600);
/// What a standby says when it could be read, and how long it may then take.
const CONSISTENT: &str = "consistent recovery state reached";
const CONSISTENT_MAX: Duration = Duration::from_secs(60);
/// `sun_path` of Linux, less its NUL and the socket's own name.
const SOCKET_DIRECTORY_MAX: usize = 107 - ".s.PGSQL.5432.lock".len();
const PORT: u16 = 5432;
/// `nobody`, where there is no account `postgres`.
const NOBODY: (u32, u32) = (65534, 65534);

/// Settings that keep the copy to itself, and small.
const ISOLATED: [(&str, &str); 30] = [
    ("listen_addresses", ""),
    ("port", "5432"),
    ("ssl", "off"),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("synchronous_standby_names", ""),
    // Connections come when recovery is over, and no setting of the original is in its way.
    ("hot_standby", "off"),
    ("recovery_min_apply_delay", "0"),
    ("recovery_end_command", ""),
    ("archive_cleanup_command", ""),
    ("max_connections", "10"),
    ("superuser_reserved_connections", "3"),
    ("max_wal_senders", "0"),
    ("max_logical_replication_workers", "0"),
    ("max_parallel_workers", "0"),
    ("max_parallel_workers_per_gather", "0"),
    ("autovacuum", "off"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("shared_buffers", "64MB"),
    ("huge_pages", "off"),
    ("jit", "off"),
    ("fsync", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("lc_messages", "C"),
    ("external_pid_file", ""),
];

/// What the server says of one of its processes that was killed from outside, mostly for want of memory.
const KILLED: &str = "was terminated by signal 9";

/// What starting needs to know.
pub struct Start<'a> {
    /// Settled: see [`super::restored::settle`].
    pub data: &'a Path,
    /// For the socket and the configuration.
    pub scratch: &'a Path,
    /// The version that wrote `data`, as in `server_version_num`.
    pub version: u32,
    /// The directory with the programs, if the operator has said.
    pub bin: Option<&'a Path>,
    /// Beside [`ISOLATED`], and behind them.
    pub settings: &'a [(String, String)],
    pub superuser: &'a str,
}

/// A server that accepts connections.
pub struct Engine {
    child: Child,
    pub bin: PathBuf,
    pub socket: PathBuf,
    /// The user that it runs as; `None`: ours.
    pub user: Option<(u32, u32)>,
    pub superuser: String,
}

impl Engine {
    /// Starts it and waits until it accepts connections. `Kind::Environment`: this machine cannot; `Kind::CheckFailed`: the server
    /// refuses the data.
    pub fn start(start: &Start) -> Result<Engine> {
        let bin = programs(start.version, start.bin)?;
        let user = owner_of(start.data)?;
        let socket = start.scratch.join("s");
        prepare(start, &socket, user)?;
        let mut spec = Spec::new([bin.join("postgres").as_os_str(), "-D".as_ref(), start.data.as_os_str()]);
        let file = |name: &str| socket.join(name).display().to_string();
        let ours = [
            ("config_file", file("postgresql.conf")),
            ("hba_file", file("pg_hba.conf")),
            ("ident_file", file("pg_ident.conf")),
            ("unix_socket_directories", socket.display().to_string()),
        ];
        let fixed = ISOLATED.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let more = start.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in fixed.chain(more).chain(ours) {
            spec.argv.push("-c".into());
            spec.argv.push(format!("{name}={value}").into());
        }
        spec.user = user;
        spec.cut_off = true;
        spec.set.push(("LC_ALL".into(), "C".into()));
        spec.directory = Some(socket.clone());
        let child =
            Child::spawn(&spec).map_err(|e| environment(format!("the server cannot be started here: {e:#}")))?;
        let mut engine = Engine { child, bin, socket, user, superuser: start.superuser.to_owned() };
        engine.await_connections()?;
        Ok(engine)
    }

    /// A connection to one database of the copy.
    pub fn client(&self, database: &str) -> Result<Client> {
        Client::connect(&self.address(database), Session::Plain)
    }

    pub fn address(&self, database: &str) -> Address {
        Address::local(&self.socket, PORT, &self.superuser, database)
    }

    /// One of PostgreSQL's programs, to be run against this server as its user.
    pub fn program(&self, name: &str) -> Option<Spec> {
        let program = self.bin.join(name);
        program.exists().then(|| Spec {
            user: self.user,
            set: vec![("LC_ALL".into(), "C".into()), ("PGHOST".into(), self.socket.clone().into())],
            directory: Some(self.socket.clone()),
            ..Spec::new([program])
        })
    }

    /// Whether one of its processes was killed from outside: then what it says tells nothing of the data.
    pub fn was_killed(&self) -> bool {
        self.child.tail().iter().any(|line| line.contains(KILLED))
    }

    /// The last lines that the server wrote.
    pub fn log(&self) -> Vec<String> {
        self.child.tail()
    }

    /// Stops it in an orderly way.
    pub fn stop(self) -> Result<()> {
        self.child.stop(Signal::INT).map(drop).context("stop the server")
    }

    fn await_connections(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut consistent_since = None;
        loop {
            let refused = match self.client("template1") {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if self.child.poll()?.is_some() {
                let ended = self.child.wait(Duration::from_secs(1))?;
                return Err(gave_up(&ended));
            }
            interrupt::check("The server on the copy is ended, and nothing is said of the backup.")?;
            // Starting, or a socket that is not there yet; all else will not get better.
            let waiting = ServerError::of(&refused).is_none_or(|said| said.code == "57P03");
            // A standby that has nothing more to replay, and still does not know who was writing, never will.
            let consistent = self.log().iter().any(|line| line.contains(CONSISTENT));
            if consistent {
                consistent_since.get_or_insert_with(Instant::now);
            }
            let stuck = consistent_since.is_some_and(|since: Instant| since.elapsed() > CONSISTENT_MAX);
            if !waiting || stuck || began.elapsed() > RECOVERY_MAX {
                return Err(refused.context("the server runs on the copy, and lets nobody in"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The directory with the programs of the major version of `version`.
pub fn programs(version: u32, given: Option<&Path>) -> Result<PathBuf> {
    let major = version / 10_000;
    let usual =
        ["/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/local/pgsql-{}/bin", "/opt/postgresql/{}/bin"]
            .map(|place| PathBuf::from(place.replace("{}", &major.to_string())));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = given.map(Path::to_owned).into_iter().chain(usual).chain(std::env::split_paths(&path));
    for place in places {
        if place.join("postgres").exists() && major_of(&place.join("postgres")) == Some(major) {
            return Ok(place);
        }
    }
    Err(environment(format!("there is no program `postgres` of version {major} on this machine")))
}

/// `postgres (PostgreSQL) 15.4 (Debian …)`.
fn major_of(postgres: &Path) -> Option<u32> {
    let output =
        crate::child::run(&Spec::new([postgres.as_os_str(), "--version".as_ref()]), Duration::from_secs(10), 4096);
    let text = String::from_utf8(output.ok()?).ok()?;
    let version = text.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whom the server must run as, from root: the owner of the data.
fn owner_of(data: &Path) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let metadata = fs::metadata(data.join("PG_VERSION")).context("look at PG_VERSION")?;
    if metadata.uid() != 0 {
        return Ok(Some((metadata.uid(), metadata.gid())));
    }
    let user = server_user();
    give_all(data, user).context("give the copy to the server's user")?;
    Ok(Some(user))
}

/// Whom a server runs as that root starts.
pub fn server_user() -> (u32, u32) {
    let accounts = Accounts::load();
    let postgres = Name::new("postgres");
    accounts.uid(&postgres).zip(accounts.gid(&postgres)).unwrap_or(NOBODY)
}

fn give_all(path: &Path, user: (u32, u32)) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(user.0), Some(user.1))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// The directory of the socket with the configuration in it; the way to the data made passable for the server's user.
fn prepare(start: &Start, socket: &Path, user: Option<(u32, u32)>) -> Result<()> {
    if socket.as_os_str().len() > SOCKET_DIRECTORY_MAX {
        return Err(environment(format!(
            "the path of the scratch directory is too long for a socket: {}",
            socket.display()
        )));
    }
    fs::create_dir(socket).context("make a directory for the socket")?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o700)).context("make it private")?;
    let trust = "local all all trust\n";
    for (name, text) in [("postgresql.conf", ""), ("pg_hba.conf", trust), ("pg_ident.conf", "")] {
        crate::durable::publish_new(&socket.join(name), text.as_bytes(), 0o644).context("write the configuration")?;
    }
    let Some((uid, gid)) = user else { return Ok(()) };
    chown(socket, Some(uid), Some(gid)).context("give it to the server's user")?;
    open_the_way(start.scratch)
}

/// Directories that a drill has made for itself, private to us: the server's user must pass, and sees nothing but that.
pub(super) fn open_the_way(scratch: &Path) -> Result<()> {
    let own =
        |directory: &&Path| directory.file_name().is_some_and(|n| n.to_string_lossy().starts_with("blackstart-drill-"));
    let Some(top) = scratch.ancestors().find(own) else { return Ok(()) };
    for directory in scratch.ancestors().take_while(|directory| directory.starts_with(top)) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).context("open the way to the copy")?;
    }
    Ok(())
}

/// Why a server ended before it accepted connections: for want of something on this machine, or for the data.
fn gave_up(ended: &Ended) -> anyhow::Error {
    let log = &ended.stderr;
    let said = log.iter().filter(|line| ["FATAL", "PANIC", "ERROR"].iter().any(|word| line.contains(word)));
    let said: Vec<&str> = said.map(String::as_str).collect();
    let text = if said.is_empty() { log.join("; ") } else { said.join("; ") };
    let here = [
        "could not access file \"",
        "could not load library",
        "No space left",
        "Cannot allocate memory",
        "shared memory",
        "Permission denied",
        "could not bind",
        "invalid locale",
        "unrecognized configuration parameter",
        "database files are incompatible",
    ];
    // Nobody kills a server for what is wrong with its data.
    let killed = ended.status.signal() == Some(Signal::KILL.as_raw()) || text.contains(KILLED);
    if killed || here.iter().any(|words| text.contains(words)) {
        return environment(format!("the server cannot run on this machine: {text}"));
    }
    let help = "The snapshot cannot be relied on; drill an older one, and take a full backup: backup --full.";
    Failure::new(Kind::CheckFailed, format!("the server does not start on the restored copy: {text}"), help)
}

pub(super) fn environment(message: String) -> anyhow::Error {
    Failure::new(
        Kind::Environment,
        message,
        "This says nothing of the backup. Install the server's packages of the same major version, or name their directory: `bin` in [source.postgres]; \
         `scratch` in the configuration names another place for drills.",
    )
}
