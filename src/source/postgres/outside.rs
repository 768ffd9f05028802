//! Configuration that lies outside the data directory, as Debian has it in `/etc/postgresql`: taken along under `server-config/`, by its absolute path, and made
//! into a configuration inside the directory when that is restored.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

use super::client::{Client, literal};

/// Where it lies in a snapshot.
pub const DIRECTORY: &str = "server-config";
/// Bytes of one file that are taken.
const FILE_MAX: usize = 1 << 20;
/// Settings that name places on the old machine, and what reads further files.
const PLACES: [&str; 7] =
    ["data_directory", "hba_file", "ident_file", "external_pid_file", "include", "include_dir", "include_if_exists"];

/// A file of the configuration: its absolute path on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    pub path: String,
    pub bytes: Vec<u8>,
}

/// The paths of the files in force that are not below the data directory, the main one first. Empty where the role may not see them.
pub fn paths(sql: &mut Client) -> Result<Vec<String>> {
    let rows = sql.rows(
        "select f from (select setting f, 1 n from pg_settings where name = 'config_file' union all \
         select setting, 2 from pg_settings where name in ('hba_file', 'ident_file') union all \
         select sourcefile, 3 from pg_settings) files where f like '/%' and not starts_with(f, \
         (select setting from pg_settings where name = 'data_directory') || '/') group by f order by min(n), f",
    )?;
    rows.rows.iter().map(|row| Ok(row.required(0)?.to_owned())).collect()
}

/// Reads a file through the server; for superusers and `pg_read_server_files` alone.
pub fn read(sql: &mut Client, path: &str) -> Result<Vec<u8>> {
    let hex =
        sql.value(&format!("select encode(pg_read_binary_file({}, 0, {}), 'hex')", literal(path), FILE_MAX + 1))?;
    let hex = hex.with_context(|| format!("the server does not find {path}"))?;
    ensure!(hex.len() <= 2 * FILE_MAX, "{path} is longer than {FILE_MAX} bytes");
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    hex.as_bytes().chunks(2).map(byte).collect::<Option<_>>().with_context(|| format!("read {path} through the server"))
}

/// The directories that the files lie in, in a snapshot, each before what is in it.
pub fn directories(files: &[ConfigFile]) -> BTreeSet<String> {
    let mut directories = BTreeSet::new();
    for file in files {
        let path = inside(&file.path);
        let ends = path.match_indices('/').map(|(at, _)| at);
        directories.extend(ends.map(|at| path[..at].to_owned()));
    }
    directories
}

/// Where a file lies in a snapshot.
pub fn inside(path: &str) -> String {
    format!("{DIRECTORY}{path}")
}

/// The text of a `postgresql.conf` inside a restored data directory, from the files taken along: what names places of the old machine is commented out.
/// `None` where nothing was taken.
pub fn merged(data: &Path) -> Result<Option<String>> {
    let mut files = Vec::new();
    collect(&data.join(DIRECTORY), &mut files)?;
    // Debian's `conf.d` counts after the main file, as its `include_dir` at the end wants it.
    files.sort_by_key(|path| (path.file_name() != Some("postgresql.conf".as_ref()), path.clone()));
    let mut text = String::from("# Made by blackstart when this was restored, from the files in server-config/.\n");
    let mut any = false;
    for path in files.iter().filter(|path| path.extension() == Some("conf".as_ref())) {
        let name = path.file_name().unwrap_or_default();
        if name == "pg_hba.conf" || name == "pg_ident.conf" {
            continue;
        }
        any = true;
        let lines = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        text.push_str(&format!("\n# {}\n", path.strip_prefix(data).unwrap_or(path).display()));
        for line in lines.lines() {
            let key = line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
            let of_old_place = PLACES.iter().any(|place| place.eq_ignore_ascii_case(key));
            text.push_str(if of_old_place { "#blackstart# " } else { "" });
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(any.then_some(text))
}

/// A file taken along, by its name.
pub fn named(data: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let mut files = Vec::new();
    collect(&data.join(DIRECTORY), &mut files)?;
    let found = files.iter().find(|path| path.file_name() == Some(name.as_ref()));
    found.map(|path| std::fs::read(path).with_context(|| format!("read {}", path.display()))).transpose()
}

fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        match entry.file_type().context("look at a file of the configuration")? {
            kind if kind.is_dir() => collect(&entry.path(), files)?,
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}
