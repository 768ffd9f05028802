//! Rows of tables: what the server had when a backup ended, and whether a restored copy has them.
//!
//! While others write, a count taken at one moment equals no count taken at another. What does hold, whoever writes: let the *horizon* be a
//! transaction id of which it is known, by a position in the log, that every transaction before it had ended before the backup did ([`Horizon`]).
//! A row that a transaction before the horizon wrote, and that is still visible when the backup has ended, was there at the backup's end, and must be
//! in a copy that was recovered to it. So [`count()`] notes, right after the end, how many such rows each table has (`kept`), and [`Reading`] counts
//! in the copy the rows that transactions before the same horizon wrote: there may be more, since some were deleted after the end, but never fewer. Where no
//! transaction began between the horizon and the count, all rows must be there, and no others. The transaction that wrote a row stands in the row
//! itself (`xmin`), and neither recovery nor freezing changes it. (PostgreSQL manual, "System Columns", "Transaction ID and Snapshot Information
//! Functions".)
//!
//! A transaction whose commit waits for a standby is in the log, and looks as if it still ran: until all that may have been under way at the end of the
//! backup have ended, rows that somebody may be deleting are not counted as kept.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod count;
mod horizon;
mod read;

pub use count::count;
pub use horizon::{Horizon, Horizons};
pub(super) use read::Reading;

/// Tables that a snapshot names: the largest. It travels in the commit.
pub const TABLES_MAX: usize = 200;
/// From so many estimated rows on, fewer than half of them are worth a remark.
const ESTIMATE_MIN: u64 = 1000;

/// How it is known how many rows a table had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Counted, and nothing was written since the horizon: the copy has just as many.
    Exactly,
    /// Counted after the end of the backup, while others wrote.
    Counted,
    /// By the server's own statistics; only a part of the rows, `kept`, was looked at.
    Estimated,
}

/// What was noted of a table that was there when the backup ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    pub rows: u64,
    pub how: How,
    /// So many, at least, were there at the end of the backup.
    pub kept: u64,
    /// Of these the newest value of a column that by its name and type tells when a row was written, and that column; without a time zone it is
    /// taken for UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<(String, Timestamp)>,
}

/// Of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tables {
    /// How many tables and materialized views of users it had, at least.
    pub all: u64,
    /// By `schema.table`; the largest.
    pub tables: BTreeMap<String, Rows>,
}

/// Sealed into the commit, as a part of the facts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// The horizon: every transaction before it had ended before the backup did. With its epoch, as `pg_current_xact_id()` counts.
    pub before: u64,
    pub databases: BTreeMap<String, Tables>,
    /// Why something, or all, was not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

impl Counted {
    /// Nothing was, and why.
    pub fn nothing(why: impl Into<String>) -> Counted {
        Counted { left_out: Some(why.into()), ..Counted::default() }
    }

    fn tables(&self) -> impl Iterator<Item = &Rows> {
        self.databases.values().flat_map(|database| database.tables.values())
    }
}

/// What a copy has of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub rows: u64,
    /// Rows that transactions before the horizon wrote.
    pub kept: u64,
    pub newest: Option<Timestamp>,
}

/// What is wrong with a table of a copy that was recovered to the end of the backup, or shortly behind it.
pub fn wrong(then: &Rows, found: &Found) -> Option<String> {
    let Rows { rows, how, kept, newest } = then;
    if *how == How::Exactly && found.rows != *rows {
        return Some(format!("has {} rows, and had {rows}", found.rows));
    }
    if found.kept < *kept {
        let lacking = kept - found.kept;
        return Some(format!("has {} rows, and {lacking} of those are MISSING that it had for certain", found.rows));
    }
    match newest {
        Some((column, then)) if found.newest.is_none_or(|found| found < *then) => {
            let found = found.newest.map_or_else(|| "none".to_owned(), |found| found.to_string());
            Some(format!("has {found} as its newest {column}, and had {then}"))
        }
        _ => None,
    }
}

/// What is not as the server's estimate had it. Estimates may be wrong: that is no failure.
pub fn remark(then: &Rows, found: &Found) -> Option<String> {
    let doubtful = then.how == How::Estimated && then.rows >= ESTIMATE_MIN && found.rows < then.rows / 2;
    doubtful.then(|| format!("has {} rows, and the server estimated {} when it was backed up", found.rows, then.rows))
}

/// In SQL: whether the transaction in `xid` is before the horizon. Numbers of transactions go round; those below 3 are older than all others.
fn is_before(xid: &str, horizon: u64) -> String {
    let horizon = horizon & 0xffff_ffff;
    format!("({xid}::text::bigint < 3 or ({xid}::text::bigint - {horizon} + 6442450944) % 4294967296 < 2147483648)")
}

/// In SQL: tables and materialized views of users, `c`, with their schemas, `n`.
const OF_USERS: &str = "pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'm') and c.relpersistence = 'p' \
    and (c.relkind = 'r' or c.relispopulated) and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast'";

/// In SQL: the newest time in a column among the rows that `filter` takes, in milliseconds.
fn newest_of(column: Option<&str>, filter: &str) -> String {
    column.map_or_else(
        || "null".to_owned(),
        |column| {
            let column = super::programs::identifier(column);
            format!(
                "(extract(epoch from max(t.{column}) filter (where isfinite(t.{column}) and {filter})) * 1000)::bigint"
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn then(how: How, rows: u64, kept: u64) -> Rows {
        Rows { rows, how, kept, newest: Some(("at".into(), at(100))) }
    }

    fn found(rows: u64, kept: u64, newest: i64) -> Found {
        Found { rows, kept, newest: Some(at(newest)) }
    }

    #[test]
    fn where_nobody_wrote_the_count_is_the_same() {
        let then = then(How::Exactly, 5000, 5000);
        assert_eq!(wrong(&then, &found(5000, 5000, 100)), None);
        for rows in [0, 4999, 5001] {
            assert!(wrong(&then, &found(rows, 5000, 100)).unwrap().contains("had 5000"), "{rows}");
        }
    }

    #[test]
    fn where_others_write_what_was_there_is_there() {
        let then = then(How::Counted, 5000, 4000);
        // Others inserted before the count, or deleted after the end: neither is a fault.
        for rows in [4000, 4990, 9000] {
            assert_eq!(wrong(&then, &found(rows, 4000, 100)), None, "{rows}");
        }
        assert_eq!(wrong(&then, &found(4500, 4100, 101)), None);
        let lost = wrong(&then, &found(4990, 3999, 100)).unwrap();
        assert!(lost.contains("4990 rows, and 1 of those are MISSING"), "{lost}");
        assert!(wrong(&then, &found(0, 0, 100)).is_some());
        let old = wrong(&then, &found(5000, 4000, 99)).unwrap();
        assert!(old.contains("newest at"), "{old}");
        assert!(wrong(&then, &Found { newest: None, ..found(5000, 4000, 0) }).unwrap().contains("has none"));
    }

    #[test]
    fn an_estimate_fails_nothing() {
        let then = Rows { newest: None, ..then(How::Estimated, 1_000_000, 5000) };
        let few = found(499_999, 5000, 0);
        assert_eq!(wrong(&then, &few), None);
        assert!(remark(&then, &few).unwrap().contains("estimated 1000000"));
        assert_eq!(remark(&then, &found(500_000, 5000, 0)), None);
        assert!(wrong(&then, &found(499_999, 4999, 0)).is_some());
    }
}
