//! The proof of a logical snapshot: a new server of the same or a newer major version in scratch takes all dumps back, and the rows of every table
//! are counted again. The counts of the backup come from the very snapshots that were dumped, so they must be equal.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::{Database, Facts};
use super::{GLOBALS, rebuild};
use crate::child;
use crate::error::{Failure, Kind};
use crate::report::Check;
use crate::source::postgres::Options;
use crate::source::postgres::client::{Client, ServerError};
use crate::source::postgres::engine::{self, Engine, Start};
use crate::source::postgres::programs::{Programs, identifier};
use crate::source::postgres::proof::ask;

const NEEDED: [&str; 4] = ["postgres", "initdb", "pg_restore", "psql"];
/// The data directory, below scratch.
const CLUSTER: &str = "cluster";
const SUPERUSER: &str = "postgres";
/// Where statements go that concern databases.
const ADMIN: &str = "template1";
const INITDB_WAIT: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Whether a server that can take the dumps is here. `Kind::Environment`: it is not.
pub fn ready(facts: &serde_json::Value, options: &Options) -> Result<()> {
    let facts: Facts = serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
    find_programs(&facts, options).map(drop)
}

/// Checks the dumps in `copy`, in a server below `scratch`; `also` is done while it runs. `Kind::Environment`: it could not be carried out here.
pub fn prove(
    copy: &Path,
    scratch: &Path,
    facts: &serde_json::Value,
    options: &Options,
    also: &mut dyn FnMut(&Engine),
) -> Result<Vec<Check>> {
    let facts: Facts = serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
    let (engine, mut checks) = rebuild_in(copy, scratch, &facts, options)?;
    let asked = facts.asked.as_deref().unwrap_or(super::ANY_DATABASE);
    for query in &options.check {
        checks.push(ask(&engine, asked, query));
    }
    also(&engine);
    engine.stop()?;
    Ok(checks)
}

/// A new server in `scratch` with all databases of the dumps, and how they came back.
pub fn rebuild_in(copy: &Path, scratch: &Path, facts: &Facts, options: &Options) -> Result<(Engine, Vec<Check>)> {
    let programs = find_programs(facts, options)?;
    let data = make_cluster(&programs, scratch)?;
    let engine = start(&programs, &data, scratch)?;
    let mut checks = Vec::new();
    let mut admin = engine.client(ADMIN)?;
    take_globals(&engine, &programs, copy, scratch)?;
    for database in &facts.databases {
        checks.extend(take_back(&engine, &programs, &mut admin, copy, database)?);
    }
    Ok((engine, checks))
}

/// The server that [`rebuild_in`] left in `scratch`, started again with its socket in `beside`; `None` if there is none.
pub fn start_again(scratch: &Path, beside: &Path, facts: &Facts, options: &Options) -> Result<Option<Engine>> {
    let data = scratch.join(CLUSTER);
    match data.join("PG_VERSION").is_file() {
        true => start(&find_programs(facts, options)?, &data, beside).map(Some),
        false => Ok(None),
    }
}

fn find_programs(facts: &Facts, options: &Options) -> Result<Programs> {
    let least = (facts.version / 10_000).max(facts.program);
    Programs::find(options.bin.as_deref(), &NEEDED, least).ok_or_else(|| {
        let message = format!("there is no PostgreSQL {least} or newer here, with {}", NEEDED.join(", "));
        let help = "The drill was not carried out; that says nothing of the backup. Install the server's package, or name its directory: \
                    bin = \"…\" in [source.postgres].";
        Failure::new(Kind::Environment, message, help)
    })
}

fn start(programs: &Programs, data: &Path, scratch: &Path) -> Result<Engine> {
    Engine::start(&Start {
        data,
        scratch,
        version: programs.major * 10_000,
        bin: Some(&programs.bin),
        settings: &[],
        superuser: SUPERUSER,
    })
}

/// A new cluster, owned by whom its server will run as.
fn make_cluster(programs: &Programs, scratch: &Path) -> Result<PathBuf> {
    let data = scratch.join(CLUSTER);
    fs::create_dir(&data).context("make a directory for a server")?;
    engine::open_the_way(scratch)?;
    let user = rustix::process::geteuid().is_root().then(engine::server_user);
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(&data, Some(uid), Some(gid)).context("give it to the server's user")?;
    }
    let mut spec = child::Spec::new([programs.bin.join("initdb").as_os_str(), "-D".as_ref(), data.as_os_str()]);
    for argument in ["-U", SUPERUSER, "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"] {
        spec.argv.push(argument.into());
    }
    spec.user = user;
    spec.directory = Some(data.clone());
    child::run(&spec, INITDB_WAIT, 1 << 20)
        .map_err(|e| engine::environment(format!("no new server can be made here: {e:#}")))?;
    Ok(data)
}

/// Roles, without tablespaces: those would lie where they lie in production.
fn take_globals(engine: &Engine, programs: &Programs, copy: &Path, scratch: &Path) -> Result<()> {
    let text = fs::read_to_string(copy.join(GLOBALS)).context("read the globals")?;
    let concerns_tablespaces = |line: &&str| line.contains(" TABLESPACE ");
    let roles: String =
        text.lines().filter(|line| !concerns_tablespaces(line)).map(|line| format!("{line}\n")).collect();
    let file = scratch.join("roles.sql");
    crate::durable::publish_new(&file, roles.as_bytes(), 0o600).context("write the roles")?;
    // What is missing then shows where it is needed.
    rebuild::globals(programs, &engine.address(ADMIN), ADMIN, &file).map(drop)
}

/// One database: made, filled, counted.
fn take_back(
    engine: &Engine,
    programs: &Programs,
    admin: &mut Client,
    copy: &Path,
    facts: &Database,
) -> Result<Vec<Check>> {
    let name = &facts.name;
    let missing = rebuild::missing_extensions(admin, facts)?;
    if !missing.is_empty() {
        return Err(engine::environment(format!(
            "{name} needs extensions that are not installed here: {}",
            missing.join(", ")
        )));
    }
    let mut checks = Vec::new();
    let roles = rebuild::missing_roles(admin, &[facts])?;
    let found = if roles.is_empty() { "all there".to_owned() } else { format!("missing: {}", roles.join(", ")) };
    checks.push(Check::compare(format!("{name}: roles"), "all there", found));
    admin.query(&format!("drop database if exists {}", identifier(name)))?;
    if let Err(e) = rebuild::create(admin, name, facts) {
        // A locale that this machine has not is no matter for what is in the dump.
        if ServerError::of(&e).is_none() {
            return Err(e);
        }
        rebuild::create_without_locale(admin, name, facts).with_context(|| format!("make the database {name}"))?;
    }
    let mut client = engine.client(name)?;
    client.patience = PATIENCE;
    rebuild::schemas(&mut client, facts)?;
    let dump = copy.join(&facts.file);
    let more = ["--exit-on-error", "--no-tablespaces"];
    let ended = rebuild::pg_restore(programs, &engine.address(name), name, &dump, &more)?;
    let result = ended.success().map_or_else(|e| format!("{e:#}"), |()| "takes the dump back".to_owned());
    checks.push(Check::compare(format!("{name}: pg_restore"), "takes the dump back", result));
    let (expected, actual) = rebuild::compare(&mut client, facts)?;
    checks.push(Check::compare(format!("{name}: rows in the snapshot that was dumped"), expected, actual));
    Ok(checks)
}
