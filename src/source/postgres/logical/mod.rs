//! Logical backups: `pg_dump` for each database and `pg_dumpall` for what lies between them, streamed without local disk. What managed services
//! allow, and what restores into another major version.
//!
//! Each database is consistent in itself, at the moment of its own snapshot; two databases are not consistent with each other. The rows of its
//! tables are counted in the same snapshot (`pg_export_snapshot`, `pg_dump --snapshot`), so that a drill compares with certainty.
//!
//! The tree: `databases/<name>.dump` (custom format, not compressed, so that chunks are stored once), and `globals.sql`.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::client::{Address, Client, Session};
use super::programs::Programs;
use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name};
use crate::error::{Failure, Kind};
use crate::report::Skip;
use crate::source::barrier::{Member, Moment};
use crate::source::command::{Dump, Stream};
use crate::source::{Before, Finished, Piece, Source, stream_entry};
use count::Counter;
pub use facts::{Database, Facts};
pub use selection::Selection;

mod catalog;
mod count;
mod facts;
pub mod load;
pub mod proof;
mod rebuild;
mod selection;

/// The directory of the dumps in the snapshot, and the file with roles and tablespaces.
const DIRECTORY: &str = "databases";
pub const GLOBALS: &str = "globals.sql";
/// Where a connection goes that needs any database.
pub const ANY_DATABASE: &str = "postgres";
/// How long a dump waits for a table that somebody has locked.
const LOCK_WAIT: &str = "--lock-wait-timeout=600s";
/// A dump may be silent while the server sorts or waits for a lock, and take as long as it takes.
const IDLE: Duration = Duration::from_secs(2 * 3600);
const WHOLE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Databases whose snapshots are held open at once, as a member of a group: each needs a connection.
const HELD_MAX: usize = 50;

/// What a person who has restored dumps as files needs to know.
pub fn advice(facts: &serde_json::Value) -> Vec<String> {
    let program = facts["program"].as_u64().map_or_else(String::new, |major| format!(", of version {major} or newer"));
    vec![
        format!("These are dumps: {DIRECTORY}/NAME.dump of each database, and {GLOBALS} with the roles and tablespaces."),
        "restore SOURCE --into postgres://USER@HOST/NEWNAME makes a database of one, and compares its rows. By hand, with the server's programs"
            .to_owned()
            + &program
            + ": psql -f globals.sql postgres; createdb -T template0 NAME; pg_restore -d NAME databases/NAME.dump",
    ]
}

/// One run: one dump after another.
pub struct Logical {
    address: Address,
    select: Selection,
    bin: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    /// The system identifier in the newest snapshot, unless a change is meant.
    expected: Option<String>,
    plan: Option<Plan>,
    /// Entries given so far.
    given: usize,
    current: Option<Current>,
    member: Member,
    /// As a member of a group: the snapshots that the dumps will read, by database.
    held: BTreeMap<String, (Client, String)>,
}

/// What one run is to dump, and what it knows by now.
struct Plan {
    began: Timestamp,
    programs: Programs,
    /// In path order: the root, the directory, the databases, the globals.
    items: Vec<Item>,
    facts: Facts,
    done: Vec<Database>,
    skipped: Vec<Skip>,
}

enum Item {
    Directory(&'static str),
    Database(Box<Database>),
    Globals,
}

impl Item {
    fn database(&self) -> Option<&str> {
        if let Item::Database(database) = self { Some(&database.name) } else { None }
    }
}

struct Current {
    dump: Dump,
    /// Of a database.
    counted: Option<(Box<Database>, Counter)>,
}

impl Logical {
    /// Nothing is connected to before the first [`Source::next`].
    pub fn open(address: Address, options: &Options, clock: Arc<dyn Clock>) -> Logical {
        let bin = options.bin.clone();
        let select = options.select.clone();
        Logical {
            address,
            select,
            bin,
            clock,
            expected: None,
            plan: None,
            given: 0,
            current: None,
            member: Member::default(),
            held: BTreeMap::new(),
        }
    }

    fn connect(&self, database: &str) -> Result<Client> {
        let address = Address { database: Some(database.to_owned()), ..self.address.clone() };
        Client::connect(&address, Session::Plain)
    }

    fn any_database(&self) -> &str {
        self.address.database.as_deref().unwrap_or(ANY_DATABASE)
    }

    fn begin(&self) -> Result<Plan> {
        let began = self.clock.now();
        let mut client = self.connect(self.any_database())?;
        let programs = programs_for(self.bin.as_deref(), client.version() / 10_000)?;
        let mut facts = Facts {
            server: client.parameter("server_version").unwrap_or_default().to_owned(),
            version: client.version(),
            asked: self.address.database.clone(),
            system_identifier: client.value("select system_identifier from pg_control_system()").ok().flatten(),
            program: programs.major,
            role_passwords: client.value("select has_table_privilege('pg_catalog.pg_authid', 'SELECT')")?.as_deref()
                == Some("t"),
            ..Facts::default()
        };
        if !facts.role_passwords {
            let user = &self.address.user;
            facts.notes.push(format!(
                "{GLOBALS} has the roles without their passwords, which {user} may not read: keep them elsewhere"
            ));
        }
        self.same_server(&facts)?;
        let (mut items, mut skipped) = (vec![Item::Directory(""), Item::Directory(DIRECTORY)], Vec::new());
        let mut databases = catalog::databases(&mut client)?;
        databases.sort_by(|a, b| a.facts.file.cmp(&b.facts.file));
        if let Some(missing) = self.select.databases.iter().find(|name| !databases.iter().any(|d| d.name == **name)) {
            let help =
                "Nothing was backed up: the earlier snapshots stand. Correct `databases` in [source.postgres.select].";
            return Err(Failure::new(Kind::Config, format!("the server has no database {missing}"), help));
        }
        for database in databases.into_iter().filter(|database| self.select.takes_database(&database.name)) {
            if database.may_connect {
                items.push(Item::Database(Box::new(database.facts)));
            } else {
                let user = &self.address.user;
                let why = format!(
                    "{user} may not connect to it: grant connect, or name it in `exclude_databases` of [source.postgres.select]"
                );
                skipped.push(Skip::new(&Name::new(database.facts.file), why));
            }
        }
        self.all_named_are_there(&items)?;
        ensure!(items.len() > 2, "the server has no database that {} may dump", self.address.user);
        items.push(Item::Globals);
        Ok(Plan { began, programs, items, facts, done: Vec::new(), skipped })
    }

    /// As a member of a group: takes the snapshots of all databases at the barrier. They hold nobody up, but the server keeps old rows for them.
    fn hold_all(&mut self, mut plan: Plan) -> Result<Plan> {
        if self.member.is_alone() {
            return Ok(plan);
        }
        let names: Vec<&str> = plan.items.iter().filter_map(Item::database).collect();
        ensure!(names.len() <= HELD_MAX, "{} databases in one group, and {HELD_MAX} are the most", names.len());
        let clients: Result<Vec<Client>> = names.iter().map(|name| self.connect(name)).collect();
        let mut clients = clients?;
        let member = std::mem::take(&mut self.member);
        let (began, held) = member.fix(Moment::Chosen, || {
            let began = self.clock.now();
            let held: Result<Vec<String>> = clients.iter_mut().map(count::begin).collect();
            Ok((began, held?))
        })?;
        plan.began = began;
        let names = names.into_iter().map(str::to_owned);
        self.held = names.zip(clients.into_iter().zip(held)).collect();
        member.take_turn()?;
        self.member = member;
        Ok(plan)
    }

    /// A transaction in `database` whose snapshot a dump can read.
    fn hold(&self, database: &str) -> Result<(Client, String)> {
        let mut client = self.connect(database)?;
        let snapshot = count::begin(&mut client)?;
        Ok((client, snapshot))
    }

    /// `pg_dump` complains only where nothing at all of what is named is there.
    fn all_named_are_there(&self, items: &[Item]) -> Result<()> {
        if self.select.tables.is_empty() && self.select.schemas.is_empty() && self.select.exclude_schemas.is_empty() {
            return Ok(());
        }
        let help = "Nothing was backed up: the earlier snapshots stand. Correct [source.postgres.select].";
        let (mut found, mut left_out) = (BTreeSet::new(), None);
        for item in items {
            let Item::Database(database) = item else { continue };
            let mut client = self.connect(&database.name)?;
            found.extend(catalog::named(&mut client, &self.select)?);
            let partition = catalog::partition_left_out(&mut client, &self.select)?;
            left_out = left_out.or(partition.map(|(table, partition)| (&database.name, table, partition)));
        }
        let schemas = self.select.schemas.iter().filter(|_| self.select.tables.is_empty());
        if let Some(name) = self.select.tables.iter().chain(schemas).find(|name| !found.contains(*name)) {
            let what = format!("no database has {name}, which is named in the selection (tables as `schema.table`)");
            return Err(Failure::new(Kind::Config, what, help));
        }
        if let Some((database, table, partition)) = left_out {
            let what = format!("{table} of {database} keeps rows in {partition}, whose schema is not selected");
            return Err(Failure::new(Kind::Config, what, help));
        }
        Ok(())
    }

    /// Whether this is the server that the newest snapshot is of.
    fn same_server(&self, facts: &Facts) -> Result<()> {
        match (&self.expected, &facts.system_identifier) {
            (Some(before), Some(now)) if before != now => Err(Failure::new(
                Kind::Failed,
                format!(
                    "{} is another server than before: its system identifier is {now}, and was {before}",
                    self.address
                ),
                "Nothing was backed up: the earlier snapshots stand. If the server was replaced or upgraded, run the backup once with --accept-change; \
                 if not, correct the address.",
            )),
            _ => Ok(()),
        }
    }

    fn start(&mut self, number: usize) -> Result<Current> {
        let plan = self.plan.as_ref().context("a run that has not begun")?;
        let item = &plan.items[number];
        let dump = |file: &str, program: &str, arguments: &[String], database: &str| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let spec = plan.programs.spec(program, &arguments, &self.address, database)?;
            let (magic, end) =
                if file == GLOBALS { (None, Some("dump complete")) } else { (Some(b"PGDMP".as_slice()), None) };
            Dump::begin(Stream::of_program(file, program, magic, end), &spec, WHOLE, IDLE)
        };
        let text = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        match item {
            Item::Directory(_) => anyhow::bail!("a directory has no contents"),
            Item::Globals => {
                let mut arguments = text(&["--globals-only", "--no-password", LOCK_WAIT]);
                arguments.push(format!("--database={}", self.any_database()));
                if !plan.facts.role_passwords {
                    arguments.push("--no-role-passwords".into());
                }
                Ok(Current { dump: dump(GLOBALS, "pg_dumpall", &arguments, self.any_database())?, counted: None })
            }
            Item::Database(database) => {
                let mut database = database.clone();
                let (mut client, snapshot) = match self.held.remove(&database.name) {
                    Some(held) => held,
                    None => self.hold(&database.name)?,
                };
                catalog::describe(&mut client, &mut database)?;
                let select = catalog::with_partitions(&mut client, &self.select)?;
                let schemas: BTreeSet<&str> = select.tables.iter().filter_map(|t| Some(t.split_once('.')?.0)).collect();
                database.schemas = schemas.into_iter().filter(|s| *s != "public").map(str::to_owned).collect();
                let counter = Counter::start(client, snapshot, &select);
                let mut arguments = text(&["--format=custom", "--compress=0", "--no-password", LOCK_WAIT]);
                arguments.push(format!("--snapshot={}", counter.snapshot));
                arguments.extend(select.arguments());
                let dump = dump(&database.file, "pg_dump", &arguments, &database.name)?;
                Ok(Current { dump, counted: Some((database, counter)) })
            }
        }
    }
}

/// The programs that dump a server of this version: never older than it.
pub(super) fn programs_for(bin: Option<&Path>, server: u32) -> Result<Programs> {
    let needed = ["pg_dump", "pg_dumpall"];
    if let Some(programs) = Programs::find(bin, &needed, server) {
        return Ok(programs);
    }
    let newest = Programs::all(bin, &needed).pop();
    let have = newest.map_or("there is no pg_dump here".to_owned(), |p| {
        format!("the newest pg_dump here is {} in {}", p.major, p.bin.display())
    });
    Err(Failure::new(
        Kind::Failed,
        format!("the server is PostgreSQL {server}, and {have}: an older pg_dump refuses a newer server"),
        format!(
            "Nothing was backed up: the earlier snapshots stand. Install postgresql-client-{server} or newer, or name its directory: bin = \"…\" in [source.postgres]."
        ),
    ))
}

impl Source for Logical {
    fn kind(&self) -> &'static str {
        super::LOGICAL
    }

    fn root(&self) -> String {
        self.address.to_string()
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        if !before.accept_change {
            self.expected = before.facts["system_identifier"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if self.plan.is_none() {
            let plan = self.begin()?;
            self.plan = Some(self.hold_all(plan)?);
        }
        let plan = self.plan.as_ref().context("a run that has not begun")?;
        let Some(item) = plan.items.get(self.given) else { return Ok(None) };
        self.given += 1;
        let entry = match item {
            Item::Directory(path) => stream_entry(path, EntryKind::Dir, plan.began),
            Item::Database(database) => stream_entry(&database.file, EntryKind::File, plan.began),
            Item::Globals => stream_entry(GLOBALS, EntryKind::File, plan.began),
        };
        if entry.kind == EntryKind::File {
            self.current = Some(self.start(self.given - 1)?);
        }
        Ok(Some(entry))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let current = self.current.as_mut().context("read of a dump that has not begun")?;
        if let Some(length) = current.dump.read(buffer, None)? {
            return Ok(Piece::Data(length));
        }
        let plan = self.plan.as_mut().context("a run that has not begun")?;
        let Some(current) = self.current.take() else { return Ok(Piece::StreamEnd) };
        if let Some((mut database, counter)) = current.counted {
            let facts = current.dump.facts();
            (database.dump_bytes, database.sha256, database.seconds) = (facts.bytes, facts.sha256, facts.seconds);
            database.tables = counter.finish()?;
            plan.done.push(*database);
        }
        Ok(Piece::StreamEnd)
    }

    fn finish(&mut self) -> Result<Finished> {
        let plan = self.plan.take().context("end of a run that has not begun")?;
        let wanted = plan.items.iter().filter(|item| matches!(item, Item::Database(_))).count();
        ensure!(
            self.given == plan.items.len() && plan.done.len() == wanted,
            "{} of {wanted} databases have been dumped",
            plan.done.len()
        );
        let facts = Facts { databases: plan.done, ..plan.facts };
        Ok(Finished { data_time: plan.began, skipped: plan.skipped, facts: serde_json::to_value(facts)? })
    }
}
