//! Rows by table where a stored log goes on behind the backup. What must be in the copy must be there at the end of the backup; what came later may
//! have deleted it. So the copy is started twice: first as a hot standby, which recovers what came with the backup and then waits for more, and can
//! be read meanwhile. It is stopped as it is; then comes the log, and the proof. (PostgreSQL manual, "Hot Standby".)

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use super::{PATIENCE, database_names, not_killed};
use crate::error::{Kind, kind_of};
use crate::report::{Check, Stopwatch};
use crate::source::postgres::engine::{Engine, Start};
use crate::source::postgres::server::Facts;
use crate::source::postgres::tables::{Counted, Reading};
use crate::source::postgres::{Options, restored};

const SIGNAL: &str = "standby.signal";
/// Of a recovery, which the copy's own `postgresql.auto.conf` might have otherwise: nothing is fetched or run, and no target ends it.
const STANDBY: [(&str, &str); 13] = [
    ("hot_standby", "on"),
    ("restore_command", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_timeline", "current"),
    ("recovery_min_apply_delay", "0"),
    ("hot_standby_feedback", "off"),
    // Segments that were used up must not turn up under the names of those to come.
    ("wal_recycle", "off"),
];

/// The check of the rows in a copy that has no log in it but its own. It is settled, and can be started again. No check: nothing was counted.
pub fn at_end(
    (data, scratch): (&Path, &Path),
    facts: &serde_json::Value,
    options: &Options,
    times: &Stopwatch,
) -> Result<Option<Check>> {
    let facts = Facts::of(facts)?;
    restored::settle(data, data, &[])?;
    let not_run = |why: &str| Ok(Reading::new(&Counted::nothing(why)).compared());
    if facts.counted.before == 0 {
        return Ok(Reading::new(&facts.counted).compared());
    }
    if facts.standby_needs.is_empty() {
        return not_run("the snapshot does not tell what a standby of its server needs");
    }
    let signal = data.join(SIGNAL);
    put(&signal, data).context("write standby.signal")?;
    // A server needs a directory of its own for its socket.
    let scratch = scratch.join("e");
    std::fs::create_dir(&scratch).context("make a directory for a socket")?;
    let started = times.time("engine start and replay", || start(data, &scratch, &facts, options));
    let read = started.and_then(|engine| {
        let read = read(&engine, &facts);
        not_killed(&engine)?;
        engine.stop()?;
        read
    });
    std::fs::remove_file(&signal).context("remove standby.signal")?;
    match read {
        Err(e) if kind_of(&e) == Kind::Environment => Err(e),
        // Whether the copy can be recovered at all, the proof proper will say.
        Err(e) => not_run(&format!("the copy could not be read at the end of the backup: {e:#}")),
        read => read,
    }
}

fn read(engine: &Engine, facts: &Facts) -> Result<Option<Check>> {
    let mut reading = Reading::new(&facts.counted);
    for database in database_names(&mut engine.client("template1")?)? {
        reading.read(&mut engine.client(&database)?, &database, PATIENCE)?;
    }
    Ok(reading.compared())
}

fn start(data: &Path, scratch: &Path, facts: &Facts, options: &Options) -> Result<Engine> {
    let needs = facts.standby_needs.iter().map(|(name, value)| (name.clone(), value.clone()));
    let ours = STANDBY.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let settings: Vec<(String, String)> = needs.chain(ours).collect();
    Engine::start(&Start {
        data,
        scratch,
        version: facts.version,
        bin: options.bin.as_deref(),
        settings: &settings,
        superuser: facts.superuser.as_deref().unwrap_or("postgres"),
    })
}

/// An empty file that belongs to the owner of the cluster.
fn put(path: &Path, data: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(data.join("PG_VERSION"))?;
    File::create(path)?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
}
