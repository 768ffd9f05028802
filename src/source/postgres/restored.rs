//! From the tree of a physical snapshot to a data directory that a server takes: tablespaces linked again, below the directory itself, and never
//! to where they lay before.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::outside;

/// Where restored tablespaces lie, below the data directory.
const TABLESPACES: &str = "tablespaces";
/// How the names of settings begin that are one recovery's alone.
const OF_A_RECOVERY: [&str; 4] =
    ["recovery_target", "restore_command", "recovery_end_command", "archive_cleanup_command"];
/// Added to `postgresql.auto.conf` by [`recover`].
const SETTINGS: &str = "\n# Written by blackstart: recovery with the WAL that came with the snapshot, then a timeline of its own.\n\
                        restore_command = 'false'\nrecovery_target_timeline = 'latest'\n";

/// What a person who has restored a data directory needs to know.
pub fn advice(facts: &serde_json::Value) -> Vec<String> {
    let major =
        facts["version"].as_u64().map_or_else(|| "the same major version".to_owned(), |v| (v / 10_000).to_string());
    vec![
        format!(
            "Start PostgreSQL {major} on it, as the owner of the directory (chown -R postgres where it is another's), on a port that is free."
        ),
        "Never remove backup_label or anything in pg_wal: the server would start on it, damaged and without a word."
            .to_owned(),
    ]
}

/// Moves each tablespace from `pg_tblspc/<oid>/` to `tablespaces/<oid>/` in `staged`, and links it under the path that it will have once `staged` is
/// `finally`. What would make the server a standby goes.
pub fn settle(staged: &Path, finally: &Path) -> Result<()> {
    ensure!(staged.join("PG_VERSION").is_file(), "this is no whole data directory: it has no PG_VERSION");
    ensure!(
        staged.join("backup_label").is_file(),
        "the copy has no backup_label: a server would start on it, and not notice that it is damaged"
    );
    let owner = Owner::of(staged)?;
    for (oid, from) in tablespaces(staged)? {
        let home = staged.join(TABLESPACES);
        if !home.exists() {
            fs::create_dir(&home).context("make a place for the tablespaces")?;
            fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).context("make it private")?;
            owner.give(&home)?;
        }
        move_directory(&from, &home.join(&oid)).with_context(|| format!("move tablespace {oid}"))?;
        symlink(finally.join(TABLESPACES).join(&oid), &from).with_context(|| format!("link tablespace {oid}"))?;
        owner.give_link(&from)?;
    }
    match fs::remove_file(staged.join("standby.signal")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("remove standby.signal"),
        _ => Ok(()),
    }
}

/// Makes the next start of the server a recovery from what lies in `pg_wal`, which ends with a timeline of its own: two clusters
/// never write WAL of one timeline.
pub fn recover(staged: &Path) -> Result<()> {
    forget_recovery(staged)?;
    let owner = Owner::of(staged)?;
    let settings = staged.join("postgresql.auto.conf");
    let mut file = OpenOptions::new().append(true).create(true).open(&settings).context("open postgresql.auto.conf")?;
    file.write_all(SETTINGS.as_bytes()).and_then(|()| file.sync_all()).context("write postgresql.auto.conf")?;
    let signal = staged.join("recovery.signal");
    File::create(&signal).and_then(|file| file.sync_all()).context("write recovery.signal")?;
    owner.give(&settings)?;
    owner.give(&signal)?;
    configure(staged, &owner)
}

/// Takes the settings of an earlier recovery out of `postgresql.auto.conf`, where a server that was once restored keeps them: an old target would
/// end the next recovery before it has begun, and two kinds of targets are an error.
pub fn forget_recovery(staged: &Path) -> Result<()> {
    let path = staged.join("postgresql.auto.conf");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.context("read postgresql.auto.conf")?,
    };
    let of_a_recovery = |line: &&[u8]| {
        let name = line.trim_ascii_start().to_ascii_lowercase();
        OF_A_RECOVERY.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
    };
    let kept: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').filter(|line| !of_a_recovery(line)).collect();
    // In place: it stays whose it was.
    let write = || OpenOptions::new().write(true).truncate(true).open(&path)?.write_all(&kept.concat());
    write().context("write postgresql.auto.conf")
}

/// A directory whose configuration lay elsewhere gets one of its own, from what was taken along.
fn configure(staged: &Path, owner: &Owner) -> Result<()> {
    if staged.join("postgresql.conf").exists() {
        return Ok(());
    }
    let main = outside::merged(staged)?.unwrap_or_default();
    let hba = outside::named(staged, "pg_hba.conf")?.unwrap_or_else(|| b"local all all peer\n".to_vec());
    let ident = outside::named(staged, "pg_ident.conf")?.unwrap_or_default();
    for (name, bytes) in [("postgresql.conf", main.into_bytes()), ("pg_hba.conf", hba), ("pg_ident.conf", ident)] {
        let path = staged.join(name);
        if !path.exists() {
            crate::durable::publish_new(&path, &bytes, 0o600).with_context(|| format!("write {name}"))?;
            owner.give(&path)?;
        }
    }
    Ok(())
}

/// Directories that stand for tablespaces, by OID.
fn tablespaces(data: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data.join("pg_tblspc")).context("list pg_tblspc")? {
        let entry = entry.context("list pg_tblspc")?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.bytes().all(|b| b.is_ascii_digit()) && entry.file_type().context("look at a tablespace")?.is_dir() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

#[expect(clippy::disallowed_methods, reason = "inside a tree that is not published yet")]
fn move_directory(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).context("rename it")
}

/// Whose the data directory is.
struct Owner(u32, u32);

impl Owner {
    fn of(data: &Path) -> Result<Owner> {
        let metadata = fs::metadata(data.join("PG_VERSION")).context("look at PG_VERSION")?;
        Ok(Owner(metadata.uid(), metadata.gid()))
    }

    fn give(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.0), Some(self.1)).with_context(|| format!("give {} to its owner", path.display()))
    }

    fn give_link(&self, path: &Path) -> Result<()> {
        lchown(path, Some(self.0), Some(self.1)).with_context(|| format!("give {} to its owner", path.display()))
    }
}
