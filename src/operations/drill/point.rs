//! Which recovery point a drill takes, and why. Always the latest would never notice that an old one has gone bad.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use std::str::FromStr;

use super::Level;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::reach;
use crate::operations::restore::{Pick, nothing_newer_is_broken};
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, Snapshot};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Point {
    /// The newest complete snapshot, also where it is suspect: then the drill says so.
    #[default]
    Latest,
    /// Any complete one whose data is not older than this; any at all if absent.
    Random(Option<SignedDuration>),
    Seq(u64),
}

impl FromStr for Point {
    type Err = String;
    /// `latest`, `random`, `random:30d`, a number.
    fn from_str(text: &str) -> Result<Point, String> {
        let wrong = || format!("{text:?} is no recovery point: write latest, random, random:30d, or a number");
        match text.split_once(':') {
            Some(("random", window)) => {
                let span: Span = window.parse().map_err(|_| wrong())?;
                let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
                if length.is_positive() { Ok(Point::Random(Some(length))) } else { Err(wrong()) }
            }
            None if text == "latest" => Ok(Point::Latest),
            None if text == "random" => Ok(Point::Random(None)),
            _ => text.parse().map(Point::Seq).map_err(|_| wrong()),
        }
    }
}

/// Finds the snapshot, and says why it was taken.
pub fn choose(open: &Open, source: &SourceName, point: Point) -> Result<(Commit, Snapshot, String)> {
    let whole = Series::list(&open.store, &open.trust, source)?.whole();
    let all: Vec<(&Commit, &Snapshot)> = whole.snapshots().collect();
    let complete = || all.iter().filter(|(_, s)| s.outcome == Outcome::Complete);
    let found = match point {
        Point::Latest => {
            complete().next_back().or(all.last()).map(|(c, s)| (*c, *s, "the latest complete snapshot".to_owned()))
        }
        Point::Seq(seq) => all.iter().find(|(_, s)| s.seq == seq).map(|(c, s)| (*c, *s, "named by number".to_owned())),
        Point::Random(window) => {
            let since = window.map(|w| open.now().checked_sub(w)).transpose().unwrap_or(None).unwrap_or(Timestamp::MIN);
            let window = window.map_or("of all".to_owned(), |w| format!("of the last {w:#}"));
            let among: Vec<_> = complete().filter(|(_, s)| s.data_time >= since).collect();
            draw(among.len())?.map(|n| {
                let (c, s) = among[n];
                (*c, *s, format!("drawn at random from {} complete snapshots {window}", among.len()))
            })
        }
    };
    let Some((commit, snapshot, why)) = found else {
        let help = format!("Nothing was restored. `blackstart snapshots {source}` lists what there is.");
        return Err(Failure::new(Kind::Usage, format!("there is no such recovery point of {source} to drill"), help));
    };
    if point == Point::Latest {
        nothing_newer_is_broken(&whole, snapshot, &Pick::Latest)?;
    }
    Ok((commit.clone(), snapshot.clone(), why))
}

/// An even draw below `n`; none from nothing.
fn draw(n: usize) -> Result<Option<usize>> {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("draw random bytes")?;
    let n = n as u64;
    // 64 bits over a handful of snapshots: the remainder favours none measurably.
    Ok((n > 0).then(|| u64::from_le_bytes(bytes) % n).and_then(|drawn| usize::try_from(drawn).ok()))
}

/// Where the log ends that a drill at `level` replays: on the snapshot's own timeline, and only where an engine is started.
pub fn replayed_until(open: &Open, snapshot: &Snapshot, level: Level) -> Result<Option<Timestamp>> {
    let Some(range) = snapshot.log.as_ref().filter(|_| level >= Level::Engine) else { return Ok(None) };
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
