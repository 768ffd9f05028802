//! The beginning of a base backup: of changes where the server can tell them, of everything otherwise.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};

use super::feed::Feed;
use super::{BaseBackup, TablespaceFact};
use crate::source::postgres::client::{Address, Client, ServerError, Session, explain};

/// How long the server may take to notice that a backup was given up, and to have a place for another.
const PLACE_WAIT: Duration = Duration::from_secs(10);

impl BaseBackup {
    pub(super) fn begin(&mut self) -> Result<()> {
        let mut walsender = self.walsender.take().context("a backup that has begun already (this is a bug)")?;
        self.seat.ready()?;
        self.slot = reserve_wal(&self.address);
        self.horizons.look_now_and_then(&self.address);
        walsender.patience = super::super::CHECKPOINT_MAX;
        let Some(ground) = self.ground.take() else { return self.begun(Feed::start(walsender)?) };
        let feed = match ground.begin(walsender, &self.address) {
            Ok(begun) => {
                self.asked = Some(begun.asked);
                self.facts.changes_since = Some(begun.since);
                begun.feed
            }
            Err(why) => {
                let said = ServerError::of(&why).map(ToString::to_string);
                self.facts.read_whole = Some(said.unwrap_or_else(|| format!("{why:#}")));
                let mut walsender = once_there_is_a_place(&self.address)?;
                walsender.patience = super::super::CHECKPOINT_MAX;
                Feed::start(walsender)?
            }
        };
        self.begun(feed)
    }

    fn begun(&mut self, feed: Feed) -> Result<()> {
        (self.facts.start_lsn, self.facts.timeline) = feed.start.clone();
        self.facts.tablespaces =
            feed.tablespaces.iter().map(|t| TablespaceFact { oid: t.oid, location: t.location.clone() }).collect();
        self.feed = Some(feed);
        Ok(())
    }
}

/// A slot that goes with its connection, so that the WAL from now on stays. Without one the server may remove WAL that the backup
/// needs; then it says so itself, and the backup fails.
fn reserve_wal(address: &Address) -> Option<Client> {
    let mut client = Client::connect(address, Session::Replication).ok()?;
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).ok()?;
    let name: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let reserve = if client.version() >= 150_000 { "(RESERVE_WAL)" } else { "RESERVE_WAL" };
    client.query(&format!("CREATE_REPLICATION_SLOT blackstart_{name} TEMPORARY PHYSICAL {reserve}")).ok()?;
    Some(client)
}

/// Connects for replication, on a server whose place for that may just be getting free.
pub(super) fn once_there_is_a_place(address: &Address) -> Result<Client> {
    let began = Instant::now();
    loop {
        match Client::connect_unexplained(address, Session::Replication) {
            Err(e) if ServerError::of(&e).is_some_and(|said| said.code == "53300") && began.elapsed() < PLACE_WAIT => {
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other.map_err(|e| explain(e, address)),
        }
    }
}
