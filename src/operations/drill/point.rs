//! Which recovery point a drill takes, and why. Always the latest would never notice that an old one has gone bad.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use std::str::FromStr;

use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::evidence::Level;
use crate::operations::moment::{self, Moment, snapshot_before};
use crate::operations::reach;
use crate::operations::restore::{Pick, nothing_newer_is_broken, nothing_newer_is_gone};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::{Commit, Snapshot};
use crate::time::{in_words, length};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Point {
    /// The newest complete snapshot, also where it is suspect: then the drill says so.
    #[default]
    Latest,
    /// Any complete one, and where a log leads on from it any moment up to the next: not older than this, any at all if absent.
    Random(Option<SignedDuration>),
    Seq(u64),
    Named(Moment),
}

impl FromStr for Point {
    type Err = String;
    /// `latest`, `random`, `random:30d`, a number, a time, a position of the log.
    fn from_str(text: &str) -> Result<Point, String> {
        let wrong = || {
            format!(
                "{text:?} is no recovery point: write latest, random, random:30d, the number of a snapshot, a time, \
                 or a position of the stored log (0/1A2B3C of PostgreSQL, offset:1234 of Redis)"
            )
        };
        match text.split_once(':') {
            Some(("random", window)) => length(window).map(|length| Point::Random(Some(length))).map_err(|_| wrong()),
            None if text == "latest" => Ok(Point::Latest),
            None if text == "random" => Ok(Point::Random(None)),
            _ => text.parse().map(Point::Seq).or_else(|_| text.parse().map(Point::Named)).map_err(|_| wrong()),
        }
    }
}

/// The recovery point that a drill takes.
#[derive(Debug, Clone)]
pub struct Chosen {
    pub commit: Commit,
    pub snapshot: Snapshot,
    /// Up to where the log after the snapshot is replayed; without it, as far as it goes.
    pub moment: Option<Moment>,
    /// Which it is, why, and how to take it again.
    pub why: String,
    /// How deep the drill goes: as asked for, or to a point.
    pub level: Level,
}

/// Finds the point for a drill of `level`, and says why it was taken. A named or drawn point makes a drill with the engine one of
/// [`Level::Point`], which says nothing of the newest snapshot.
pub fn choose(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    (point, level): (Point, Level),
) -> Result<Chosen> {
    let seen = open.seen(source)?;
    let series = Series::list(&open.store, &open.trust, source)?;
    let whole = series.whole();
    let all: Vec<(&Commit, &Snapshot)> = whole.snapshots().collect();
    let complete = || all.iter().filter(|(_, s)| s.outcome == Outcome::Complete);
    let chosen = |found: Option<&(&Commit, &Snapshot)>, why: String, level: Level| {
        let Some((commit, snapshot)) = found else { return Err(nothing(source)) };
        Ok(Chosen { commit: (*commit).clone(), snapshot: (*snapshot).clone(), moment: None, why, level })
    };
    match point {
        Point::Latest if level == Level::Point => choose(open, identities, source, (Point::Random(None), level)),
        Point::Latest => {
            let found =
                chosen(complete().next_back().or(all.last()), "the latest complete snapshot".to_owned(), level)?;
            nothing_newer_is_broken(&whole, &found.snapshot, &Pick::Latest)?;
            nothing_newer_is_gone(series.lacks(seen), &whole, &found.snapshot, &Pick::Latest)?;
            Ok(found)
        }
        Point::Seq(seq) => {
            // What comes back of an older one says nothing of the newest.
            let older = complete().next_back().is_some_and(|(_, newest)| seq < newest.seq);
            let level = if older && level == Level::Engine { Level::Point } else { level };
            chosen(all.iter().find(|(_, s)| s.seq == seq), "named by number".to_owned(), level)
        }
        Point::Named(moment) => named(open, identities, source, moment, level),
        Point::Random(window) => {
            let since = window.map(|w| open.now().checked_sub(w)).transpose().unwrap_or(None).unwrap_or(Timestamp::MIN);
            let window = window.map_or("of all".to_owned(), |w| format!("of the last {}", in_words(w)));
            if !to_moments(level) {
                let among: Vec<_> = complete().filter(|(_, s)| s.data_time >= since).collect();
                let why = format!("drawn at random from {} complete snapshots {window}", among.len());
                return chosen(draw(among.len())?.and_then(|n| among.get(n).copied()), why, level);
            }
            drawn(open, identities, &whole, source, (since, &window))
        }
    }
}

/// Whether a drill of this level may go to a moment: the others know whole snapshots only.
fn to_moments(level: Level) -> bool {
    matches!(level, Level::Engine | Level::Point)
}

fn nothing(source: &SourceName) -> anyhow::Error {
    let help = format!("Nothing was restored. `blackstart snapshots {source}` lists what there is.");
    Failure::new(Kind::Usage, format!("there is no such recovery point of {source} to drill"), help)
}

fn named(open: &Open, identities: &[Identity], source: &SourceName, moment: Moment, level: Level) -> Result<Chosen> {
    if !to_moments(level) {
        let help = "Nothing was restored. --level point goes to a moment; the number of a snapshot is for all levels.";
        return Err(Failure::new(Kind::Usage, format!("a drill of level {level} knows whole snapshots only"), help));
    }
    let (commit, snapshot, logged) = snapshot_before(open, identities, source, moment)?;
    let why = match logged {
        true => format!("named: {moment}, from snapshot {} and the log after it", snapshot.seq),
        false => format!("named: {moment}, and the newest complete snapshot before it"),
    };
    Ok(Chosen { commit, snapshot, moment: logged.then_some(moment), why, level: Level::Point })
}

/// A snapshot is drawn, then a moment up to the next one, if the log leads there.
fn drawn(
    open: &Open,
    identities: &[Identity],
    whole: &Whole,
    source: &SourceName,
    (since, window): (Timestamp, &str),
) -> Result<Chosen> {
    let spans = moment::spans(open, source, whole, since)?;
    let Some(span) = draw(spans.len())?.and_then(|n| spans.get(n)) else { return Err(nothing(source)) };
    let among = format!("drawn at random from {} complete snapshots {window}", spans.len());
    let below = |n: u64| Ok(draw(usize::try_from(n)?)?.unwrap_or(0) as u64);
    if let Some(at) = span.moment(below)? {
        let moment = Moment::Time(at);
        let (commit, snapshot, _) = snapshot_before(open, identities, source, moment)?;
        let why = format!(
            "{among} and the log after them: {moment}, from snapshot {}; the same again: blackstart drill {source} --point {moment}",
            snapshot.seq
        );
        return Ok(Chosen { commit, snapshot, moment: Some(moment), why, level: Level::Point });
    }
    let found = whole.snapshots().find(|(_, s)| s.seq == span.seq);
    let (commit, snapshot) = found.ok_or_else(|| nothing(source))?;
    let why = format!("{among}: {}; the same again: blackstart drill {source} --level point --point {0}", span.seq);
    Ok(Chosen { commit: commit.clone(), snapshot: snapshot.clone(), moment: None, why, level: Level::Point })
}

/// An even draw below `n`; none from nothing.
fn draw(n: usize) -> Result<Option<usize>> {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("draw random bytes")?;
    let n = n as u64;
    // 64 bits over a handful of snapshots: the remainder favours none measurably.
    Ok((n > 0).then(|| u64::from_le_bytes(bytes) % n).and_then(|drawn| usize::try_from(drawn).ok()))
}

/// Where the log ends that a drill at `level` replays: at the moment, if there is one; otherwise on the snapshot's own timeline, and only where
/// an engine is started.
pub fn replayed_until(
    open: &Open,
    snapshot: &Snapshot,
    (level, moment): (Level, Option<Moment>),
) -> Result<Option<Timestamp>> {
    match moment {
        Some(Moment::Time(at)) => return Ok(Some(at)),
        // A position tells no time.
        Some(_) => return Ok(None),
        None => {}
    }
    let Some(range) = snapshot.log.as_ref().filter(|_| level.proves()) else { return Ok(None) };
    let log = reach::log_after(open, snapshot)?;
    Ok(log.filter(|log| log.timeline == range.timeline).map(|log| log.until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read() {
        let month = SignedDuration::from_hours(30 * 24);
        let read = |text: &str| text.parse::<Point>();
        assert_eq!(read("latest"), Ok(Point::Latest));
        assert_eq!(read("random"), Ok(Point::Random(None)));
        assert_eq!(read("random:30d"), Ok(Point::Random(Some(month))));
        assert_eq!(read("12"), Ok(Point::Seq(12)));
        let at = "2026-11-22T14:05:00Z".parse().unwrap();
        assert_eq!(read("2026-11-22T14:05:00Z"), Ok(Point::Named(Moment::Time(at))));
        assert_eq!(read("0/1A2B3C"), Ok(Point::Named(Moment::Lsn(0x1a_2b3c))));
        assert_eq!(read("offset:12"), Ok(Point::Named(Moment::Offset(12))));
        for wrong in ["newest", "random:", "random:-3d", "oldest:3d", "-1", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_draw_reaches_everything_and_nothing_else() {
        assert_eq!(draw(0).unwrap(), None);
        let mut seen = [false; 3];
        for _ in 0..200 {
            seen[draw(3).unwrap().unwrap()] = true;
        }
        assert_eq!(seen, [true; 3]);
    }
}
