//! A watch over the children that a drill starts: each is noted, so that what a killed drill leaves running can be found and ended; the kernel is
//! told to take them first when memory runs out; and what they use is bounded.
//!
//! Nothing is bounded inside an engine: a server that its own limits refuse memory fails in a way that looks like a fault of the data. It is
//! ended from outside instead, and the breach is known as one.

use anyhow::{Context, Result};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::process::{Process, family, memory};
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::size;

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(250);
/// For `oom_score_adj`, whose highest is 1000: whatever else runs here is worth more than a rehearsal.
const FIRST_TO_GO: &str = "900";

/// What the children of a drill may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes, all together.
    pub memory: u64,
    /// From the begin of the watch.
    pub time: Duration,
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// Bytes that were in use.
    Memory(u64),
    Time,
    /// Somebody else has killed a child.
    Killed,
}

struct Shared {
    notes: PathBuf,
    bounds: Bounds,
    until: Instant,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    children: BTreeSet<u32>,
    breach: Option<Breach>,
    over: bool,
}

thread_local! {
    /// The watch of a drill is that of its thread: what else this process runs meanwhile is none of its children.
    static WATCH: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// Until dropped, all children that this thread starts are watched over.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _deadline: interrupt::Deadline,
}

impl Watch {
    /// Notes go to `notes`, a directory that exists.
    pub fn begin(notes: PathBuf, bounds: Bounds) -> Result<Watch> {
        let until = Instant::now() + bounds.time;
        let shared = Arc::new(Shared { notes, bounds, until, state: Mutex::default(), over: Condvar::new() });
        let watched = Arc::clone(&shared);
        let look = move || watched.look_on();
        let thread = std::thread::Builder::new().name("watch".into()).spawn(look).context("start the watch")?;
        WATCH.set(Some(Arc::clone(&shared)));
        Ok(Watch { shared, thread: Some(thread), _deadline: interrupt::deadline(until) })
    }

    /// Fails with `Kind::Environment` if a bound was reached: whatever else went wrong, that was why.
    pub fn check(&self) -> Result<()> {
        // The thread that works may notice the time before the one that watches.
        let late = || (Instant::now() >= self.shared.until).then_some(Breach::Time);
        let Some(breach) = self.shared.state().breach.or_else(late) else { return Ok(()) };
        let Bounds { memory, time } = self.shared.bounds;
        let (message, help) = match breach {
            Breach::Memory(used) => (
                format!(
                    "the drill was stopped: its engines used {} of memory, and may use {}",
                    size::in_words(used),
                    size::in_words(memory)
                ),
                "Nothing is said of the backup. Give drills more: [drill] memory = \"8GiB\"; or drill on another machine.",
            ),
            Breach::Killed => (
                "a program of the drill was killed from outside, mostly by the kernel for want of memory".to_owned(),
                "Nothing is said of the backup. Drill where there is more memory; `dmesg` shows what the kernel has killed.",
            ),
            Breach::Time => (
                format!("the drill was stopped: it has taken the {} s that it may take", time.as_secs()),
                "Nothing is said of the backup. Give drills more: [drill] time = \"48h\"; `status` shows how long a restore takes.",
            ),
        };
        Err(Failure::new(Kind::Environment, message, help))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCH.set(None);
        self.shared.state().over = true;
        self.shared.over.notify_all();
        if let Some(thread) = self.thread.take() {
            // Its panic would have been reported where it happened.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_on(&self) {
        loop {
            let state = self.state();
            if state.over || state.breach.is_some() {
                return;
            }
            let children = state.children.clone();
            drop(state);
            if let Some(breach) = self.breach_of(&children) {
                self.state().breach.get_or_insert(breach);
                // Those that were started meanwhile end with the drill, which is told by their first wait.
                let all = self.state().children.clone();
                for child in all.into_iter().filter_map(Process::of) {
                    let _waited_for = child.end();
                }
                return;
            }
            let state = self.state();
            if !state.over {
                drop(self.over.wait_timeout(state, EVERY));
            }
        }
    }

    fn breach_of(&self, children: &BTreeSet<u32>) -> Option<Breach> {
        if Instant::now() >= self.until {
            return Some(Breach::Time);
        }
        if children.is_empty() {
            return None;
        }
        let used: u64 = family(children).into_iter().map(memory).sum();
        (used > self.bounds.memory).then_some(Breach::Memory(used))
    }
}

/// A child that is watched over, until this is dropped.
pub(super) struct Noted {
    pid: u32,
    watch: Arc<Shared>,
}

/// Notes a child that this thread has just started, if it watches over its children.
pub(super) fn note(pid: u32) -> Result<Option<Noted>> {
    let Some(watch) = WATCH.with_borrow(Clone::clone) else { return Ok(None) };
    let adjust = || File::create(format!("/proc/{pid}/oom_score_adj"))?.write_all(FIRST_TO_GO.as_bytes());
    // Where the kernel does not let us, the bound holds all the same.
    drop(adjust());
    if let Some(process) = Process::of(pid) {
        let write =
            || writeln!(File::create(watch.notes.join(pid.to_string()))?, "{} {}", process.started, process.boot);
        write().context("note what was started")?;
    }
    watch.state().children.insert(pid);
    Ok(Some(Noted { pid, watch }))
}

impl Noted {
    /// Somebody has killed it, and not this program.
    pub fn was_killed(&self) {
        self.watch.state().breach.get_or_insert(Breach::Killed);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.watch.state().children.remove(&self.pid);
        drop(std::fs::remove_file(self.watch.notes.join(self.pid.to_string())));
    }
}

/// Ends what the notes of a killed drill name and what works on `directory` still. Whether nothing of it is left; what has another's number
/// by now is never touched.
pub fn end_noted(notes: &Path, directory: &Path) -> bool {
    let mut all_gone = true;
    for entry in std::fs::read_dir(notes).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let (Some(pid), Some((started, boot))) = (pid, text.trim_end_matches('\n').split_once(' ')) else { continue };
        let Ok(started) = started.parse() else { continue };
        let process = Process { pid, started, boot: boot.to_owned() };
        if process.is_there() && process.is_about(directory) {
            all_gone &= process.end();
        }
    }
    all_gone
}

#[cfg(test)]
mod tests;
