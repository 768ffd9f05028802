//! Something to protect for those who only want to look: a live database, and a small tree of configuration.

use anyhow::{Context, Result};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::durable;

const DATABASE: &str = "orders.db";
const ROWS: u32 = 2000;
/// Between two writes to the database.
const PAUSE: Duration = Duration::from_millis(5);

/// Makes `blackstart-sample/` in the current directory; what is there already stays.
pub fn make() -> Result<PathBuf> {
    let root = std::env::current_dir().context("find the current directory")?.join("blackstart-sample");
    durable::create_directories(&root.join("config")).with_context(|| format!("make {}", root.display()))?;
    for (name, text) in [("app.toml", "port = 8080\nlog = \"info\"\n"), ("flags.json", "{\"new_checkout\": true}\n")] {
        let path = root.join("config").join(name);
        if !path.exists() {
            durable::publish_new(&path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))?;
        }
    }
    let mut database = Connection::open(root.join(DATABASE)).context("make the sample database")?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.execute_batch(
        "create table if not exists orders (id integer primary key, item text not null, cents integer not null)",
    )?;
    let change = database.transaction()?;
    for n in 0..ROWS {
        change.execute("insert into orders (item, cents) values (?1, ?2)", (format!("item {n}"), n * 7 % 10_000))?;
    }
    change.commit()?;
    Ok(root)
}

/// A thread that goes on writing orders until this is dropped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Keeps the sample's database busy, as a real one would be.
pub fn keep_writing(root: &Path) -> Result<Writer> {
    let database = Connection::open(root.join(DATABASE)).context("open the sample database")?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let thread = thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            // A write that finds the database busy is tried again with the next.
            drop(database.execute("insert into orders (item, cents) values ('written meanwhile', 1)", ()));
            thread::sleep(PAUSE);
        }
    });
    Ok(Writer { stop, thread: Some(thread) })
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and the sample is not worth an error.
            drop(thread.join());
        }
    }
}
