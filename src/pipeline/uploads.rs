//! Objects on their way to the store. A few are sent at once, straight from memory; what the store cannot take as fast as the source is
//! read waits in the spool; only when that is full too does the source wait.
//!
//! Memory: pack buffers come from a pool of fixed size. Workers hold one each; of the others, each carries an upload.

use anyhow::{Context, Result, anyhow};
use async_channel::{Receiver, Sender};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::spool::{Kept, Spool, SpoolPlace};
use crate::bridge::Store;
use crate::limits::PACK_MAX;
use crate::repository::layout::Hash;
use crate::storage::{self, Key};

/// How long a failed run waits for what is under way.
const SETTLE: Duration = Duration::from_secs(5);

/// A sealed object, named by the hash of its bytes.
pub struct Object {
    pub key: Key,
    pub name: Hash,
    pub bytes: Vec<u8>,
    /// The bytes lie in a buffer of the pool, which gets it back.
    pub pooled: bool,
}

/// Told once the object is durable, or cannot be made so. Called on threads that must not wait.
pub type Told = Box<dyn FnOnce(storage::Result<()>) + Send>;

/// The uploads of one run. Dropping them gives up what still waits in the spool.
pub struct Uploads {
    inner: Arc<Inner>,
    drain: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    store: Store,
    /// In memory at once, once the source has been read.
    packs: usize,
    pool: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    spool: Option<Arc<Spool>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Objects that the store is taking now, and how many it may before others wait.
    under_way: usize,
    at_once: usize,
    waiting: VecDeque<Waiting>,
    ended: bool,
    /// Bytes that went through the spool so far, and why it could not be used.
    spooled: u64,
    spool_failed: Option<String>,
}

struct Waiting {
    key: Key,
    name: Hash,
    kept: Kept,
    pooled: bool,
    told: Told,
}

impl Uploads {
    /// `workers` hold a pack buffer each while the source is read; at most `packs` are in memory at once, but never fewer than two beside theirs.
    pub fn start(store: Store, workers: usize, packs: usize, spool: Option<&SpoolPlace>) -> Result<Uploads> {
        let mut failed = None;
        let spool = spool.and_then(|place| match Spool::open(place) {
            Ok(spool) => Some(Arc::new(spool)),
            // Without it the run is only slower.
            Err(e) => {
                failed = Some(format!("{}: {e}", place.directory.display()));
                None
            }
        });
        let buffers = if spool.is_some() { packs.max(workers + 2) } else { workers + 2 };
        let pool = async_channel::bounded(buffers);
        for _ in 0..buffers {
            // The channel has room for exactly these.
            drop(pool.0.try_send(Vec::new()));
        }
        // Without a spool the pool alone bounds what is under way.
        let at_once = if spool.is_some() { buffers - workers } else { buffers };
        let state =
            State { under_way: 0, at_once, waiting: VecDeque::new(), ended: false, spooled: 0, spool_failed: failed };
        let inner = Arc::new(Inner {
            store,
            packs: packs.max(1),
            pool,
            spool,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let drain = inner.spool.is_some().then(|| {
            let inner = Arc::clone(&inner);
            std::thread::Builder::new().name("spool".into()).spawn(move || inner.drain())
        });
        Ok(Uploads { inner, drain: Mutex::new(drain.transpose().context("start the spool's thread")?) })
    }

    /// A pack buffer, as soon as one is free.
    pub fn buffer(&self) -> Result<Vec<u8>> {
        let mut buffer = self.inner.pool.1.recv_blocking().context("wait for a pack buffer")?;
        if buffer.capacity() == 0 {
            buffer = Vec::with_capacity(PACK_MAX);
        }
        Ok(buffer)
    }

    /// Sends an object, now or later. Waits only where neither the store nor the spool can take it.
    pub fn send(&self, object: Object, told: Told) {
        let inner = &self.inner;
        let mut state = inner.state();
        let busy = |state: &State| state.under_way >= state.at_once || !state.waiting.is_empty();
        if busy(&state)
            && let Some(spool) = &inner.spool
        {
            drop(state);
            match spool.keep(&object.bytes) {
                Ok(Some(kept)) => return inner.wait_in_spool(object, kept, told),
                Ok(None) => state = inner.state(),
                Err(e) => {
                    state = inner.state();
                    state.spool_failed.get_or_insert_with(|| e.to_string());
                }
            }
        }
        // A pack that is sent nonetheless makes the next one wait for a buffer.
        while !object.pooled && state.under_way >= state.at_once {
            state = inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.under_way += 1;
        drop(state);
        inner.begin(object, None, told);
    }

    /// Waits until everything has been told. Call it when the source has been read and the workers have ended.
    pub fn finish(&self) {
        let mut state = self.inner.state();
        state.at_once = self.inner.packs;
        self.inner.changed.notify_all();
        while state.under_way > 0 || !state.waiting.is_empty() {
            state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives what is under way a moment to become durable, after a run that has failed.
    pub fn settle(&self) {
        let state = self.inner.state();
        let busy = |state: &mut State| state.under_way > 0;
        drop(self.inner.changed.wait_timeout_while(state, SETTLE, busy));
    }

    /// Bytes that went through the spool, and why it could not take more, if something was wrong with it.
    pub fn spooled(&self) -> (u64, Option<String>) {
        let state = self.inner.state();
        (state.spooled, state.spool_failed.clone())
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.ended = true;
        let given_up = std::mem::take(&mut state.waiting);
        drop(state);
        drop(given_up);
        self.inner.pool.0.close();
        self.inner.changed.notify_all();
        if let Some(drain) = self.drain.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // It does not panic; what it was sending ends by itself.
            drop(drain.join());
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_in_spool(&self, object: Object, kept: Kept, told: Told) {
        let Object { key, name, bytes, pooled } = object;
        let mut state = self.state();
        state.spooled += bytes.len() as u64;
        if pooled {
            drop(self.pool.0.try_send(bytes));
        }
        state.waiting.push_back(Waiting { key, name, kept, pooled, told });
        self.changed.notify_all();
    }

    /// Hands an object that is counted as under way to the store.
    fn begin(self: &Arc<Inner>, object: Object, kept: Option<Kept>, told: Told) {
        let inner = Arc::clone(self);
        let pooled = object.pooled;
        self.store.create_later(object.key, Bytes::from(object.bytes), object.name.0, move |result, body| {
            told(result.map(|_| ()));
            drop(kept);
            inner.end(pooled.then(|| body.try_into_mut().map(Vec::from).unwrap_or_default()));
        });
    }

    fn end(&self, buffer: Option<Vec<u8>>) {
        if let Some(buffer) = buffer {
            // The pool is closed when the run has failed already.
            drop(self.pool.0.try_send(buffer));
        }
        self.state().under_way -= 1;
        self.changed.notify_all();
    }

    /// Sends what waits in the spool, the oldest first, until the end.
    fn drain(self: Arc<Inner>) {
        while let Some(next) = self.next_waiting() {
            let Waiting { key, name, kept, pooled, told } = next;
            let mut bytes = Vec::new();
            if pooled {
                let Ok(buffer) = self.pool.1.recv_blocking() else { return };
                bytes = buffer;
            }
            if pooled && bytes.capacity() == 0 {
                bytes = Vec::with_capacity(PACK_MAX);
            }
            match kept.read(&mut bytes).context("read the spool").and_then(|()| same(&bytes, &name)) {
                Ok(()) => self.begin(Object { key, name, bytes, pooled }, Some(kept), told),
                Err(e) => {
                    told(Err(storage::Error::new(storage::Kind::Other, "create", key).because(format!("{e:#}"))));
                    self.end(pooled.then_some(bytes));
                }
            }
        }
    }

    fn next_waiting(&self) -> Option<Waiting> {
        let mut state = self.state();
        loop {
            if state.ended {
                return None;
            }
            if state.under_way < state.at_once
                && let Some(next) = state.waiting.pop_front()
            {
                state.under_way += 1;
                return Some(next);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The disk of the spool may lie as any other.
fn same(bytes: &[u8], name: &Hash) -> Result<()> {
    if Hash::of(bytes) == *name { Ok(()) } else { Err(anyhow!("the spool gave back other bytes than were written")) }
}
