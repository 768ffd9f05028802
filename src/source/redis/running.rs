//! A real server on a restored copy, reached by a socket that only this user can enter, and by nothing else.

use anyhow::{Context, Result};
use rustix::process::Signal;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::DUMP;
use super::address::{Address, Endpoint};
use super::connection::Connection;
use super::engine::Program;
use super::rdb::Summary;
use super::server::Info;
use crate::child::{Child, Spec};
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::net::Roots;

/// Nobody kills a server for what is wrong with its data.
const KILLED: &str = "was killed from outside, mostly for want of memory,";
/// What a server says that is refused memory.
const NO_MEMORY: &str = "Out Of Memory allocating";
/// A server loads some 50 MB/s; below a twentieth of that something is wrong.
const LOAD_BYTES_PER_SECOND: u64 = 2 << 20;
const LOAD_LEAST: Duration = Duration::from_secs(60);
/// The longest path that a socket can have, less some.
const SOCKET_PATH_MAX: usize = 100;

/// A server on a copy, reached by a socket that only this user can enter. It ends with this.
pub struct Running {
    child: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Running {
    /// Starts a server and waits until it has loaded the file; with `manifest`, from the append-only file.
    pub fn start(program: &Program, copy: &Path, summary: &Summary, manifest: Option<&Path>) -> Result<Running> {
        let beside = copy.parent().context("a copy lies in a directory")?;
        let mut directory =
            tempfile::Builder::new().prefix("s").tempdir_in(beside).context("make a directory for a socket")?;
        if directory.path().as_os_str().len() + "/s".len() > SOCKET_PATH_MAX {
            directory = tempfile::Builder::new().prefix("bs").tempdir().context("make a directory for a socket")?;
        }
        let socket = directory.path().join("s");
        let databases = summary.databases.keys().max().map_or(16, |most| (most + 1).max(16));
        let mut argv: Vec<OsString> = vec![program.path.clone().into()];
        let mut set = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            argv.push(format!("--{name}").into());
            argv.push(value.as_ref().to_owned());
        };
        // No port: nothing but the socket listens.
        set("port", &"0");
        set("unixsocket", &socket);
        set("unixsocketperm", &"700");
        set("dir", &copy);
        set("dbfilename", &DUMP);
        set("save", &"");
        set("databases", &databases.to_string());
        set("appendonly", if manifest.is_some() { &"yes" } else { &"no" });
        if let Some((directory, file)) = manifest.and_then(|m| Some((m.parent()?, m.file_stem()?))) {
            set("appenddirname", &directory);
            set("appendfilename", &file);
            // What was written here is whole: a server that has to cut it says so.
            set("aof-load-truncated", &"no");
        }
        let log = directory.path().join("log");
        set("logfile", &log);
        let child = Child::spawn(&Spec { argv, cut_off: true, ..Spec::default() })?;
        let mut running = Running { child, socket, _directory: directory };
        let wait = LOAD_LEAST + Duration::from_secs(summary.size / LOAD_BYTES_PER_SECOND);
        running.until_loaded(wait).map_err(|e| for_want_of_memory(e.context(tail(&log))))?;
        Ok(running)
    }

    fn until_loaded(&mut self, wait: Duration) -> Result<()> {
        let until = Instant::now() + wait;
        loop {
            if let Some(status) = self.child.poll()? {
                anyhow::ensure!(
                    status.signal() != Some(Signal::KILL.as_raw()),
                    "the server {KILLED} while it loaded the copy"
                );
                anyhow::bail!("the server ended ({status}) while it loaded the copy");
            }
            let loaded =
                self.connect().and_then(|mut c| Info::ask(&mut c)).is_ok_and(|info| info.get("loading") == "0");
            if loaded {
                return Ok(());
            }
            interrupt::check("The server on the copy is ended, and nothing is said of the backup.")?;
            anyhow::ensure!(Instant::now() < until, "the server has not loaded the copy within {} s", wait.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.address(), &Roots::System)
    }

    pub fn address(&self) -> Address {
        Address { endpoint: Endpoint::Unix(self.socket.clone()), user: None, password: None }
    }

    pub fn stop(self) -> Result<()> {
        self.child.stop(Signal::TERM).map(drop)
    }
}

/// An error that says nothing of the data as one of the place.
fn for_want_of_memory(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if !text.contains(KILLED) && !text.contains(NO_MEMORY) {
        return error;
    }
    let help = "This says nothing of the backup. The server needs about as much memory as the live one: drill where there is so much.";
    Failure::new(Kind::Environment, text, help)
}

/// The last lines of a server's log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
