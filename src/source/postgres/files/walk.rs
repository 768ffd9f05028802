//! The files of a live data directory that belong into a backup, in path order within each directory. What the server rebuilds or must not find is left
//! out. (PostgreSQL manual, "Making a Base Backup Using the Low Level API"; the server's own list is in `src/backend/backup/basebackup.c`.)

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories of which only the names are taken.
const EMPTY: [&[u8]; 9] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
    b"pg_wal",
    b"pgsql_tmp",
];
/// Files that belong to the running server, or to another backup.
const LEFT_OUT: [&[u8]; 9] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b"backup_label.old",
    b"tablespace_map.old",
];

/// Something found.
pub struct Found {
    /// Relative to the data directory, tablespaces under `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    /// Where it is.
    pub place: PathBuf,
    pub metadata: Metadata,
}

/// The walk: directories still to be visited are kept as names, one directory's entries at a time.
pub struct Walk {
    stack: Vec<(Vec<u8>, PathBuf)>,
    /// `PG_15_202209061`: a tablespace may hold directories of other versions, too.
    tablespace_version: String,
    pub tablespaces: Vec<(u32, PathBuf)>,
}

impl Walk {
    pub fn new(data: &Path, tablespace_version: String) -> Walk {
        Walk { stack: vec![(Vec::new(), data.to_owned())], tablespace_version, tablespaces: Vec::new() }
    }

    /// The next file or directory; what vanishes meanwhile was dropped, and the WAL knows it.
    pub fn next(&mut self) -> Result<Option<Found>> {
        while let Some((path, place)) = self.stack.pop() {
            let link = match fs::symlink_metadata(&place) {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("look at {}", place.display())),
            };
            let tablespace = path.strip_prefix(b"pg_tblspc/").filter(|oid| oid.iter().all(u8::is_ascii_digit));
            if link.is_symlink() {
                // The only links that a data directory has: tablespaces, and `pg_wal` on another disk.
                if tablespace.is_none() && path != b"pg_wal" {
                    continue;
                }
                let metadata = fs::metadata(&place).with_context(|| format!("follow {}", place.display()))?;
                if let Some(oid) = tablespace.and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok()) {
                    let target = fs::read_link(&place).with_context(|| format!("follow {}", place.display()))?;
                    self.stack.push((
                        [&path, b"/".as_slice(), self.tablespace_version.as_bytes()].concat(),
                        place.join(&self.tablespace_version),
                    ));
                    self.tablespaces.push((oid, target));
                }
                return Ok(Some(Found { path, place, metadata }));
            }
            if link.is_dir() {
                self.enter(&path, &place)?;
            } else if !link.is_file() {
                continue;
            }
            return Ok(Some(Found { path, place, metadata: link }));
        }
        Ok(None)
    }

    fn enter(&mut self, path: &[u8], place: &Path) -> Result<()> {
        let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if EMPTY.contains(&last) && !path.starts_with(b"base/") || last.starts_with(b"pgsql_tmp") {
            return Ok(());
        }
        let mut names = BTreeSet::new();
        let entries = match fs::read_dir(place) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("list {}", place.display())),
        };
        for entry in entries {
            names.insert(entry.with_context(|| format!("list {}", place.display()))?.file_name().as_bytes().to_vec());
        }
        let below = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
        for name in names.iter().rev() {
            let path = below(name);
            if !is_left_out(&path, name, &names) {
                self.stack.push((path, place.join(std::ffi::OsStr::from_bytes(name))));
            }
        }
        Ok(())
    }
}

/// Whether a name of a directory with these `names` is left out.
fn is_left_out(path: &[u8], name: &[u8], names: &BTreeSet<Vec<u8>>) -> bool {
    if LEFT_OUT.contains(&path) || name.starts_with(b"pgsql_tmp") || name.starts_with(b"pg_internal.init") {
        return true;
    }
    // The server's last file of all; the caller takes it when the rest is done.
    if path == b"global/pg_control" {
        return true;
    }
    is_temporary(path, name) || is_unlogged(path, name, names)
}

/// A relation of one session: `t<backend>_<node>`.
fn is_temporary(path: &[u8], name: &[u8]) -> bool {
    let in_database = path.starts_with(b"base/") || path.starts_with(b"pg_tblspc/");
    in_database && name.first() == Some(&b't') && name.get(1).is_some_and(u8::is_ascii_digit) && name.contains(&b'_')
}

/// A fork of an unlogged relation other than its `_init`: the server makes it anew from that.
fn is_unlogged(path: &[u8], name: &[u8], names: &BTreeSet<Vec<u8>>) -> bool {
    if !super::super::is_relation(path) || path.starts_with(b"global/") {
        return false;
    }
    let node: Vec<u8> = name.iter().copied().take_while(u8::is_ascii_digit).collect();
    !name.starts_with(&[&node, b"_init".as_slice()].concat()) && names.contains(&[&node, b"_init".as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_come_along_does_not() {
        let names: BTreeSet<Vec<u8>> =
            ["10", "10_init", "10_fsm", "11", "t3_12", "PG_VERSION"].map(|n| n.as_bytes().to_vec()).into();
        let out = |path: &str| is_left_out(path.as_bytes(), path.rsplit('/').next().unwrap().as_bytes(), &names);
        for path in [
            "base/5/10",
            "base/5/10_fsm",
            "base/5/t3_12",
            "postmaster.pid",
            "global/pg_control",
            "base/5/pg_internal.init",
            "base/pgsql_tmp",
            "backup_label",
        ] {
            assert!(out(path), "{path}");
        }
        for path in
            ["base/5/10_init", "base/5/11", "base/5/PG_VERSION", "postgresql.auto.conf", "global/1262", "pg_tblspc"]
        {
            assert!(!out(path), "{path}");
        }
    }
}
