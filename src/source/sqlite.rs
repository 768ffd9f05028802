//! The `sqlite` source: one database file, read page by page inside one read transaction. The database is never written.
//!
//! SQLite's locks are POSIX locks: they vanish when *any* descriptor of the file is closed in this process. So nothing here opens the
//! database file but SQLite itself; all else is `stat`. And no checkpoint, ever: SQLite before 3.51.3, which the application may
//! still use, can corrupt a database that two connections checkpoint at once.
//!
//! One trace is left: where nobody has a database in WAL mode open, SQLite makes its `-wal` (empty) and `-shm` to read it, and they stay,
//! since deleting them would race with the application. They belong to the owner of the database (`open` refuses where they would not).

use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name, Stat};
use crate::error::{Failure, Kind};
use crate::report::Skip;
use crate::source::barrier::{Member, Moment};
use crate::source::{Finished, Piece, Source};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub mod canary;
pub mod check;
pub mod facts;
pub mod open;

/// What a person who has restored a database needs to know.
pub fn advice() -> Vec<String> {
    vec![
        "To put it into place: stop what uses the database, remove the -wal and -shm of the old one there, and move the file. Left behind, they would be played into it."
            .to_owned(),
    ]
}

/// One run's reading of one database. The read transaction lasts from the first [`Source::next`] to [`Source::finish`] (or the drop):
/// in WAL mode it blocks no writer, but keeps checkpoints from ending; in rollback mode writers cannot commit meanwhile.
pub struct Sqlite {
    /// As it was given, made absolute.
    path: PathBuf,
    /// `path` without symlinks: SQLite keeps the `-wal` beside this one.
    file: PathBuf,
    clock: Arc<dyn Clock>,
    reading: Option<Reading>,
    walked: bool,
    member: Member,
}

/// The read transaction, and how far it got.
struct Reading {
    connection: Connection,
    began: Instant,
    data_time: Timestamp,
    /// Device and inode of the file that is read.
    identity: (u64, u64),
    name: Name,
    /// Bytes.
    page_size: usize,
    page_count: u64,
    /// The page to read next, counted from 1 as SQLite does.
    page: u64,
}

impl Sqlite {
    /// Looks at the file without opening it. Fails if it is missing, not a regular file, or empty.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Sqlite> {
        let path = std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))?;
        let file = path.canonicalize().map_err(|error| {
            Failure::new(
                Kind::Failed,
                format!("cannot find the database {}: {error}", path.display()),
                "Nothing was backed up. Check the path, that the volume is mounted, and that this user may enter its directory.",
            )
        })?;
        open::refuse_what_is_no_database(&file, &stat(&file)?)?;
        Ok(Sqlite { path, file, clock, reading: None, walked: false, member: Member::default() })
    }

    /// Begins the read transaction and looks at the file inside it.
    fn begin(&self) -> Result<(Reading, Entry)> {
        let before = stat(&self.file)?;
        // Again, because time has passed: SQLite deletes the `-wal` of an empty database when it opens it.
        open::refuse_what_is_no_database(&self.file, &before)?;
        let explain = |error| open::explain(&self.path, error);
        let connection = open::open(&self.file).map_err(explain)?;
        open::begin(&connection).map_err(explain)?;
        let data_time = self.clock.now();
        let began = Instant::now();
        let page_size = open::pragma(&connection, "page_size").map_err(explain)?;
        let page_count = open::pragma(&connection, "page_count").map_err(explain)?;
        let size = page_size * page_count;

        let metadata = stat(&self.file)?;
        if identity(&before) != identity(&metadata) {
            return Err(Failure::new(
                Kind::Failed,
                format!("{} was replaced by another file while it was being opened", self.path.display()),
                "Nothing was backed up. The earlier snapshots stand. Run the backup again.",
            ));
        }
        // While the transaction lives, nobody can move frames from the WAL into the file: what is settled here stays so.
        let settled = wal_size(&self.file) == 0;
        if settled && metadata.len() < size {
            return Err(open::truncated(&self.path, metadata.len(), size));
        }
        let name = Name::new(self.path.file_name().unwrap_or_default().as_bytes());
        let entry = Entry {
            path: name.clone(),
            kind: EntryKind::File,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            user: Name::default(),
            group: Name::default(),
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
            size,
            page: Some(u32::try_from(page_size).context("read the page size")?),
            target: None,
            rdev: None,
            xattrs: BTreeMap::new(),
            stat: settled.then(|| file_stat(&metadata)),
        };
        let identity = identity(&metadata);
        let page_size = usize::try_from(page_size).context("read the page size")?;
        Ok((Reading { connection, began, data_time, identity, name, page_size, page_count, page: 1 }, entry))
    }
}

impl Source for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn root(&self) -> String {
        self.path.display().to_string()
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        if self.walked {
            return Ok(None);
        }
        let (reading, entry) = self.member.fix(Moment::Chosen, || self.begin())?;
        // Beside a WAL the transaction holds nobody up; otherwise writers wait for its end.
        if open::journal(&reading.connection).map_err(|e| open::explain(&self.path, e))? == "wal" {
            self.member.take_turn()?;
        }
        self.reading = Some(reading);
        self.walked = true;
        Ok(Some(entry))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let reading = self.reading.as_mut().context("read of a database before its transaction began")?;
        reading.read(buffer, &self.path)
    }

    fn finish(&mut self) -> Result<Finished> {
        let reading = self.reading.take().context("end of a database before its transaction began")?;
        let (mut facts, damage) = facts::collect(&reading.connection).map_err(|e| open::explain(&self.path, e))?;
        let mut skipped: Vec<Skip> = damage.map(|why| Skip::new(&reading.name, why)).into_iter().collect();
        if !std::fs::metadata(&self.file).is_ok_and(|now| identity(&now) == reading.identity) {
            let why = "replaced or removed while it was read: the snapshot holds the database as it was before";
            skipped.push(Skip::new(&reading.name, why));
        }
        reading.still_in_transaction()?;
        // Closing ends the transaction. A COMMIT would say nothing more, and fails on a damaged database that was read well.
        drop(reading.connection);
        facts.transaction_seconds = reading.began.elapsed().as_secs_f64();
        Ok(Finished { data_time: reading.data_time, skipped, facts: serde_json::to_value(facts)? })
    }
}

impl Reading {
    /// Fills `buffer` with as many whole pages as it holds.
    fn read(&mut self, buffer: &mut [u8], path: &Path) -> Result<Piece> {
        if self.page > self.page_count {
            return Ok(Piece::End);
        }
        ensure!(buffer.len() >= self.page_size, "buffer smaller than a page of {} bytes", self.page_size);
        let filled = read_pages(&self.connection, self.page, self.page_count, self.page_size, buffer);
        let filled = filled.map_err(|error| match error.downcast::<rusqlite::Error>() {
            Ok(error) => open::explain(path, error),
            Err(error) => error,
        })?;
        self.page += (filled / self.page_size) as u64;
        self.still_in_transaction()?;
        Ok(Piece::Data(filled))
    }

    /// Some errors end a transaction silently; pages read after that would belong to another state of the database.
    fn still_in_transaction(&self) -> Result<()> {
        ensure!(
            !self.connection.is_autocommit(),
            "SQLite ended the read transaction by itself: the pages read do not belong together"
        );
        Ok(())
    }
}

/// Reads pages from number `first` up to number `last` (counted from 1) inside the caller's transaction, as many as `buffer` holds. Gives the bytes.
pub fn read_pages(
    connection: &Connection,
    first: u64,
    last: u64,
    page_size: usize,
    buffer: &mut [u8],
) -> Result<usize> {
    // One statement for the whole buffer: preparing it costs as much as reading a few pages.
    let mut statement = connection.prepare("SELECT data FROM sqlite_dbpage WHERE pgno = ?1").context("read pages")?;
    let mut filled = 0;
    for (number, slot) in (first..=last).zip(buffer.chunks_exact_mut(page_size)) {
        let whole = statement.query_row([number.cast_signed()], |row| {
            let data = row.get_ref(0)?.as_blob()?;
            let whole = data.len() == slot.len();
            if whole {
                slot.copy_from_slice(data);
            }
            Ok(whole)
        });
        ensure!(
            whole.with_context(|| format!("read page {number} of {last}"))?,
            "page {number} is not {page_size} bytes long"
        );
        filled += page_size;
    }
    Ok(filled)
}

fn stat(file: &Path) -> Result<Metadata> {
    std::fs::metadata(file).with_context(|| format!("stat {}", file.display()))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn file_stat(m: &Metadata) -> Stat {
    Stat(m.dev(), m.ino(), m.ctime(), u32::try_from(m.ctime_nsec()).unwrap_or(0))
}

/// `file` with a suffix such as `-wal`.
pub fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    PathBuf::from(name)
}

/// Bytes of the WAL; 0 if there is none, the greatest number if that cannot be known.
fn wal_size(file: &Path) -> u64 {
    match std::fs::metadata(beside(file, "-wal")) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(_) => u64::MAX,
    }
}
