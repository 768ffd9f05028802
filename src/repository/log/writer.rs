//! Appending to a log. Every object is created at the position where the one before ends; whoever finds it taken stops.

mod runs;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use std::time::{Duration, Instant};

use super::line::{HistoryLine, LogLine, PieceLine, Position, SealedStretch, StretchLine, seal_body};
use super::listing::{Log, Tail, listed_end};
use super::marks::{self, Mark};
use super::stretch::Stretch;
use crate::bridge::Store;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::limits::LOG_UNIT_MAX;
use crate::repository::agefile::Recipient;
use crate::repository::keys::KeyPair;
use crate::repository::layout::{self, Hash, LogKey, SourceName};
use crate::repository::trust::{Trust, parse_recipient};
use crate::repository::{FORMAT, PROGRAM};
use crate::storage::{self, Key};
use runs::{Part, passing};

/// A writer that has been silent for longer looks again whether it is still alone.
const SILENCE: Duration = Duration::from_secs(5 * 60);

/// Who writes.
#[derive(Clone, Copy)]
pub struct Author<'a> {
    pub store: &'a Store,
    pub trust: &'a Trust,
    pub keys: &'a KeyPair,
    pub host: &'a str,
    pub clock: &'a dyn Clock,
    /// zstd's.
    pub level: i32,
}

/// How a stretch begins.
#[derive(Debug, Clone)]
pub struct Begin {
    pub kind: String,
    pub timeline: u32,
    pub start: u64,
    pub unit: u64,
    /// The first byte follows the last of the newest stretch, on the same history.
    pub continues: bool,
    /// The engine's own name of what positions count on, where it has one.
    pub id: Option<String>,
    pub facts: serde_json::Value,
    pub why: String,
}

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub timeline: u32,
    pub end: u64,
    /// Of the newest piece; of the stretch's record before there is one.
    pub hash: Hash,
}

pub struct Writer<'a> {
    author: Author<'a>,
    source: SourceName,
    recipients: Vec<Recipient>,
    pub stretch: StretchLine,
    pub sealed: SealedStretch,
    head: Head,
    /// A moment, by the engine's clock, at which it had written nothing beyond the head; unknown where a log begins.
    time: Option<Timestamp>,
    /// What comes after the head does not verify, and its place is taken: the log goes on in another stretch.
    beside: bool,
    /// Neighbours that cover the last unit, or its end.
    parts: Vec<Part>,
    /// The bytes that end at the head, as far as they are known here; they begin in the last unit.
    hand: Vec<u8>,
    written: Instant,
}

impl<'a> Writer<'a> {
    /// Begins a stretch after those of `log`.
    pub fn begin(author: Author<'a>, log: &Log, begin: Begin) -> Result<Writer<'a>> {
        ensure!(begin.unit.is_power_of_two() && begin.unit <= LOG_UNIT_MAX as u64, "a unit of {} bytes", begin.unit);
        let newest = log.stretches.last();
        let previous = newest.map(|stretch| last_hash(author, stretch)).transpose()?;
        let time = if begin.continues { known_time(author, log)? } else { None };
        let now = author.clock.now();
        let segment = begin.facts["segment_size"].as_u64().filter(|size| *size > begin.unit);
        let sealed = SealedStretch::new(begin.facts, &begin.why)?;
        let data = author.trust.recovery_recipients()?;
        let index = parse_recipient(&author.keys.identity.to_public().to_string())?;
        let index_to: Vec<Recipient> = data.iter().cloned().chain([index]).collect();
        let stretch = StretchLine {
            format: FORMAT,
            repository: author.trust.id.clone(),
            source: log.source.clone(),
            n: log.numbered + 1,
            previous,
            continues: begin.continues,
            kind: begin.kind,
            epoch: author.trust.epoch,
            unit: begin.unit,
            segment,
            timeline: begin.timeline,
            start: Position(begin.start),
            id: begin.id,
            host: author.host.to_owned(),
            key: author.keys.signing.public().id(),
            agent: PROGRAM.into(),
            started: now,
            sealed: sealed.seal(&index_to)?,
        };
        let key = layout::log_stretch(&log.source, stretch.n);
        let hash = create(author, &log.source, key, &LogLine::Stretch(Box::new(stretch.clone())), &[])?
            .ok_or_else(|| taken(&log.source, "began a stretch of"))?;
        let head = Head { timeline: begin.timeline, end: begin.start, hash };
        Ok(Writer::at(author, data, stretch, sealed, (head, time)))
    }

    /// Goes on with the newest stretch of `log`, from the last of its objects that verifies. Bytes of its last unit that the engine shows again go
    /// through [`Writer::compare`].
    pub fn resume(author: Author<'a>, log: &Log) -> Result<Writer<'a>> {
        let stretch = log.stretches.last().context("there is no stretch to go on with")?;
        let sealed = SealedStretch::open(&stretch.line, std::slice::from_ref(&author.keys.identity))?;
        let data = author.trust.recovery_recipients()?;
        let begun = Head { timeline: stretch.line.timeline, end: stretch.line.start.0, hash: stretch.hash };
        let line = stretch.line.clone();
        let last = match log.tail(author.store, author.trust)? {
            Tail::Lost(why) => bail!("the log cannot be gone on with: {why}"),
            Tail::Nothing => return Ok(Writer::at(author, data, line, sealed, (begun, known_time(author, log)?))),
            Tail::At(last) => last,
        };
        let (timeline, end) = (last.line.timeline, last.line.end.0);
        let head = Head { timeline, end, hash: last.line.last.unwrap_or(last.hash) };
        let mut writer = Writer::at(author, data, line, sealed, (head, Some(last.line.time)));
        writer.beside = stretch.timelines.get(&timeline).and_then(|spans| listed_end(spans)) > Some(end);
        let unit = writer.stretch.unit;
        let spans = stretch.timelines.get(&timeline).map_or(&[][..], Vec::as_slice);
        let known = log.last.as_deref();
        writer.parts = writer.parts(spans, ((end - 1) / unit * unit, end), known, |_| Ok(()))?;
        writer.leave_marked_runs();
        Ok(writer)
    }

    fn at(
        author: Author<'a>,
        recipients: Vec<Recipient>,
        stretch: StretchLine,
        sealed: SealedStretch,
        (head, time): (Head, Option<Timestamp>),
    ) -> Writer<'a> {
        let (parts, hand, source) = (Vec::new(), Vec::new(), stretch.source.clone());
        let written = Instant::now();
        Writer { author, source, recipients, stretch, sealed, head, time, beside: false, parts, hand, written }
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The author's clock.
    pub fn now(&self) -> Timestamp {
        self.author.clock.now()
    }

    /// A moment, by the engine's clock, at which it had written nothing beyond the head; `None`: nothing that is stored tells one.
    pub fn time(&self) -> Option<Timestamp> {
        self.time
    }

    /// Whether the log can go on from the head in another stretch only: what comes after it in this one does not verify.
    pub fn goes_on_beside(&self) -> bool {
        self.beside
    }

    /// Where to let the engine show its bytes again: the start of the unit of the last byte, or of what there is of it.
    pub fn show_from(&self) -> u64 {
        self.parts.first().map_or(self.head.end, |part| part.start)
    }

    /// As [`Writer::show_from`], where the engine has nothing before `first` any more: what comes before is not compared, and stays in its pieces.
    pub fn show_from_at_least(&mut self, first: u64) -> u64 {
        self.parts.retain(|part| part.start >= first);
        self.show_from()
    }

    /// Takes bytes from [`Writer::show_from`] on up to the head, as the engine shows them, and compares them with what is stored.
    /// `false`: they differ, the log has forked.
    pub fn compare(&mut self, bytes: &[u8]) -> Result<bool> {
        let from = self.show_from();
        ensure!(from + bytes.len() as u64 == self.head.end, "compare a log with bytes of another range");
        for part in &self.parts {
            let (start, end) = (usize::try_from(part.start - from)?, usize::try_from(part.end - from)?);
            if self.sealed.check(&bytes[start..end])? != part.check {
                return Ok(false);
            }
        }
        let in_unit = self.head.end - self.head.end / self.stretch.unit * self.stretch.unit;
        let keep = usize::try_from(in_unit)?.min(bytes.len());
        self.hand = bytes[bytes.len() - keep..].to_vec();
        if keep == 0 {
            self.parts.clear();
        }
        Ok(true)
    }

    /// Stores `bytes`, which follow the head and do not cross a unit, as one piece. It is durable when this returns.
    pub fn append(&mut self, bytes: &[u8], time: Timestamp) -> Result<()> {
        self.append_marked(bytes, time, &[])
    }

    /// As [`Writer::append`], with what is known of when bytes came.
    pub fn append_marked(&mut self, bytes: &[u8], time: Timestamp, marks: &[Mark]) -> Result<()> {
        let end = self.head.end + bytes.len() as u64;
        ensure!(
            !self.beside,
            "what is stored after {:x} does not verify: the log goes on in another stretch",
            self.head.end
        );
        ensure!(!bytes.is_empty() && end <= unit_end(self.head.end, self.stretch.unit), "a piece that crosses a unit");
        if self.written.elapsed() > SILENCE {
            self.look_again()?;
        }
        let check = self.sealed.check(bytes)?;
        let line = self.line(self.head.end, end, self.head.hash, &check, time);
        let key = layout::log_piece(&self.source, self.stretch.n, self.head.timeline, self.head.end, None);
        let hash =
            self.put(key, line, (bytes, marks))?.ok_or_else(|| taken(&self.source, "wrote the next piece of"))?;
        let (start, previous, marks) = (self.head.end, self.head.hash, marks.to_vec());
        let part = Part { start, end, level: 0, previous, last: hash, pieces: 1, check, time, marks };
        // What is in hand must reach back without a gap.
        if self.parts.is_empty() || self.hand.len() as u64 >= self.head.end - self.parts[0].start {
            self.parts.push(part);
            self.hand.extend_from_slice(bytes);
        } else {
            (self.parts, self.hand) = (vec![part], bytes.to_vec());
        }
        self.head = Head { timeline: self.head.timeline, end, hash };
        (self.time, self.written) = (Some(time), Instant::now());
        self.merge()
    }

    /// Goes on with another timeline, which leaves the present one at `start`. Its history is durable when this returns.
    pub fn switch(&mut self, timeline: u32, start: u64, history: &[u8]) -> Result<()> {
        ensure!(timeline > self.head.timeline, "timeline {timeline} does not come after {}", self.head.timeline);
        ensure!(
            start <= self.head.end && start >= self.stretch.start.0,
            "timeline {timeline} begins at {start:x}, the log has {:x} to {:x}",
            self.stretch.start.0,
            self.head.end
        );
        if self.parts.len() > 1 {
            passing(self.write_run(0))?;
        }
        self.keep_history(timeline, start, history)?;
        self.head = Head { timeline, end: start, hash: self.head.hash };
        self.parts.clear();
        self.hand.clear();
        Ok(())
    }

    /// Stores the history of a timeline. It is durable when this returns.
    pub fn keep_history(&self, timeline: u32, start: u64, history: &[u8]) -> Result<()> {
        let key = layout::log_history(&self.source, self.stretch.n, timeline);
        let body = seal_body(&self.recipients, history, &[], self.author.level)?;
        let line = HistoryLine {
            format: FORMAT,
            repository: self.author.trust.id.clone(),
            source: self.source.clone(),
            stretch: self.stretch.n,
            timeline,
            start: Position(start),
            body: Hash::of(&body),
            time: self.author.clock.now(),
            key: self.author.keys.signing.public().id(),
        };
        let created = create(self.author, &self.source, key.clone(), &LogLine::History(line), &body)?;
        if created.is_none() {
            let object = self.author.store.get(&key).with_context(|| format!("read {key}"))?;
            let found = LogLine::verify(self.author.trust, &self.source, &object)?.line;
            let LogLine::History(found) = found else { bail!("{key} is not what its name says") };
            if found.start.0 != start {
                return Err(taken(&self.source, "wrote another history of this timeline into"));
            }
        }
        Ok(())
    }

    fn line(&self, start: u64, end: u64, previous: Hash, check: &str, time: Timestamp) -> PieceLine {
        PieceLine {
            format: FORMAT,
            repository: self.author.trust.id.clone(),
            source: self.source.clone(),
            stretch: self.stretch.n,
            timeline: self.head.timeline,
            start: Position(start),
            end: Position(end),
            previous,
            last: None,
            pieces: None,
            body: Hash::of(&[]),
            check: check.to_owned(),
            time,
            key: self.author.keys.signing.public().id(),
        }
    }

    fn put(&self, key: Key, mut line: PieceLine, (bytes, marks): (&[u8], &[Mark])) -> Result<Option<Hash>> {
        let behind = marks::frame(line.start.0, marks)?;
        let body = seal_body(&self.recipients, bytes, &behind, self.author.level)?;
        line.body = Hash::of(&body);
        let line = if line.last.is_some() { LogLine::Run(line) } else { LogLine::Piece(line) };
        create(self.author, &self.source, key, &line, &body)
    }

    /// Whether the log still ends where this writer left it.
    fn look_again(&self) -> Result<()> {
        let unit = self.stretch.unit;
        let start = self.head.end / unit * unit;
        let prefix = layout::log_unit(&self.source, self.stretch.n, self.head.timeline, start, unit);
        let listed = self.author.store.list(&prefix).context("look at the end of the log")?;
        let newer = listed.iter().any(|object| match layout::parse_log(&self.source, &object.key) {
            Some(LogKey::Piece { start, end, .. }) => start >= self.head.end || end > Some(self.head.end),
            _ => false,
        });
        let stretches = self.author.store.list(&layout::log_stretches(&self.source)).context("list the stretches")?;
        let newest = stretches.iter().filter_map(|o| layout::parse_log(&self.source, &o.key)).next_back();
        if newer || newest != Some(LogKey::Stretch(self.stretch.n)) {
            return Err(taken(&self.source, "wrote to"));
        }
        Ok(())
    }
}

/// The end of the unit that a piece from `start` may fill.
pub fn unit_end(start: u64, unit: u64) -> u64 {
    (start / unit + 1) * unit
}

/// Of the last object of a stretch that verifies; of its record where there is none.
fn last_hash(author: Author, stretch: &Stretch) -> Result<Hash> {
    let last = stretch.last_sound(author.store, author.trust)?;
    Ok(last.map_or(stretch.hash, |(last, _)| last.line.last.unwrap_or(last.hash)))
}

/// What the last object tells that the newest stretch has, or one that it continues.
fn known_time(author: Author, log: &Log) -> Result<Option<Timestamp>> {
    for stretch in log.stretches.iter().rev() {
        if let Some((last, _)) = stretch.last_sound(author.store, author.trust)? {
            return Ok(Some(last.line.time));
        }
        if !stretch.line.continues {
            break;
        }
    }
    Ok(None)
}

/// `None`: there is an object of that name already.
fn create(author: Author, source: &SourceName, key: Key, line: &LogLine, body: &[u8]) -> Result<Option<Hash>> {
    let object = line.sign(&author.keys.signing, body)?;
    // What this program would not accept it must not write.
    LogLine::verify(author.trust, source, &object).with_context(|| format!("check {key} before it is written"))?;
    let hash = Hash::of(&object);
    match author.store.create(&key, object.into(), &hash.0) {
        Ok(_) => Ok(Some(hash)),
        Err(e) if e.kind == storage::Kind::AlreadyExists => Ok(None),
        Err(e) => Err(e).with_context(|| format!("store {key}")),
    }
}

fn taken(source: &SourceName, did: &str) -> anyhow::Error {
    Failure::new(
        Kind::Busy,
        format!("another writer {did} the log of {source}"),
        "Nothing was lost: what it wrote is stored, and this one wrote nothing over it. Make sure that one receiver alone runs for this source.",
    )
}
