//! Tries again what failed for a passing reason, with growing and jittered pauses, a bounded number of times.
//!
//! A write that got no answer may have happened. So a repeated `create` that meets the key, or a repeated `replace` that
//! meets another version, reads back: its own bytes there mean that the first try went through.
//!
//! All of it may take minutes. Whoever sits before a terminal must not take that for a program that hangs: [`tell_of_waits`].

use super::{
    Class, Details, Error, Haste, Kept, Key, Kind, Lock, Object, Page, Result, Setup, Storage, Terms, Version,
    VersionId,
};
use async_trait::async_trait;
use aws_lc_rs::rand;
use bytes::Bytes;
use jiff::Timestamp;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long to keep trying. A dead endpoint costs at most the sum of the pauses and of the storage's own time limits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries in all, the first included.
    pub tries: u32,
    /// Pause before the second try; each further one is twice as long.
    pub pause: Duration,
    pub pause_max: Duration,
}

impl Default for Patience {
    /// Eight tries over about 45 seconds of pauses: enough for a restart of the store or a failover of its load balancer.
    fn default() -> Patience {
        Patience { tries: 8, pause: Duration::from_millis(250), pause_max: Duration::from_secs(20) }
    }
}

impl Patience {
    /// Between half and all of the nominal pause after failed try `n` (from 1): clients that failed together spread out.
    fn after(&self, n: u32) -> Duration {
        let nominal = self.pause.saturating_mul(2_u32.saturating_pow(n - 1)).min(self.pause_max);
        let mut byte = [u8::MAX];
        // Without randomness the pause is whole, which is only less polite.
        let _whole = rand::fill(&mut byte);
        nominal / 2 + nominal * u32::from(byte[0]) / (2 * u32::from(u8::MAX))
    }
}

/// A listing or a look at the setup is small: a store that takes longer for it is worth a word.
const SILENCE: Duration = Duration::from_secs(5);
/// The first two failures are soon made up for, and nobody needs to hear of them.
const TOLD_FROM: u32 = 3;
/// One word in this time, however many requests wait.
const PAUSE_BETWEEN_WORDS: Duration = Duration::from_secs(30);

/// Who hears that a store keeps this program waiting, in a sentence; nobody where there is none.
static LISTENER: OnceLock<fn(&str)> = OnceLock::new();
static LAST_WORD: Mutex<Option<Instant>> = Mutex::new(None);

/// From now on `to` hears of waits that a person would wonder about, at most every 30 s. The first call counts, for the whole process.
pub fn tell_of_waits(to: fn(&str)) {
    LISTENER.get_or_init(|| to);
}

fn tell(text: impl FnOnce() -> String) {
    let Some(listener) = LISTENER.get() else { return };
    let mut last = LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= PAUSE_BETWEEN_WORDS) {
        *last = Some(Instant::now());
        listener(&text());
    }
}

#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Storage>,
    patience: Patience,
}

impl Retry {
    pub fn new(inner: Arc<dyn Storage>, patience: Patience) -> Retry {
        Retry { inner, patience }
    }

    /// The result of the first try that did not fail transiently, with the number of that try; or the last failure.
    async fn tried<T, F: Future<Output = Result<T>>>(&self, mut attempt: impl FnMut() -> F) -> (Result<T>, u32) {
        for n in 1.. {
            match attempt().await {
                Err(error) if error.kind == Kind::Transient && n < self.patience.tries => {
                    if n >= TOLD_FROM {
                        let (place, tries) = (self.inner.place(), self.patience.tries);
                        tell(|| {
                            format!(
                                "{place} does not answer properly; trying again ({n} of {tries} tries failed): {}",
                                why(&error)
                            )
                        });
                    }
                    tokio::time::sleep(self.patience.after(n)).await;
                }
                Err(error) if error.kind == Kind::Transient => return (Err(gave_up(error, n)), n),
                result => return (result, n),
            }
        }
        unreachable!("the loop has no end of its own")
    }

    /// [`Retry::tried`] for requests that a store answers at once: its silence is told of while it lasts.
    async fn soon<T, F: Future<Output = Result<T>>>(&self, mut attempt: impl FnMut() -> F) -> Result<T> {
        let watched = || {
            let one = attempt();
            async {
                let mut one = pin!(one);
                if let Ok(answer) = tokio::time::timeout(SILENCE, &mut one).await {
                    return answer;
                }
                let (place, seconds) = (self.inner.place(), SILENCE.as_secs());
                tell(|| format!("{place} has not answered for {seconds} s; still waiting for it"));
                one.await
            }
        };
        self.tried(watched).await.0
    }

    /// After a repeated write was refused: whether the object has the very bytes that were to be written.
    async fn holds(&self, key: &Key, body: &Bytes) -> Result<Option<Version>> {
        match self.get(key).await {
            Ok((found, version)) => Ok((found == *body).then_some(version)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn why(error: &Error) -> String {
    error.source.as_ref().map_or_else(|| error.kind.to_string(), ToString::to_string)
}

fn gave_up(error: Error, tries: u32) -> Error {
    let cause = error.source.map_or_else(String::new, |source| format!(", at last: {source}"));
    Error::new(Kind::Transient, error.operation, error.key).because(format!("gave up after {tries} tries{cause}"))
}

#[async_trait]
impl Storage for Retry {
    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get(&self, key: &Key) -> Result<(Bytes, Version)> {
        self.tried(|| self.inner.get(key)).await.0
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.tried(|| self.inner.get_range(key, range.clone())).await.0
    }

    async fn create(&self, key: &Key, body: Bytes, sha256: &[u8; 32]) -> Result<Version> {
        match self.tried(|| self.inner.create(key, body.clone(), sha256)).await {
            (Err(refused), tries) if refused.kind == Kind::AlreadyExists && tries > 1 => {
                self.holds(key, &body).await?.ok_or(refused)
            }
            (result, _) => result,
        }
    }

    async fn create_on(&self, key: &Key, body: Bytes, sha256: &[u8; 32], terms: Terms) -> Result<Version> {
        match self.tried(|| self.inner.create_on(key, body.clone(), sha256, terms)).await {
            (Err(refused), tries) if refused.kind == Kind::AlreadyExists && tries > 1 => {
                self.holds(key, &body).await?.ok_or(refused)
            }
            (result, _) => result,
        }
    }

    async fn describe(&self, key: &Key, id: &VersionId) -> Result<Details> {
        self.tried(|| self.inner.describe(key, id)).await.0
    }

    async fn lock(&self, key: &Key, id: &VersionId, lock: Lock) -> Result<()> {
        self.tried(|| self.inner.lock(key, id, lock)).await.0
    }

    async fn mark(&self, key: &Key, class: Class) -> Result<()> {
        self.tried(|| self.inner.mark(key, class)).await.0
    }

    async fn thaw(&self, key: &Key, days: u32, haste: Haste) -> Result<()> {
        self.tried(|| self.inner.thaw(key, days, haste)).await.0
    }

    async fn setup(&self) -> Result<Setup> {
        self.soon(|| self.inner.setup()).await
    }

    async fn replace(&self, key: &Key, seen: &Version, body: Bytes) -> Result<Version> {
        match self.tried(|| self.inner.replace(key, seen, body.clone())).await {
            (Err(refused), tries) if refused.kind == Kind::Conflict && tries > 1 => {
                self.holds(key, &body).await?.ok_or(refused)
            }
            (result, _) => result,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        self.soon(|| self.inner.list(prefix)).await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<Kept>> {
        self.soon(|| self.inner.list_versions(prefix)).await
    }

    async fn list_page(&self, prefix: &str, after: &str, most: usize) -> Result<Page> {
        self.soon(|| self.inner.list_page(prefix, after, most)).await
    }

    async fn get_version(&self, key: &Key, id: &VersionId) -> Result<Bytes> {
        self.tried(|| self.inner.get_version(key, id)).await.0
    }

    async fn delete_version(&self, key: &Key, id: &VersionId) -> Result<()> {
        self.tried(|| self.inner.delete_version(key, id)).await.0
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.tried(|| self.inner.delete(key)).await.0
    }

    async fn sweep_unfinished(&self, before: Timestamp) -> Result<u64> {
        self.tried(|| self.inner.sweep_unfinished(before)).await.0
    }
}
