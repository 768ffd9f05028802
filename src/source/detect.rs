//! What lies at a path, and how it has to be protected: a live database copied as plain files is torn.
//!
//! This opens files to look at their first bytes. Closing a database file drops the locks that this process holds on it through
//! SQLite, so it must not run while a `Sqlite` source reads in the same process.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirEntry, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{chroma, postgres, redis};
use crate::error::{Failure, Kind};

/// A walk that looks for databases stops here.
const ENTRIES_MAX: usize = 100_000;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The smallest database: one page of the smallest size, in bytes.
const SMALLEST: u64 = 512;
/// The length that FORMAT.md §2 allows for the name of a source.
const NAME_MAX: usize = 63;

/// One source to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `chroma`, `files`, `postgres`, `redis`, `sqlite`.
    pub kind: &'static str,
    pub place: Place,
    /// Of `files`: what other sources protect, as patterns in the syntax of `.gitignore`, anchored at `path`.
    pub exclude: Vec<String>,
    /// The variable of the environment that had a password for it.
    pub password: Option<&'static str>,
    /// A name for the source (`[a-z0-9][a-z0-9_-]{0,62}`), unique in the list.
    pub suggested_name: String,
    /// Further lines of its configuration, a table of its own.
    pub settings: &'static str,
    /// What the search may have missed, for people.
    pub notes: Vec<String>,
}

impl Found {
    fn at(kind: &'static str, path: PathBuf, suggested_name: String) -> Found {
        Found {
            kind,
            place: Place::Path(path),
            exclude: Vec::new(),
            password: None,
            suggested_name,
            settings: "",
            notes: Vec::new(),
        }
    }

    /// A server, which gets the name of its kind.
    fn server(kind: &'static str, url: &str, password: &'static str) -> Found {
        Found {
            kind,
            place: Place::Url(url.to_owned()),
            exclude: Vec::new(),
            password: std::env::var_os(password).is_some_and(|value| !value.is_empty()).then_some(password),
            suggested_name: unique_name(Some(OsStr::new(kind)), &mut BTreeSet::new()),
            settings: "",
            notes: Vec::new(),
        }
    }
}

/// Where a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Path(PathBuf),
    /// A server's address, without a password.
    Url(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(path) => path.display().fmt(f),
            Place::Url(url) => f.write_str(url),
        }
    }
}

/// Finds out what a path or address is: a database, or a tree with databases in it, each a source of its own. The tree comes first, the databases
/// in order of their paths. Fails if it cannot be read, or is none of what can be protected.
pub fn detect(what: &Path) -> Result<Vec<Found>> {
    match what.to_str().and_then(|text| Some((text, text.split_once("://")?.0))) {
        Some((url, scheme)) => at_url(url, scheme),
        None => at_path(what),
    }
}

/// What is behind the address of a server.
fn at_url(url: &str, scheme: &str) -> Result<Vec<Found>> {
    if matches!(scheme, "postgres" | "postgresql") {
        let look = postgres::detect::look(url)?;
        let server = Found::server("postgres", url, postgres::detect::PASSWORD);
        return Ok(vec![Found { settings: look.settings(), notes: look.notes, ..server }]);
    }
    if redis::address::SCHEMES.contains(&scheme) {
        redis::address::Address::without_password(url)?;
        return Ok(vec![Found::server("redis", url, redis::address::PASSWORD)]);
    }
    let help = "Nothing was done. Give a path, postgres://… or redis://…; what has a dump program of its own becomes a source of kind \"command\" in the configuration.";
    Err(Failure::new(
        Kind::Usage,
        format!("{scheme}:// is no kind of address that blackstart can protect by itself"),
        help,
    ))
}

fn at_path(path: &Path) -> Result<Vec<Found>> {
    let path = std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))?;
    let metadata = std::fs::metadata(&path).map_err(|e| {
        let help = "Nothing was done. Give a directory, a SQLite database, or the address of a server (postgres://…, redis://…).";
        Failure::new(Kind::Usage, format!("{} cannot be protected: {e}", path.display()), help)
    })?;
    if metadata.is_file() {
        return at_file(path, metadata.len());
    }
    if !metadata.is_dir() {
        let help = "Nothing was done. Give a directory, or the file of a SQLite database.";
        return Err(Failure::new(
            Kind::Usage,
            format!("{} is neither a directory nor a database file", path.display()),
            help,
        ));
    }
    at_directory(path)
}

/// `bytes`: how many the file has.
fn at_file(path: PathBuf, bytes: u64) -> Result<Vec<Found>> {
    let is_sqlite = bytes >= SMALLEST && has_magic(&path).with_context(|| format!("read {}", path.display()))?;
    if is_sqlite && chroma::is_database(&path) {
        return at_path(path.parent().unwrap_or(Path::new("/")));
    }
    if starts_like_rdb(&path) {
        let message = format!(
            "{} is an RDB file of Redis or Valkey, as old as the server's last save; protect the server itself: redis://HOST:PORT",
            path.display()
        );
        return Err(Failure::new(Kind::Usage, message, "Nothing was done."));
    }
    if !is_sqlite {
        let help = "Nothing was done. To protect a single file of another kind, give its directory.";
        return Err(Failure::new(Kind::Usage, format!("{} is no SQLite database", path.display()), help));
    }
    Ok(vec![database(path, &mut BTreeSet::new())])
}

/// The tree at a directory, and the databases in it.
fn at_directory(path: PathBuf) -> Result<Vec<Found>> {
    let mut names = BTreeSet::new();
    let mut tree = Found::at("files", path.clone(), unique_name(path.file_name(), &mut names));
    let databases = databases_in(&path, ENTRIES_MAX, &mut tree.notes)?;
    let mut found = Vec::new();
    for file in databases {
        let Some(relative) = file.strip_prefix(&path).ok().and_then(Path::to_str) else {
            let note = format!(
                "{} is a database, but its path is not UTF-8: it is copied as a plain file, which may be torn",
                file.display()
            );
            tree.notes.push(note);
            continue;
        };
        tree.exclude.extend(["", "-wal", "-shm", "-journal"].map(|suffix| pattern(relative, suffix)));
        if chroma::is_database(&file) {
            let directory = relative.strip_suffix(chroma::DATABASE).unwrap_or_default();
            tree.exclude.push(pattern(directory, chroma::SEGMENTS));
            let directory = file.parent().unwrap_or(&path).to_owned();
            let suggested_name = unique_name(directory.file_name(), &mut names);
            found.push(Found::at("chroma", directory, suggested_name));
        } else {
            found.push(database(file, &mut names));
        }
    }
    // A directory that Chroma has to itself is no tree.
    if found.len() == 1 && found[0].place == Place::Path(path.clone()) && chroma::is_alone_in(&path)? {
        found[0].suggested_name = tree.suggested_name;
    } else {
        found.insert(0, tree);
    }
    Ok(found)
}

fn starts_like_rdb(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(9).read_to_end(&mut start));
    read.is_ok() && redis::rdb::has_magic(&start)
}

fn database(path: PathBuf, names: &mut BTreeSet<String>) -> Found {
    let stem = match path.extension().and_then(OsStr::to_str) {
        Some("db" | "db3" | "sqlite" | "sqlite3") => path.file_stem(),
        _ => path.file_name(),
    };
    let suggested_name = unique_name(stem, names);
    Found::at("sqlite", path, suggested_name)
}

/// Databases below `root`, in order of their paths. Symlinks are not followed.
fn databases_in(root: &Path, entries_max: usize, notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let mut databases = Vec::new();
    let mut left = entries_max;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if directory == root => return Err(error).with_context(|| format!("list {}", root.display())),
            Err(error) => {
                notes.push(format!("{} was not searched for databases: {error}", directory.display()));
                continue;
            }
        };
        for entry in entries {
            if left == 0 {
                notes.push(format!(
                    "only the first {entries_max} entries of {} were searched for databases",
                    root.display()
                ));
                databases.sort();
                return Ok(databases);
            }
            left -= 1;
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            match look_at(&entry) {
                Ok(Look::Directory) => directories.push(entry.path()),
                Ok(Look::Database) => databases.push(entry.path()),
                Ok(Look::Other) => {}
                Err(error) => notes.push(format!("{} was not looked into: {error}", entry.path().display())),
            }
        }
    }
    databases.sort();
    Ok(databases)
}

enum Look {
    Directory,
    Database,
    Other,
}

fn look_at(entry: &DirEntry) -> std::io::Result<Look> {
    let kind = entry.file_type()?;
    if kind.is_dir() {
        return Ok(Look::Directory);
    }
    let database = kind.is_file() && entry.metadata()?.len() >= SMALLEST && has_magic(&entry.path())?;
    Ok(if database { Look::Database } else { Look::Other })
}

fn has_magic(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::with_capacity(MAGIC.len());
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}

/// `/relative` and `suffix` as a pattern that matches nothing else.
pub fn pattern(relative: &str, suffix: &str) -> String {
    let mut out = String::from("/");
    for c in relative.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\' | ' ' | '!' | '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out + suffix
}

fn unique_name(name: Option<&OsStr>, names: &mut BTreeSet<String>) -> String {
    let name = name.unwrap_or_default().to_string_lossy().to_lowercase();
    let mut clean = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => clean.push(c),
            '_' | '-' if !clean.is_empty() => clean.push(c),
            _ if !clean.is_empty() && !clean.ends_with('-') => clean.push('-'),
            _ => {}
        }
    }
    clean.truncate(NAME_MAX);
    let clean = clean.trim_end_matches('-');
    let clean = if clean.is_empty() { "source" } else { clean };
    let numbered = (2u32..).map(|n| {
        let suffix = format!("-{n}");
        format!("{}{suffix}", &clean[..clean.len().min(NAME_MAX - suffix.len())])
    });
    let free = std::iter::once(clean.to_owned()).chain(numbered).find(|name| !names.contains(name)).unwrap_or_default();
    names.insert(free.clone());
    free
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "test files need no durability")]
mod tests {
    use super::*;

    fn write(path: &Path, start: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = start.to_vec();
        bytes.resize(600, 0);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn databases_in_a_tree_become_sources_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("My App!");
        write(&root.join("data/orders.db"), MAGIC);
        write(&root.join("old/Orders.sqlite3"), MAGIC);
        write(&root.join("a [b] c"), MAGIC);
        write(&root.join("notes.db"), b"plain text");
        std::fs::write(root.join("short.db"), MAGIC).unwrap();
        std::os::unix::fs::symlink("data/orders.db", root.join("link.db")).unwrap();
        let found = detect(&root).unwrap();
        let seen: Vec<_> = found.iter().map(|f| (f.kind, f.suggested_name.as_str())).collect();
        assert_eq!(seen, [("files", "my-app"), ("sqlite", "a-b-c"), ("sqlite", "orders"), ("sqlite", "orders-2")]);
        assert_eq!(found[0].exclude[..4], ["", "-wal", "-shm", "-journal"].map(|s| format!("/a\\ \\[b\\]\\ c{s}")));
        assert_eq!(found[0].exclude[4], "/data/orders.db");
        assert_eq!((found[0].exclude.len(), found[0].notes.len()), (12, 0));
        assert_eq!(detect(&root.join("data/orders.db")).unwrap()[0].suggested_name, "orders");
        assert!(detect(&root.join("notes.db")).is_err());
    }

    #[test]
    fn a_chroma_directory_is_one_source_and_leaves_the_rest_to_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = dir.path().join("app/vectors");
        let segment = "02c25243-b9be-42e0-b736-412ce5e66c1b";
        write(&vectors.join("chroma.sqlite3"), MAGIC);
        write(&vectors.join(segment).join("header.bin"), b"x");
        let seen =
            |path: &Path| -> Vec<_> { detect(path).unwrap().into_iter().map(|f| (f.kind, f.suggested_name)).collect() };
        assert_eq!(seen(&vectors), [("chroma", "vectors".to_owned())]);
        assert_eq!(seen(&vectors.join("chroma.sqlite3")), [("chroma", "vectors".to_owned())]);
        let tree = detect(&dir.path().join("app")).unwrap();
        assert_eq!((tree[0].kind, tree[1].kind, tree.len()), ("files", "chroma", 2));
        let mut builder = ignore::gitignore::GitignoreBuilder::new("/");
        for pattern in &tree[0].exclude {
            builder.add_line(None, pattern).unwrap();
        }
        let matcher = builder.build().unwrap();
        assert!(matcher.matched(format!("/vectors/{segment}"), true).is_ignore());
        assert!(matcher.matched("/vectors/chroma.sqlite3-journal", false).is_ignore());
        assert!(!matcher.matched("/vectors/notes.txt", false).is_ignore());
        write(&vectors.join("notes.txt"), b"mine");
        assert_eq!(seen(&vectors), [("files", "vectors".to_owned()), ("chroma", "vectors-2".to_owned())]);
    }

    #[test]
    fn servers_and_their_files_are_recognised() {
        let found = detect(Path::new("redis://localhost:6380")).unwrap();
        assert_eq!((found[0].kind, &found[0].place), ("redis", &Place::Url("redis://localhost:6380".into())));
        let error = detect(Path::new("redis://u:hunter2@localhost")).unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        for start in ["REDIS0010", "VALKEY080"] {
            write(&dir.path().join("dump"), start.as_bytes());
            assert!(detect(&dir.path().join("dump")).unwrap_err().to_string().contains("redis://"), "{start}");
        }
    }

    #[test]
    fn patterns_match_the_database_and_nothing_else() {
        for name in ["plain.db", "a [b] c", "{x,y}", "!not", "#no", "st*r?", "back\\slash", "end "] {
            let mut builder = ignore::gitignore::GitignoreBuilder::new("/");
            builder.add_line(None, &pattern(name, "-wal")).unwrap();
            let matcher = builder.build().unwrap();
            assert!(matcher.matched(format!("/{name}-wal"), false).is_ignore(), "{name}");
            assert!(!matcher.matched(format!("/sub/{name}-wal"), false).is_ignore(), "{name}");
            assert!(!matcher.matched(format!("/{name}x-wal"), false).is_ignore(), "{name}");
        }
    }

    #[test]
    fn a_bound_that_was_hit_is_said() {
        let dir = tempfile::tempdir().unwrap();
        (0..20).for_each(|i| write(&dir.path().join(format!("{i}")), b"x"));
        let mut notes = Vec::new();
        databases_in(dir.path(), 10, &mut notes).unwrap();
        assert!(notes[0].contains("first 10 entries"), "{notes:?}");
    }

    #[test]
    fn names_fit_the_format() {
        let mut names = BTreeSet::new();
        let long = "Ä".repeat(80) + &"x".repeat(80);
        for name in ["", "...", "--x--", "数据", &long, &long, "x", "X"] {
            let name = unique_name(Some(OsStr::new(name)), &mut names);
            let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
            assert!(name.chars().all(ok) && !name.starts_with(['-', '_']) && (1..=63).contains(&name.len()), "{name}");
        }
        assert_eq!(names.len(), 8);
    }
}
