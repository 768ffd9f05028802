//! The audit log: who did what on this host, when, and how it ended. One JSON object a line in `audit.jsonl` of the state directory, 0600; lines are
//! appended and never changed; a full file is put aside and another begun. Each line has the SHA-256 of the line before it, so that one that was altered or taken out shows; that the newest
//! lines were cut off does not. What must not be forged is in the repository: commits, prune records and reports are signed.
//!
//! No secret is in it: arguments pass [`redacted`]. That it cannot be written hinders nobody from restoring; it is said aloud.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::accounts::Accounts;
use crate::durable;

const NAME: &str = "audit.jsonl";
/// Beyond this a file is put aside as `audit-<n>.jsonl`, which nobody removes but the operator.
const FILE_MAX: u64 = 32 << 20;
/// No line is longer.
const LINE_MAX: u64 = 64 << 10;
/// Of an argument, so many characters.
const ARGUMENT_MAX: usize = 1000;

/// A run, or what a person did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub version: u32,
    pub at: Timestamp,
    /// Pairs the beginning and the end.
    pub id: String,
    pub phase: Phase,
    pub by: Who,
    pub host: String,
    /// `restore`, `prune`, …; `agent` for what it does by itself.
    pub verb: String,
    pub arguments: Vec<String>,
    /// At the end: `done`, `partial`, `failed`, … and the exit code of a verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<u8>,
    /// SHA-256 of the line before, without its line end; none at the very beginning.
    pub previous: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Begun,
    Ended,
}

/// Who: as the system knows, and as `sudo` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub uid: u32,
    pub user: String,
    /// The user who logged in, whom `su` and `sudo` do not change (Linux's audit login id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo: Option<String>,
    pub pid: u32,
}

impl Who {
    pub fn here() -> Who {
        let uid = rustix::process::getuid().as_raw();
        let accounts = Accounts::load();
        let name = |uid: u32| Some(accounts.user(uid).to_string()).filter(|n| !n.is_empty()).unwrap_or(uid.to_string());
        let login = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse().ok());
        Who {
            uid,
            user: name(uid),
            // The highest number means that nobody logged in: a service.
            login: login.filter(|uid| *uid != u32::MAX).map(name),
            sudo: std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty()),
            pid: std::process::id(),
        }
    }
}

/// The log in a state directory.
#[derive(Debug, Clone)]
pub struct AuditLog {
    directory: PathBuf,
    /// Bytes at which a file is put aside.
    most: u64,
}

/// What there is, the oldest first.
#[derive(Debug, Default)]
pub struct Trail {
    pub entries: Vec<Entry>,
    /// Lines that cannot be read, or do not follow the line before: `audit.jsonl, line 3: …`.
    pub faults: Vec<String>,
}

impl AuditLog {
    pub fn below(state: &Path) -> AuditLog {
        AuditLog { directory: state.to_owned(), most: FILE_MAX }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Appends `entry`, durably.
    pub fn append(&self, entry: Entry) -> Result<()> {
        let write = || {
            durable::create_directories(&self.directory)?;
            let mut file = self.open()?;
            let last = last_line(&mut file)?;
            let previous = last.as_ref().map(|line| hash(line)).or(self.last_put_aside()?);
            let mut line = serde_json::to_vec(&Entry { previous, ..entry })?;
            line.push(b'\n');
            // What a crash or a full disk has left of a line ends here, and shows as a fault.
            if !ends_well(&mut file)? {
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_data()?;
            anyhow::Ok(())
        };
        write().with_context(|| format!("write the audit log {}", self.path().display()))
    }

    /// The file, locked until it is closed.
    fn open(&self) -> Result<File> {
        let path = self.path();
        loop {
            let file =
                OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).context("open it")?;
            file.lock().context("lock it")?;
            let here = file.metadata()?;
            // While we waited somebody may have put it aside.
            if std::fs::metadata(&path).map(|there| there.ino()).ok() != Some(here.ino()) {
                continue;
            }
            if here.len() >= self.most {
                self.put_aside(&path)?;
                continue;
            }
            if here.len() == 0 && here.uid() == 0 {
                // Whoever owns the state writes to it as well: the agent seldom runs as root.
                let owner = std::fs::metadata(&self.directory)?;
                fchown(&file, Some(owner.uid()), Some(owner.gid()))
                    .context("give it to the owner of the state directory")?;
            }
            return Ok(file);
        }
    }

    /// Called with the lock held.
    fn put_aside(&self, path: &Path) -> Result<()> {
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("audit-")?.parse::<u32>().ok();
        let last = self.files()?.iter().filter_map(number).max().unwrap_or(0);
        let aside = self.directory.join(format!("audit-{:06}.jsonl", last + 1));
        std::fs::hard_link(path, &aside).context("put the full file aside")?;
        durable::remove(path).context("put the full file aside")
    }

    /// Full files in the order in which they were put aside, then the newest.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut aside = Vec::new();
        for entry in std::fs::read_dir(&self.directory).context("look for the files of the audit log")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.strip_prefix("audit-").is_some_and(|rest| rest.ends_with(".jsonl")) {
                aside.push(path);
            }
        }
        aside.sort();
        aside.push(self.path());
        Ok(aside)
    }

    fn last_put_aside(&self) -> Result<Option<String>> {
        let files = self.files()?;
        let Some(path) = files.len().checked_sub(2).and_then(|n| files.get(n)) else { return Ok(None) };
        Ok(last_line(&mut File::open(path)?)?.map(|line| hash(&line)))
    }

    /// Reads all of it and checks that each line follows the one before.
    pub fn read(&self) -> Result<Trail> {
        let mut trail = Trail::default();
        // Where the oldest files are gone, because the operator took them away, the first line that is left follows one that nobody can check.
        let mut previous: Option<Option<String>> = None;
        for path in self.files()? {
            let bytes = match std::fs::read(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                read => read.with_context(|| format!("read {}", path.display()))?,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for (n, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
                let fault = match serde_json::from_slice::<Entry>(line) {
                    Ok(entry) => {
                        let follows = previous.as_ref().is_none_or(|previous| entry.previous == *previous);
                        trail.entries.push(entry);
                        (!follows)
                            .then(|| "does not follow the line before it: one was altered or taken out".to_owned())
                    }
                    Err(error) => Some(format!("cannot be read: {error}")),
                };
                trail.faults.extend(fault.map(|what| format!("{name}, line {}: {what}", n + 1)));
                previous = Some(Some(hash(line)));
            }
        }
        Ok(trail)
    }
}

fn hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|b| format!("{b:02x}")).collect()
}

/// The last line that is not empty, whole or not.
fn last_line(file: &mut File) -> Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_MAX)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).map(<[u8]>::to_vec))
}

/// Whether it is empty, or ends with a line end.
fn ends_well(file: &mut File) -> Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}

/// An argument without what may be a secret in it: passwords of addresses, and values of words such as `password=`.
pub fn redacted(argument: &str) -> String {
    let mut text = argument.to_owned();
    if let Some(start) = text.find("://").map(|at| at + 3) {
        let end = text[start..].find(['/', '?', '#', ' ']).map_or(text.len(), |at| start + at);
        if let Some(at) = text[start..end].rfind('@')
            && let Some(colon) = text[start..start + at].find(':')
        {
            text.replace_range(start + colon + 1..start + at, "***");
        }
    }
    for word in ["password=", "passwd=", "secret=", "token=", "passphrase=", "secret_access_key="] {
        let mut from = 0;
        while let Some(at) = text[from..].to_ascii_lowercase().find(word) {
            let start = from + at + word.len();
            let end = text[start..].find(['&', ' ', ';', '\'', '"']).map_or(text.len(), |at| start + at);
            text.replace_range(start..end, "***");
            from = start + 3;
        }
    }
    if text.chars().count() > ARGUMENT_MAX { text.chars().take(ARGUMENT_MAX).chain(['…']).collect() } else { text }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "test files need no durability")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn entry(verb: &str) -> Entry {
        Entry {
            version: 1,
            at: Timestamp::UNIX_EPOCH,
            id: "1".into(),
            phase: Phase::Ended,
            by: Who::here(),
            host: "h".into(),
            verb: verb.into(),
            arguments: vec!["orders".into()],
            outcome: Some("done".into()),
            exit: Some(0),
            previous: None,
        }
    }

    fn verbs(trail: &Trail) -> Vec<&str> {
        trail.entries.iter().map(|e| e.verb.as_str()).collect()
    }

    #[test]
    fn what_was_altered_taken_out_or_torn_shows() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::below(&dir.path().join("state"));
        ["a", "b", "c", "d"].iter().for_each(|verb| log.append(entry(verb)).unwrap());
        let trail = log.read().unwrap();
        assert_eq!((verbs(&trail), trail.faults.len()), (vec!["a", "b", "c", "d"], 0));
        assert_eq!(fs::metadata(log.path()).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        fs::write(log.path(), [lines[0], lines[2], lines[3], ""].join("\n")).unwrap();
        assert!(log.read().unwrap().faults[0].starts_with("audit.jsonl, line 2: does not follow"));
        fs::write(log.path(), text.replace("\"verb\":\"b\"", "\"verb\":\"x\"")).unwrap();
        assert!(log.read().unwrap().faults[0].starts_with("audit.jsonl, line 3: does not follow"));
        // A disk that was full in the middle of a line: the next one is whole.
        fs::write(log.path(), &text[..text.len() - 20]).unwrap();
        log.append(entry("e")).unwrap();
        let trail = log.read().unwrap();
        assert_eq!(verbs(&trail), ["a", "b", "c", "e"]);
        assert!(trail.faults.len() == 1 && trail.faults[0].contains("line 4: cannot be read"), "{:?}", trail.faults);
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_chain_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog { most: 1000, ..AuditLog::below(dir.path()) };
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        names.iter().for_each(|name| log.append(entry(name)).unwrap());
        assert!(dir.path().join("audit-000002.jsonl").exists());
        assert!(fs::metadata(log.path()).unwrap().len() < 2000);
        let trail = log.read().unwrap();
        assert_eq!(verbs(&trail), names);
        assert!(trail.faults.is_empty(), "{:?}", trail.faults);
        // The oldest may be taken away; one from the middle shows.
        fs::remove_file(dir.path().join("audit-000001.jsonl")).unwrap();
        log.append(entry("x")).unwrap();
        assert_eq!(log.read().unwrap().faults, [] as [String; 0]);
        fs::remove_file(dir.path().join("audit-000003.jsonl")).unwrap();
        assert_eq!(log.read().unwrap().faults.len(), 1);
    }

    #[test]
    fn many_processes_write_one_chain() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::below(dir.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| log.append(entry("x")).unwrap()));
            }
        });
        let trail = log.read().unwrap();
        assert_eq!((trail.entries.len(), trail.faults.len()), (160, 0), "{:?}", trail.faults);
    }

    #[test]
    fn secrets_are_taken_out_of_arguments() {
        for (argument, expected) in [
            ("postgres://a:hunter2@h:5432/db?sslmode=require", "postgres://a:***@h:5432/db?sslmode=require"),
            ("redis://:hun@ter2@h", "redis://:***@h"),
            ("postgres://a@h/db", "postgres://a@h/db"),
            (
                "s3://b/p?endpoint=http://x&secret_access_key=hunter2&region=r",
                "s3://b/p?endpoint=http://x&secret_access_key=***&region=r",
            ),
            ("host=h Password=hunter2 user=a", "host=h Password=*** user=a"),
            ("password=", "password=***"),
            ("orders", "orders"),
        ] {
            assert_eq!(redacted(argument), expected);
        }
        assert!(redacted(&"ä".repeat(5000)).chars().count() <= ARGUMENT_MAX + 1);
    }
}
