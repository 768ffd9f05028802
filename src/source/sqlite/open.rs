//! Opening somebody else's database so that nothing of it changes, and saying in words why that failed.

use super::beside;
use crate::error::{Failure, Kind};
use anyhow::Result;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, ffi};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long to wait for a writer in rollback mode, which locks readers out while it commits.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const NOTHING: &str = "Nothing was backed up; the earlier snapshots stand.";

/// What `stat` alone can tell: a directory, a device, an empty file; and the two files that opening would make under the wrong owner.
pub fn refuse_what_is_no_database(file: &Path, metadata: &Metadata) -> Result<()> {
    let fail = |what: String, help: &str| Err(Failure::new(Kind::Failed, what, format!("{NOTHING} {help}")));
    if !metadata.is_file() {
        return fail(format!("{} is not a regular file", file.display()), "Give the path of the database file itself.");
    }
    if metadata.len() == 0 {
        return fail(
            format!("{} is empty (0 bytes): it holds no database", file.display()),
            "If the application has not written yet, wait until it has; if it had data, the file was truncated: restore it.",
        );
    }
    let me = rustix::process::geteuid().as_raw();
    let would_create = [beside(file, "-wal"), beside(file, "-shm")].iter().any(|f| !f.exists());
    if me != 0 && me != metadata.uid() && would_create && is_wal(file) {
        return fail(
            format!("{} is in WAL mode, and nobody has it open", file.display()),
            "Reading it would make its -wal and -shm files as this user, which can lock its owner out. \
             Run the backup as the owner of the file or as root, or while the application runs.",
        );
    }
    Ok(())
}

/// Whether the header says WAL. `immutable` takes no locks and makes no files; a torn answer is harmless here.
fn is_wal(file: &Path) -> bool {
    let version = open_immutable(file).and_then(|connection| {
        connection.query_row("SELECT substr(data, 20, 1) FROM sqlite_dbpage WHERE pgno = 1", [], |row| {
            row.get::<_, Vec<u8>>(0)
        })
    });
    version.is_ok_and(|v| v == [2])
}

/// Opens an absolute path for reading. Opening makes no I/O on the database yet.
pub fn open(file: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    harden(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Opens somebody else's database to write a little into it. Its log is left to its owner: no checkpoint from here while another has it open. The last
/// to close a database empties its log under an exclusive lock, as any client does, so that it does not grow while the application is away.
pub fn open_to_write(file: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    harden(&connection)?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Opens a file that nobody else has open, without locks and without ever making a file beside it.
pub fn open_immutable(file: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file://");
    for &byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags)?;
    harden(&connection)?;
    Ok(connection)
}

/// A hostile schema must not run anything that its author chose.
pub fn harden(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(())
}

/// Begins the read transaction: `BEGIN` alone takes no lock, the first read does.
pub fn begin(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN")?;
    connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(())).optional()?;
    Ok(())
}

/// A pragma whose value is a number that is not negative.
pub fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection
        .query_row(&format!("PRAGMA main.{name}"), [], |row| row.get::<_, i64>(0))
        .map(|n| n.max(0).unsigned_abs())
}

/// The journal mode: `wal`, `delete`, …
pub fn journal(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA main.journal_mode", [], |row| row.get(0))
}

pub fn truncated(path: &Path, bytes: u64, expected: u64) -> anyhow::Error {
    Failure::new(
        Kind::Failed,
        format!("{} is truncated: {bytes} bytes of the {expected} that its header promises", path.display()),
        format!("{NOTHING} The file is damaged: restore it from the newest verified snapshot."),
    )
}

/// What an error of SQLite means for the data, and what to do.
pub fn explain(path: &Path, error: rusqlite::Error) -> anyhow::Error {
    let Some(code) = error.sqlite_extended_error_code() else {
        return anyhow::Error::new(error).context(format!("read {}", path.display()));
    };
    let (what, help) = match code {
        ffi::SQLITE_READONLY_ROLLBACK => (
            "an unfinished transaction of a crashed writer waits beside it (a hot -journal)",
            "Only a writer may roll it back, and backups do not write. Start the application once, or run \
             `sqlite3 FILE 'SELECT 1 FROM sqlite_schema'` as its owner; then run the backup again.",
        ),
        ffi::SQLITE_READONLY_RECOVERY | ffi::SQLITE_READONLY_CANTINIT => (
            "its -wal must be recovered first, and this user may not write its -shm file",
            "Start the application, or give this user write access to the -shm file; then run the backup again.",
        ),
        _ => match code & 0xff {
            ffi::SQLITE_NOTADB => (
                "it is not a SQLite database, or it is encrypted",
                "Back up any other kind of file with a source of kind `files`; for an encrypted database do so while the application is stopped.",
            ),
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => (
                "a writer has kept it locked for longer than 5 s",
                "Run the backup again. If that does not help, an application holds it with `locking_mode=EXCLUSIVE` or in one \
                 long write transaction: change that, or switch it to `journal_mode=WAL`, in which readers never wait.",
            ),
            ffi::SQLITE_CORRUPT => (
                "the database is damaged or truncated",
                "Check it with `sqlite3 FILE 'PRAGMA integrity_check'`, and restore it from the newest verified snapshot.",
            ),
            ffi::SQLITE_CANTOPEN | ffi::SQLITE_PERM | ffi::SQLITE_AUTH | ffi::SQLITE_READONLY => (
                "this user may not open it",
                "Check the rights on the file and on its directory. A database in WAL mode that nobody has open can only be read \
                 where its -wal and -shm files can be made: give this user write access to the directory, or keep the application running.",
            ),
            _ => ("SQLite failed", "Run the backup again; if it fails again, look at the disk and the system log."),
        },
    };
    Failure::new(Kind::Failed, format!("cannot read {}: {what} ({error})", path.display()), format!("{NOTHING} {help}"))
}
