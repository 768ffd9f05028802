//! The `command` source: programs that write a dump to their stdout, each a stream and a file of the snapshot. For everything that has a good
//! dump tool and no kind of its own.
//!
//! Each run reads everything; content-defined chunks keep what is stored small, if the dump is neither compressed nor encrypted. The run
//! commits only after every stream has ended well ([`dump`]). The streams run one after another, so each has a consistent point of its own;
//! the snapshot's data time is before the first.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

use crate::clock::Clock;
use crate::entry::{Entry, EntryKind};
use crate::error::{Failure, Kind};
use crate::source::barrier::{Member, Moment};
use crate::source::{Before, Finished, Piece, Source, stream_entry};
pub use dump::Dump;
pub use options::{Options, Stream};
use program::Programs;

pub mod check;
mod dump;
mod feed;
pub mod load;
mod marks;
mod options;
mod program;

/// What a snapshot knows of its streams.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    pub streams: Vec<StreamFacts>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamFacts {
    pub file: String,
    /// The name of the program that wrote it.
    pub program: String,
    pub bytes: u64,
    /// In hex.
    pub sha256: String,
    pub seconds: f64,
    /// The last that the program said.
    pub stderr: Vec<String>,
}

/// One run of the programs of one source.
pub struct Command {
    streams: Vec<Stream>,
    programs: Programs,
    clock: Arc<dyn Clock>,
    /// The streams of the newest snapshot, where they may be compared with.
    before: Vec<StreamFacts>,
    began: Option<Timestamp>,
    /// Entries given so far; the first is the root.
    given: usize,
    dump: Option<Dump>,
    done: Vec<StreamFacts>,
    member: Member,
}

impl Command {
    /// Reads the secrets and looks for the programs; runs nothing. `base` is the configuration's directory.
    pub fn open(options: &Options, base: &Path, clock: Arc<dyn Clock>) -> Result<Command> {
        options.validate()?;
        let streams = options.streams()?;
        let programs = Programs::new(options, base)?;
        if let Some(stream) = streams.iter().find(|stream| programs.find(&stream.dump).is_none()) {
            return Err(Failure::new(
                Kind::Failed,
                format!("there is no program {:?} here", stream.dump[0]),
                "Nothing was backed up: the earlier snapshots stand. Install it, or give its whole path in [source.command].",
            ));
        }
        let (before, done) = (Vec::new(), Vec::new());
        Ok(Command {
            streams,
            programs,
            clock,
            before,
            began: None,
            given: 0,
            dump: None,
            done,
            member: Member::default(),
        })
    }
}

impl Source for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    /// The programs without their arguments.
    fn root(&self) -> String {
        let mut names: Vec<String> = self.streams.iter().map(|s| program::name(&s.dump)).collect();
        names.dedup();
        names.join(", ")
    }

    fn compare(&mut self, before: Before) -> Result<()> {
        if !before.accept_change {
            let facts: Facts = serde_json::from_value(before.facts.clone())
                .with_context(|| format!("read the facts of snapshot {}", before.seq))?;
            self.before = facts.streams;
        }
        Ok(())
    }

    fn join(&mut self, member: Member) {
        self.member = member;
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.given += 1;
        if self.given == 1 {
            let began = self.member.fix(Moment::Chosen, || Ok(self.clock.now()))?;
            self.began = Some(began);
            return Ok(Some(stream_entry("", EntryKind::Dir, began)));
        }
        let Some(stream) = self.streams.get(self.given - 2) else { return Ok(None) };
        self.dump = Some(Dump::start(stream, &self.programs)?);
        Ok(Some(stream_entry(&stream.file, EntryKind::File, self.began.unwrap_or_default())))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let dump = self.dump.as_mut().context("read of a stream that has not begun")?;
        let file = &self.streams[self.given - 2].file;
        let before = self.before.iter().find(|before| before.file == *file);
        if let Some(length) = dump.read(buffer, before)? {
            return Ok(Piece::Data(length));
        }
        self.done.push(dump.facts());
        self.dump = None;
        Ok(Piece::StreamEnd)
    }

    fn finish(&mut self) -> Result<Finished> {
        let whole = self.done.len() == self.streams.len() && self.dump.is_none();
        anyhow::ensure!(whole, "{} of {} streams have ended", self.done.len(), self.streams.len());
        self.member.throughout();
        let facts = Facts { streams: std::mem::take(&mut self.done) };
        let data_time = self.began.context("end of a source that was not begun")?;
        Ok(Finished { data_time, skipped: Vec::new(), facts: serde_json::to_value(facts)? })
    }
}
