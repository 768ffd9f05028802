//! One file of the log from a server that archives: `archive_command`. It writes the same log as the receiver.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

use crate::error::{Failure, Kind};
use crate::limits::LOG_UNIT_MAX;
use crate::operations::Host;
use crate::repository::layout::SourceName;
use crate::repository::log::{Author, Begin, Log, SealedStretch, Stretch, StretchLine, Tail, Writer, unit_end};
use crate::source::postgres::wal::{Lsn, WalFile, parse_history};

#[derive(Debug, Clone, Serialize)]
pub struct PushReport {
    pub source: SourceName,
    pub file: String,
    /// Bytes that were not stored before.
    pub bytes: u64,
    /// What the operator should know: a gap, a file that needs no archiving.
    pub notes: Vec<String>,
}

/// Stores the file at `path`. `Ok`: the server may forget it.
pub fn push(host: &Host, source: &SourceName, path: &Path, level: i32) -> Result<PushReport> {
    let name = path.file_name().context("wal-push needs the path of a file")?.to_string_lossy().into_owned();
    let mut report = PushReport { source: source.clone(), file: name.clone(), bytes: 0, notes: Vec::new() };
    let open = &host.open;
    let author = Author {
        store: &open.store,
        trust: &open.trust,
        keys: &host.keys,
        host: &host.name,
        clock: &*open.clock,
        level,
    };
    let log = |near| Log::list_end(&open.store, &open.trust, source, near);
    if let Some(timeline) = name.strip_suffix(".history") {
        let timeline = u32::from_str_radix(timeline, 16).with_context(|| format!("{name} is no file of the log"))?;
        let (text, start) = history_beside(path, timeline)?;
        let log = log(start)?;
        let lost = matches!(log.tail(&open.store, &open.trust)?, Tail::Lost(_));
        if log.is_empty() || lost {
            report.notes.push(format!("{name}: stored with the next segment"));
        } else {
            Writer::resume(author, &log)?.keep_history(timeline, start, &text)?;
            report.bytes = text.len() as u64;
        }
        return Ok(report);
    }
    if name.ends_with(".backup") || name.ends_with(".partial") {
        report
            .notes
            .push(format!("{name}: not stored; snapshots and the next timeline's segment hold what counts of it"));
        return Ok(report);
    }
    let size = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size), "{name} has {size} bytes: it is no segment");
    let Some(WalFile::Segment { timeline, start }) = WalFile::parse(&name, size) else {
        anyhow::bail!("{name} is no file of the log");
    };
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let segment = Segment { path, timeline, start, bytes: &bytes };
    let before = segment.store(author, log(start)?, &mut report)?;
    report.bytes = (start + size).saturating_sub(before.max(start));
    Ok(report)
}

struct Segment<'a> {
    path: &'a Path,
    timeline: u32,
    start: u64,
    bytes: &'a [u8],
}

impl Segment<'_> {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Gives the position up to which it was stored before.
    fn store(&self, author: Author, log: Log, report: &mut PushReport) -> Result<u64> {
        let system = system_identifier(self.bytes)?;
        let tail = log.tail(author.store, author.trust)?;
        let Some(newest) = log.stretches.last() else {
            return match tail {
                Tail::Lost(why) => self.begin_after_a_gap(author, &log, &system, &why, report),
                _ => self.append(&mut self.begin(author, &log, &system, "the log begins")?).map(|()| self.start),
            };
        };
        same_server(author, &newest.line, &system)?;
        if let Tail::Lost(why) = tail {
            return self.begin_after_a_gap(author, &log, &system, &why, report);
        }
        let mut writer = Writer::resume(author, &log)?;
        if let Some(timeline) = log.owes_history() {
            let (text, at) = history_beside(self.path, timeline)?;
            writer.keep_history(timeline, at, &text)?;
        }
        if self.timeline < writer.head().timeline {
            self.is_left_over(newest, &writer)?;
            report.notes.push(format!("{}: the log has gone on to timeline {}", report.file, writer.head().timeline));
            return Ok(self.end());
        }
        let head = writer.head();
        if self.timeline > head.timeline {
            let (text, at) = history_beside(self.path, self.timeline)?;
            if head.end >= self.start && (self.start..=self.end()).contains(&at) {
                if head.end <= at {
                    self.compare(&mut writer)?;
                    writer = self.to_go_on_with(author, &log, writer, report)?;
                    self.fill(&mut writer, at)?;
                } else {
                    let (left, end) = (Lsn(at), Lsn(head.end));
                    report
                        .notes
                        .push(format!("timeline {} is stored up to {end}, and was left at {left}", head.timeline));
                }
                writer.switch(self.timeline, at, &text)?;
                self.append(&mut writer)?;
                return Ok(head.end);
            }
        } else if self.end() <= head.end {
            self.look_at_what_is_stored(&writer, report)?;
            return Ok(self.end());
        } else if (self.start..self.end()).contains(&head.end) {
            self.compare(&mut writer)?;
            writer = self.to_go_on_with(author, &log, writer, report)?;
            self.append(&mut writer)?;
            return Ok(head.end);
        }
        let why = format!("archiving went on at {}, and the log ends at {}", Lsn(self.start), Lsn(head.end));
        self.begin_after_a_gap(author, &log, &system, &why, report)
    }

    /// A segment of a timeline that the log has left: of a server that was promoted since, or is to be replaced by one that was. What a server
    /// writes there later belongs to no history that the log has, and would be lost if it were taken for archived.
    fn is_left_over(&self, newest: &Stretch, writer: &Writer) -> Result<()> {
        let left = newest.histories.range(self.timeline + 1..).next();
        let since = left.filter(|(_, history)| self.end() > history.start.0).map(|(_, history)| history.time);
        let written = self.written();
        if since.is_none_or(|since| written.is_none_or(|written| written <= since)) {
            return Ok(());
        }
        let (file, source, on) = (self.path.display(), &newest.line.source, writer.head().timeline);
        Err(Failure::new(
            Kind::CheckFailed,
            format!(
                "{file} was written on timeline {} after the log of {source} had gone on to timeline {on}: two servers archive into one log",
                self.timeline
            ),
            format!(
                "It was not stored, and the server keeps it. One of the two is a copy of the other, restored, promoted or cloned: empty its archive_command, or \
                 give it a source of its own. For this log to go on with this server: wal-receive {source} --anew --once, and a new snapshot."
            ),
        ))
    }

    /// When the server has last written into it, and not when it was archived.
    fn written(&self) -> Option<Timestamp> {
        std::fs::metadata(self.path).and_then(|metadata| metadata.modified()).ok()?.try_into().ok()
    }

    /// Pushed again, or received as a stream before: the same bytes, or a fork.
    fn look_at_what_is_stored(&self, writer: &Writer, report: &mut PushReport) -> Result<()> {
        let begun = writer.stretch.start.0;
        if self.end() <= begun {
            let file = &report.file;
            // Another stretch that went back would end the one that is being written.
            report.notes.push(format!(
                "{file}: not stored: it comes before {}, where the newest part of the log begins, which is being written. Points in time \
                 between need a snapshot that lies in that part",
                Lsn(begun)
            ));
            return Ok(());
        }
        let from = self.start.max(begun);
        match writer.holds(from, &self.bytes[usize::try_from(from - self.start)?..])? {
            Some(false) => Err(forked(&report.file)),
            _ => Ok(()),
        }
    }

    fn begin_after_a_gap(
        &self,
        author: Author,
        log: &Log,
        system: &str,
        why: &str,
        report: &mut PushReport,
    ) -> Result<u64> {
        let mut writer = self.begin(author, log, system, why)?;
        report
            .notes
            .push(format!("{}: a gap in the log: {why}. Points in time after it need a new snapshot", report.file));
        self.append(&mut writer)?;
        Ok(self.start)
    }

    /// The writer; or, where what comes after its head does not verify, one of a stretch that follows without a gap.
    fn to_go_on_with<'a>(
        &self,
        author: Author<'a>,
        log: &Log,
        writer: Writer<'a>,
        report: &mut PushReport,
    ) -> Result<Writer<'a>> {
        if !writer.goes_on_beside() {
            return Ok(writer);
        }
        let (head, line) = (writer.head(), &writer.stretch);
        let why = format!("what was stored after {} does not verify; it is stored again", Lsn(head.end));
        report.notes.push(format!("{}: {why}: nothing is missing", report.file));
        let begin = Begin {
            kind: line.kind.clone(),
            timeline: head.timeline,
            start: head.end,
            unit: line.unit,
            continues: true,
            id: None,
            facts: writer.sealed.facts.clone(),
            why,
        };
        Writer::begin(author, log, begin)
    }

    fn begin<'a>(&self, author: Author<'a>, log: &Log, system: &str, why: &str) -> Result<Writer<'a>> {
        let size = self.bytes.len() as u64;
        let facts = json!({"system_identifier": system, "segment_size": size});
        let begin = Begin {
            kind: "postgres".into(),
            timeline: self.timeline,
            start: self.start,
            unit: size.min(LOG_UNIT_MAX as u64),
            continues: false,
            id: None,
            facts,
            why: why.to_owned(),
        };
        // Read before anything is written: without it the stretch must not begin.
        let born = if self.timeline > 1 { Some(history_beside(self.path, self.timeline)?) } else { None };
        let writer = Writer::begin(author, log, begin)?;
        if let Some((text, at)) = born {
            writer.keep_history(self.timeline, at, &text)?;
        }
        Ok(writer)
    }

    /// Compares what is stored of the segment already.
    fn compare(&self, writer: &mut Writer) -> Result<()> {
        let (from, end) = (writer.show_from(), writer.head().end);
        if from < self.start || end > self.end() || from == end {
            return Ok(());
        }
        let range = usize::try_from(from - self.start)?..usize::try_from(end - self.start)?;
        if writer.compare(&self.bytes[range])? { Ok(()) } else { Err(forked(&self.path.display().to_string())) }
    }

    fn append(&self, writer: &mut Writer) -> Result<()> {
        self.fill(writer, self.end())
    }

    /// Appends up to `to`.
    fn fill(&self, writer: &mut Writer, to: u64) -> Result<()> {
        let time = self.written().unwrap_or(writer.now()).min(writer.now());
        while writer.head().end < to {
            let head = writer.head().end;
            let end = unit_end(head, writer.stretch.unit).min(to);
            let range = usize::try_from(head - self.start)?..usize::try_from(end - self.start)?;
            writer.append(&self.bytes[range], time)?;
        }
        Ok(())
    }
}

/// `xlp_sysid` of the long header with which a segment begins.
fn system_identifier(segment: &[u8]) -> Result<String> {
    let bytes = segment.get(24..32).context("a segment without a header")?;
    Ok(u64::from_le_bytes(bytes.try_into()?).to_string())
}

fn same_server(author: Author, newest: &StretchLine, system: &str) -> Result<()> {
    let (sealed, source) = (SealedStretch::open(newest, std::slice::from_ref(&author.keys.identity))?, &newest.source);
    let known = sealed.facts["system_identifier"].as_str().unwrap_or_default();
    if known == system {
        return Ok(());
    }
    Err(Failure::new(
        Kind::CheckFailed,
        format!(
            "this segment is of the server with the system identifier {system}, and the log of {source} is of {known}"
        ),
        "Nothing was stored. Give each server a source of its own.",
    ))
}

fn forked(file: &str) -> anyhow::Error {
    Failure::new(
        Kind::CheckFailed,
        format!("{file} differs from what is stored of it: the log has forked"),
        "Nothing was stored, and what is stored is untouched. The server was set back, or it is a copy of the one whose log this is. \
         wal-receive --anew begins a new stretch with this server; it needs a new snapshot.",
    )
}

/// The history file of `timeline`, which lies beside the segments, and where the timeline began.
fn history_beside(path: &Path, timeline: u32) -> Result<(Vec<u8>, u64)> {
    let file = path.with_file_name(WalFile::History { timeline }.name(1 << 20));
    let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let left = parse_history(&text)?;
    let (_, at) = left.last().with_context(|| format!("{} names no parent", file.display()))?;
    Ok((text, at.0))
}
