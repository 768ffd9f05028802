//! From the tree of a physical snapshot to a data directory that a server takes: tablespaces linked again, below the directory itself or where one
//! says, and never of themselves to where they lay before.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::outside;
use super::server::{Facts, TablespaceFact};
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::target::Branch;

/// Where restored tablespaces lie, below the data directory.
const TABLESPACES: &str = "tablespaces";
/// Where a server looks for them.
const LINKS: &str = "pg_tblspc";
/// How the names of settings begin that are one recovery's alone.
const OF_A_RECOVERY: [&str; 4] =
    ["recovery_target", "restore_command", "recovery_end_command", "archive_cleanup_command"];
const MAIN: &str = "postgresql.conf";
/// Settings of which a server that replays must have as much as the one that wrote, and what a server has that is told nothing:
/// <https://www.postgresql.org/docs/current/hot-standby.html>, "Administrator's Overview".
pub(super) const AT_LEAST: [(&str, u64); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];
/// Added to `postgresql.auto.conf` by [`recover`].
const SETTINGS: &str = "\n# Written by blackstart: recovery with the WAL that came with the snapshot, then a timeline of its own.\n\
                        restore_command = 'false'\nrecovery_target_timeline = 'latest'\n";

/// How the names of settings begin by which a server archives its log, or waits for others.
const OF_ITS_PLACE: [&str; 3] = ["archive_command", "archive_library", "synchronous_standby_names"];

/// Added to `postgresql.auto.conf` by [`hold_back`]; the last is known from 15 on.
const HELD: [&[u8]; 4] = [
    b"# Written by blackstart: a copy archives nothing and waits for nobody until it is told to. What was set before: postgresql.auto.conf.before-restore",
    b"archive_command = ''",
    b"synchronous_standby_names = ''",
    b"archive_library = ''",
];
/// What `postgresql.auto.conf` was before [`hold_back`]: ALTER SYSTEM rewrites that file, without its comments.
const BEFORE: &str = "postgresql.auto.conf.before-restore";

/// What a person who has restored a data directory needs to know.
pub fn advice(facts: &serde_json::Value) -> Vec<String> {
    let major =
        facts["version"].as_u64().map_or_else(|| "the same major version".to_owned(), |v| (v / 10_000).to_string());
    let mut lines = vec![
        format!(
            "Start PostgreSQL {major} on it, as the owner of the directory (chown -R postgres where it is another's), on a port that is free."
        ),
        "Never remove backup_label or anything in pg_wal: the server would start on it, damaged and without a word."
            .to_owned(),
    ];
    let library = facts["version"].as_u64().is_none_or(|version| version >= 150_000);
    let library = if library { "alter system reset archive_library; " } else { "" };
    lines.push(format!(
        "It archives nothing and waits for no synchronous standby yet: beside the server that it is a copy of it would take the log over, and alone its \
         first commit would wait for ever. Once it stands in that server's place: alter system reset archive_command; {library}alter system reset \
         synchronous_standby_names; select pg_reload_conf(). What had been set by alter system is in {BEFORE}: set that again instead. What it has \
         written until then is archived, too."
    ));
    if facts["tablespaces"].as_array().is_some_and(|all| !all.is_empty()) {
        lines.push(format!(
            "Its tablespaces are linked by their whole paths: start it where it lies. Moved, it needs the links in {LINKS} made anew (ln -sfn)."
        ));
    }
    lines.extend(on_configuration(facts));
    lines
}

/// What a person needs to know where not all of the server's configuration was taken along.
pub fn on_configuration(facts: &serde_json::Value) -> Option<String> {
    let why = facts["config_missing"].as_str()?;
    Some(format!(
        "The old server's configuration lay outside the data directory, and not all of it is in the snapshot ({why}): what is missing is as after \
         initdb, and pg_hba.conf lets in local users only. Look through both before others use it."
    ))
}

/// Which tablespace is to lie where: `moved` names each by its OID or by the directory in which it lay.
///
/// # Errors
/// `Kind::Usage` where the server had no such tablespace, or one is named twice.
pub fn branches(facts: &Facts, moved: &[(String, PathBuf)]) -> Result<Vec<Branch>> {
    let mut branches: Vec<Branch> = Vec::new();
    for (old, place) in moved {
        let is = |t: &&TablespaceFact| t.oid.to_string() == *old || t.location == old.trim_end_matches('/');
        let had: Vec<String> = facts.tablespaces.iter().map(|t| format!("{} (in {})", t.oid, t.location)).collect();
        let help = match had.as_slice() {
            [] => "Nothing was restored. The server had no tablespaces of its own: leave --tablespace out.".to_owned(),
            had => format!("Nothing was restored. The snapshot has {}.", had.join(", ")),
        };
        let Some(tablespace) = facts.tablespaces.iter().find(is) else {
            return Err(Failure::new(Kind::Usage, format!("the snapshot has no tablespace {old}"), help));
        };
        let at = Name::new(format!("{LINKS}/{}", tablespace.oid));
        if branches.iter().any(|branch| branch.at == at) {
            return Err(Failure::new(Kind::Usage, format!("--tablespace names {old} twice"), help));
        }
        branches.push(Branch { at, place: place.clone() });
    }
    Ok(branches)
}

/// Moves each tablespace from `pg_tblspc/<oid>/` to `tablespaces/<oid>/` in `staged`, and links it under the path that it will have once `staged` is
/// `finally`; those in `branches` are where they are to be, and are linked. What would make the server a standby goes.
pub fn settle(staged: &Path, finally: &Path, branches: &[Branch]) -> Result<()> {
    ensure!(staged.join("PG_VERSION").is_file(), "this is no whole data directory: it has no PG_VERSION");
    ensure!(
        staged.join("backup_label").is_file(),
        "the copy has no backup_label: a server would start on it, and not notice that it is damaged"
    );
    let owner = Owner::of(staged)?;
    for (oid, from) in numbered(&staged.join(LINKS))? {
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
    for Branch { at, place } in branches {
        let link = staged.join(OsStr::from_bytes(at.as_bytes()));
        if link.is_symlink() {
            // Of a restore that was interrupted here.
            fs::remove_file(&link).with_context(|| format!("unlink {at}"))?;
        }
        symlink(place, &link).with_context(|| format!("link {at}"))?;
        owner.give_link(&link)?;
    }
    match fs::remove_file(staged.join("standby.signal")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("remove standby.signal"),
        _ => Ok(()),
    }
}

/// Takes back what [`settle`] has done to a copy that was not finished, so that it is again as the snapshot has it.
pub fn unsettle(staged: &Path) -> Result<()> {
    let home = staged.join(TABLESPACES);
    if !home.is_dir() {
        return Ok(());
    }
    for (oid, from) in numbered(&home)? {
        let place = staged.join(LINKS).join(&oid);
        if place.is_symlink() {
            fs::remove_file(&place).with_context(|| format!("unlink tablespace {oid}"))?;
        }
        move_directory(&from, &place).with_context(|| format!("move tablespace {oid} back"))?;
    }
    Ok(())
}

/// Makes the next start of the server a recovery from what lies in `pg_wal`, which ends with a timeline of its own: two clusters
/// never write WAL of one timeline.
pub fn recover(staged: &Path, facts: &Facts) -> Result<()> {
    forget_recovery(staged)?;
    hold_back(staged)?;
    let owner = Owner::of(staged)?;
    let settings = staged.join("postgresql.auto.conf");
    let mut file = OpenOptions::new().append(true).create(true).open(&settings).context("open postgresql.auto.conf")?;
    file.write_all(SETTINGS.as_bytes()).and_then(|()| file.sync_all()).context("write postgresql.auto.conf")?;
    let signal = staged.join("recovery.signal");
    File::create(&signal).and_then(|file| file.sync_all()).context("write recovery.signal")?;
    owner.give(&settings)?;
    owner.give(&signal)?;
    configure(staged, facts)
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

/// Empties `archive_command` in `postgresql.auto.conf`: a copy that somebody starts to look at it, beside the server that still runs, would archive a
/// timeline of its own into the same log, and what that server writes would belong to it no longer. With an empty command a server keeps what it has
/// to archive until there is one. And `synchronous_standby_names`: no receiver follows the copy, and its first commit would wait for ever.
pub fn hold_back(staged: &Path) -> Result<()> {
    let path = staged.join("postgresql.auto.conf");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        text => text.context("read postgresql.auto.conf")?,
    };
    let of_its_place = |line: &[u8]| {
        let name = line.trim_ascii_start().to_ascii_lowercase();
        OF_ITS_PLACE.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
    };
    let mut held: Vec<u8> = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n').filter(|line| !HELD.contains(&line.trim_ascii())) {
        held.extend_from_slice(if of_its_place(line) { b"# " } else { b"" });
        held.extend_from_slice(line);
    }
    if held.last().is_some_and(|b| *b != b'\n') {
        held.push(b'\n');
    }
    let version = fs::read_to_string(staged.join("PG_VERSION")).context("read PG_VERSION")?;
    // A server does not start with a setting that it does not know.
    let known = if version.trim().parse::<u32>().is_ok_and(|major| major >= 15) { 4 } else { 3 };
    for line in &HELD[..known] {
        held.extend([*line, b"\n"].concat());
    }
    let owner = Owner::of(staged)?;
    // Taken up after an interruption, it is no longer what it was.
    if !text.split(|b| *b == b'\n').any(|line| line == HELD[0]) {
        let before = staged.join(BEFORE);
        crate::durable::publish_over(&before, &text, 0o600).with_context(|| format!("write {BEFORE}"))?;
        owner.give(&before)?;
    }
    // In place: it stays whose it was.
    let write = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?.write_all(&held);
    write().context("write postgresql.auto.conf")?;
    owner.give(&path)
}

/// A directory whose configuration lay elsewhere gets one of its own, from what was taken along; and any the settings without which a server
/// that was set up for more refuses to replay.
pub fn configure(staged: &Path, facts: &Facts) -> Result<()> {
    let owner = Owner::of(staged)?;
    if !staged.join(MAIN).exists() {
        configure_anew(staged, &owner)?;
    }
    let (main, path) = (staged.join(MAIN), staged.join("postgresql.auto.conf"));
    let text = |path: &Path| match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    };
    let there =
        text(&main).and_then(|main| Ok(format!("{main}\n{}", text(&path)?))).context("read the configuration")?;
    let lines: Vec<String> = needed(&there, facts).map(|(name, value)| format!("{name} = {value}\n")).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let mut file = OpenOptions::new().append(true).create(true).open(&path).context("open postgresql.auto.conf")?;
    let lines = format!(
        "\n# Written by blackstart: the old server had these, and a server with less refuses its log.\n{}",
        lines.concat()
    );
    file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()).context("write postgresql.auto.conf")?;
    owner.give(&path)
}

/// Settings of which the server must have as much as the old one had, and has less by `there`, what its configuration says.
fn needed<'a>(there: &str, facts: &'a Facts) -> impl Iterator<Item = (&'a str, u64)> {
    let has = |name: &str, default: u64| {
        let mut values = there.lines().rev().filter_map(|line| {
            let (key, value) = line.trim_start().split_once(|c: char| c == '=' || c.is_whitespace())?;
            let value = value.trim_start_matches(|c: char| c == '=' || c.is_whitespace()).trim_start_matches('\'');
            let digits = value.split(|c: char| !c.is_ascii_digit()).next()?;
            key.eq_ignore_ascii_case(name).then(|| digits.parse::<u64>().ok())?
        });
        values.next().unwrap_or(default)
    };
    let lacking = AT_LEAST.iter().filter_map(|(name, default)| {
        let had = facts.standby_needs.get(*name)?.parse::<u64>().ok()?;
        (has(name, *default) < had).then_some((*name, had))
    });
    lacking.collect::<Vec<_>>().into_iter()
}

fn configure_anew(staged: &Path, owner: &Owner) -> Result<()> {
    let main = outside::merged(staged)?.unwrap_or_default();
    let hba = outside::named(staged, "pg_hba.conf")?.unwrap_or_else(|| b"local all all peer\n".to_vec());
    let ident = outside::named(staged, "pg_ident.conf")?.unwrap_or_default();
    for (name, bytes) in [(MAIN, main.into_bytes()), ("pg_hba.conf", hba), ("pg_ident.conf", ident)] {
        let path = staged.join(name);
        if !path.exists() {
            crate::durable::publish_new(&path, &bytes, 0o600).with_context(|| format!("write {name}"))?;
            owner.give(&path)?;
        }
    }
    Ok(())
}

/// The directories in `directory` that stand for tablespaces, by OID; links do not.
fn numbered(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
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
