//! How far a server's stream goes, asked each second on a connection of its own: a stream on which nothing comes does not tell whether the server
//! has nothing, or whether the line is slow.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Place;
use crate::clock::Clock;
use crate::source::redis::connection::Connection;
use crate::source::redis::server::Info;

const EVERY: Duration = Duration::from_secs(1);
/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks until it is dropped.
pub struct Watch(Arc<Mutex<Option<Said>>>);

/// What the server said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The replication ID in which the offset counts.
    pub id: String,
    pub end: u64,
    /// Our clock before it was asked; of a replica, when it last heard of its master.
    pub at: Timestamp,
}

impl Watch {
    pub fn start(place: Place, clock: Arc<dyn Clock>) -> Result<Watch> {
        let said = Arc::new(Mutex::new(None));
        let listener = Arc::downgrade(&said);
        // Nobody waits for it: a server that does not answer must not hold up the end of the receiver.
        let ask = move || {
            let mut connection = None;
            while let Some(said) = listener.upgrade() {
                let answer = ask(&place, &*clock, &mut connection);
                if answer.is_err() {
                    connection = None;
                }
                *said.lock().unwrap_or_else(PoisonError::into_inner) = answer.ok().flatten();
                drop(said);
                std::thread::sleep(EVERY);
            }
        };
        std::thread::Builder::new().name("redis offset".into()).spawn(ask).context("start a thread")?;
        Ok(Watch(said))
    }

    /// What it has said since the last call.
    pub fn take(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn ask(place: &Place, clock: &dyn Clock, connection: &mut Option<Connection>) -> Result<Option<Said>> {
    if connection.is_none() {
        *connection = Some(place.connect()?);
    }
    let connection = connection.as_mut().context("connect")?;
    connection.set_wait(ANSWER)?;
    let at = clock.now();
    let reply = connection.command(&["INFO", "replication"])?;
    Ok(said(&Info::parse(reply.text().unwrap_or_default()), at))
}

/// `None`: a replica without its master does not know how far the stream goes.
fn said(info: &Info, at: Timestamp) -> Option<Said> {
    let end = u64::try_from(info.number("master_repl_offset")?).ok()?;
    let lag = match info.get("role") {
        "slave" if info.get("master_link_status") != "up" => return None,
        "slave" => SignedDuration::from_secs(info.number("master_last_io_seconds_ago")?.max(0)),
        _ => SignedDuration::ZERO,
    };
    Some(Said { id: info.get("master_replid").to_owned(), end, at: at - lag })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_knows_no_more_than_its_master_has_told_it() {
        let at = Timestamp::from_second(1000).unwrap();
        let of = |text: &str| said(&Info::parse(text), at).map(|said| (said.id, said.end, said.at.as_second()));
        let stream = "master_replid:aaa\r\nmaster_repl_offset:70\r\n";
        assert_eq!(of(&format!("role:master\r\n{stream}")), Some(("aaa".into(), 70, 1000)));
        let replica = format!("role:slave\r\nmaster_last_io_seconds_ago:7\r\n{stream}");
        assert_eq!(of(&format!("{replica}master_link_status:up\r\n")), Some(("aaa".into(), 70, 993)));
        assert_eq!(of(&format!("{replica}master_link_status:down\r\n")), None);
        assert_eq!(of("role:master\r\n"), None);
    }
}
