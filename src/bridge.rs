//! The one crossing between async and threads. Operations are plain code on threads and hold a [`Store`]; storage is async
//! and lives on the io runtime. `block_on` and `spawn_blocking` appear here and nowhere else.

use crate::storage::probe::{self, Capabilities};
use crate::storage::terms::OnTerms;
use crate::storage::{
    Class, Details, Error, Haste, Kept, Key, Kind, Lock, Object, Page, Result, Setup, Storage, Terms, Version,
    VersionId,
};
use anyhow::Context;
use bytes::Bytes;
use jiff::Timestamp;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the io runtime. They only wait for sockets; hashing and encryption happen on the callers' threads.
const IO_THREADS: usize = 2;
/// Threads for disk work of local stores, each with one object in hand.
const DISK_THREADS: usize = 8;
/// Jobs handed over and not yet started. Each starts at once, so that this is never a limit on the work under way; callers
/// bound that themselves (`limits::PACKS_IN_MEMORY`).
const JOBS: usize = 16;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The work given to [`blocking`] panicked.
#[derive(Debug, thiserror::Error)]
#[error("a thread panicked; this is a bug in blackstart, please report it")]
pub struct Panicked;

/// Runs disk work of async storage code on a thread of its own.
#[expect(clippy::disallowed_methods, reason = "the one crossing from async code to blocking work")]
pub async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> std::result::Result<T, Panicked> {
    tokio::task::spawn_blocking(f).await.map_err(|_| Panicked)
}

/// Calls `on_signal` for each SIGINT and SIGTERM that the process gets from now on, on a thread of its own.
#[expect(clippy::disallowed_methods, reason = "the one crossing from async code to blocking work")]
pub fn on_signals(mut on_signal: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("set up for signals")?;
    let listen = |kind| {
        let _inside = runtime.enter();
        signal(kind).context("listen for signals")
    };
    let (mut interrupts, mut terminations) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (heard_in, heard) = async_channel::bounded(1);
    let serve = move || {
        let sender = heard_in.clone();
        drop(runtime.spawn(async move { while interrupts.recv().await.is_some() && sender.send(()).await.is_ok() {} }));
        drop(
            runtime
                .spawn(async move { while terminations.recv().await.is_some() && heard_in.send(()).await.is_ok() {} }),
        );
        runtime.block_on(async {
            while heard.recv().await.is_ok() {
                on_signal();
            }
        });
    };
    thread::Builder::new().name("signals".into()).spawn(serve).context("start the thread that listens for signals")?;
    Ok(())
}

/// A synchronous handle on a storage, cheap to clone. Dropping the last one ends the io runtime and cancels what is still
/// under way there.
///
/// The methods without `later` wait. They must not be called from a `done` callback, which runs on an io thread.
#[derive(Clone, Debug)]
pub struct Store {
    storage: Arc<dyn Storage>,
    jobs: async_channel::Sender<Job>,
}

impl Store {
    /// A handle on `storage` as it is: no retries are added.
    pub fn new(storage: Arc<dyn Storage>) -> anyhow::Result<Store> {
        Store::start(async { Ok(storage) })
    }

    /// Runs `build` on a new io runtime and serves what it returns. Storages that connect are built here, inside the runtime.
    #[expect(clippy::disallowed_methods, reason = "the one place that enters async code")]
    pub fn start(
        build: impl Future<Output = anyhow::Result<Arc<dyn Storage>>> + Send + 'static,
    ) -> anyhow::Result<Store> {
        let (jobs, queue) = async_channel::bounded::<Job>(JOBS);
        let (ready, opened) = sync_channel(1);
        let runtime = Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .max_blocking_threads(DISK_THREADS)
            .thread_name("io")
            .enable_all()
            .build()
            .context("start the threads that talk to the store")?;
        let serve = move || {
            runtime.block_on(async {
                // A failed send means that the caller has gone; the queue is closed then, and the loop ends at once.
                let _gone = ready.send(build.await);
                while let Ok(job) = queue.recv().await {
                    drop(tokio::spawn(job));
                }
            });
        };
        thread::Builder::new()
            .name("io-main".into())
            .spawn(serve)
            .context("start the thread that talks to the store")?;
        let storage = opened.recv().map_err(|_| Panicked).context("open the store")??;
        Ok(Store { storage, jobs })
    }

    /// Where this is, for people. No secret.
    pub fn place(&self) -> String {
        self.storage.place()
    }

    /// The whole object.
    pub fn get(&self, key: &Key) -> Result<Bytes> {
        Ok(self.get_versioned(key)?.0)
    }

    /// The whole object and the version that [`Store::replace`] compares with.
    pub fn get_versioned(&self, key: &Key) -> Result<(Bytes, Version)> {
        let wanted = key.clone();
        self.wait("get", key.as_str(), |storage| async move { storage.get(&wanted).await })
    }

    /// Exactly the bytes `range`, see [`Storage::get_range`].
    pub fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let wanted = key.clone();
        self.wait("get", key.as_str(), |storage| async move { storage.get_range(&wanted, range).await })
    }

    /// See [`Storage::create`].
    pub fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        let (new, sha256) = (key.clone(), *sha256);
        self.wait("create", key.as_str(), move |storage| async move { storage.create(&new, body, &sha256).await })
    }

    /// See [`Storage::replace`].
    pub fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        let (old, seen) = (key.clone(), seen.clone());
        self.wait("replace", key.as_str(), |storage| async move { storage.replace(&old, &seen, body).await })
    }

    /// See [`Storage::list`].
    pub fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let wanted = prefix.to_owned();
        self.wait("list", prefix, |storage| async move { storage.list(&wanted).await })
    }

    /// See [`Storage::list_versions`].
    pub fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        let wanted = prefix.to_owned();
        self.wait("list", prefix, |storage| async move { storage.list_versions(&wanted).await })
    }

    /// See [`Storage::list_page`].
    pub fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        let (wanted, from) = (prefix.to_owned(), after.to_owned());
        self.wait("list", prefix, move |storage| async move { storage.list_page(&wanted, &from, most).await })
    }

    /// See [`Storage::get_version`].
    pub fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        let (wanted, id) = (key.clone(), id.clone());
        self.wait("get", key.as_str(), |storage| async move { storage.get_version(&wanted, &id).await })
    }

    /// See [`Storage::delete_version`].
    pub fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        let (old, id) = (key.clone(), id.clone());
        self.wait("delete", key.as_str(), |storage| async move { storage.delete_version(&old, &id).await })
    }

    /// See [`Storage::describe`].
    pub fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        let (wanted, id) = (key.clone(), id.clone());
        self.wait("describe", key.as_str(), |storage| async move { storage.describe(&wanted, &id).await })
    }

    /// See [`Storage::lock`].
    pub fn lock(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        let (wanted, id) = (key.clone(), id.clone());
        self.wait("lock", key.as_str(), move |storage| async move { storage.lock(&wanted, &id, lock).await })
    }

    /// See [`Storage::mark`].
    pub fn mark(&self, key: &Key, class: Class) -> Result<()> {
        let wanted = key.clone();
        self.wait("mark", key.as_str(), move |storage| async move { storage.mark(&wanted, class).await })
    }

    /// See [`Storage::thaw`].
    pub fn thaw(&self, key: &Key, days: u32, haste: Haste) -> Result<()> {
        let wanted = key.clone();
        self.wait("thaw", key.as_str(), move |storage| async move { storage.thaw(&wanted, days, haste).await })
    }

    /// See [`Storage::setup`].
    pub fn setup(&self) -> Result<Setup> {
        self.wait("setup", "", |storage| async move { storage.setup().await })
    }

    /// The same store, which makes objects on these terms: packs in the class, and packs, index objects and commits with the lock.
    pub fn on_terms(&self, terms: Terms) -> Store {
        Store { storage: Arc::new(OnTerms::new(Arc::clone(&self.storage), terms)), jobs: self.jobs.clone() }
    }

    /// See [`Storage::delete`].
    pub fn delete(&self, key: &Key) -> Result<()> {
        let old = key.clone();
        self.wait("delete", key.as_str(), |storage| async move { storage.delete(&old).await })
    }

    /// See [`Storage::sweep_unfinished`].
    pub fn sweep_unfinished(&self, before: Timestamp) -> Result<u64> {
        self.wait("sweep", "", move |storage| async move { storage.sweep_unfinished(before).await })
    }

    /// Tries out what the store guarantees, see [`probe::probe`].
    pub fn probe(&self) -> Result<Capabilities> {
        self.wait("probe", "probe/", |storage| async move { probe::probe(&*storage).await })
    }

    /// Whether this credential may delete, see [`probe::may_delete`].
    pub fn may_delete(&self) -> Result<bool> {
        self.wait("delete", "probe/", |storage| async move { probe::may_delete(&*storage).await })
    }

    /// [`Storage::create`] in the background. `done` is called exactly once, on an io thread, whatever happens (a panic and
    /// the end of the store included), and gets the body back so that its buffer can be used again. It must be quick, must
    /// not panic, and must not call back into this store.
    pub fn create_later(
        &self,
        key: Key,
        body: Bytes,
        sha256: [u8; 32],
        done: impl FnOnce(Result<Version>, Bytes) + Send + 'static,
    ) {
        let sent = body.clone();
        let promise = Promise::new("create", key.as_str(), move |result| done(result, body));
        self.later(promise, move |storage| async move { storage.create(&key, sent, &sha256).await });
    }

    /// [`Storage::get`], or [`Storage::get_range`] where a range is given, in the background; `done` as for [`Store::create_later`].
    pub fn get_later(&self, key: Key, range: Option<Range<u64>>, done: impl FnOnce(Result<Bytes>) + Send + 'static) {
        let promise = Promise::new("get", key.as_str(), done);
        self.later(promise, move |storage| async move {
            match range {
                Some(range) => storage.get_range(&key, range).await,
                None => storage.get(&key).await.map(|(body, _)| body),
            }
        });
    }

    fn wait<T, F>(&self, operation: &'static str, key: &str, work: impl FnOnce(Arc<dyn Storage>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        // The receiver waits below, and the channel has room for the one answer.
        let promise = Promise::new(operation, key, move |result| drop(sender.send(result)));
        self.later(promise, work);
        receiver.recv().unwrap_or_else(|_| Err(Error::new(Kind::Other, operation, key).because(Panicked)))
    }

    fn later<T, F>(&self, promise: Promise<T>, work: impl FnOnce(Arc<dyn Storage>) -> F)
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let work = work(self.storage.clone());
        let job: Job = Box::pin(async move {
            let result = work.await;
            promise.keep(result);
        });
        // If the runtime is gone the job comes back and is dropped, and its promise answers.
        drop(self.jobs.send_blocking(job));
    }
}

/// Async work that goes on beside everything else until this is dropped: a server, a listener for signals. It has a thread of its own.
pub struct Service(Option<Runtime>);

impl Service {
    /// Starts `work`; it may use sockets, timers and signals.
    pub fn start(name: &str, work: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<Service> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name(name)
            .enable_all()
            .build()
            .with_context(|| format!("start the thread {name}"))?;
        drop(runtime.spawn(work));
        Ok(Service(Some(runtime)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Answers exactly once: with the result, or, when it is dropped because the task panicked or was cancelled, with an error.
struct Promise<T> {
    operation: &'static str,
    key: String,
    answer: Option<Box<dyn FnOnce(Result<T>) + Send>>,
}

impl<T> Promise<T> {
    fn new(operation: &'static str, key: &str, answer: impl FnOnce(Result<T>) + Send + 'static) -> Promise<T> {
        Promise { operation, key: key.to_owned(), answer: Some(Box::new(answer)) }
    }

    fn keep(mut self, result: Result<T>) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let cause = "the task ended before it finished: the store was closed, or a bug made it panic";
            answer(Err(Error::new(Kind::Other, self.operation, &self.key).because(cause)));
        }
    }
}
