//! A memory store that breaks where a test wants it to: at the n-th call, for good; or with the answer of the n-th write lost; or
//! that runs something of the test's in the middle of another's work.

use async_trait::async_trait;
use blackstart::bridge::Store;
use blackstart::storage::memory::Memory;
use blackstart::storage::{Error, Kept, Key, Kind, Object, Result, Storage, Version, VersionId};
use bytes::Bytes;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The n-th call of any kind, and all after it, fail. The first is 1.
    Call(usize),
    /// The n-th write (create, replace, delete) is carried out, but its answer is lost; all calls after it fail.
    Unanswered(usize),
    /// The n-th creation of an object below a prefix, and all calls after it, fail.
    Create(&'static str, usize),
    /// Every call of that name on keys that begin so fails in that way; all else goes on.
    Silent(&'static str, &'static str, Kind),
    Never,
}

/// Called before each operation with its name and key.
pub type Hook = Box<dyn Fn(&str, &str) + Send + Sync>;

pub struct Faulty {
    inner: Memory,
    fault: Fault,
    calls: AtomicUsize,
    created: AtomicUsize,
    writes: AtomicUsize,
    dead: AtomicBool,
    hook: Hook,
    /// What passes before objects below a prefix are created.
    gate: Option<(&'static str, Gate)>,
}

/// Lets uploads through when the test wants it to: a store that is as slow as need be, without a clock.
#[derive(Clone)]
pub struct Gate {
    sender: async_channel::Sender<()>,
    passes: async_channel::Receiver<()>,
}

impl Gate {
    /// Shut.
    pub fn new() -> Gate {
        let (sender, passes) = async_channel::unbounded();
        Gate { sender, passes }
    }

    /// Lets one more upload through.
    pub fn let_one_through(&self) {
        self.sender.try_send(()).unwrap();
    }

    /// For good.
    pub fn open(&self) {
        self.sender.close();
    }

    async fn pass(&self) {
        // Closed and empty: open.
        let _closed = self.passes.recv().await.is_err();
    }
}

/// Opens a gate when a test ends, however it ends: the run behind it would wait for ever, and the test for the run.
pub struct OpensAtEnd<'a>(pub &'a Gate);

impl Drop for OpensAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    pub fn new(inner: Memory, fault: Fault) -> Arc<Faulty> {
        Faulty::build(inner, fault, Box::new(|_, _| ()), None)
    }

    fn build(inner: Memory, fault: Fault, hook: Hook, gate: Option<(&'static str, Gate)>) -> Arc<Faulty> {
        let [calls, created, writes] = [const { AtomicUsize::new(0) }; 3];
        Arc::new(Faulty { inner, fault, calls, created, writes, dead: AtomicBool::new(false), hook, gate })
    }

    /// Whether the fault has struck.
    pub fn struck(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn gone(operation: &'static str, key: &str) -> Error {
        Error::new(Kind::Transient, operation, key).because("the connection is gone")
    }

    fn enter(&self, operation: &'static str, key: &str) -> Result<()> {
        (self.hook)(operation, key);
        if let Fault::Silent(wanted, area, kind) = self.fault
            && operation == wanted
            && key.starts_with(area)
        {
            return Err(Error::new(kind, operation, key).because("a bad sector"));
        }
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let strikes = match self.fault {
            Fault::Call(at) => n == at,
            Fault::Create(area, at) if operation == "create" && key.starts_with(area) => {
                self.created.fetch_add(1, Ordering::SeqCst) + 1 == at
            }
            _ => false,
        };
        if strikes {
            self.dead.store(true, Ordering::SeqCst);
        }
        if self.struck() { Err(Faulty::gone(operation, key)) } else { Ok(()) }
    }

    fn leave<T>(&self, operation: &'static str, key: &str, result: Result<T>) -> Result<T> {
        let n = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        if self.fault == Fault::Unanswered(n) {
            self.dead.store(true, Ordering::SeqCst);
            return Err(Faulty::gone(operation, key));
        }
        result
    }
}

/// A store over `memory` that calls `hook` before each operation.
pub fn hooked(memory: &Memory, hook: impl Fn(&str, &str) + Send + Sync + 'static) -> Store {
    Store::new(Faulty::build(memory.clone(), Fault::Never, Box::new(hook), None)).unwrap()
}

/// A store over `memory` in which objects below `area` are created only as `gate` lets them through.
pub fn gated(memory: &Memory, area: &'static str, gate: &Gate) -> Store {
    Store::new(Faulty::build(memory.clone(), Fault::Never, Box::new(|_, _| ()), Some((area, gate.clone())))).unwrap()
}

#[async_trait]
impl Storage for Faulty {
    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        self.enter("get", key.as_str())?;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.enter("get", key.as_str())?;
        self.inner.get_range(key, range).await
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        if let Some((area, gate)) = &self.gate
            && key.as_str().starts_with(area)
        {
            gate.pass().await;
        }
        self.enter("create", key.as_str())?;
        self.leave("create", key.as_str(), self.inner.create(key, body, sha256).await)
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        self.enter("replace", key.as_str())?;
        self.leave("replace", key.as_str(), self.inner.replace(key, seen, body).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.enter("list", prefix)?;
        self.inner.list(prefix).await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        self.enter("list", prefix)?;
        self.inner.list_versions(prefix).await
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.enter("get", key.as_str())?;
        self.inner.get_version(key, id).await
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.enter("delete", key.as_str())?;
        self.leave("delete", key.as_str(), self.inner.delete_version(key, id).await)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.enter("delete", key.as_str())?;
        self.leave("delete", key.as_str(), self.inner.delete(key).await)
    }
}
