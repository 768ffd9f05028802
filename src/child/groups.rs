//! The process groups of the children that run: for a process that ends without dropping them, since they would outlive it.

use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A number leaves the set before it can belong to another process.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

pub(super) fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every child of this process, and theirs.
pub fn kill_all() {
    for group in running().iter().filter_map(|id| Pid::from_raw(id.cast_signed())) {
        let _gone = kill_process_group(group, Signal::KILL);
    }
}
