//! SQL to a SQLite file of a restored copy.

use anyhow::{Context, Result, bail, ensure};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The one SQLite file in a copy.
pub fn only_file(copy: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(copy).with_context(|| format!("read {}", copy.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && !["-wal", "-shm", "-journal"].iter().any(|s| name.ends_with(s)) {
            files.push(path);
        }
    }
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => bail!("the copy is not one SQLite file: name the `file` to ask"),
    }
}

/// The first value of the first row, as text; `null` where there is none.
pub fn query(file: &Path, sql: &str, timeout: Duration) -> Result<String> {
    ensure!(file.is_file(), "{} does not exist", file.display());
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .with_context(|| format!("open {}", file.display()))?;
    let handle = connection.get_interrupt_handle();
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = timeout;
            // More than once: an interrupt that falls between two queries is forgotten by SQLite.
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
                wait = Duration::from_millis(50);
            }
        });
        let found = first_value(&connection, sql).with_context(|| format!("ask {}", file.display()));
        drop(done);
        found
    })
}

fn first_value(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok("null".into()) };
    Ok(match row.get_ref(0)? {
        ValueRef::Null => "null".into(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
    })
}
