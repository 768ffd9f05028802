//! What is there of a log: the stretches, verified, and the names of their objects. Names tell positions, so little must be read.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::line::{HistoryLine, LogLine, PieceLine, Position, StretchLine, is_of_a_stranger};
use super::lost::{self, Survey};
use super::stretch::Stretch;
use crate::bridge::Store;
use crate::repository::history::{self, Cover, Written};
use crate::repository::is_newer;
use crate::repository::layout::{self, Hash, LogKey, SourceName};
use crate::repository::signed::PublicKey;
use crate::repository::trust::Trust;
use crate::storage::{self, Key, Object};

/// A log as listed. What does not verify is in `faults`, and is not used.
pub struct Log {
    pub source: SourceName,
    /// From the oldest to the newest.
    pub stretches: Vec<Stretch>,
    /// (key, why)
    pub faults: Vec<(Key, String)>,
    /// The first of `faults` that the store did not give: nothing is known of it.
    pub unread: Option<Key>,
    /// Some of the faults say nothing against the log: the store did not give the object, or a newer version or a key that is not known here wrote it.
    pub unsure: bool,
    /// The highest number that a stretch has been given, whatever has become of it.
    pub numbered: u64,
    /// What somebody has put over its objects in a store that keeps versions.
    pub covers: Vec<Cover>,
    /// How the store refused objects that are among the faults.
    pub(super) refused: BTreeMap<Key, storage::Kind>,
    /// What is listed of stretches that are not among `stretches`.
    pub(super) unusable: BTreeMap<u64, BTreeMap<u32, Vec<Span>>>,
    /// Where it ends, if that has been read already.
    pub(super) last: Option<Box<Fetched>>,
}

/// An object of a stretch as its key tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    /// Of runs.
    pub end: Option<u64>,
    pub object: Object,
    /// Hidden or covered: the first version counts.
    pub covered: bool,
}

/// What prune has removed of a log, as its record says (FORMAT.md §3-15).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub stretch: u64,
    pub timeline: u32,
    pub below: Position,
}

/// A piece or run that verified.
#[derive(Clone)]
pub struct Fetched {
    pub line: PieceLine,
    pub hash: Hash,
    pub signer: PublicKey,
    pub body: Bytes,
}

/// Where a log ends, for whoever writes on.
pub enum Tail {
    /// With this object, the last that verifies.
    At(Box<Fetched>),
    /// Nothing is stored in the newest stretch, or there is none.
    Nothing,
    /// Nobody can say, for this reason: whoever writes on begins a stretch beside it, and tells of a gap.
    Lost(String),
}

/// Stretches that follow each other without a gap, as indices into [`Log::stretches`]; and where they begin and end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub first: usize,
    pub last: usize,
    /// Where what is still there begins.
    pub from: (u32, Position),
    pub to: (u32, Position),
    /// The engine's clock at the end.
    pub until: Timestamp,
    /// The store's own time of the object at the end.
    pub stored_at: Timestamp,
}

impl Log {
    pub fn list(store: &Store, trust: &Trust, source: &SourceName) -> Result<Log> {
        let listed = history::list(store, &layout::log(source)).with_context(|| format!("list the log of {source}"))?;
        Ok(Log::of(store, trust, source, listed))
    }

    /// The log of a source of which nothing is stored.
    pub fn none(source: &SourceName) -> Log {
        Log {
            source: source.clone(),
            stretches: Vec::new(),
            faults: Vec::new(),
            unread: None,
            unsure: false,
            numbered: 0,
            covers: Vec::new(),
            refused: BTreeMap::new(),
            unusable: BTreeMap::new(),
            last: None,
        }
    }

    /// The log of `source` as far as it is in `listed`.
    pub(super) fn of(store: &Store, trust: &Trust, source: &SourceName, listed: Vec<Written>) -> Log {
        let mut log = Log::none(source);
        let mut spans: BTreeMap<u64, BTreeMap<u32, Vec<Span>>> = BTreeMap::new();
        let (mut records, mut histories) = (Vec::new(), Vec::new());
        for written in listed {
            // What prune has deleted leaves at most markers.
            if written.versions.is_empty() {
                continue;
            }
            log.covers.extend(written.cover());
            let place = layout::parse_log(source, &written.key);
            log.numbered = log.numbered.max(place.as_ref().map_or(0, LogKey::stretch));
            match place {
                Some(LogKey::Stretch(n)) => records.push((n, written)),
                Some(LogKey::History { stretch, timeline }) => histories.push((stretch, timeline, written)),
                Some(LogKey::Piece { stretch, timeline, start, end }) => {
                    let spans = spans.entry(stretch).or_default().entry(timeline).or_default();
                    spans.extend(Span::listed(&written, start, end));
                }
                None => log.faults.push((written.key, "is no object of a log".into())),
            }
        }
        for (n, written) in records {
            match read_stretch(store, trust, source, &written, n) {
                Ok((line, hash, signer)) => {
                    let timelines = spans.remove(&n).unwrap_or_default();
                    log.stretches.push(Stretch { line, hash, signer, timelines, histories: BTreeMap::new() });
                }
                Err(e) => log.fault(written.key, &e),
            }
        }
        for (n, timeline, written) in histories {
            let read = read_history(store, trust, source, &written, n, timeline);
            let key = written.key;
            match (read, log.stretch_mut(n)) {
                (Ok(line), Some(stretch)) => drop(stretch.histories.insert(timeline, line)),
                (Ok(_), None) => log.faults.push((key, "belongs to a stretch that is not there".into())),
                (Err(e), _) => log.fault(key, &e),
            }
        }
        log.leave_out_unknown_timelines();
        for (n, timelines) in spans {
            let first = timelines.values().flatten().next().map(|span| span.object.key.clone());
            log.faults.extend(first.map(|key| (key, format!("stretch {n} has no record that verifies"))));
            log.unusable.insert(n, timelines);
        }
        log
    }

    fn fault(&mut self, key: Key, why: &anyhow::Error) {
        if storage::is_silence(why) {
            self.unread.get_or_insert_with(|| key.clone());
            self.refused.extend(storage::kind_of(why).map(|kind| (key.clone(), kind)));
        }
        self.unsure |= !is_damage(why);
        self.faults.push((key, format!("{why:#}")));
    }

    /// Where the newest stretch ends.
    pub fn tail(&self, store: &Store, trust: &Trust) -> Result<Tail> {
        if let Some(last) = &self.last {
            return Ok(Tail::At(last.clone()));
        }
        let newest = self.stretches.last();
        let since = newest.map_or(0, |stretch| stretch.line.n);
        let matters = |key: &Key| layout::parse_log(&self.source, key).is_some_and(|place| place.stretch() >= since);
        if let Some((key, why)) = self.faults.iter().find(|(key, _)| matters(key)) {
            ensure!(!self.unsure, "{key} cannot be read: {why}");
            return Ok(Tail::Lost(format!("{key} does not verify: {why}")));
        }
        let Some(newest) = newest.filter(|stretch| !stretch.timelines.is_empty()) else { return Ok(Tail::Nothing) };
        let last = match newest.tail(store, trust) {
            Err(e) if is_damage(&e) => newest.last_sound(store, trust)?.map(|(last, _)| last),
            tail => tail?,
        };
        let lost = || Tail::Lost(format!("nothing that is stored of stretch {since} verifies"));
        Ok(last.map_or_else(lost, |last| Tail::At(Box::new(last))))
    }

    /// Where a timeline's history is lost, nobody knows where its bytes belong: the stretch cannot be used.
    fn leave_out_unknown_timelines(&mut self) {
        let unknown =
            |s: &Stretch| s.timelines.keys().find(|t| **t != s.line.timeline && !s.histories.contains_key(*t)).copied();
        for stretch in &self.stretches {
            let Some(timeline) = unknown(stretch) else { continue };
            let key = layout::log_history(&self.source, stretch.line.n, timeline);
            if !self.faults.iter().any(|(k, _)| *k == key) {
                self.faults.push((key, "is missing: what is stored of its timeline cannot be used".into()));
            }
        }
        let (known, left_out): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stretches).into_iter().partition(|s| unknown(s).is_none());
        self.stretches = known;
        self.unusable.extend(left_out.into_iter().map(|s| (s.line.n, s.timelines)));
    }

    fn stretch_mut(&mut self, n: u64) -> Option<&mut Stretch> {
        self.stretches.iter_mut().find(|s| s.line.n == n)
    }

    /// The timeline of the newest stretch, where a crash has kept its history from being stored: it must be before the next piece.
    pub fn owes_history(&self) -> Option<u32> {
        let newest = self.stretches.last()?;
        newest.lacks_history().then_some(newest.line.timeline)
    }

    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// The parts of the log without a gap, the oldest first; a stretch without any piece is none.
    pub fn windows(&self, store: &Store, trust: &Trust) -> Result<Vec<Window>> {
        Ok(self.sound(store, trust)?.windows)
    }

    /// The windows, and what does not verify of the stretches that do.
    pub(super) fn sound(&self, store: &Store, trust: &Trust) -> Result<Survey> {
        let Survey { mut windows, mut lost } = Survey::default();
        // The newest stretch that goes on without a gap from what the newest window has, itself perhaps without a piece.
        let mut chained = None;
        for (at, stretch) in self.stretches.iter().enumerate() {
            let goes_on = stretch.line.continues && chained == stretch.line.n.checked_sub(1);
            let Some((newest, _)) = stretch.timelines.last_key_value() else {
                chained = goes_on.then_some(stretch.line.n);
                continue;
            };
            let Some((tail, stored_at)) = stretch.newest_sound(store, trust)? else {
                chained = None;
                lost.extend(lost::of_stretch(stretch, 0));
                continue;
            };
            if tail.line.timeline != *newest {
                lost.extend(lost::of_stretch(stretch, tail.line.timeline + 1));
            }
            let Some(front) = stretch.front(tail.line.timeline) else { continue };
            // What comes next follows its newest timeline.
            chained = (tail.line.timeline == *newest).then_some(stretch.line.n);
            let (from, to) = (front.at, (tail.line.timeline, tail.line.end));
            match windows.last_mut() {
                Some(last) if goes_on => {
                    (last.last, last.to, last.until, last.stored_at) = (at, to, tail.line.time, stored_at);
                    if front.after_a_hole {
                        last.from = from;
                    }
                }
                _ => windows.push(Window { first: at, last: at, from, to, until: tail.line.time, stored_at }),
            }
        }
        Ok(Survey { windows, lost })
    }

    /// Where the bytes at `position` of `timeline` lie in the window: index of the stretch, and the timeline that wrote them.
    pub fn locate(&self, window: &Window, timeline: u32, position: u64) -> Option<(usize, u32)> {
        let holds = |s: &StretchLine| s.start.0 <= position && s.timeline <= timeline;
        let stretch = (window.first..=window.last).rev().find(|n| holds(&self.stretches[*n].line))?;
        Some((stretch, self.stretches[stretch].timeline_at(timeline, position)))
    }

    /// Whether nothing of `timeline` comes after the position in the window.
    pub fn is_end(&self, window: &Window, timeline: u32, position: u64) -> bool {
        let last = (window.first..=window.last).rev().map(|n| &self.stretches[n]);
        let Some(stretch) = last.into_iter().find(|s| s.line.timeline <= timeline) else { return true };
        let spans = stretch.timelines.get(&stretch.timeline_at(timeline, u64::MAX)).map_or(&[][..], Vec::as_slice);
        let begun = stretch.timeline_at(timeline, u64::MAX) == stretch.timeline_at(timeline, position);
        // A piece that begins here holds the position; one that begins before is asked by whoever reads.
        let ended = |s: &Span| s.end.map_or(s.start < position, |end| end <= position);
        begun && stretch.line.start.0 <= position && spans.iter().all(ended)
    }
}

impl Span {
    /// A piece or run as it was listed; `None` where prune has left at most markers.
    pub(super) fn listed(written: &Written, start: u64, end: Option<u64>) -> Option<Span> {
        let first = written.versions.first()?;
        let object = Object { key: first.key.clone(), size: first.size, modified: first.modified };
        Some(Span { start, end, object, covered: written.cover().is_some() })
    }

    /// How far it reaches for certain, by its name.
    pub(super) fn reaches(&self) -> (u64, u64) {
        (self.end.unwrap_or(self.start + 1), self.start)
    }
}

impl Fetched {
    /// Whether it is this object.
    pub(super) fn is_of(&self, span: &Span) -> bool {
        let line = &self.line;
        let end = line.last.map(|_| line.end.0);
        let place = layout::log_piece(&line.source, line.stretch, line.timeline, line.start.0, end);
        place == span.object.key
    }
}

/// Where the objects of a timeline reach for certain, by their names.
pub fn listed_end(spans: &[Span]) -> Option<u64> {
    spans.iter().map(|span| span.reaches().0).max()
}

/// Whether an object itself is at fault: the store gave it, and neither a newer version nor a key that nobody here knows wrote it.
pub fn is_damage(error: &anyhow::Error) -> bool {
    !is_of_store(error) && !is_newer(error) && !is_of_a_stranger(error)
}

/// Whether the store did not give an object that is there.
pub fn is_of_store(error: &anyhow::Error) -> bool {
    let kept_back = |e: &storage::Error| e.kind != storage::Kind::NotFound;
    error.chain().filter_map(|cause| cause.downcast_ref::<storage::Error>()).any(kept_back)
}

fn read_stretch(
    store: &Store,
    trust: &Trust,
    source: &SourceName,
    written: &Written,
    n: u64,
) -> Result<(StretchLine, Hash, PublicKey)> {
    written.read(store, |object| {
        let verified = LogLine::verify(trust, source, object)?;
        let LogLine::Stretch(line) = verified.line else { bail!("is not what its name says") };
        ensure!(line.n == n, "the object belongs elsewhere");
        let unit = line.unit;
        ensure!(unit.is_power_of_two() && unit <= crate::limits::LOG_UNIT_MAX as u64, "its unit is {unit} bytes");
        Ok((*line, verified.hash, verified.signer))
    })
}

fn read_history(
    store: &Store,
    trust: &Trust,
    source: &SourceName,
    written: &Written,
    n: u64,
    timeline: u32,
) -> Result<HistoryLine> {
    written.read(store, |object| {
        let LogLine::History(line) = LogLine::verify(trust, source, object)?.line else {
            bail!("is not what its name says");
        };
        ensure!(line.stretch == n && line.timeline == timeline, "the object belongs elsewhere");
        Ok(line)
    })
}

/// Reads and verifies a piece or run.
pub fn fetch(store: &Store, trust: &Trust, source: &SourceName, span: &Span) -> Result<Fetched> {
    let key = &span.object.key;
    let check = |object: &Bytes| {
        let verified = LogLine::verify(trust, source, object)?;
        let (line, is_run) = match verified.line {
            LogLine::Piece(line) => (line, false),
            LogLine::Run(line) => (line, true),
            LogLine::Stretch(_) | LogLine::History(_) => bail!("is not what its name says"),
        };
        let end = is_run.then_some(line.end.0);
        let place = layout::log_piece(source, line.stretch, line.timeline, line.start.0, end);
        ensure!(place == *key, "the object belongs elsewhere");
        let body = object.slice_ref(verified.body);
        anyhow::Ok(Fetched { line, hash: verified.hash, signer: verified.signer, body })
    };
    let read = if span.covered {
        history::of(store, key).map_err(Into::into).and_then(|written| written.read(store, check))
    } else {
        store.get(key).map_err(Into::into).and_then(|object| check(&object))
    };
    read.with_context(|| format!("verify {key}"))
}
