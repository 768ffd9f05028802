//! The lease of a source: keeps two writers from doing the same work. Safety rests on the create-only commit, not on this.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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
    pid: u32,
    expires: Timestamp,
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
}

impl Lease {
    /// Takes the lease, or fails with [`Kind::Busy`]. A lease that has expired, or whose process is known to be dead, is taken over.
    pub fn acquire(store: &Store, source: &SourceName, key: &str, host: &str, clock: Arc<dyn Clock>) -> Result<Lease> {
        let mut id = [0u8; 8];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
        let mine = Holder {
            holder: id.iter().map(|b| format!("{b:02x}")).collect(),
            key: key.into(),
            host: host.into(),
            boot: boot_id(),
            pid: std::process::id(),
            expires: clock.now() + TTL,
        };
        let _running = Running::begin(&mine.holder);
        let version = take(store, source, &mine, clock.now())?;
        let Some(version) = version else { return Ok(Lease { _running, stop: None, renewal: None }) };
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
        Ok(Lease { _running, stop: Some(stop), renewal: Some(renewal) })
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
                            "Nothing was lost. Wait for it to end; if it is dead, its lease ends at {}.",
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
        let same_host = self.key == mine.key && self.host == mine.host;
        let dead = if self.boot != mine.boot {
            true
        } else if self.pid == mine.pid {
            !running().contains(&self.holder)
        } else {
            !std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
        };
        now >= self.expires || (same_host && dead)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}
