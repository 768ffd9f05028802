//! Integrity of a stored log, without any key: that everything listed verifies, follows what comes before, and leaves no hole.

use anyhow::Result;

use crate::operations::Open;
use crate::repository::history::Cover;
use crate::repository::layout::{self, Hash, SourceName};
use crate::repository::log::{Log, Span, Stretch, fetch};

/// What is wrong with a log, and what was read to find out.
#[derive(Debug, Default)]
pub struct Checked {
    pub objects: u64,
    pub bytes_read: u64,
    /// (object, what)
    pub faults: Vec<(String, String)>,
    /// Whether one of the faults is that the store did not give an object.
    pub unread: bool,
    pub covers: Vec<Cover>,
}

/// Checks the log of `source`. `read`: every object, not only what its name tells.
pub fn check(open: &Open, source: &SourceName, read: bool) -> Result<Checked> {
    let log = Log::list(&open.store, &open.trust, source)?;
    let faults = log.faults.iter().map(|(key, why)| (key.to_string(), why.clone())).collect();
    let mut checked =
        Checked { faults, covers: log.covers.clone(), unread: log.unread.is_some(), ..Checked::default() };
    for stretch in &log.stretches {
        if stretch.lacks_history() {
            let key = layout::log_history(source, stretch.line.n, stretch.line.timeline);
            checked.faults.push((key.to_string(), "is missing: a server that follows the log may need it".into()));
        }
        checked.objects += 1 + stretch.histories.len() as u64;
        for (timeline, spans) in &stretch.timelines {
            checked.objects += spans.len() as u64;
            if read {
                let end = chain(open, stretch, *timeline, spans, &mut checked);
                // A timeline reaches at least to where the next one leaves it.
                let next = stretch.histories.range(timeline + 1..).next();
                if let Some((next, _)) = next.filter(|(_, history)| history.start.0 > end) {
                    let what = format!("what the log held from {end:016x} to the start of timeline {next} is lost");
                    let key = layout::log_history(source, stretch.line.n, *next);
                    checked.faults.push((key.to_string(), what));
                }
            }
        }
    }
    Ok(checked)
}

/// Reads the objects of one timeline; gives where it ends.
fn chain(open: &Open, stretch: &Stretch, timeline: u32, spans: &[Span], checked: &mut Checked) -> u64 {
    // Up to where, and with which piece, the chain has come. Prune takes objects from the front.
    let mut come: Option<(u64, Option<Hash>)> = None;
    let begun = stretch.histories.get(&timeline).map_or(stretch.line.start.0, |history| history.start.0);
    for group in spans.chunk_by(|a, b| a.start == b.start) {
        let start = group[0].start;
        let first = come.is_none();
        let (at, last) = come.unwrap_or((start, None));
        if start > at {
            let what = format!("what the log held from {at:016x} to {start:016x} is lost");
            checked.faults.push((group[0].object.key.to_string(), what));
        }
        let mut furthest = (at.max(start), if start > at { None } else { last });
        for span in group {
            checked.bytes_read += span.object.size;
            let fetched = match fetch(&open.store, &open.trust, &stretch.line.source, span) {
                Ok(fetched) => fetched,
                Err(e) => {
                    let why: Vec<String> = e.chain().skip(1).map(ToString::to_string).collect();
                    checked.faults.push((span.object.key.to_string(), why.join(": ")));
                    // Where it ends is what its name or its neighbour says: the loss is named once.
                    furthest = further(furthest, span.end.unwrap_or(start), None);
                    continue;
                }
            };
            let expected =
                if first && start == begun && timeline == stretch.line.timeline { Some(stretch.hash) } else { last };
            if start == at && expected.is_some_and(|hash| hash != fetched.line.previous) {
                let what = "does not follow the piece before it: the chain is broken".to_owned();
                checked.faults.push((span.object.key.to_string(), what));
            }
            furthest = further(furthest, fetched.line.end.0, Some(fetched.line.last.unwrap_or(fetched.hash)));
        }
        come = Some(furthest);
    }
    come.map_or(begun, |(end, _)| end)
}

/// The one that reaches further.
fn further(one: (u64, Option<Hash>), end: u64, hash: Option<Hash>) -> (u64, Option<Hash>) {
    if end > one.0 { (end, hash) } else { one }
}
