//! Who watches the scheduler: systemd by its watchdog, Prometheus by the tick, and a thread here that tells when it has stalled.

use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, UNIX_EPOCH};

use super::serve::Shared;
use crate::config::Config;
use crate::durable;
use crate::job;
use crate::notify::{Deliveries, Message, Notice, Phase, Problem, Route, Severity};
use crate::plan;

/// The watcher looks this often.
const LOOK: Duration = Duration::from_secs(1);

/// Below the state directory: since when a scheduler had stalled, for the process that takes its place.
const STALLED: &str = "stalled";

/// Whose scheduler is watched.
pub struct Watched {
    pub host: String,
    pub state: PathBuf,
}

/// Tells on every channel, once, when the scheduler has stalled: it cannot do so itself. That it goes on, it tells itself, or the process that was
/// started in its place. Ends with the agent.
pub fn scheduler(
    shared: &Arc<Shared>,
    deliveries: Arc<Mutex<Arc<Deliveries>>>,
    watched: Watched,
    now: impl Fn() -> Timestamp + Send + 'static,
) {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    let watch = move || {
        let mut told = false;
        loop {
            std::thread::sleep(LOOK);
            let Some(shared) = shared.upgrade() else { return };
            let stalled = shared.stalled();
            if let Some(silent) = stalled.filter(|_| !told) {
                tracing::error!(seconds = silent.as_secs(), "the scheduler has stalled");
                let (deliveries, at) = (Arc::clone(&deliveries.lock().unwrap_or_else(PoisonError::into_inner)), now());
                tell(&deliveries, &watched.host, at);
                shared.note_stall(at);
                // Without it only the end of the alarm is not told by another process.
                if let Err(error) =
                    durable::publish_over(&watched.state.join(STALLED), at.to_string().as_bytes(), 0o600)
                {
                    tracing::warn!(%error, "the stall cannot be noted");
                }
            }
            told = stalled.is_some();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(watch) {
        tracing::error!(%error, "nobody watches the scheduler");
    }
}

/// The stall of a process before this one.
pub fn stalled_before(state: &Path) -> Option<Timestamp> {
    std::fs::read_to_string(state.join(STALLED)).ok()?.parse().ok()
}

/// Its end has been told.
pub fn forget_stall(state: &Path) {
    let path = state.join(STALLED);
    if path.exists()
        && let Err(error) = durable::remove(&path)
    {
        tracing::warn!(%error, "the note of a stall cannot be removed: its end is told again after a restart");
    }
}

/// What is told of a stall.
pub fn stall() -> Problem {
    Problem {
        key: "scheduler".into(),
        severity: Severity::Critical,
        source: None,
        title: "the scheduler has stalled".into(),
        detail: "No backup starts any more; what is stored is as it was. Restart the agent: systemctl restart blackstart (the unit's watchdog does so by itself after two minutes). \
                 Often a disk or a network mount hangs: see with `dmesg` and `df`"
            .into(),
    }
}

fn tell(deliveries: &Deliveries, host: &str, now: Timestamp) {
    let problem = stall();
    let notice =
        Notice { version: 1, phase: Phase::Begun, at: now, since: now, host: host.into(), problem, head: None };
    for channel in deliveries.channels() {
        if channel.route(&notice, now) == Route::Send {
            deliveries.put(&channel.name, Message::Notice(Box::new(notice.clone())));
        }
    }
}

/// What the configuration files look like from outside: another value means that one of them has changed.
pub fn signature(config: &Config) -> Vec<(PathBuf, u64, u128)> {
    let mut files = job::files(&config.schedules()).unwrap_or_default();
    files.extend(plan::files(config).unwrap_or_default());
    files.push(config.file.clone());
    // Drills begin once it is there.
    files.push(config.drill_key());
    let look = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok()?;
        let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        Some((path, metadata.len(), changed))
    };
    files.into_iter().filter_map(look).collect()
}

/// Tells systemd how it goes; without systemd, nothing.
pub fn systemd(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
