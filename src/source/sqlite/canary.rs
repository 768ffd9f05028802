//! The canary of a SQLite database: one row, written as any client writes, and so that nobody else waits for it.
//!
//! * Where there is a log (WAL mode) a commit waits for no reader. No checkpoint is made (`open_to_write`).
//! * Where there is none, a commit must wait until nobody reads, and whoever waits for that keeps new readers out: so it does not wait. It gives up,
//!   lets everybody in again, and tries a little later. (SQLite documentation, "File Locking And Concurrency": PENDING.)

use anyhow::{Context, Result};
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;

use super::facts::quoted;
use super::open;
use crate::error::{Failure, Kind};
use crate::source::canary::{Act, Found};

/// How often a commit is tried that readers stand in the way of, and the pause between.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);
/// To wait for other writers, which is harmless.
const WRITERS: Duration = Duration::from_secs(5);

/// Writes, tries or removes the row `name` of `table` in the database at `path`.
pub fn carry_out(path: &Path, table: &str, name: &str, act: Act) -> Result<()> {
    refuse(path).and_then(|()| write(path, table, name, act).map_err(Into::into)).map_err(|e| {
        let help = format!(
            "Backups go on. This user needs write access to the file and its directory, and no reader or writer may hold it all the time. Or take \
             `canary` out of the configuration, and what was written out of the database: drop table {};",
            quoted(table)
        );
        Failure::new(Kind::Failed, format!("write the canary into {}: {e:#}", path.display()), help)
    })
}

/// Opening could make files beside the database as this user, which can lock its owner out.
fn refuse(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).context("look at it")?;
    open::refuse_what_is_no_database(path, &metadata)
}

fn write(path: &Path, table: &str, name: &str, act: Act) -> rusqlite::Result<()> {
    let mut connection = open::open_to_write(path)?;
    for _ in 1..TRIES {
        match attempt(&mut connection, table, name, act) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    attempt(&mut connection, table, name, act)
}

fn attempt(connection: &mut Connection, table: &str, name: &str, act: Act) -> rusqlite::Result<()> {
    connection.busy_timeout(WRITERS)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    change(&transaction, table, name, act)?;
    if act == Act::Try {
        return transaction.rollback();
    }
    transaction.busy_timeout(Duration::ZERO)?;
    // A commit that fails is rolled back at once, by the end of `transaction`.
    transaction.commit()
}

fn change(transaction: &Transaction, table: &str, name: &str, act: Act) -> rusqlite::Result<()> {
    let there: bool = transaction.query_row(
        "select exists (select 1 from main.sqlite_schema where type = 'table' and name = ?1)",
        params![table],
        |row| row.get(0),
    )?;
    let table = format!("main.{}", quoted(table));
    match act {
        Act::Remove if there => {
            transaction.execute(&format!("delete from {table} where source = ?1"), params![name])?;
            let rest: i64 = transaction.query_row(&format!("select count(*) from {table}"), [], |row| row.get(0))?;
            if rest == 0 {
                transaction.execute(&format!("drop table {table}"), [])?;
            }
        }
        Act::Remove => {}
        Act::Write(_) | Act::Try => {
            if !there {
                transaction
                    .execute(&format!("create table {table} (source text primary key, at text not null)"), [])?;
            }
            let at = if let Act::Write(at) = act { at } else { Timestamp::UNIX_EPOCH };
            let insert = format!(
                "insert into {table} (source, at) values (?1, ?2) on conflict (source) do update set at = excluded.at"
            );
            transaction.execute(&insert, params![name, at.to_string()])?;
        }
    }
    Ok(())
}

/// What a restored copy holds, which nobody else has open.
pub fn look(path: &Path, table: &str, name: &str) -> Found {
    Found::from_answer(read(path, table, name))
}

fn read(path: &Path, table: &str, name: &str) -> Result<Option<Timestamp>> {
    let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
    let connection = open::open_immutable(&path)?;
    let there: Option<i64> = connection
        .query_row("select 1 from sqlite_schema where type = 'table' and name = ?1", params![table], |row| row.get(0))
        .optional()?;
    if there.is_none() {
        return Ok(None);
    }
    let sql = format!("select at from main.{} where source = ?1", quoted(table));
    let text: Option<String> = connection.query_row(&sql, params![name], |row| row.get(0)).optional()?;
    text.map(|text| text.parse().with_context(|| format!("{text:?} is no time"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(mode: &str) -> (tempfile::TempDir, std::path::PathBuf, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        let application = Connection::open(&path).unwrap();
        application.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
        application
            .execute_batch("create table orders (id integer primary key); insert into orders values (1)")
            .unwrap();
        (directory, path, application)
    }

    /// The database as a copy would hold it.
    fn found(path: &Path) -> Found {
        let copy = tempfile::tempdir().unwrap();
        let copied = copy.path().join("copy.db");
        let escaped = copied.display().to_string().replace('\'', "''");
        Connection::open(path).unwrap().execute_batch(&format!("vacuum into '{escaped}'")).unwrap();
        look(&copied, "beat", "orders")
    }

    #[test]
    fn it_is_written_tried_and_removed() {
        let at: Timestamp = "2026-11-23T09:00:00.123Z".parse().unwrap();
        for mode in ["delete", "wal"] {
            let (_directory, path, _application) = database(mode);
            carry_out(&path, "beat", "orders", Act::Try).unwrap();
            assert_eq!(found(&path), Found::Missing("there is none".into()), "a try leaves nothing ({mode})");
            carry_out(&path, "beat", "orders", Act::Write(at)).unwrap();
            carry_out(&path, "beat", "other", Act::Write(Timestamp::UNIX_EPOCH)).unwrap();
            assert_eq!(found(&path), Found::At(at), "{mode}");
            carry_out(&path, "beat", "orders", Act::Remove).unwrap();
            assert_eq!(found(&path), Found::Missing("there is none".into()), "{mode}");
            carry_out(&path, "beat", "other", Act::Remove).unwrap();
            let tables: i64 = Connection::open(&path)
                .unwrap()
                .query_row("select count(*) from sqlite_schema where type = 'table'", [], |row| row.get(0))
                .unwrap();
            assert_eq!(tables, 1, "the last canary takes its table along ({mode})");
        }
    }

    #[test]
    fn the_log_of_an_application_is_not_checkpointed() {
        let (_directory, path, application) = database("wal");
        application.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
        // More pages than SQLite itself would leave in a log.
        application
            .execute_batch("create table big (x); insert into big select randomblob(4000) from (with recursive n(i) as (select 1 union all select i + 1 from n where i < 1500) select i from n)")
            .unwrap();
        // A raw look would drop the locks of this process's connections: another one looks.
        let main = || std::process::Command::new("sha256sum").arg(&path).output().unwrap().stdout;
        let before = main();
        carry_out(&path, "beat", "orders", Act::Write(Timestamp::UNIX_EPOCH)).unwrap();
        assert_eq!(main(), before, "nothing was moved out of the log");
        assert!(super::super::beside(&path, "-wal").exists(), "the log is left as it is");
    }

    #[test]
    fn who_reads_keeps_it_out_and_nobody_else() {
        let (_directory, path, application) = database("delete");
        application.execute_batch("begin; select * from orders").unwrap();
        let beat = std::thread::spawn({
            let path = path.clone();
            move || carry_out(&path, "beat", "orders", Act::Write(Timestamp::UNIX_EPOCH))
        });
        // While the canary is tried again and again, others begin to read without waiting: but for the moment of a try.
        let mut kept_out = 0;
        while !beat.is_finished() {
            let reader = Connection::open(&path).unwrap();
            reader.busy_timeout(Duration::ZERO).unwrap();
            kept_out += u32::from(reader.query_row("select count(*) from orders", [], |_| Ok(())).is_err());
            std::thread::sleep(Duration::from_millis(10));
        }
        let error = beat.join().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("locked"), "{error:#}");
        assert!(kept_out <= TRIES, "{kept_out} readers were kept out, more than there were tries");
        application.execute_batch("commit").unwrap();
        carry_out(&path, "beat", "orders", Act::Write(Timestamp::UNIX_EPOCH)).unwrap();
        assert_eq!(found(&path), Found::At(Timestamp::UNIX_EPOCH));
    }
}
