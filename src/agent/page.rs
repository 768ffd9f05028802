//! The place where metrics and health are served: it moves with the configuration, and never so that nothing is left.

use anyhow::Result;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::Options;
use super::serve::{Shared, serve};
use crate::bridge::Service;

/// A page that could not move is moved again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// A port that we have just left is free again within this.
const LEFT: Duration = Duration::from_secs(2);

/// What is served, and where.
#[derive(Default)]
pub struct Page {
    /// With the address as it is configured.
    serving: Option<(Service, SocketAddr)>,
    /// Why it is not served where the configuration says.
    pub wrong: Option<String>,
    tried: Option<Instant>,
}

impl Page {
    /// Serves where `options` say. Fails if it cannot.
    pub fn start(options: &Options, shared: &Arc<Shared>) -> Result<Page> {
        let mut page = Page::default();
        if let Some(address) = options.address() {
            page.serve(TcpListener::bind(address), address, shared)?;
        }
        Ok(page)
    }

    /// Moves to where `options` say, if it is elsewhere: it listens there before it leaves the place it has. What does not succeed is tried again.
    pub fn tend(&mut self, options: &Options, shared: &Arc<Shared>) {
        let wanted = options.address();
        if self.serving.as_ref().map(|(_, address)| *address) == wanted {
            self.wrong = None;
            return;
        }
        let Some(address) = wanted else {
            (self.serving, self.wrong) = (None, None);
            return;
        };
        if self.wrong.is_some() && self.tried.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        self.tried = Some(Instant::now());
        let result = self.bind(address, shared).and_then(|listener| self.serve(Ok(listener), address, shared));
        let now = self
            .serving
            .as_ref()
            .map_or("They are served nowhere".into(), |(_, at)| format!("They are still served at {at}"));
        self.wrong = result.err().map(|error| format!("{error:#}. {now}"));
        if let Some(why) = &self.wrong {
            tracing::error!(%address, "metrics and health cannot be served there: {why}");
        }
    }

    /// All addresses of a port and one of them exclude each other: there the old place must be left first, and is taken again where that was in vain.
    fn bind(&mut self, address: SocketAddr, shared: &Arc<Shared>) -> Result<TcpListener> {
        let said = |error: io::Error| anyhow::Error::new(error).context(format!("listen at {address}"));
        let old = self.serving.as_ref().map(|(_, at)| *at).filter(|at| at.port() == address.port() && at.port() != 0);
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && old.is_some() => {
                self.serving = None;
                let bound = bind_patiently(address);
                if let (Err(_), Some(old)) = (&bound, old) {
                    // What cannot be had again is said below: it is served nowhere.
                    drop(self.serve(bind_patiently(old), old, shared));
                }
                bound.map_err(said)
            }
            bound => bound.map_err(said),
        }
    }

    fn serve(&mut self, listener: io::Result<TcpListener>, address: SocketAddr, shared: &Arc<Shared>) -> Result<()> {
        let listener = listener.map_err(|e| anyhow::Error::new(e).context(format!("listen at {address}")))?;
        let (service, bound) = serve(listener, Arc::clone(shared))?;
        tracing::info!(address = %bound, "serving metrics and health");
        if !bound.ip().is_loopback() {
            tracing::warn!(
                "the metrics can be read from other machines: names of sources, sizes and times are in them"
            );
        }
        self.serving = Some((service, address));
        Ok(())
    }
}

fn bind_patiently(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + LEFT;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}
