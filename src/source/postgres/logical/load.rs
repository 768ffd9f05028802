//! `restore SOURCE --into postgres://…`: dumps into new databases of a running server. A database that has anything in it is never touched.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

use super::facts::{Database, Facts};
use super::{ANY_DATABASE, GLOBALS, rebuild};
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::report::{Check, Loaded};
use crate::source::postgres::client::{Address, Client, Session};
use crate::source::postgres::programs::{Programs, identifier};

const PATIENCE: Duration = Duration::from_secs(6 * 3600);
const NOTHING: &str = "Nothing was restored, and nothing was changed on the server.";

/// What is to be loaded where, once it is certain that it can be.
pub struct Plan {
    address: Address,
    programs: Programs,
    globals: bool,
    /// Each with the name that it gets, and whether that is there already, empty.
    databases: Vec<(Database, String, bool)>,
}

/// Asks the server, before anything is fetched: no database in the way, and everything there that the dumps speak of.
///
/// `paths` limits the databases to some of the snapshot's; one alone may get the name that the address has.
pub fn prepare(
    address: &Address,
    facts: &serde_json::Value,
    paths: &[Name],
    globals: bool,
    bin: Option<&Path>,
) -> Result<Plan> {
    let facts: Facts = serde_json::from_value(facts.clone()).context("read what was noted of the server")?;
    let chosen: Vec<&Database> = facts.databases.iter().filter(|d| takes(paths, &d.file)).collect();
    let names: Vec<String> = match (&address.database, chosen.as_slice()) {
        (_, []) => {
            return Err(refused(
                Kind::Usage,
                "no database of the snapshot is chosen".into(),
                "`--path databases/NAME.dump` chooses one.",
            ));
        }
        (Some(name), [_]) => vec![name.clone()],
        (None, _) => chosen.iter().map(|d| d.name.clone()).collect(),
        (Some(_), _) => {
            let files: Vec<&str> = chosen.iter().map(|d| d.file.as_str()).collect();
            let help = format!(
                "Choose one: --path {}; or leave the name out of the address, and each gets its own.",
                files.join(" | ")
            );
            return Err(refused(
                Kind::Usage,
                "the address names one database, and the snapshot has several".into(),
                &help,
            ));
        }
    };
    let programs = programs(bin, &facts)?;
    let mut client = connect(address, ANY_DATABASE)?;
    if !globals {
        let missing = rebuild::missing_roles(&mut client, &chosen)?;
        if !missing.is_empty() {
            let message = format!("the server has not all roles that the dumps speak of: {}", missing.join(", "));
            return Err(refused(
                Kind::Failed,
                message,
                "Create them, or let --globals do it (roles and tablespaces as they were).",
            ));
        }
    }
    let mut databases = Vec::new();
    for (database, name) in chosen.into_iter().zip(names) {
        let missing = rebuild::missing_extensions(&mut client, database)?;
        if !missing.is_empty() {
            let message = format!("{} needs extensions that the server has not: {}", database.name, missing.join(", "));
            return Err(refused(Kind::Failed, message, "Install their packages on the server's machine."));
        }
        let there = client.rows(&format!(
            "select from pg_database where datname = {}",
            crate::source::postgres::client::literal(&name)
        ))?;
        let exists = !there.rows.is_empty();
        if exists {
            must_be_empty(address, &name)?;
        }
        databases.push((database.clone(), name, exists));
    }
    let may = client.value("select rolsuper or rolcreatedb from pg_roles where rolname = current_user")?;
    if let Some((_, name, _)) = databases.iter().find(|(.., exists)| !exists)
        && may.as_deref() != Some("t")
    {
        let user = &address.user;
        return Err(refused(
            Kind::Failed,
            format!("{user} may not make the database {name}"),
            &format!(
                "On the server: alter role {user} createdb; or have it made, empty: create database {name} template template0 owner {user}."
            ),
        ));
    }
    Ok(Plan { address: address.clone(), programs, globals, databases })
}

/// Loads the dumps in `copy`. Gives what was loaded, and the comparison of rows with the snapshots that were dumped.
pub fn load(plan: &Plan, copy: &Path) -> Result<(Vec<Loaded>, Vec<Check>)> {
    let (mut loaded, mut checks) = (Vec::new(), Vec::new());
    let mut admin = connect(&plan.address, ANY_DATABASE)?;
    if plan.globals {
        let began = Instant::now();
        let file = copy.join(GLOBALS);
        let bytes = file.metadata().context("look at the globals")?.len();
        let stderr = rebuild::globals(&plan.programs, &plan.address, ANY_DATABASE, &file)?;
        loaded.push(done(GLOBALS, "psql", bytes, began, stderr));
    }
    for (facts, name, exists) in &plan.databases {
        let began = Instant::now();
        if !exists {
            rebuild::create(&mut admin, name, facts)
                .map_err(|e| stopped(format!("the database {name} was not made: {e:#}"), copy))?;
        }
        let mut client = connect(&plan.address, name)?;
        client.patience = PATIENCE;
        rebuild::schemas(&mut client, facts)
            .map_err(|e| stopped(format!("the schemas of {name} were not made: {e:#}"), copy))?;
        let ended = rebuild::pg_restore(&plan.programs, &plan.address, name, &copy.join(&facts.file), &[])?;
        ended.success().map_err(|e| stopped(format!("not all of {} came into {name}: {e:#}", facts.file), copy))?;
        // The owner may do without; who restores may not be allowed to give it away.
        let sql = format!("alter database {} owner to {}", identifier(name), identifier(&facts.owner));
        let mut stderr = ended.stderr;
        stderr.extend(admin.query(&sql).err().map(|e| format!("{name} does not belong to {}: {e:#}", facts.owner)));
        loaded.push(done(&facts.file, "pg_restore", facts.dump_bytes, began, stderr));
        let (expected, actual) = rebuild::compare(&mut client, facts)?;
        checks.push(Check::compare(format!("{name}: rows as in the snapshot that was dumped"), expected, actual));
    }
    Ok((loaded, checks))
}

fn takes(paths: &[Name], file: &str) -> bool {
    paths.is_empty() || paths.iter().any(|path| *path == Name::new(file) || *path == Name::new(super::DIRECTORY))
}

fn programs(bin: Option<&Path>, facts: &Facts) -> Result<Programs> {
    Programs::find(bin, &["pg_restore", "psql"], facts.program).ok_or_else(|| {
        let major = facts.program;
        let message = format!("there is no pg_restore {major} or newer here, and pg_dump {major} wrote the dumps");
        let help =
            format!("Install postgresql-client-{major}, or name its directory: bin = \"…\" in [source.postgres].");
        refused(Kind::Failed, message, &help)
    })
}

fn connect(address: &Address, database: &str) -> Result<Client> {
    Client::connect(&Address { database: Some(database.to_owned()), ..address.clone() }, Session::Plain)
}

fn must_be_empty(address: &Address, name: &str) -> Result<()> {
    let mut client = connect(address, name)?;
    let things = client.value(
        "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_(toast|temp)' \
         and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
    )?;
    if things.as_deref() == Some("0") {
        return Ok(());
    }
    let message = format!("the database {name} is there already, and has tables or the like in it");
    Err(refused(
        Kind::Usage,
        message,
        "Name a database that does not exist yet, and rename afterwards: alter database … rename to …",
    ))
}

fn done(file: &str, program: &str, bytes: u64, began: Instant, stderr: Vec<String>) -> Loaded {
    Loaded {
        file: file.into(),
        program: program.into(),
        bytes,
        bytes_unread: 0,
        seconds: began.elapsed().as_secs_f64(),
        stderr,
    }
}

fn refused(kind: Kind, message: String, help: &str) -> anyhow::Error {
    Failure::new(kind, message, format!("{NOTHING} {help}"))
}

fn stopped(message: String, copy: &Path) -> anyhow::Error {
    let help = format!(
        "What is in the new database so far is not to be used. The dumps, every byte checked, are in {}: correct the cause, drop the database, \
         and restore again, or run pg_restore on them.",
        copy.display()
    );
    Failure::new(Kind::Failed, message, help)
}
