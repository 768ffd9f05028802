//! A lease that was left behind: taken over where its holder is known to be dead, waited for where that cannot be known.

use crate::support::binary::{command, configure, expect, home, run};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the lock of `source` lies in the state directory of `home`.
fn lock_of(home: &Path, source: &str) -> std::path::PathBuf {
    let state = home.join("blackstart/state");
    let repositories = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
    let mut locks = repositories.map(|path| path.join("leases").join(source)).filter(|path| path.exists());
    locks.next().unwrap_or_else(|| panic!("no lock of {source} below {}", state.display()))
}

#[test]
fn a_lease_of_another_container_stands_until_its_age_says_so() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n");
    expect(at, &["backup"], 0);
    let path = at.join("repo/leases/etc");
    // As the last run gave it back; now as if it had been killed, with a process that is gone for certain.
    let given_back: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let leave = |change: &[(&str, Value)]| {
        let mut lease = given_back.clone();
        (lease["expires"], lease["pid"], lease["holder"]) =
            (json!("2199-01-01T00:00:00Z"), json!(ended.id()), json!("left"));
        change.iter().for_each(|(key, value)| lease[*key] = value.clone());
        fs::remove_file(&path).unwrap();
        fs::write(&path, lease.to_string()).unwrap();
    };
    let here = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(given_back["pid_namespace"].as_str(), here.to_str(), "it says where its number counts");
    assert!(given_back["lock"]["inode"].is_u64(), "it says what its holder had locked: {given_back}");
    let elsewhere = ("pid_namespace", json!("pid:[1]"));
    for (what, change) in [
        ("another container, an older version", vec![elsewhere.clone(), ("lock", Value::Null)]),
        ("one that did not say", vec![("pid_namespace", Value::Null), ("lock", Value::Null)]),
        ("another machine", vec![("host", json!("elsewhere")), ("lock", Value::Null)]),
        // The disk of a machine that still runs may have been copied, with the numbers of its files.
        ("another machine, the same numbers", vec![("boot", json!("elsewhere")), elsewhere.clone()]),
        ("another file", vec![("lock", json!({"device": 1, "inode": 1})), elsewhere.clone()]),
        // Of root, or at least of nobody that may be signalled from here: that it may not be is no sign of death.
        ("a process that is there", vec![("pid", json!(1)), ("lock", Value::Null)]),
    ] {
        leave(&change);
        let busy = run(at, &["backup"]);
        assert_eq!(busy.code, 11, "{what}: {}", busy.all());
        assert!(busy.err.contains("its lease ends at 2199-01-01"), "{what}: {}", busy.err);
    }
    leave(&[elsewhere.clone(), ("lock", Value::Null), ("expires", json!("2020-01-01T00:00:00Z"))]);
    expect(at, &["backup"], 0);
    leave(&[("lock", Value::Null)]);
    expect(at, &["backup"], 0);
    // What its holder had locked decides, wherever that ran: not while somebody has it.
    leave(std::slice::from_ref(&elsewhere));
    let held = fs::File::open(lock_of(at, "etc")).unwrap();
    held.lock().unwrap();
    let busy = run(at, &["backup"]);
    assert_eq!(busy.code, 11, "a holder that has its lock is alive: {}", busy.all());
    drop(held);
    expect(at, &["backup"], 0);
}

/// Ends what runs in a container when the test ends, however that is.
struct Container(Child);

impl Container {
    /// Begins `blackstart` with `arguments` in a PID namespace of its own, as a sidecar runs.
    fn begin(home: &Path, arguments: &[&str]) -> Container {
        let inner = command(home, arguments);
        let mut outer = Command::new("unshare");
        // Whoever is not root may make a PID namespace as root of a user namespace of his own.
        if !rustix::process::geteuid().is_root() {
            outer.args(["--user", "--map-root-user"]);
        }
        outer.args(["--pid", "--fork", "--kill-child=KILL"]).arg(inner.get_program()).args(inner.get_args());
        let said = fs::File::create(home.join("said")).unwrap();
        outer.current_dir(home).stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        outer.env_remove("BLACKSTART_CONFIG");
        Container(outer.spawn().unwrap())
    }

    /// As the kernel ends a container that is out of memory: everything in it, at once.
    fn kill(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `done`, for at most a minute.
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "for a minute: not {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A sidecar that was killed and is started anew is process 1 in another PID namespace, with the same state directory.
#[test]
fn a_sidecar_that_was_killed_holds_up_nobody_and_one_that_lives_is_left_alone() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    // The first dump goes on for as long as the test needs it; any other ends at once.
    let begun = at.join("begun");
    let dump = format!("echo line; test -e {0} && exit; touch {0}; sleep 600", begun.display());
    configure(at, "[[source]]\nname = \"dump\"\nkind = \"command\"\n[source.command]\nfile = \"dump.txt\"\n");
    configure(at, &format!("dump = [\"sh\", \"-c\", {dump:?}]\n"));
    let mut sidecar = Container::begin(at, &["backup", "dump"]);
    wait("dumping in a PID namespace (as root, or where unprivileged user namespaces are allowed)", || {
        let said = || fs::read_to_string(at.join("said")).unwrap();
        assert!(sidecar.0.try_wait().unwrap().is_none(), "the backup, or its namespace, ended at once: {}", said());
        begun.exists()
    });
    let lease: Value = serde_json::from_slice(&fs::read(at.join("repo/leases/dump")).unwrap()).unwrap();
    let here = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_ne!(lease["pid_namespace"].as_str(), here.to_str(), "it runs in another namespace: {lease}");
    let busy = run(at, &["backup", "dump"]);
    assert_eq!(busy.code, 11, "it is alive, if not to be seen from here: {}", busy.all());
    // Nor is it dead to who has a copy of its state: nobody holds the copy's lock.
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let copied = Command::new("cp").args(["-a", "blackstart/state", "copied"]).current_dir(at).status().unwrap();
    assert!(copied.success());
    fs::write(at.join("copied.toml"), config.replace("\"blackstart/state\"", "\"copied\"")).unwrap();
    let busy = run(at, &["--config", "copied.toml", "backup", "dump"]);
    assert_eq!(busy.code, 11, "a copy of the state directory took it for dead: {}", busy.all());

    sidecar.kill();
    let mut again = Container::begin(at, &["backup", "dump"]);
    let code = again.0.wait().unwrap().code();
    let snapshots = fs::read_dir(at.join("repo/snapshots/dump")).map_or(0, Iterator::count);
    assert_eq!((code, snapshots), (Some(0), 1), "the sidecar that was started anew was kept waiting by a dead one");
}
