//! What drills may use, and what a killed one leaves: real servers that are ended from outside, found again, and never taken for a bad backup.

use super::asked::{add, empty, replace};
use crate::support::binary::{Ran, command, configure, expect};
use crate::support::engines::Server;
use crate::support::postgres::{Cluster, installed};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The query that keeps a drill's server busy until somebody ends it.
const FOR_EVER: &str = "select pg_sleep(3600) is null";

fn wait<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that a drill has started and noted. It ends with the test, however that ends.
struct Noted {
    pid: String,
    started: String,
}

impl Noted {
    /// Waits for one that runs `program` and is as far as `ready` says of its scratch.
    fn await_one(at: &Path, program: &str, ready: impl Fn(&Path) -> bool) -> Noted {
        wait(&format!("a drill starts {program}"), || {
            let scratch = fs::read_dir(at.join("scratch")).ok()?.next()?.ok()?.path();
            let notes = fs::read_dir(scratch.join(".children")).ok()?.flatten();
            let mut pids = notes.filter_map(|note| note.file_name().into_string().ok());
            let name =
                |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
            let pid = pids.find(|pid| name(pid) == program && ready(&scratch))?;
            Some(Noted { started: started(&pid)?, pid })
        })
    }

    fn is_there(&self) -> bool {
        started(&self.pid).as_ref() == Some(&self.started)
    }

    fn kill(&self) {
        assert!(Command::new("kill").args(["-9", &self.pid]).status().unwrap().success());
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if self.is_there() {
            self.kill();
        }
    }
}

/// When a process was started, in ticks; nothing once it has ended.
fn started(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    (rest[0] != "Z").then(|| rest[19].to_owned())
}

/// A drill in the background. It is killed with the test.
struct Drill(Child);

impl Drill {
    fn begin(at: &Path) -> Drill {
        Drill(command(at, &["drill"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// As the kernel does, or an operator in despair.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The next drill passes, and nothing is left of the one before.
fn the_next_drill_clears_up(at: &Path, left: &Noted) {
    assert!(left.is_there(), "a server outlives a drill that is killed: else this tests nothing");
    let drilled = expect(at, &["drill", "--json"], 0).json()["report"]["sources"][0].clone();
    assert_eq!(drilled["leftovers_removed"], 1, "{drilled}");
    assert!(!left.is_there(), "the server of the killed drill runs still");
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0, "scratch is not empty");
}

/// A drill that this place has stopped: it says so, tells nothing of the backup, and leaves nothing behind.
fn is_of_the_place(at: &Path, ran: &Ran, says: &str) {
    assert!(ran.all().contains(says) && ran.all().contains("Nothing is said of the backup"), "{}", ran.all());
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0, "scratch is not empty");
}

fn reports(at: &Path) -> usize {
    fs::read_dir(at.join("repo/drills"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|d| fs::read_dir(d.path()).unwrap().count())
        .sum()
}

#[test]
fn a_server_of_postgres_is_ended_with_its_drill_and_by_the_next_one() {
    let cluster = Cluster::new(15);
    cluster.sql("create table t as select generate_series(1, 1000) n");
    let home = empty();
    let at = home.path();
    fs::set_permissions(at, fs::Permissions::from_mode(0o711)).unwrap();
    let (url, bin) = (cluster.url("postgres"), installed(15).display().to_string());
    add(
        at,
        "pg",
        "postgres",
        &format!("url = \"{url}\"\n[source.postgres]\nbin = \"{bin}\"\ncheck = [\"{FOR_EVER}\"]"),
    );
    expect(at, &["backup"], 0);
    let serves = |scratch: &Path| scratch.join("s/.s.PGSQL.5432").exists();
    // The drill is killed, and nobody stops its server.
    let mut drill = Drill::begin(at);
    let left = Noted::await_one(at, "postgres", serves);
    let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", left.pid)).unwrap();
    assert_eq!(adjusted.trim(), "900", "the kernel is to take it before anything else");
    drill.kill();
    replace(at, FOR_EVER, "select count(*) = 1000 from t");
    the_next_drill_clears_up(at, &left);
    assert_eq!(cluster.value("select count(*) from t"), "1000", "a server that is none of a drill's is left alone");
    // The server is killed under the drill, as the kernel does for want of memory.
    replace(at, "select count(*) = 1000 from t", FOR_EVER);
    let known = reports(at);
    let drill = command(at, &["drill"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Noted::await_one(at, "postgres", serves).kill();
    let ran = crate::support::binary::finish(&drill.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.all());
    is_of_the_place(at, &ran, "was killed from outside");
    // Its time is over.
    configure(at, "[drill]\ntime = \"2s\"\n");
    is_of_the_place(at, &expect(at, &["drill"], 1), "it has taken the 2 s that it may take");
    assert_eq!(reports(at), known, "what the place lacks is no evidence");
}

#[test]
fn a_server_of_redis_that_loads_is_ended_with_its_drill_and_by_the_next_one() {
    let server = Server::start("redis-server", "");
    let mut client = server.connect();
    let large = "x".repeat(1 << 20);
    for n in 0..100 {
        client.command(&["SET", &format!("key:{n}"), &large]).unwrap();
    }
    let home = empty();
    let at = home.path();
    // A real server that takes its time for each key.
    let program = at.join("slowly");
    let write = |delay: &str| {
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in --version) exec /usr/bin/redis-server --version;; esac\nexec /usr/bin/redis-server \"$@\"{delay}\n"
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write(" --key-load-delay 200000");
    let (url, program) = (server.url(), program.display().to_string());
    add(at, "store", "redis", &format!("url = \"{url}\"\n[source.redis]\nserver = \"{program}\""));
    expect(at, &["backup"], 0);
    let mut drill = Drill::begin(at);
    // Its socket is there while it loads.
    let listens = |scratch: &Path| {
        fs::read_dir(scratch).is_ok_and(|all| all.flatten().any(|entry| entry.path().join("s").exists()))
    };
    let left = Noted::await_one(at, "redis-server", listens);
    drill.kill();
    write("");
    the_next_drill_clears_up(at, &left);
    assert_eq!(server.run("DBSIZE").text(), Some("100"), "a server that is none of a drill's is left alone");
    // More memory than it may use.
    let known = reports(at);
    write(" --key-load-delay 100000");
    configure(at, "[drill]\nmemory = \"16MiB\"\n");
    is_of_the_place(at, &expect(at, &["drill"], 1), "of memory, and may use 16.8 MB");
    assert_eq!(reports(at), known, "what the place lacks is no evidence");
    replace(at, "16MiB", "1GiB");
    write("");
    expect(at, &["drill"], 0);
}
