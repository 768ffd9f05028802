//! A whole cluster, read beside its server: the files themselves, between `pg_backup_start` and `pg_backup_stop` of one session.
//! (PostgreSQL manual, "Making a Base Backup Using the Low Level API".)
//!
//! * The snapshot has the same shape as that of [`super::base`], less the manifest; both may follow each other in one series.
//! * A file that provably did not change since the basis is not read (FORMAT.md §4-8). Of a long one that is read, a few threads read ahead.
//! * Torn pages are read again; a page that stays wrong, and that the WAL does not bring, is damage: the snapshot is partial and names the file.
//! * Order: all files, then `pg_control`, then the end of the backup, then `backup_label` and the WAL from start to end.
//! * The session must live to the end: the server gives the backup up with it, and so do we.
//! * The time of the data is taken just before the backup is ended.

mod ahead;
mod control;
mod page;
mod reach;
mod relation;
mod walk;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::client::{Address, Client, explain};
use super::outside::{self, ConfigFile};
use super::server::{Facts, TablespaceFact};
use super::tables::{self, Horizons};
use crate::accounts::Accounts;
use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name};
use crate::report::Skip;
use crate::source::barrier::{Member, Moment};
use crate::source::{Before, Finished, Order, Piece, Source};
use ahead::Pool;
pub use reach::Reach;
use relation::{Pages, Reading, first_block};
use walk::{Found, Walk};

/// Damaged files that are named.
const NAMED: usize = 100;

/// The `postgres` source, read as files.
pub struct FileCopy {
    address: Address,
    clock: Arc<dyn Clock>,
    accounts: Accounts,
    pool: Pool,
    session: Client,
    facts: Facts,
    data: PathBuf,
    stage: Stage,
    start: u64,
    /// Entries to give next, each with what is then to be read.
    ready: VecDeque<(Entry, Content)>,
    current: Content,
    path: Vec<u8>,
    damaged: BTreeMap<Vec<u8>, u64>,
    /// Paths of the configuration outside the data directory.
    config: Vec<String>,
    data_time: Timestamp,
    member: Member,
    /// Which transactions have ended, for counting rows.
    horizons: Horizons,
}

enum Stage {
    NotBegun,
    Walking(Box<Walk>),
    /// The backup has ended; segments of WAL that are still to be given, with the positions at which they begin.
    Ended(VecDeque<(String, u64)>),
    Done,
}

/// What is left of the current file.
enum Content {
    None,
    Bytes(Vec<u8>),
    File(Box<Reading>),
}

impl FileCopy {
    /// Connects. An `Err` says what keeps this process from reading the files of just this server; then there is [`super::base`].
    pub fn open(address: Address, count: bool, clock: Arc<dyn Clock>) -> Result<FileCopy> {
        let Reach { session, data, facts, config } = Reach::find(&address)?;
        let data_time = clock.now();
        Ok(FileCopy {
            horizons: facts.horizons(count),
            address,
            clock,
            accounts: Accounts::load(),
            pool: Pool::start()?,
            session,
            facts: Facts { transport: "files".into(), ..facts },
            data,
            stage: Stage::NotBegun,
            start: 0,
            ready: VecDeque::new(),
            current: Content::None,
            path: Vec::new(),
            damaged: BTreeMap::new(),
            config,
            data_time,
            member: Member::default(),
        })
    }

    fn begin(&mut self) -> Result<()> {
        self.member.ready()?;
        self.reserve_wal();
        self.session.patience = super::CHECKPOINT_MAX;
        let start = match self.is_new() {
            true => "select pg_backup_start('blackstart', true)",
            false => "select pg_start_backup('blackstart', true, false)",
        };
        // The session waits, idle, while the files are read.
        self.session.query("set statement_timeout = 0")?;
        if self.session.version() >= 140_000 {
            self.session.query("set idle_session_timeout = 0")?;
        }
        self.facts.start_lsn = self.session.value(start)?.context("the server began no backup")?;
        self.start = control::lsn(&self.facts.start_lsn)?;
        let version = self.session.value("select catalog_version_no from pg_control_system()")?.unwrap_or_default();
        let version = format!("PG_{}_{version}", self.session.version() / 10_000);
        self.stage = Stage::Walking(Box::new(Walk::new(&self.data, version)));
        Ok(())
    }

    fn is_new(&self) -> bool {
        self.session.version() >= 150_000
    }

    /// A slot that goes with the session keeps the WAL from now on. A role that may not replicate has none; whether all WAL is there is looked at in the end.
    fn reserve_wal(&mut self) {
        let slot = format!("blackstart_{}", self.session.process().unwrap_or_default());
        let _without = self.session.query(&format!("select pg_create_physical_replication_slot('{slot}', true, true)"));
    }

    fn advance(&mut self) -> Result<bool> {
        match &mut self.stage {
            Stage::NotBegun => self.begin()?,
            Stage::Walking(walk) => match walk.next()? {
                Some(found) => self.take(found)?,
                None => {
                    let tablespaces = std::mem::take(&mut walk.tablespaces);
                    let fact =
                        |(oid, place): (u32, PathBuf)| TablespaceFact { oid, location: place.display().to_string() };
                    self.facts.tablespaces = tablespaces.into_iter().map(fact).collect();
                    self.end()?;
                }
            },
            Stage::Ended(segments) => match segments.pop_front() {
                Some((name, address)) => self.push_segment(&name, address)?,
                None => self.stage = Stage::Done,
            },
            Stage::Done => return Ok(false),
        }
        Ok(true)
    }

    fn take(&mut self, found: Found) -> Result<()> {
        let Found { path, place, metadata } = found;
        if metadata.is_dir() {
            let entry = self.entry(path, EntryKind::Dir, &metadata);
            self.ready.push_back((entry, Content::None));
            return Ok(());
        }
        let mut open = match Reading::open(&place) {
            Ok(open) => open,
            // Dropped since it was listed.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("open {}", place.display())),
        };
        let page = self.facts.block_size;
        let paged = super::is_relation(&path) && open.size.is_multiple_of(u64::from(page));
        if paged && self.facts.data_checksums {
            open.check_pages(Pages { size: page, first: first_block(&path, page), start: self.start });
        }
        let entry = self.entry(path, EntryKind::File, &metadata);
        let entry = Entry { size: open.size, page: paged.then_some(page), stat: Some(open.stat), ..entry };
        self.ready.push_back((entry, Content::File(Box::new(open))));
        Ok(())
    }

    /// Of a group: the end of the backup is the point.
    fn end(&mut self) -> Result<()> {
        let member = std::mem::take(&mut self.member);
        member.fix(Moment::Chosen, || self.end_at_once())?;
        self.member = member;
        Ok(())
    }

    /// `pg_control`, the end of the backup, what it gives, and the WAL.
    fn end_at_once(&mut self) -> Result<()> {
        self.horizons.look(&mut self.session);
        let control = control::read(&self.data)?;
        self.push_bytes("global/pg_control", control)?;
        self.data_time = self.clock.now();
        let stop = match self.is_new() {
            true => "select lsn, labelfile, spcmapfile from pg_backup_stop(false)",
            false => "select lsn, labelfile, spcmapfile from pg_stop_backup(false, false)",
        };
        let rows = self.session.rows(stop).context("end the backup")?;
        let row = rows.one()?;
        self.facts.end_lsn = row.required(0)?.to_owned();
        let label = row.required(1)?.to_owned();
        self.facts.timeline = timeline_of(&label).context("the backup's label names no WAL file")?;
        self.push_bytes("backup_label", label.into_bytes())?;
        let end = control::lsn(&self.facts.end_lsn)?;
        let segments = control::segments(self.facts.timeline, self.start, end, self.facts.segment_size)?;
        self.push_history()?;
        self.push_config()?;
        self.stage = Stage::Ended(segments.into());
        Ok(())
    }

    /// The directory of marks for archived WAL, and how the timeline came to be.
    fn push_history(&mut self) -> Result<()> {
        let template = std::fs::metadata(self.data.join("PG_VERSION")).context("look at PG_VERSION")?;
        let status = self.entry(b"pg_wal/archive_status".to_vec(), EntryKind::Dir, &template);
        self.ready.push_back((Entry { mode: 0o700, ..status }, Content::None));
        let history = format!("{:08X}.history", self.facts.timeline);
        match std::fs::read(self.data.join("pg_wal").join(&history)) {
            Ok(bytes) => self.push_bytes(&format!("pg_wal/{history}"), bytes),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("read {history}")),
        }
    }

    /// Configuration from outside the data directory. What cannot be read is named in the facts: the data does not depend on it.
    fn push_config(&mut self) -> Result<()> {
        let mut files = Vec::new();
        for path in std::mem::take(&mut self.config) {
            match std::fs::read(&path) {
                Ok(bytes) => files.push(ConfigFile { path, bytes }),
                Err(e) => self.facts.config_missing = Some(format!("{path}: {e}")),
            }
        }
        let template = std::fs::metadata(self.data.join("PG_VERSION")).context("look at PG_VERSION")?;
        for path in outside::directories(&files) {
            let entry = self.entry(path.into_bytes(), EntryKind::Dir, &template);
            self.ready.push_back((Entry { mode: 0o700, ..entry }, Content::None));
        }
        for file in files {
            self.push_bytes(&outside::inside(&file.path), file.bytes)?;
            self.facts.config_files.push(file.path);
        }
        Ok(())
    }

    fn push_segment(&mut self, name: &str, address: u64) -> Result<()> {
        let lost = || {
            format!(
                "the WAL file {name}, which the backup needs, is not there any more: set wal_keep_size on the server, or give the role replication"
            )
        };
        let path = self.data.join("pg_wal").join(name);
        let reading = Reading::open(&path).with_context(lost)?;
        let metadata = std::fs::metadata(&path).with_context(lost)?;
        ensure!(
            reading.size == self.facts.segment_size && control::begins_at(&reading.first_bytes()?, address),
            lost()
        );
        let entry = self.entry(format!("pg_wal/{name}").into_bytes(), EntryKind::File, &metadata);
        self.ready.push_back((entry, Content::File(Box::new(reading))));
        // What is in the snapshot must not be archived again by a server that is started on it.
        self.push_bytes(&format!("pg_wal/archive_status/{name}.done"), Vec::new())
    }

    /// A small file, as private as the cluster and of the same owner.
    fn push_bytes(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let template = std::fs::metadata(self.data.join("PG_VERSION")).context("look at PG_VERSION")?;
        let entry = self.entry(path.as_bytes().to_vec(), EntryKind::File, &template);
        let mtime = (self.clock.now().as_second(), 0);
        self.ready.push_back((Entry { size: bytes.len() as u64, mtime, ..entry }, Content::Bytes(bytes)));
        Ok(())
    }

    fn entry(&self, path: Vec<u8>, kind: EntryKind, m: &std::fs::Metadata) -> Entry {
        Entry {
            path: Name(path),
            kind,
            mode: m.mode() & 0o7777,
            uid: m.uid(),
            gid: m.gid(),
            user: self.accounts.user(m.uid()),
            group: self.accounts.group(m.gid()),
            mtime: (m.mtime(), u32::try_from(m.mtime_nsec()).unwrap_or(0)),
            size: if kind == EntryKind::File { m.len() } else { 0 },
            page: None,
            target: None,
            rdev: None,
            xattrs: BTreeMap::new(),
            stat: None,
        }
    }
}

impl Source for FileCopy {
    fn kind(&self) -> &'static str {
        super::PHYSICAL
    }

    fn root(&self) -> String {
        format!("{} ({})", self.address, self.data.display())
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        self.facts.compare(&before)
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    fn order(&self) -> Order {
        Order::AsTheyCome
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.current = Content::None;
        loop {
            if let Some((entry, content)) = self.ready.pop_front() {
                self.path = entry.path.0.clone();
                self.current = content;
                self.facts.tally(&entry);
                return Ok(Some(entry));
            }
            if !self.advance().map_err(|e| explain(e, &self.address))? {
                return Ok(None);
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let n = match &mut self.current {
            Content::None => 0,
            Content::Bytes(bytes) => {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes.drain(..n);
                n
            }
            Content::File(open) => {
                let path = || Path::new(std::ffi::OsStr::from_bytes(&self.path)).display().to_string();
                let (n, damaged) = open.read(buffer, &self.pool).with_context(path)?;
                if damaged > 0 {
                    *self.damaged.entry(self.path.clone()).or_default() += damaged;
                }
                n
            }
        };
        Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
    }

    fn finish(&mut self) -> Result<Finished> {
        if !matches!(self.stage, Stage::Done) {
            bail!("the backup has not ended (this is a bug)");
        }
        let named = |(path, pages): (&Vec<u8>, &u64)| {
            let why = format!(
                "{pages} pages are damaged on the server itself: checksum verification failed. They were taken as they are. Look at them with pg_amcheck, \
                 and restore what is lost from an older snapshot"
            );
            Skip::new(&Name(path.clone()), why)
        };
        let skipped: Vec<Skip> = self.damaged.iter().take(NAMED).map(named).collect();
        self.facts.checksum_failures = (!skipped.is_empty()).then(|| format!("{} files", self.damaged.len()));
        let horizon = self.horizons.before(&self.facts.end_lsn);
        self.facts.counted = tables::count(&self.address, &self.facts.databases, horizon);
        Ok(Finished { data_time: self.data_time, skipped, facts: self.facts.sealed()? })
    }
}

/// The timeline of `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`.
fn timeline_of(label: &str) -> Option<u32> {
    let name = label.split_once("(file ")?.1.split(')').next()?;
    u32::from_str_radix(name.get(..8)?, 16).ok()
}
