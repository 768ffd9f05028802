//! `/metrics`, `/health/live` and `/health/ready`. Nothing else is served, nothing is changed, and there is no secret in it.
//!
//! Live: the scheduler looks at the clock. That backups fail is no reason to start a process anew, so health does not speak of it; metrics do.

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bridge::Service;
use crate::metrics::{self, Figures};

/// What the scheduler shows to those who watch it.
pub struct Shared {
    figures: Mutex<Figures>,
    beat: Mutex<Instant>,
    ready: AtomicBool,
    stalled_after: Duration,
    /// Since when it had stalled, as whoever watches has told; the scheduler takes it when it goes on.
    stall: Mutex<Option<Timestamp>>,
}

impl Shared {
    /// A scheduler that has not looked at the clock for `stalled_after` has stalled.
    pub fn new(stalled_after: Duration) -> Shared {
        let beat = Mutex::new(Instant::now());
        Shared {
            figures: Mutex::default(),
            beat,
            ready: AtomicBool::new(false),
            stalled_after,
            stall: Mutex::default(),
        }
    }

    /// For how long it has been silent, if it has stalled.
    pub fn stalled(&self) -> Option<Duration> {
        let silent = self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (silent > self.stalled_after).then_some(silent)
    }

    /// It has been told that the scheduler stalls.
    pub fn note_stall(&self, since: Timestamp) {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = Some(since);
    }

    /// The stall that is over, once.
    pub fn take_stall(&self) -> Option<Timestamp> {
        self.stall.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The scheduler is alive.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the repository could be read when it was last looked at.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// Serves until the result is dropped; also gives the address, with its port.
pub fn serve(listener: TcpListener, shared: Arc<Shared>) -> Result<(Service, SocketAddr)> {
    listener.set_nonblocking(true).context("set up the listener")?;
    let bound = listener.local_addr().context("set up the listener")?;
    let router = Router::new()
        .route("/metrics", get(page))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .with_state(shared);
    let service = Service::start("http", async move {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "the metrics are not served any more");
                }
            }
            Err(error) => tracing::error!(%error, "the metrics are not served"),
        }
    })?;
    Ok((service, bound))
}

async fn page(State(shared): State<Arc<Shared>>) -> Response {
    let figures = shared.figures().clone();
    match metrics::page(&figures) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn live(State(shared): State<Arc<Shared>>) -> Response {
    let Some(silent) = shared.stalled() else { return "the scheduler is alive\n".into_response() };
    let text = format!("the scheduler has not looked at the clock for {} s\n", silent.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.ready.load(Ordering::Relaxed) {
        return "the configuration is loaded, and the repository has been read\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the repository has not been read yet, or cannot be reached\n").into_response()
}
