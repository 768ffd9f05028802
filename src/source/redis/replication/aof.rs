//! A data set and the stream that follows it as the append-only file that a server loads
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/>, "Log rewriting"; Redis 7.0 and Valkey).
//!
//! ```text
//! appendonlydir/appendonly.aof.1.base.rdb     the RDB file
//! appendonlydir/appendonly.aof.1.incr.aof     SELECT of the database that the stream had selected there; then its commands
//! appendonlydir/appendonly.aof.manifest       which names both
//! ```
//! The stream is cut after a whole command, never within `MULTI` and `EXEC`. Talk between server and replica is left out.

use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use super::commands::{Parser, Part, What};
use crate::source::redis::DUMP;

/// Where the append-only file of a restored data set lies, and how its files are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub directory: String,
    pub file: String,
}

impl Names {
    /// As the snapshot has them, whose server had such a file; the servers' defaults otherwise.
    pub fn of(copy: &Path) -> Names {
        for directory in fs::read_dir(copy).into_iter().flatten().flatten() {
            for file in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
                if let Some(stem) = file.file_name().to_string_lossy().strip_suffix(".manifest") {
                    let directory = directory.file_name().to_string_lossy().into_owned();
                    return Names { directory, file: stem.to_owned() };
                }
            }
        }
        Names { directory: "appendonlydir".into(), file: "appendonly.aof".into() }
    }

    fn base(&self) -> String {
        format!("{}.1.base.rdb", self.file)
    }

    fn increment(&self) -> String {
        format!("{}.1.incr.aof", self.file)
    }

    pub fn manifest(&self) -> String {
        format!("{}.manifest", self.file)
    }
}

/// What was written of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// Bytes of the stream that the file goes up to.
    pub position: u64,
    pub commands: u64,
    /// Of the file.
    pub bytes: u64,
    /// The greatest database that was selected.
    pub databases_max: u32,
}

/// The append-only file in the making.
pub struct Append {
    file: BufWriter<File>,
    path: PathBuf,
    parser: Parser,
    /// The first bytes of a command, until it is known whether it is data.
    held: Vec<u8>,
    state: State,
    /// Between `MULTI` and `EXEC`.
    multi: bool,
    /// Bytes written, beyond the last whole command too, and commands.
    bytes: u64,
    commands: u64,
    /// At the end of the last whole command or transaction.
    whole: Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The command under way has no name yet.
    Unnamed,
    Data,
    Talk,
}

impl Append {
    /// In place of the snapshot restored at `copy`, which ends at `position`, where the stream had `database` selected.
    /// `dump.rdb` becomes the base: a server that was started without its append-only file must not take it for all there is.
    pub fn beside(copy: &Path, position: u64, database: u32) -> Result<Append> {
        let names = Names::of(copy);
        let directory = copy.join(&names.directory);
        let (dump, base) = (copy.join(DUMP), directory.join(names.base()));
        let like = fs::metadata(&dump).with_context(|| format!("look at {}", dump.display()))?;
        if !base.exists() {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
            fs::hard_link(&dump, &base).with_context(|| format!("link {}", dump.display()))?;
            own(&directory, &like)?;
            fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        fs::remove_file(&dump).with_context(|| format!("remove {}", dump.display()))?;
        let mut manifest = create(&directory.join(names.manifest()), &like)?;
        let text = format!("file {} seq 1 type b\nfile {} seq 1 type i\n", names.base(), names.increment());
        manifest.write_all(text.as_bytes()).and_then(|()| manifest.sync_all()).context("write the manifest")?;
        let path = directory.join(names.increment());
        let mut append = Append {
            file: BufWriter::with_capacity(256 << 10, create(&path, &like)?),
            path,
            parser: Parser::new(position),
            held: Vec::new(),
            state: State::Unnamed,
            multi: false,
            bytes: 0,
            commands: 0,
            whole: Written { position, commands: 0, bytes: 0, databases_max: database },
        };
        let number = database.to_string();
        append.write(format!("*2\r\n$6\r\nSELECT\r\n${}\r\n{number}\r\n", number.len()).as_bytes())?;
        append.whole.bytes = append.bytes;
        Ok(append)
    }

    /// Takes bytes of the stream, which follow those before.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let mut parser = self.parser.clone();
        let mut multi = self.multi;
        parser.feed(bytes, &mut |part| {
            match part {
                Part::Bytes(more) => match self.state {
                    State::Unnamed => self.held.extend_from_slice(more),
                    State::Data => self.write(more)?,
                    State::Talk => {}
                },
                Part::Word(_) | Part::WordEnded => {}
                Part::Named(what) => {
                    let held = std::mem::take(&mut self.held);
                    self.state = if what.is_talk() { State::Talk } else { State::Data };
                    if self.state == State::Data {
                        self.write(&held)?;
                    }
                }
                Part::Ended(what, position) => {
                    multi = match what {
                        What::Multi => true,
                        What::Exec => false,
                        _ => multi,
                    };
                    self.commands += u64::from(what == What::Write);
                    if let What::Select(database) = what {
                        self.whole.databases_max = self.whole.databases_max.max(database);
                    }
                    self.state = State::Unnamed;
                    if !multi {
                        (self.whole.position, self.whole.bytes) = (position, self.bytes);
                        self.whole.commands = self.commands;
                    }
                }
            }
            Ok(())
        })?;
        self.parser = parser;
        self.multi = multi;
        Ok(())
    }

    /// Ends the file after the last whole command or transaction. It is durable when this returns.
    pub fn finish(mut self) -> Result<Written> {
        let shown = self.path.display().to_string();
        self.file.flush().with_context(|| format!("write {shown}"))?;
        let file = self.file.get_ref();
        file.set_len(self.whole.bytes).and_then(|()| file.sync_all()).with_context(|| format!("write {shown}"))?;
        Ok(self.whole)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).with_context(|| format!("write {}", self.path.display()))
    }
}

/// A new file, or one of the snapshot's in whose place this comes, readable by its owner alone.
fn create(path: &Path, like: &fs::Metadata) -> Result<File> {
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("replace {}", path.display()))?;
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("write {}", path.display()))?;
    own(path, like)?;
    Ok(file)
}

/// Whoever the data set belongs to gets the new files, where this user may give them away.
fn own(path: &Path, like: &fs::Metadata) -> Result<()> {
    let there = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if (there.uid(), there.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    chown(path, Some(like.uid()), Some(like.gid())).with_context(|| format!("give {} to its owner", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(stream: &[u8], chunk: usize) -> (String, Written) {
        let copy = tempfile::tempdir().unwrap();
        crate::durable::publish_new(&copy.path().join(DUMP), b"the base", 0o600).unwrap();
        let mut append = Append::beside(copy.path(), 1000, 3).unwrap();
        stream.chunks(chunk).for_each(|bytes| append.take(bytes).unwrap());
        let written = append.finish().unwrap();
        assert!(!copy.path().join(DUMP).exists());
        let directory = copy.path().join("appendonlydir");
        assert_eq!(fs::read(directory.join("appendonly.aof.1.base.rdb")).unwrap(), b"the base");
        let manifest = fs::read_to_string(directory.join("appendonly.aof.manifest")).unwrap();
        assert_eq!(
            manifest,
            "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n"
        );
        (fs::read_to_string(directory.join("appendonly.aof.1.incr.aof")).unwrap(), written)
    }

    #[test]
    fn the_file_ends_after_a_whole_transaction_and_has_no_talk() {
        let (select, ping, set) = (
            "*2\r\n$6\r\nSELECT\r\n$2\r\n11\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\nPING\r\n",
        );
        let (multi, exec) = ("*1\r\n$5\r\nMULTI\r\n", "*1\r\n$4\r\nEXEC\r\n");
        let ask = "*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
        let stream = [ping, select, set, ask, "\n", multi, set, set, exec, ping].concat();
        let begun = "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n";
        let data = [begun, select, set, multi, set, set, exec].concat();
        for chunk in [1, 2, 7, 1000] {
            let (file, written) = write(stream.as_bytes(), chunk);
            assert_eq!(file, data);
            let expected = Written {
                position: 1000 + stream.len() as u64,
                commands: 3,
                bytes: data.len() as u64,
                databases_max: 11,
            };
            assert_eq!(written, expected);
        }
        // Wherever it is cut off: what there is of a transaction is not in it.
        let ends = [begun.len(), begun.len() + select.len(), begun.len() + select.len() + set.len(), data.len()];
        for cut in 0..stream.len() {
            let (file, written) = write(&stream.as_bytes()[..cut], 5);
            assert!(data.starts_with(&file) && ends.contains(&file.len()), "{cut}: {file}");
            assert_eq!(written.bytes, file.len() as u64);
        }
    }
}
