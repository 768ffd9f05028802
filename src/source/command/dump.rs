//! One dump: the child, its output, and the conditions under which the output counts.
//!
//! Bytes alone prove nothing. A stream has ended well only if, in this order: its pipe ended, the child exited with 0, and the marks are
//! those of a whole dump. Whoever holds the pipe open keeps the stream from ending.

use anyhow::{Context, Result};
use std::io::Read;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::StreamFacts;
use super::marks::Marks;
use super::options::Stream;
use super::program::{self, Programs};
use crate::child::{Child, Output, Spec};
use crate::error::{Failure, Kind};

/// Bytes of one read of the pipe, and how many reads may wait for the reader.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// Lines of stderr that a good run keeps.
const WORDS: usize = 10;

pub(super) const NOTHING_COMMITTED: &str = "Nothing was committed: the earlier snapshots stand as they were.";

/// A program that writes a dump, and what is known of its output so far.
pub struct Dump {
    stream: Stream,
    child: Child,
    pieces: Receiver<std::io::Result<Vec<u8>>>,
    /// The piece at hand, and how much of it has been handed on.
    piece: Vec<u8>,
    at: usize,
    marks: Marks,
    began: Instant,
    timeout: Duration,
    idle_timeout: Duration,
}

impl Dump {
    pub(super) fn start(stream: &Stream, programs: &Programs) -> Result<Dump> {
        Dump::begin(stream.clone(), &programs.spec(&stream.dump), programs.timeout, programs.idle_timeout)
    }

    /// Starts `spec`, whose output is to be `stream`. `timeout` bounds it as a whole, `idle_timeout` its silence.
    pub fn begin(stream: Stream, spec: &Spec, timeout: Duration, idle_timeout: Duration) -> Result<Dump> {
        let spec = Spec { output: Output::Piped, ..spec.clone() };
        let mut child = Child::spawn(&spec).map_err(|e| {
            let help = format!("{NOTHING_COMMITTED} Install the program, or give its whole path.");
            Failure::new(Kind::Failed, format!("the dump of {} cannot begin: {e:#}", stream.file), help)
        })?;
        let pipe = child.output().context("open the child's output")?;
        let (send, pieces) = sync_channel(PIECES);
        std::thread::spawn(move || pump(pipe, &send));
        let (marks, began) = (Marks::new(), Instant::now());
        Ok(Dump { stream, child, pieces, piece: Vec::new(), at: 0, marks, began, timeout, idle_timeout })
    }

    /// The next bytes; `None` once the dump has ended well. An `Err` says that it did not.
    pub fn read(&mut self, buffer: &mut [u8], before: Option<&StreamFacts>) -> Result<Option<usize>> {
        if self.at == self.piece.len() {
            match self.next_piece()? {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => {
                    self.end()?;
                    self.judge(before)?;
                    return Ok(None);
                }
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        self.marks.pass(&buffer[..length]);
        Ok(Some(length))
    }

    fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        let left = self.timeout.saturating_sub(self.began.elapsed());
        match self.pieces.recv_timeout(left.min(self.idle_timeout)) {
            Ok(piece) => Ok(Some(piece.with_context(|| format!("read the dump of {}", self.stream.file))?)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.hangs(left <= self.idle_timeout)),
        }
    }

    fn hangs(&self, whole: bool) -> anyhow::Error {
        let file = &self.stream.file;
        let (what, key) = match whole {
            true => (format!("took longer than {} s", self.timeout.as_secs_f64()), "timeout"),
            false => (format!("wrote nothing for {} s", self.idle_timeout.as_secs_f64()), "idle_timeout"),
        };
        let said = self.child.tail().join("\n  ");
        let said = if said.is_empty() { String::new() } else { format!("; it said:\n  {said}") };
        Failure::new(
            Kind::Failed,
            format!("the dump of {file} {what} after {} bytes, and was killed{said}", self.marks.bytes),
            format!(
                "{NOTHING_COMMITTED} See why it hangs; if it only is slow, set a longer `{key}` in [source.command]."
            ),
        )
    }

    /// Waits for the child after its pipe has ended.
    fn end(&mut self) -> Result<()> {
        let left = self.timeout.saturating_sub(self.began.elapsed()).min(self.idle_timeout);
        let ended = self.child.wait(left).and_then(|ended| ended.success());
        ended.map_err(|e| {
            let help = format!("{NOTHING_COMMITTED} Correct what the program complains of, and run the backup again.");
            Failure::new(
                Kind::Failed,
                format!("the dump of {} failed after {} bytes: {e:#}", self.stream.file, self.marks.bytes),
                help,
            )
        })
    }

    /// Whether what came is a whole dump.
    fn judge(&self, before: Option<&StreamFacts>) -> Result<()> {
        let (stream, marks) = (&self.stream, &self.marks);
        let refuse = |what: String, advice: &str| {
            let message = format!("{} succeeded, but its dump {} {what}", program::name(&stream.dump), stream.file);
            Err(Failure::new(Kind::Failed, message, format!("{NOTHING_COMMITTED} {advice}")))
        };
        if marks.bytes < stream.min_bytes {
            let what = format!("has {} bytes, and {} is the least (`min_bytes`)", marks.bytes, stream.min_bytes);
            return refuse(what, "See why the program found so little.");
        }
        if !marks.has_magic(stream) {
            let what = format!("begins with \"{}\", not with its `magic`", marks.begin());
            return refuse(what, "It is no dump of this kind: see what the program writes to its stdout.");
        }
        if !marks.has_end_marker(stream) {
            return refuse(
                "has no `end_marker` at its end".into(),
                "It was cut off, or the program writes another marker.",
            );
        }
        if let Some(before) = before
            && (marks.bytes as f64) < before.bytes as f64 * (1.0 - stream.max_shrink.0 / 100.0)
        {
            let what = format!(
                "shrank from {} to {} bytes, by more than {}% (`max_shrink`)",
                before.bytes, marks.bytes, stream.max_shrink.0
            );
            return refuse(
                what,
                "See what is missing. If the data was meant to go, run the backup once with --accept-change.",
            );
        }
        Ok(())
    }

    /// What to remember of a dump that ended well.
    pub fn facts(&self) -> StreamFacts {
        let mut stderr = self.child.tail();
        stderr.drain(..stderr.len().saturating_sub(WORDS));
        StreamFacts {
            file: self.stream.file.clone(),
            program: program::name(&self.stream.dump),
            bytes: self.marks.bytes,
            sha256: self.marks.sha256(),
            seconds: self.began.elapsed().as_secs_f64(),
            stderr,
        }
    }
}

/// Hands on what the pipe brings, until it ends or nobody wants it.
fn pump(mut pipe: ChildStdout, out: &SyncSender<std::io::Result<Vec<u8>>>) {
    loop {
        let mut piece = vec![0; PIECE];
        let read = match pipe.read(&mut piece) {
            Ok(0) => return,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read,
        };
        let read = read.map(|length| {
            piece.truncate(length);
            piece
        });
        let failed = read.is_err();
        if out.send(read).is_err() || failed {
            return;
        }
    }
}
