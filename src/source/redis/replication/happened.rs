//! What happened to a data set, read from its replication stream: emptied and swapped databases, and keys that were deleted, renamed, moved, replaced
//! or given an expiry (<https://redis.io/docs/latest/commands/>).
//!
//! The stream has what commands did, and not what they found: `SET` over a key that was there looks like any other. A key that expires or is evicted
//! is deleted in it one by one (`DEL`, `UNLINK`), as by a program: nobody can tell which it was. Neighbours of a kind are told of as one.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

use super::commands::{Part, What as Command};

/// Neighbours are told of as one while no longer pause is between them, for so long at most.
const PAUSE: SignedDuration = SignedDuration::from_secs(2);
const RUN_MAX: SignedDuration = SignedDuration::from_mins(1);
/// Runs that are followed at once.
const RUNS_MAX: usize = 256;
/// Words of a command that are looked at, and bytes that are kept of each.
const WORDS_MAX: usize = 10;
const WORD_MAX: usize = 64;
/// Keys that are named of those that one line tells of.
const NAMED_MAX: usize = 3;

/// One thing that happened, or several of a kind in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Happened {
    /// Where the command ends, of several the first: bytes of the stream. To undo it, restore to just before.
    pub position: u64,
    /// When it had come, by the receiver's clock; of several the first, and the last.
    pub time: Timestamp,
    pub until: Timestamp,
    pub commands: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    FlushAll,
    FlushDatabase {
        database: u32,
    },
    SwapDatabases {
        one: String,
        other: String,
    },
    Delete(Keys),
    /// By commands that name one key each, as expiry and eviction do.
    DeleteSingly(Keys),
    /// They were given an expiry.
    Expire(Keys),
    Rename {
        database: u32,
        from: String,
        to: String,
    },
    Move {
        database: u32,
        key: String,
        to: String,
    },
    Replace {
        database: u32,
        by: String,
        key: String,
    },
    Functions {
        command: String,
    },
    /// Any other command.
    Write {
        database: u32,
        command: String,
        key: Option<String>,
    },
}

/// Keys of a database: how many were named, and the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keys {
    pub database: u32,
    pub keys: u64,
    pub first: Vec<String>,
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.first.iter().map(|name| format!("{name:?}")).collect();
        let more = if self.keys > names.len() as u64 { ", …" } else { "" };
        let many = if self.keys == 1 { "key" } else { "keys" };
        write!(f, "{} {many} in database {} ({}{more})", self.keys, self.database, names.join(", "))
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::FlushAll => f.write_str("FLUSHALL: every key of every database"),
            What::FlushDatabase { database } => write!(f, "FLUSHDB: every key of database {database}"),
            What::SwapDatabases { one, other } => write!(f, "SWAPDB: databases {one} and {other} change places"),
            What::Delete(keys) => write!(f, "deleted: {keys}"),
            What::DeleteSingly(keys) => write!(f, "deleted one by one, or expired, or evicted: {keys}"),
            What::Expire(keys) => write!(f, "given an expiry: {keys}"),
            What::Rename { database, from, to } => write!(f, "renamed in database {database}: {from:?} to {to:?}"),
            What::Move { database, key, to } => write!(f, "moved from database {database} to {to}: {key:?}"),
            What::Replace { database, by, key } => write!(f, "replaced by {by} in database {database}: {key:?}"),
            What::Functions { command } => write!(f, "functions: {command}"),
            What::Write { database, command, key: Some(key) } => write!(f, "{command} {key:?} in database {database}"),
            What::Write { database, command, key: None } => write!(f, "{command} in database {database}"),
        }
    }
}

/// A word of the command under way, as far as it is kept.
#[derive(Default)]
struct Word {
    bytes: Vec<u8>,
    length: u64,
}

impl Word {
    fn take(&mut self, bytes: &[u8]) {
        let room = WORD_MAX.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.length += bytes.len() as u64;
    }

    fn is(&self, word: &str) -> bool {
        self.length == word.len() as u64 && self.bytes.eq_ignore_ascii_case(word.as_bytes())
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        if self.length > self.bytes.len() as u64 { format!("{text}…") } else { text.into_owned() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Delete,
    DeleteSingly,
    Expire,
}

/// Follows the parts of a stream, command by command.
pub struct Follower {
    database: u32,
    /// Every command is told of, each by itself.
    all: bool,
    words: Vec<Word>,
    open: Word,
    /// Words of the command under way.
    count: u64,
    runs: BTreeMap<(u32, Kind), Happened>,
}

impl Follower {
    /// From a place between two commands, where the stream has this database selected.
    pub fn new(database: u32, all: bool) -> Follower {
        Follower { database, all, words: Vec::new(), open: Word::default(), count: 0, runs: BTreeMap::new() }
    }

    /// Takes the next part. `come`: when the bytes before a position had come.
    pub fn take(&mut self, part: &Part, come: &mut dyn FnMut(u64) -> Timestamp, found: &mut dyn FnMut(Happened)) {
        match part {
            Part::Word(bytes) => self.open.take(bytes),
            Part::WordEnded => {
                let word = std::mem::take(&mut self.open);
                self.count += 1;
                if self.words.len() < WORDS_MAX {
                    self.words.push(word);
                }
            }
            Part::Ended(what, position) => {
                match what {
                    Command::Select(database) => self.database = *database,
                    Command::Write => self.command(*position, come(*position), found),
                    _ => {}
                }
                self.words.clear();
                self.count = 0;
            }
            Part::Bytes(_) | Part::Named(_) => {}
        }
    }

    /// The stream ends here.
    pub fn finish(&mut self, found: &mut dyn FnMut(Happened)) {
        std::mem::take(&mut self.runs).into_values().for_each(found);
    }

    fn command(&mut self, position: u64, time: Timestamp, found: &mut dyn FnMut(Happened)) {
        let one = |what| Happened { position, time, until: time, commands: 1, what };
        let Some(what) = self.understood() else {
            if self.all {
                found(one(self.any_other()));
            }
            return;
        };
        let kind = match &what {
            What::Delete(_) => Kind::Delete,
            What::DeleteSingly(_) => Kind::DeleteSingly,
            What::Expire(_) => Kind::Expire,
            _ => return found(one(what)),
        };
        if self.all { found(one(what)) } else { self.run(kind, one(what), found) }
    }

    /// Adds to the run of its kind, or begins one.
    fn run(&mut self, kind: Kind, next: Happened, found: &mut dyn FnMut(Happened)) {
        let ended = |run: &Happened| {
            next.time.duration_since(run.until) > PAUSE || next.time.duration_since(run.time) > RUN_MAX
        };
        let over: Vec<_> = self.runs.iter().filter(|(_, run)| ended(run)).map(|(key, _)| *key).collect();
        over.iter().filter_map(|key| self.runs.remove(key)).for_each(&mut *found);
        let key = (self.database, kind);
        if self.runs.len() >= RUNS_MAX && !self.runs.contains_key(&key) {
            self.finish(found);
        }
        let Some(run) = self.runs.get_mut(&key) else {
            self.runs.insert(key, next);
            return;
        };
        (run.until, run.commands) = (next.time, run.commands + 1);
        if let (Some(known), Some(more)) = (keys_of(&mut run.what), keys_of(&mut next.what.clone())) {
            known.keys += more.keys;
            let room = NAMED_MAX.saturating_sub(known.first.len());
            known.first.extend(more.first.drain(..).take(room));
        }
    }

    fn understood(&self) -> Option<What> {
        let name = self.words.first()?;
        let is = |any: &[&str]| any.iter().any(|word| name.is(word));
        let text = |n: usize| self.words.get(n).map(Word::text).unwrap_or_default();
        let later = |from: usize, word: &str| self.words.iter().skip(from).any(|w| w.is(word));
        let database = self.database;
        Some(match () {
            () if is(&["FLUSHALL"]) => What::FlushAll,
            () if is(&["FLUSHDB"]) => What::FlushDatabase { database },
            () if is(&["SWAPDB"]) => What::SwapDatabases { one: text(1), other: text(2) },
            () if is(&["DEL", "UNLINK"]) && self.count == 2 => What::DeleteSingly(self.keys(1)),
            () if is(&["DEL", "UNLINK"]) => What::Delete(self.keys(self.count - 1)),
            () if is(&["PEXPIREAT", "PEXPIRE", "EXPIREAT", "EXPIRE"]) => What::Expire(self.keys(1)),
            () if is(&["RENAME", "RENAMENX"]) => What::Rename { database, from: text(1), to: text(2) },
            () if is(&["MOVE"]) => What::Move { database, key: text(1), to: text(2) },
            // Its fourth word is the value, which may be any.
            () if is(&["RESTORE"]) && later(4, "REPLACE") => What::Replace { database, by: text(0), key: text(1) },
            () if is(&["COPY"]) && later(3, "REPLACE") => What::Replace { database, by: text(0), key: text(2) },
            () if is(&["FUNCTION"]) => What::Functions { command: format!("{} {}", text(0), text(1)) },
            () => return None,
        })
    }

    fn keys(&self, keys: u64) -> Keys {
        let named = usize::try_from(keys).unwrap_or(usize::MAX).min(NAMED_MAX);
        let first = self.words.iter().skip(1).take(named).map(Word::text).collect();
        Keys { database: self.database, keys, first }
    }

    fn any_other(&self) -> What {
        let mut words = self.words.iter().map(Word::text);
        let command = words.next().unwrap_or_default().to_ascii_uppercase();
        What::Write { database: self.database, command, key: words.next() }
    }
}

fn keys_of(what: &mut What) -> Option<&mut Keys> {
    match what {
        What::Delete(keys) | What::DeleteSingly(keys) | What::Expire(keys) => Some(keys),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::redis::replication::commands::Parser;

    fn command(words: &[&str]) -> Vec<u8> {
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        let words: Vec<String> = words.collect();
        format!("*{}\r\n{}", words.len(), words.concat()).into_bytes()
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_763_000_000_000 + millis).unwrap()
    }

    /// What is told of these commands, each with the time at which it had come.
    fn told(commands: &[(i64, &[&str])], all: bool) -> Vec<Happened> {
        let mut found = Vec::new();
        for chunk in [1, 7, 100_000] {
            let (mut parser, mut follower) = (Parser::new(1000), Follower::new(0, all));
            found.clear();
            for (millis, words) in commands {
                for bytes in command(words).chunks(chunk) {
                    let take = &mut |part: Part| {
                        follower.take(&part, &mut |_| at(*millis), &mut |happened| found.push(happened));
                        Ok(())
                    };
                    parser.feed(bytes, take).unwrap();
                }
            }
            follower.finish(&mut |happened| found.push(happened));
        }
        found
    }

    #[test]
    fn what_destroys_is_told_by_name_and_what_does_not_is_left_out() {
        let long = "k".repeat(90);
        let shown = format!("moved from database 5 to 3: \"{}…\"", "k".repeat(64));
        let commands: &[(i64, &[&str])] = &[
            (0, &["SET", "a", "DEL"]),
            (0, &["select", "5"]),
            (0, &["flushdb", "ASYNC"]),
            (0, &["MOVE", &long, "3"]),
            (0, &["RENAME", "one", "two"]),
            (0, &["RESTORE", "v", "0", "REPLACE"]),
            (0, &["RESTORE", "w", "0", "value", "ABSTTL", "replace"]),
            (0, &["COPY", "REPLACE", "x", "DB", "1"]),
            (0, &["COPY", "x", "y", "REPLACE"]),
            (0, &["SWAPDB", "0", "1"]),
            (0, &["FUNCTION", "FLUSH"]),
            (0, &["FLUSHALL"]),
            (0, &["DEL", "a", "b", "c", "d"]),
        ];
        let expected = [
            "FLUSHDB: every key of database 5",
            &shown,
            "renamed in database 5: \"one\" to \"two\"",
            "replaced by RESTORE in database 5: \"w\"",
            "replaced by COPY in database 5: \"y\"",
            "SWAPDB: databases 0 and 1 change places",
            "functions: FUNCTION FLUSH",
            "FLUSHALL: every key of every database",
            "deleted: 4 keys in database 5 (\"a\", \"b\", \"c\", …)",
        ];
        let lines: Vec<String> = told(commands, false).iter().map(|h| h.what.to_string()).collect();
        assert_eq!(lines, expected);
        let all = told(commands, true);
        assert_eq!(all[0].what.to_string(), "SET \"a\" in database 0");
        assert_eq!((all.len(), all[0].position), (commands.len() - 1, 1000 + command(commands[0].1).len() as u64));
    }

    #[test]
    fn neighbours_are_one_and_a_pause_or_another_kind_ends_that() {
        let commands: &[(i64, &[&str])] = &[
            (0, &["DEL", "a"]),
            (100, &["UNLINK", "b"]),
            (200, &["DEL", "x", "y"]),
            (1500, &["DEL", "c"]),
            (1600, &["PEXPIREAT", "k", "1"]),
            (9000, &["DEL", "d"]),
        ];
        let found = told(commands, false);
        let mut lines: Vec<_> = found.iter().map(|h| (h.position, h.commands, h.what.to_string())).collect();
        lines.sort();
        let first = 1000 + command(&["DEL", "a"]).len() as u64;
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0].0, first, "a run is gone back from to before its first command");
        assert_eq!((lines[0].1, &lines[0].2[..47]), (3, "deleted one by one, or expired, or evicted: 3 k"));
        assert_eq!(lines[3].2, "deleted one by one, or expired, or evicted: 1 key in database 0 (\"d\")");
        // What goes on for ever is told of in parts.
        let many: Vec<(i64, &[&str])> = (0..200).map(|n| (n * 1000, &["DEL", "a"][..])).collect();
        assert_eq!(told(&many, false).len(), 4);
        assert_eq!(told(&many, true).len(), 200);
    }

    #[test]
    fn what_is_followed_is_bounded() {
        let names: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
        let mut follower = Follower::new(0, false);
        let mut parser = Parser::new(0);
        let mut found = 0;
        for name in &names {
            for words in [&["SELECT", name][..], &["DEL", "a"]] {
                let mut feed = |part: Part| {
                    follower.take(&part, &mut |_| at(0), &mut |_| found += 1);
                    Ok(())
                };
                parser.feed(&command(words), &mut feed).unwrap();
            }
            assert!(follower.runs.len() <= RUNS_MAX);
        }
        follower.finish(&mut |_| found += 1);
        assert_eq!(found, names.len());
        let value = "v".repeat(1 << 20);
        parser
            .feed(&command(&["SET", "a", &value]), &mut |part| {
                follower.take(&part, &mut |_| at(0), &mut |_| ());
                assert!(follower.open.bytes.len() <= WORD_MAX && follower.words.len() <= WORDS_MAX);
                Ok(())
            })
            .unwrap();
    }
}
