//! The other way: the server saves its RDB file (`BGSAVE`), and we read that. For users without the right to replicate.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::refusal::unusable;
use super::server::Info;
use super::stream::Origin;

/// How long a save may take; a data set of 100 GB takes some ten minutes.
const SAVE: Duration = Duration::from_secs(6 * 3600);
const PAUSE: Duration = Duration::from_millis(100);
/// Microseconds by which the clock that the server stamps its files by, in seconds, may lag behind the one that it tells: that is the kernel's coarse
/// clock, which goes from tick to tick.
const CLOCKS_APART: i64 = 50_000;
/// How long a server's clock may lag behind its last save: that is what a second is rounded by, and a small correction.
const CLOCK_BACK: Duration = Duration::from_secs(10);
/// Looks in a row that find nothing but an error.
const ERRORS: u32 = 10;

/// Has the server save, waits for the end, and opens the file: the server replaces it by a rename, so what is open stays as it is.
/// Gives the earliest second (server's clock) as well that the file may be of.
pub fn save(connection: &mut Connection, file: &Path) -> Result<(Origin, i64)> {
    let last = |connection: &mut Connection| -> Result<i64> {
        Ok(connection.command(&["LASTSAVE"])?.text().and_then(|t| t.parse().ok()).unwrap_or_default())
    };
    let before = last(connection)?;
    // The times of saves are whole seconds: only of a later one is it plain that the file is not that of the last save.
    let mut waited = Duration::ZERO;
    let asked = loop {
        let second = (now(connection)? - CLOCKS_APART) / 1_000_000;
        if second > before {
            break second;
        }
        if waited > CLOCK_BACK {
            return Err(unusable(
                &connection.endpoint,
                "its clock is behind the time of its last save",
                "Set its clock; nothing tells an old file from a new one until then.",
            ));
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    };
    connection.command(&["BGSAVE", "SCHEDULE"])?;
    let until = Instant::now() + SAVE;
    let mut errors = 0;
    loop {
        let info = Info::ask(connection)?;
        let idle = info.get("rdb_bgsave_in_progress") == "0";
        if idle && info.number("rdb_last_save_time").unwrap_or_default() > before {
            break;
        }
        // An error of an earlier save stands until ours begins, which may wait for a rewrite of the append-only file.
        let failed = idle && info.get("aof_rewrite_in_progress") == "0" && info.get("rdb_last_bgsave_status") == "err";
        errors = if failed { errors + 1 } else { 0 };
        if errors > ERRORS {
            return Err(unusable(
                &connection.endpoint,
                "its BGSAVE failed",
                "Its log says why: no room on its disk, or no memory to fork.",
            ));
        }
        if Instant::now() > until {
            return Err(unusable(
                &connection.endpoint,
                "its BGSAVE does not end",
                "Look at the server's log and its disk.",
            ));
        }
        std::thread::sleep(PAUSE);
    }
    let mut opened = File::open(file).with_context(|| format!("open the RDB file {}", file.display()))?;
    let origin: Origin = Box::new(move |buffer, most| {
        let old = buffer.len();
        buffer.resize(old + most, 0);
        let n = opened.read(&mut buffer[old..]).context("read the RDB file");
        buffer.truncate(old + *n.as_ref().unwrap_or(&0));
        n
    });
    Ok((origin, asked))
}

/// The server's clock, in microseconds since the epoch.
fn now(connection: &mut Connection) -> Result<i64> {
    Info::ask(connection)?.number("server_time_usec").context("the server does not tell its time")
}
