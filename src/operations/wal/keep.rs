//! What of a log may go: a pure function of listing, kept snapshots and the window for points in time (FORMAT.md §3-15).

use anyhow::Result;
use jiff::Timestamp;

use super::{Part, goes_on_from};
use crate::operations::Open;
use crate::repository::log::{Gone, Log, Position, Span, fetch, is_damage, is_of_store, listed_end};
use crate::repository::snapshot::LogRange;
use crate::storage::Object;

/// A kept snapshot, as far as the log matters.
#[derive(Debug, Clone)]
pub struct Anchor {
    pub range: LogRange,
    /// When it was complete: moments from then on can be reached from it.
    pub reaches_from: Timestamp,
    /// Nothing is missing in it and it is not suspect, so that a restore to a point in time begins with it (FORMAT.md §4-10, -11).
    pub good: bool,
}

/// What may go.
#[derive(Debug, Default)]
pub struct Spare {
    pub objects: Vec<Object>,
    pub gone: Vec<Gone>,
}

/// What is needed no more of what was stored before `old`. `horizon`: points in time before it need not be reached, but for the snapshots.
pub fn spare(open: &Open, log: &Log, kept: &[Anchor], horizon: Option<Timestamp>, old: Timestamp) -> Result<Spare> {
    // Whoever cannot read it, or does not understand it, must not judge it.
    if log.unsure {
        return Ok(Spare::default());
    }
    let Some(parts) = parts(open, log)? else { return Ok(Spare::default()) };
    let mut spare = Spare::default();
    for (n, part) in parts.iter().enumerate() {
        let below = needed_from(anchors(log, &parts, part, kept), horizon, n + 1 == parts.len());
        for stretch in &log.stretches[part.first..=part.last] {
            // Whole files: what is read back is no less.
            let whole = stretch.line.segment.unwrap_or(stretch.line.unit);
            let below = below / whole * whole;
            for (timeline, spans) in &stretch.timelines {
                let Some(end) = listed_end(spans) else { continue };
                let gone: Vec<&Span> =
                    expired(spans, end, below).into_iter().filter(|s| s.object.modified < old).collect();
                if let Some(last) = gone.iter().map(|s| ends(spans, s, end)).max() {
                    spare.gone.push(Gone { stretch: stretch.line.n, timeline: *timeline, below: Position(last) });
                }
                spare.objects.extend(gone.iter().map(|s| s.object.clone()));
                for (run, covered) in superseded(spans) {
                    let old = |s: &&&Span| s.object.modified < old && !gone.contains(s);
                    let covered: Vec<&Span> = covered.into_iter().filter(|s| old(&s)).collect();
                    // A run counts only once it is known to be whole.
                    if !covered.is_empty() && fetch(&open.store, &open.trust, &log.source, run).is_ok() {
                        spare.objects.extend(covered.into_iter().map(|s| s.object.clone()));
                    }
                }
            }
        }
    }
    spare.objects.sort_by(|a, b| a.key.cmp(&b.key));
    spare.objects.dedup_by(|a, b| a.key == b.key);
    Ok(spare)
}

/// The log as records and names tell it. What does not verify now may be put right from a copy, so it takes nothing from what would then be
/// reached through it: a stretch that goes on may follow one that cannot be read, and an end that does not verify may be anywhere. `None`: a newer
/// version, or a key that is not known here, wrote an end.
fn parts(open: &Open, log: &Log) -> Result<Option<Vec<Part>>> {
    let mut parts: Vec<Part> = Vec::new();
    for (at, stretch) in log.stretches.iter().enumerate() {
        let line = &stretch.line;
        let timeline = stretch.timelines.last_key_value().map_or(line.timeline, |(timeline, _)| *timeline);
        let end = match stretch.tail(&open.store, &open.trust) {
            Ok(tail) => tail.map_or(line.start, |tail| tail.line.end),
            Err(e) if is_damage(&e) => Position(u64::MAX),
            Err(e) if is_of_store(&e) => return Err(e),
            Err(_) => return Ok(None),
        };
        match parts.last_mut().filter(|_| line.continues) {
            Some(part) => (part.last, part.to) = (at, (timeline, end)),
            None => parts.push(Part { first: at, last: at, from: line.start, to: (timeline, end) }),
        }
    }
    Ok(Some(parts))
}

/// The snapshots from which the log of a part goes on.
fn anchors<'a>(log: &Log, parts: &[Part], part: &Part, kept: &'a [Anchor]) -> Vec<&'a Anchor> {
    let holds = |part: &Part, a: &Anchor| goes_on_from(log, part, &a.range) && a.range.end <= part.to.1;
    // One that lies in a stretch that cannot be read may be followed by each that goes on from such a stretch.
    let present = |n: u64| log.stretches.iter().any(|s| s.line.n == n);
    let unsure = log.stretches[part.first..=part.last].iter().any(|s| s.line.continues && !present(s.line.n - 1));
    let lies_nowhere = |a: &Anchor| !parts.iter().any(|part| holds(part, a));
    let may_hold = |a: &Anchor| unsure && lies_nowhere(a) && a.range.end <= part.to.1;
    kept.iter().filter(|a| holds(part, a) || may_hold(a)).collect()
}

/// The position before which nothing of a part is needed: where the oldest snapshot that is needed in it began. A server that recovers asks for the
/// log from there on, although the snapshot has it up to its end.
fn needed_from(mut anchors: Vec<&Anchor>, horizon: Option<Timestamp>, newest: bool) -> u64 {
    anchors.sort_by_key(|a| a.reaches_from);
    // With a horizon: from the newest snapshot on that a restore to it would begin with.
    let first = horizon.and_then(|h| anchors.iter().rposition(|a| a.good && a.reaches_from <= h)).unwrap_or(0);
    let from = anchors[first.min(anchors.len())..].iter().map(|a| a.range.start.0).min();
    // The newest part waits for its first snapshot.
    from.unwrap_or(if newest { 0 } else { u64::MAX })
}

/// The spans that end at `below` or before; never the last of the timeline.
fn expired(spans: &[Span], end: u64, below: u64) -> Vec<&Span> {
    spans.iter().filter(|s| ends(spans, s, end) <= below && ends(spans, s, end) < end).collect()
}

/// Where a span ends: as its name says, or where the next one begins at the latest.
fn ends(spans: &[Span], span: &Span, end: u64) -> u64 {
    let next = spans[spans.partition_point(|s| s.start <= span.start)..].iter().find(|s| s.end.is_none());
    span.end.unwrap_or_else(|| next.map_or(end, |next| next.start))
}

/// The longest runs, each with what it stands for.
fn superseded(spans: &[Span]) -> Vec<(&Span, Vec<&Span>)> {
    let mut runs: Vec<(&Span, Vec<&Span>)> = Vec::new();
    let mut at = 0;
    while at < spans.len() {
        let first = &spans[at];
        let run = spans[at..].iter().take_while(|s| s.start == first.start).max_by_key(|s| s.end);
        let Some((run, end)) = run.and_then(|run| Some((run, run.end?))) else {
            at += 1;
            continue;
        };
        let within = |s: &&Span| s.start >= run.start && s.start < end && s.end.is_none_or(|e| e <= end);
        let until = at + spans[at..].partition_point(|s| s.start < end);
        runs.push((run, spans[at..until].iter().filter(within).filter(|s| *s != run).collect()));
        at = until.max(at + 1);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Key;

    fn span(start: u64, end: Option<u64>) -> Span {
        let object = Object {
            key: Key::new(format!("{start}-{end:?}").replace(['(', ')'], "")),
            size: 1,
            modified: Timestamp::UNIX_EPOCH,
        };
        Span { start, end, object, covered: false }
    }

    fn starts(spans: &[&Span]) -> Vec<(u64, Option<u64>)> {
        spans.iter().map(|s| (s.start, s.end)).collect()
    }

    #[test]
    fn what_ends_before_goes_and_the_last_stays() {
        let spans = [span(0, None), span(0, Some(30)), span(10, None), span(20, None), span(30, None), span(40, None)];
        assert_eq!(starts(&expired(&spans, 50, 35)), [(0, None), (0, Some(30)), (10, None), (20, None)]);
        assert_eq!(starts(&expired(&spans, 50, 19)), [(0, None)]);
        assert_eq!(starts(&expired(&spans, 50, u64::MAX)).len(), 5, "the head stays");
        assert!(expired(&spans, 50, 0).is_empty());
    }

    #[test]
    fn the_longest_run_stands_for_what_lies_in_it() {
        let spans = [
            span(0, None),
            span(0, Some(20)),
            span(0, Some(32)),
            span(10, None),
            span(20, None),
            span(20, Some(32)),
            span(32, None),
            span(40, None),
        ];
        let found = superseded(&spans);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.start, found[0].0.end), (0, Some(32)));
        assert_eq!(starts(&found[0].1), [(0, None), (0, Some(20)), (10, None), (20, None), (20, Some(32))]);
    }
}
