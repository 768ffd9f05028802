//! SIGTERM and SIGINT stop the agent, SIGHUP makes it read its configuration again.

use anyhow::{Context, Result};
use std::sync::mpsc::{Sender, sync_channel};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::Signal;
use crate::bridge::Service;

/// Listens until the result is dropped. When this returns, no signal ends the process any more.
pub fn listen(to: Sender<Signal>) -> Result<Service> {
    let (ready, installed) = sync_channel(1);
    let service = Service::start("signals", async move {
        let streams = || -> std::io::Result<[Stream; 3]> {
            Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?])
        };
        let (result, mut streams) = match streams() {
            Ok(streams) => (Ok(()), Some(streams)),
            Err(error) => (Err(error), None),
        };
        // The receiver waits below.
        drop(ready.send(result));
        let Some([terminate, interrupt, hangup]) = &mut streams else { return };
        loop {
            let seen = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hangup.recv() => Signal::Reload,
            };
            if to.send(seen).is_err() {
                return;
            }
        }
    })?;
    installed.recv().context("listen for signals")?.context("listen for signals")?;
    Ok(service)
}
