//! The crossing between threads and the io runtime: panics, cancellation, work in the background.

use crate::cases::{create, key, noise};
use async_trait::async_trait;
use blackstart::bridge::Store;
use blackstart::storage::{Key, Kind, Object, Result, Storage, Version};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// `get` panics, everything else never ends.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl Storage for Broken {
    fn place(&self) -> String {
        "broken".into()
    }

    async fn get(&self, _: &Key) -> Result<(Bytes, Version)> {
        panic!("on purpose")
    }

    async fn get_range(&self, _: &Key, _: Range<u64>) -> Result<Bytes> {
        pending().await
    }

    async fn create(&self, _: &Key, _: Bytes, _: &[u8; 32]) -> Result<Version> {
        pending().await
    }

    async fn replace(&self, _: &Key, _: &Version, _: Bytes) -> Result<Version> {
        pending().await
    }

    async fn list(&self, _: &str) -> Result<Vec<Object>> {
        pending().await
    }

    async fn delete(&self, _: &Key) -> Result<()> {
        pending().await
    }
}

#[test]
fn a_panic_is_an_error_at_the_caller() {
    let store = Store::new(Arc::new(Broken)).unwrap();
    let error = store.get(&key("a/b")).unwrap_err();
    assert_eq!((error.kind, error.operation, error.key.as_str()), (Kind::Other, "get", "a/b"));
    let (sender, receiver) = channel();
    store.get_later(key("a/b"), None, move |result| sender.send(result).unwrap());
    assert_eq!(receiver.recv_timeout(SOON).unwrap().unwrap_err().kind, Kind::Other);
    // The runtime survives it.
    assert_eq!(store.get(&key("a/b")).unwrap_err().kind, Kind::Other);
}

#[test]
fn closing_the_store_answers_what_is_under_way() {
    let store = Store::new(Arc::new(Broken)).unwrap();
    let (sender, receiver) = channel();
    for n in 0..100 {
        let sender = sender.clone();
        store.create_later(key(&format!("a/{n}")), "body".into(), [0; 32], move |result, body| {
            sender.send((result, body)).unwrap();
        });
    }
    let other = store.clone();
    drop(store);
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "a clone keeps the runtime alive");
    drop(other);
    for _ in 0..100 {
        let (result, body) = receiver.recv_timeout(SOON).unwrap();
        assert_eq!(result.unwrap_err().kind, Kind::Other);
        assert_eq!(body, "body");
    }
}

#[test]
fn work_in_the_background_gives_the_buffer_back() {
    let store = crate::memory_store();
    let (sender, receiver) = channel();
    for n in 0..32 {
        let (sender, body) = (sender.clone(), noise(1000 + n));
        let sha256 = Sha256::digest(&body).into();
        let address = body.as_ptr() as usize;
        store.create_later(key(&format!("packs/{n}")), body, sha256, move |result, body| {
            assert_eq!(body.as_ptr() as usize, address);
            sender.send(result).unwrap();
        });
    }
    for _ in 0..32 {
        receiver.recv_timeout(SOON).unwrap().unwrap();
    }
    let (sender, receiver) = channel();
    store.get_later(key("packs/7"), Some(3..10), move |result| sender.send(result).unwrap());
    assert_eq!(receiver.recv_timeout(SOON).unwrap().unwrap(), noise(1007).slice(3..10));
}

#[test]
fn an_address_opens_a_store() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", root.path().display())).unwrap();
    create(&store, "a/b", "body").unwrap();
    let again = Store::open(root.path().to_str().unwrap()).unwrap();
    assert_eq!(again.get(&key("a/b")).unwrap(), "body");
    Store::open("ftp://somewhere").unwrap_err();
}
