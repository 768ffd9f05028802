//! A whole cluster over the replication protocol: BASE_BACKUP, every tablespace, with the WAL that it needs.
//!
//! * The snapshot is the data directory as a restore wants it: what `base.tar` has at its root, each tablespace in `pg_tblspc/<oid>/` in place of
//!   the link (where they lay is in the facts), and `backup_manifest`. The server itself leaves out what must not be copied.
//! * Files of relations are paged with the server's block size, so that an incremental stores changed pages only; all else is streamed.
//! * From version 17 on an incremental also reads changed pages only, where that is safe ([`changes`]): the others are the basis's ([`blocks`]).
//! * Everything comes in the server's order, `pg_control` and the WAL last ([`Order::AsTheyCome`]).
//! * Each file's SHA-256 is compared with the one that the server took while it read the file.
//! * Pages with a wrong checksum end the command with an error after everything has been sent: the snapshot is kept, as partial, with the
//!   files named.
//! * A temporary slot keeps the server from removing the WAL that the backup will need.
//! * The time of the data is that at which `pg_control` arrived: the last file before the backup's end.

mod arriving;
mod begin;
mod behind;
mod blocks;
mod changes;
mod feed;
mod manifest;
mod members;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tar::EntryType;

use super::client::{Address, Client, ServerError, Session, explain};
use super::outside::{self, ConfigFile};
use super::server::{self, Facts, TablespaceFact};
use super::tables::{self, Horizons};
use crate::accounts::Accounts;
use crate::clock::Clock;
use crate::entry::{Entry, EntryKind, Name};
use crate::report::Skip;
use crate::source::barrier::Member as Seat;
use crate::source::{BasisFiles, Before, Finished, Order, Piece, Source};
use blocks::Changes;
use changes::Ground;
use feed::{Archive, Feed};
use manifest::{Arrived, Arriving, Instead, Manifest};
use members::{Member, Members};

/// The manifest's name in a snapshot, as `pg_basebackup` has it.
const MANIFEST: &str = "backup_manifest";
/// Largest number of files of one cluster: their hashes are kept until the manifest comes, some 150 bytes each.
const FILES_MAX: usize = 1_000_000;

/// The `postgres` source, read as a stream.
pub struct BaseBackup {
    address: Address,
    clock: Arc<dyn Clock>,
    /// Of this machine, if the server is on it.
    accounts: Option<Accounts>,
    facts: Facts,
    /// Until the backup begins.
    walsender: Option<Client>,
    /// The facts of the newest snapshot.
    before: Option<Facts>,
    /// What the server may compare with.
    ground: Option<Ground>,
    /// The files that may come as changes, with their sizes in the basis, where the server sends such.
    asked: Option<HashMap<Vec<u8>, u64>>,
    /// The end of its connection ends the slot.
    slot: Option<Client>,
    feed: Option<Feed>,
    archive: Option<Archive>,
    members: Members,
    current: Option<Current>,
    /// Entries to give next, each with what is then to be read.
    ready: VecDeque<(Entry, Option<Current>)>,
    /// Whose files they are, as the server has it.
    owner: Option<Entry>,
    arrived: Arrived,
    /// What the snapshot has in place of files that arrived.
    instead: HashMap<Vec<u8>, Instead>,
    /// Directories that stand for tablespaces.
    tablespaces: HashSet<u32>,
    /// Configuration from outside the data directory.
    config: Vec<ConfigFile>,
    manifest: Manifest,
    data_time: Timestamp,
    ended: bool,
    /// `pg_control` has come, which the server had sent at this time at the earliest; what it sends next comes after the backup's end.
    control: Option<Instant>,
    seat: Seat,
    /// Which transactions have ended, for counting rows.
    horizons: Horizons,
}

/// The file that is being read.
enum Current {
    Member(Arriving),
    Changes(Arriving, Changes),
    Manifest,
    Bytes(Vec<u8>),
}

impl BaseBackup {
    /// Connects, and asks the server who it is. Nothing is read yet.
    pub fn open(address: Address, count: bool, clock: Arc<dyn Clock>) -> Result<BaseBackup> {
        let mut walsender = Client::connect(&address, Session::Replication)?;
        let mut sql = server::sql(&address);
        let mut facts = Facts::ask(&mut walsender, sql.as_mut()).map_err(|e| explain(e, &address))?;
        let config = sql.as_mut().map_or_else(Vec::new, |sql| config(sql, &mut facts));
        let data_time = clock.now();
        let horizons = facts.horizons(count);
        Ok(BaseBackup {
            clock,
            accounts: address.is_local().then(Accounts::load),
            facts: Facts { transport: "stream".into(), database: address.database.clone(), ..facts },
            address,
            walsender: Some(walsender),
            before: None,
            ground: None,
            asked: None,
            slot: None,
            feed: None,
            archive: None,
            members: Members::default(),
            current: None,
            ready: VecDeque::new(),
            owner: None,
            arrived: Arrived::new(),
            instead: HashMap::new(),
            tablespaces: HashSet::new(),
            config,
            manifest: Manifest::new()?,
            data_time,
            ended: false,
            control: None,
            seat: Seat::default(),
            horizons,
        })
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some((entry, current)) = self.ready.pop_front() {
                self.current = current;
                return Ok(Some(entry));
            }
            let Some(feed) = &mut self.feed else {
                if self.ended {
                    return Ok(None);
                }
                self.begin()?;
                continue;
            };
            if let Some(archive) = self.archive {
                match self.members.next(feed)? {
                    Some(member) => self.take(archive, member)?,
                    None => self.archive = None,
                }
                continue;
            }
            match feed.next_archive()? {
                Some(Archive::Manifest) => self.take_manifest()?,
                Some(archive) => {
                    self.members = Members::default();
                    self.archive = Some(archive);
                }
                None => bail!("the server ended the backup without its manifest"),
            }
        }
    }

    /// Makes the entry of a member, and of the directory that nothing is sent for: the root, or that of a tablespace.
    fn take(&mut self, archive: Archive, member: Member) -> Result<()> {
        self.note_end();
        self.horizons.look_now_and_then(&self.address);
        let path = match archive {
            Archive::Tablespace(oid) => [format!("pg_tblspc/{oid}/").as_bytes(), &member.path].concat(),
            _ => member.path.clone(),
        };
        if self.asked.is_some()
            && let Some((path, current, size)) = self.take_changed(&path, member.size)?
        {
            return self.push(archive, Member { size, ..member }, path, Some(current));
        }
        let is_file = member.kind == EntryType::Regular;
        let current = is_file.then(|| Current::Member(Arriving::new(path.clone())));
        self.push(archive, member, path, current)
    }

    fn push(&mut self, archive: Archive, member: Member, path: Vec<u8>, current: Option<Current>) -> Result<()> {
        let name = Name(path.clone());
        let kind = match member.kind {
            EntryType::Regular => EntryKind::File,
            EntryType::Directory => EntryKind::Dir,
            EntryType::Symlink => EntryKind::Symlink,
            other => bail!("{name} is of a type that no cluster has: {other:?}"),
        };
        // The server writes `postgres` as the owner's name, whoever it is; here the number tells.
        let names = &self.accounts;
        let block = u64::from(self.facts.block_size);
        let paged = kind == EntryKind::File && super::is_relation(&path) && member.size.is_multiple_of(block);
        let entry = Entry {
            path: name,
            kind,
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            user: names.as_ref().map_or(Name(member.user), |a| a.user(member.uid)),
            group: names.as_ref().map_or(Name(member.group), |a| a.group(member.gid)),
            mtime: (member.mtime, 0),
            size: member.size,
            page: paged.then_some(self.facts.block_size),
            target: None,
            rdev: None,
            xattrs: BTreeMap::new(),
            stat: None,
        };
        if self.owner.is_none() {
            self.owner = Some(entry.clone());
            self.ready.push_back((self.directory(Name::default())?, None));
        }
        if let Archive::Tablespace(oid) = archive
            && self.tablespaces.insert(oid)
        {
            self.ready.push_back((self.directory(Name::new(format!("pg_tblspc/{oid}")))?, None));
        }
        let tablespace = path.strip_prefix(b"pg_tblspc/").and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok());
        if path.is_empty() || tablespace.is_some_and(|oid| self.tablespaces.contains(&oid)) {
            return Ok(());
        }
        ensure!(kind != EntryKind::Symlink, "{} is a link, and what it points to was not sent", entry.path);
        if path == b"global/pg_control" {
            self.data_time = self.clock.now();
            self.control = self.feed.as_ref().and_then(Feed::earliest);
        }
        self.ready.push_back((entry, current));
        Ok(())
    }

    /// Of a group: the end of the backup is the point. The server makes it after it has sent `pg_control`, and before anything else.
    fn note_end(&mut self) {
        if let Some(sent) = self.control.take() {
            self.seat.was_fixed(sent);
        }
    }

    /// A private directory that belongs to the owner of everything else.
    fn directory(&self, path: Name) -> Result<Entry> {
        let like = self.owner.clone().context("a backup without files")?;
        let mtime = (self.clock.now().as_second(), 0);
        Ok(Entry { path, kind: EntryKind::Dir, mode: 0o700, mtime, size: 0, page: None, ..like })
    }

    /// Receives the manifest, checks everything against it, awaits the end of the command, and makes an entry of it.
    fn take_manifest(&mut self) -> Result<()> {
        self.note_end();
        let mut feed = self.feed.take().context("a manifest without a backup (this is a bug)")?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match feed.read(&mut buffer)? {
                0 => break,
                n => self.manifest.push(&buffer[..n])?,
            }
        }
        ensure!(feed.next_archive()?.is_none(), "the server sends more after the manifest");
        let ranges = self.manifest.check(&self.arrived).context("compare what arrived with the server's manifest")?;
        let end = feed.finish()?;
        let notices = feed.take_notices();
        match end {
            Ok((lsn, _)) => self.facts.end_lsn = lsn,
            Err(said) => {
                self.facts.end_lsn = ranges.last().map(|range| range.end.clone()).unwrap_or_default();
                self.facts.checksum_failures = Some(damaged(&said, &notices));
            }
        }
        self.ended = true;
        self.slot = None;
        if self.facts.config_files.is_empty() && !self.arrived.contains_key(&b"postgresql.conf"[..]) {
            let unseen = || format!("{} may not see where it lies", self.address.user);
            self.facts.config_missing.get_or_insert_with(unseen);
        }
        if !self.instead.is_empty() {
            self.manifest = self.manifest.instead(&self.instead)?;
        }
        self.manifest.rewind()?;
        let entry = self.directory(Name::new(MANIFEST))?;
        let entry = Entry { kind: EntryKind::File, mode: 0o600, size: self.manifest.size, ..entry };
        self.ready.push_back((entry, Some(Current::Manifest)));
        for path in outside::directories(&self.config) {
            self.ready.push_back((self.directory(Name::new(path))?, None));
        }
        for file in std::mem::take(&mut self.config) {
            let entry = self.directory(Name::new(outside::inside(&file.path)))?;
            let entry = Entry { kind: EntryKind::File, mode: 0o600, size: file.bytes.len() as u64, ..entry };
            self.ready.push_back((entry, Some(Current::Bytes(file.bytes))));
        }
        Ok(())
    }
}

impl Source for BaseBackup {
    fn kind(&self) -> &'static str {
        super::PHYSICAL
    }

    fn root(&self) -> String {
        self.address.to_string()
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        self.before = serde_json::from_value(before.facts.clone()).ok();
        self.facts.compare(&before)
    }

    fn join(&mut self, member: Seat) {
        self.seat = member;
    }

    fn lean_on(&mut self, basis: &BasisFiles) -> Result<()> {
        match Ground::find(self.before.as_ref(), &self.facts, basis) {
            Ok(ground) => self.ground = Some(ground),
            Err(why) => self.facts.read_whole = Some(format!("{why:#}")),
        }
        Ok(())
    }

    fn order(&self) -> Order {
        Order::AsTheyCome
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.current = None;
        let entry = self.next_entry().map_err(|e| explain(e, &self.address))?;
        entry.iter().for_each(|entry| self.facts.tally(entry));
        Ok(entry)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let n = match &mut self.current {
            Some(Current::Manifest) => self.manifest.read(buffer)?,
            Some(Current::Bytes(bytes)) => {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes.drain(..n);
                n
            }
            _ => return self.read_member(buffer).map_err(|e| explain(e, &self.address)),
        };
        Ok(if n == 0 { Piece::End } else { Piece::Data(n) })
    }

    fn finish(&mut self) -> Result<Finished> {
        ensure!(self.ended, "the backup has not ended (this is a bug)");
        let damage = self.facts.checksum_failures.iter();
        let skipped = damage.map(|what| Skip::new(&Name::new("base"), what.clone())).collect();
        let horizon = self.horizons.before(&self.facts.end_lsn);
        self.facts.counted = tables::count(&self.address, &self.facts.databases, horizon);
        Ok(Finished { data_time: self.data_time, skipped, facts: self.facts.sealed()? })
    }
}

/// Reads the configuration that lies outside the data directory, as far as the role may.
fn config(sql: &mut Client, facts: &mut Facts) -> Vec<ConfigFile> {
    let mut files = Vec::new();
    let paths = outside::paths(sql).unwrap_or_else(|e| {
        facts.config_missing = Some(format!("{e:#}"));
        Vec::new()
    });
    for path in paths {
        match outside::read(sql, &path) {
            Ok(bytes) => {
                facts.config_files.push(path.clone());
                files.push(ConfigFile { path, bytes });
            }
            Err(e) => facts.config_missing = Some(format!("{path}: {e:#}")),
        }
    }
    files
}

/// The server's words on pages with wrong checksums.
fn damaged(said: &ServerError, notices: &[ServerError]) -> String {
    let named: Vec<&str> =
        notices.iter().filter(|n| n.message.contains("checksum")).map(|n| n.message.as_str()).collect();
    format!(
        "pages are damaged on the server itself ({}): {}. They were taken as they are. Look at them with pg_amcheck, and restore what is lost from an older snapshot",
        said.message,
        named.join("; ")
    )
}
