//! Redis, Valkey and ChromaDB, each in a fresh directory; `scripts/test-servers` installs them, and a missing one fails the test.

use blackstart::clock::SystemClock;
use blackstart::net::Roots;
use blackstart::source::redis::address::Address;
use blackstart::source::redis::connection::{Connection, Reply};
use blackstart::source::redis::{Options, Redis};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::servers::installed;

/// A process on a leash: a shell kills it by its pid when its own input ends, which it does when this process ends, however it ends.
pub struct Leashed(std::process::Child);

impl Leashed {
    pub fn start(command: &Command, log: &Path) -> Leashed {
        const LEASH: &str = r#""$@" & server=$!; read -r _; kill -9 "$server"; wait "$server""#;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(LEASH).arg("leash").arg(command.get_program()).args(command.get_args());
        shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        Leashed(shell.spawn().unwrap())
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Where a server is; `scripts/test-servers` puts those that Debian lacks beside the other test servers.
pub fn program(name: &str) -> PathBuf {
    if name == "redis-server" { PathBuf::from("/usr/bin/redis-server") } else { installed(name) }
}

pub struct Server {
    pub directory: tempfile::TempDir,
    _process: Leashed,
}

impl Server {
    pub fn start(name: &str, arguments: &str) -> Server {
        Server::on(tempfile::tempdir().unwrap(), name, arguments)
    }

    /// On a directory with data in it, perhaps.
    pub fn on(directory: tempfile::TempDir, name: &str, arguments: &str) -> Server {
        assert!(program(name).exists(), "{name} is missing: run scripts/test-servers");
        let mut command = Command::new(program(name));
        let dir = directory.path().to_str().unwrap();
        command.args([
            "--dir",
            dir,
            "--unixsocket",
            &format!("{dir}/s"),
            "--save",
            "",
            "--repl-diskless-sync-delay",
            "0",
        ]);
        if !arguments.contains("port ") {
            command.args(["--port", "0"]);
        }
        command.args(arguments.replace("DIR", dir).split_whitespace());
        let process = Leashed::start(&command, &directory.path().join("log"));
        let server = Server { directory, _process: process };
        let until = Instant::now() + Duration::from_secs(60);
        while Connection::open(&Address::parse(&server.url()).unwrap(), &Roots::System)
            .and_then(|mut c| c.command(&["PING"]))
            .is_err_and(|e| !format!("{e:#}").contains("NOAUTH"))
        {
            let log = || std::fs::read_to_string(server.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "{name} does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Kills it; what it had on disk stays.
    pub fn kill(self) -> tempfile::TempDir {
        let Server { directory, _process } = self;
        drop(_process);
        directory
    }

    pub fn url(&self) -> String {
        format!("unix://{}/s", self.directory.path().display())
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&Address::parse(&self.url()).unwrap(), &Roots::System).unwrap()
    }

    pub fn run(&self, command: &str) -> Reply {
        let words: Vec<&str> = command.split(' ').collect();
        self.connect().command(&words).unwrap()
    }

    pub fn source(&self, options: Options) -> Redis {
        Redis::open(&self.url(), None, options, Arc::new(SystemClock)).unwrap()
    }
}

pub fn python(version: &str) -> PathBuf {
    installed(&format!("../chroma-{version}/bin/python"))
}

pub fn writer(version: &str, verb: &str, path: &Path, dimensions: u32, count: u32) -> Command {
    let mut command = Command::new(python(version));
    command.args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stores/chroma_writer.py"), verb]);
    command.arg(path).args([dimensions.to_string(), count.to_string()]);
    command
}

pub fn make(version: &str, path: &Path, dimensions: u32, count: u32) {
    let output = writer(version, "make", path, dimensions, count).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
