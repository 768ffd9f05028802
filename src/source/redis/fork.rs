//! When the server forked: the moment that its file is of. A full sync is answered when the server likes (`repl-diskless-sync-delay`, five seconds
//! unless it is set), so who wants to know looks meanwhile, over a connection of its own, at the number of its forks (`INFO stats`).

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::server::Info;

const PAUSE: Duration = Duration::from_millis(10);

/// Forks of the server since it was started; `None` of one that does not tell.
fn forks(connection: &mut Connection) -> Option<i64> {
    let reply = connection.command(&["INFO", "stats"]).ok()?;
    Info::parse(reply.text().unwrap_or_default()).number("total_forks")
}

/// Does `act`, which makes the server fork. Gives as well the last moment at which it certainly had not forked yet, where that could be seen.
pub fn watch<T>(mut eye: Option<Connection>, act: impl FnOnce() -> Result<T>) -> Result<(T, Option<Instant>)> {
    let Some(before) = eye.as_mut().and_then(forks) else { return Ok((act()?, None)) };
    let Some(mut eye) = eye else { return Ok((act()?, None)) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let look = || {
            let mut not_yet = None;
            while !done.load(Ordering::SeqCst) {
                let asked = Instant::now();
                if forks(&mut eye) != Some(before) {
                    break;
                }
                not_yet = Some(asked);
                std::thread::sleep(PAUSE);
            }
            not_yet
        };
        let looking = std::thread::Builder::new().name("redis fork".into()).spawn_scoped(scope, look);
        let acted = act();
        done.store(true, Ordering::SeqCst);
        let not_yet = looking.context("start a thread")?.join().unwrap_or_default();
        Ok((acted?, not_yet))
    })
}
