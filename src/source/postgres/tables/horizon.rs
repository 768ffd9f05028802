//! Which transactions had ended before a backup did.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::source::postgres::client::{Address, Client, Session};
use crate::source::postgres::wal::Lsn;

/// Between two looks over connections of their own.
const PAUSE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(5);
/// Looks that are remembered: the last may turn out to have come after the end of the backup.
const KEPT: usize = 64;
/// The oldest transaction that has not ended; then, after it, where the log was. In this order: what ended before the one is in the log before the other.
const LOOK: &str = "select pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text";

/// Every transaction before `xid` had ended when the log had come to `seen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// With its epoch.
    pub xid: u64,
    pub seen: Lsn,
}

/// Looks at a server while it is backed up.
#[derive(Debug, Default)]
pub struct Horizons {
    seen: VecDeque<Horizon>,
    looked: Option<Instant>,
    /// Why there are none. A backup does not depend on them.
    wrong: Option<String>,
}

impl Horizons {
    /// None will be had, and why.
    pub fn off(why: impl Into<String>) -> Horizons {
        Horizons { wrong: Some(why.into()), ..Horizons::default() }
    }

    /// Looks over a session that has nothing else to do now.
    pub fn look(&mut self, sql: &mut Client) {
        if self.wrong.is_some() {
            return;
        }
        match ask(sql) {
            Ok(horizon) => {
                self.seen.push_back(horizon);
                if self.seen.len() > KEPT {
                    self.seen.pop_front();
                }
            }
            Err(e) => self.wrong = Some(format!("{e:#}")),
        }
    }

    /// Looks over a connection of its own, unless it has just done so. Each look stands for itself: nothing stays open for the length of a backup.
    pub fn look_now_and_then(&mut self, address: &Address) {
        if self.wrong.is_some() || self.looked.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        match Client::connect(&Address { connect: CONNECT, ..address.clone() }, Session::Plain) {
            Ok(mut sql) => {
                sql.patience = CONNECT;
                self.look(&mut sql);
            }
            Err(e) => self.wrong = Some(format!("{e:#}")),
        }
        self.looked = Some(Instant::now());
    }

    /// The newest that is known to be from before `end`, the end of the backup. The backup's last record ends there: what was seen at a lower position
    /// was seen before it was written.
    pub fn before(&self, end: &str) -> Result<Horizon, String> {
        let none =
            || self.wrong.clone().unwrap_or_else(|| "nothing was seen of the server before the backup ended".into());
        let end: Lsn = end.parse().map_err(|e| format!("{e:#}"))?;
        self.seen.iter().rev().find(|horizon| horizon.seen < end).copied().ok_or_else(none)
    }
}

fn ask(sql: &mut Client) -> Result<Horizon> {
    let rows = sql.rows(LOOK).context("ask which transactions have ended")?;
    let row = rows.one()?;
    Ok(Horizon { xid: row.parse(0)?, seen: row.parse(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_seen_before_the_end_counts() {
        let horizon = |xid, seen| Horizon { xid, seen: Lsn(seen) };
        let seen = [horizon(10, 0x100), horizon(20, 0x200), horizon(30, 0x300)].into();
        let horizons = Horizons { seen, ..Horizons::default() };
        assert_eq!(horizons.before("0/301"), Ok(horizon(30, 0x300)));
        assert_eq!(horizons.before("0/300"), Ok(horizon(20, 0x200)));
        assert!(horizons.before("0/100").is_err());
        assert!(horizons.before("").is_err());
        assert_eq!(Horizons::off("a standby").before("0/1").unwrap_err(), "a standby");
    }
}
