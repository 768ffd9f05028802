//! The lease of a source: keeps two writers from doing the same work. Safety rests on the create-only commit, not on this.

mod flock;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::layout::{self, Hash, SourceName};
use crate::bridge::Store;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::storage::{self, Version};

const TTL: SignedDuration = SignedDuration::from_mins(15);
const RENEWAL: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    holder: String,
    key: String,
    host: String,
    boot: String,
    /// What `pid` counts in: `/proc/self/ns/pid`. Absent where that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid_namespace: Option<String>,
    pid: u32,
    /// The file whose lock it has from before this is written until after it is given back. Absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lock: Option<flock::Name>,
    expires: Timestamp,
}

/// Who asks for a lease.
pub struct Writer {
    pub key: String,
    pub host: String,
    /// Where the files lie that say whether a holder lives; those of this host and repository alone.
    pub locks: Option<PathBuf>,
}

/// The holders of this very process whose runs are under way. A lease of this process that is not among them was left behind by a run
/// that could not release it, or by an earlier process of the same number (in a container every agent is process 1).
static RUNNING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<String>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Among the running of this process until dropped.
struct Running(String);

impl Running {
    fn begin(holder: &str) -> Running {
        running().insert(holder.to_owned());
        Running(holder.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        running().remove(&self.0);
    }
}

/// Held until dropped; renewed meanwhile by a thread of its own.
pub struct Lease {
    _running: Running,
    stop: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
    /// Last: who has it knows that the lease is not written any more.
    _lock: Option<flock::Lock>,
}

impl Lease {
    /// Takes the lease, or fails with [`Kind::Busy`]. A lease that has expired, or whose holder is known to be dead, is taken over; whether one
    /// is dead that runs elsewhere cannot be known, so that its lease stands until it expires.
    pub fn acquire(store: &Store, source: &SourceName, writer: Writer, clock: Arc<dyn Clock>) -> Result<Lease> {
        let mut id = [0u8; 8];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
        let lock = writer.locks.and_then(|directory| flock::take(&directory, source));
        let mine = Holder {
            holder: id.iter().map(|b| format!("{b:02x}")).collect(),
            key: writer.key,
            host: writer.host,
            boot: boot_id(),
            pid_namespace: pid_namespace(),
            pid: std::process::id(),
            lock: lock.as_ref().map(|lock| lock.name),
            expires: clock.now() + TTL,
        };
        let _running = Running::begin(&mine.holder);
        let version = take(store, source, &mine, clock.now())?;
        let Some(version) = version else { return Ok(Lease { _running, stop: None, renewal: None, _lock: lock }) };
        let (stop, stopped) = channel();
        let (store, source) = (store.clone(), source.clone());
        let renewal = std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || {
                let mut version = version;
                let mut mine = mine;
                let mut write = |expires: Timestamp| {
                    mine.expires = expires;
                    let body = serde_json::to_vec(&mine).unwrap_or_default();
                    // A lost lease is not an error: the commit decides.
                    if let Ok(new) = store.replace(&layout::lease(&source), &version, body.into()) {
                        version = new;
                    }
                };
                while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                    write(clock.now() + TTL);
                }
                write(clock.now());
            })
            .context("start the lease's thread")?;
        Ok(Lease { _running, stop: Some(stop), renewal: Some(renewal), _lock: lock })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewal) = self.renewal.take() {
            // The thread does not panic, and a lease that stays behind expires.
            drop(renewal.join());
        }
    }
}

/// `None`: the store cannot compare and swap; one writer per source is the rule then, and `check` says so.
fn take(store: &Store, source: &SourceName, mine: &Holder, now: Timestamp) -> Result<Option<Version>> {
    let key = layout::lease(source);
    let body = serde_json::to_vec(mine)?;
    let mut refused = None;
    for _ in 0..3 {
        let result = match store.get_versioned(&key) {
            Err(e) if e.kind == storage::Kind::NotFound => store.create(&key, body.clone().into(), &Hash::of(&body).0),
            Err(e) => return Err(e).context("read the lease"),
            Ok((held, version)) => {
                // A lease that cannot be read guards nothing.
                if let Ok(holder) = serde_json::from_slice::<Holder>(&held)
                    && !holder.is_over(mine, now)
                {
                    return Err(Failure::new(
                        Kind::Busy,
                        format!("another run on {} (pid {}) is writing {source}", holder.host, holder.pid),
                        format!(
                            "Nothing was lost. Wait for it to end, and try again. Whether it still runs cannot be seen from every container or machine: if it is dead, its lease ends at {}.",
                            holder.expires
                        ),
                    ));
                }
                // A store that refuses the very version that is there cannot compare (radosgw, with quoted ETags).
                if refused.as_ref() == Some(&version) {
                    return Ok(None);
                }
                let replaced = store.replace(&key, &version, body.clone().into());
                refused = Some(version);
                replaced
            }
        };
        match result {
            Ok(version) => return Ok(Some(version)),
            Err(e) if e.kind == storage::Kind::Unsupported => return Ok(None),
            Err(e) if matches!(e.kind, storage::Kind::Conflict | storage::Kind::AlreadyExists) => {}
            Err(e) => return Err(e).context("take the lease"),
        }
    }
    Err(Failure::new(
        Kind::Busy,
        format!("another run is taking the lease of {source}"),
        "Nothing was lost. Try again.",
    ))
}

impl Holder {
    fn is_over(&self, mine: &Holder, now: Timestamp) -> bool {
        now >= self.expires || self.is_dead(mine)
    }

    /// Whether its process is known to have ended. Where that cannot be judged from here, its age must say so.
    fn is_dead(&self, mine: &Holder) -> bool {
        let same_boot = self.boot == mine.boot && !self.boot.is_empty();
        if same_boot && self.lock.is_some() && self.lock == mine.lock {
            // What it had locked while it lived is ours.
            return true;
        }
        let same_host = self.key == mine.key && self.host == mine.host && !self.boot.is_empty();
        let (Some(theirs), Some(ours)) = (&self.pid_namespace, &mine.pid_namespace) else { return false };
        if !same_host || theirs != ours {
            return false;
        }
        if self.boot != mine.boot {
            // This machine was started anew. A container may have been brought to another machine, and still run on the old one.
            return ours == HOST_NAMESPACE;
        }
        if self.pid == mine.pid {
            return !running().contains(&self.holder);
        }
        is_gone(self.pid)
    }
}

/// Whether no process has that number. It is asked by a signal: /proc hides those of other users where it is mounted so (systemd's `ProtectProc`).
fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// The first PID namespace of a machine: the same number on all of them (`PROC_PID_INIT_INO` of Linux).
const HOST_NAMESPACE: &str = "pid:[4026531836]";

fn pid_namespace() -> Option<String> {
    std::fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder {
            holder: "another".into(),
            key: "k".into(),
            host: "h".into(),
            boot: "b".into(),
            pid_namespace: Some(HOST_NAMESPACE.into()),
            pid: std::process::id(),
            lock: None,
            expires: Timestamp::UNIX_EPOCH + TTL,
        }
    }

    #[test]
    fn who_had_locked_what_is_ours_now_is_dead() {
        let root = tempfile::tempdir().unwrap();
        let lock = |name: &str| flock::take(root.path(), &SourceName::new(name).unwrap()).map(|lock| lock.name);
        let (ours, other) = (lock("a"), lock("b"));
        assert!(ours.is_some() && ours != other);
        // In another container, with another name and another key: none of that matters to the kernel.
        let container = Holder { pid_namespace: Some("pid:[1]".into()), host: "x".into(), key: "x".into(), ..holder() };
        let mine = Holder { lock: ours, ..holder() };
        for (what, lock, boot, over) in [
            ("the very file", ours, "b", true),
            ("another file", other, "b", false),
            ("none: an older version, or a file system without locks", None, "b", false),
            ("the same numbers on another machine, or before a restart", ours, "elsewhere", false),
        ] {
            let held = Holder { lock, boot: boot.into(), ..container.clone() };
            assert_eq!(held.is_over(&mine, Timestamp::UNIX_EPOCH), over, "{what}");
        }
        let held = Holder { lock: ours, ..container.clone() };
        assert!(!held.is_over(&holder(), Timestamp::UNIX_EPOCH), "another has the lock now: its holder may live");
        let nowhere = Holder { lock: ours, boot: String::new(), ..container };
        let unsure = Holder { boot: String::new(), ..mine };
        assert!(
            !nowhere.is_over(&unsure, Timestamp::UNIX_EPOCH),
            "where machines cannot be told apart, numbers say nothing"
        );
    }

    #[test]
    fn a_lease_of_an_older_version_is_read() {
        let old = r#"{"holder":"h","key":"k","host":"h","boot":"b","pid":7,"expires":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(serde_json::from_str::<Holder>(old).unwrap().lock, None);
        assert_eq!(serde_json::to_value(holder()).unwrap().get("lock"), None, "who has no lock names none");
    }

    #[test]
    fn only_who_is_known_to_be_dead_is_taken_for_dead() {
        let mine = holder();
        // One that has ended and been waited for: its number is free.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = child.id();
        child.wait().unwrap();
        let namespace = |name: &str| Some(name.to_owned());
        for (what, held, over) in [
            ("our own number, and not among our runs", holder(), true),
            ("ended", Holder { pid: ended, ..holder() }, true),
            ("a number that no process can have", Holder { pid: u32::MAX, ..holder() }, true),
            // Process 1 belongs to another user, or is at least never gone.
            ("alive", Holder { pid: 1, ..holder() }, false),
            ("another host", Holder { host: "other".into(), pid: ended, ..holder() }, false),
            ("another key", Holder { key: "other".into(), pid: ended, ..holder() }, false),
            ("another container", Holder { pid_namespace: namespace("pid:[1]"), pid: ended, ..holder() }, false),
            ("one that did not say where", Holder { pid_namespace: None, pid: ended, ..holder() }, false),
            ("before a restart of the machine", Holder { boot: "before".into(), pid: 1, ..holder() }, true),
        ] {
            assert_eq!(held.is_over(&mine, Timestamp::UNIX_EPOCH), over, "{what}");
            assert!(held.is_over(&mine, Timestamp::UNIX_EPOCH + TTL), "{what}: its age says so");
        }
        let container = Holder { pid_namespace: namespace("pid:[2]"), ..holder() };
        let moved = Holder { boot: "elsewhere".into(), ..container.clone() };
        assert!(!moved.is_over(&container, Timestamp::UNIX_EPOCH), "a container that another machine may still run");
        let unsure = Holder { pid_namespace: None, ..holder() };
        assert!(
            !Holder { pid: ended, ..holder() }.is_over(&unsure, Timestamp::UNIX_EPOCH),
            "we do not know where we are"
        );
    }
}
