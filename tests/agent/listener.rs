//! A local HTTP server that keeps what it is sent, and fails when told to.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use blackstart::bridge::Service;
use serde_json::Value;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Got {
    /// Path and query.
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

#[derive(Clone, Default)]
pub struct Listener {
    got: Arc<Mutex<Vec<Got>>>,
    /// Requests to answer with 503 first.
    pub failures: Arc<AtomicUsize>,
    pub port: u16,
    service: Option<Arc<Service>>,
}

impl Listener {
    pub fn start() -> Listener {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut listener = Listener { port: socket.local_addr().unwrap().port(), ..Listener::default() };
        let router = Router::new().fallback(keep).with_state(listener.clone());
        let serve = async move {
            axum::serve(tokio::net::TcpListener::from_std(socket).unwrap(), router).await.unwrap();
        };
        listener.service = Some(Arc::new(Service::start("listener", serve).unwrap()));
        listener
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What has come so far.
    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits until something like that has come.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Got) -> bool) -> Got {
        let until = Instant::now() + super::daemon::PATIENCE;
        loop {
            if let Some(found) = self.got().into_iter().find(&wanted) {
                return found;
            }
            assert!(Instant::now() < until, "{what} did not come: {:#?}", self.got());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

async fn keep(State(listener): State<Listener>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    if listener.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let got = Got {
        path: uri.to_string(),
        authorization: headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    listener.got.lock().unwrap().push(got);
    StatusCode::ACCEPTED
}
