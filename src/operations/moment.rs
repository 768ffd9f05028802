//! A moment that a stored log leads to, between two snapshots or after the last: named, or drawn at random.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::fmt;
use std::str::FromStr;

use super::Open;
use super::restore::{self, Pick};
use super::wal::recover::{self, Recovery, Target, Then};
use super::wal::replay::{self, Aim};
use crate::error::{Failure, Kind};
use crate::report::Outcome;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::log::Log;
use crate::repository::series::Whole;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres::wal::Lsn;
use crate::source::redis;
use crate::time;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// By the engine's clock; of Redis by the receiver's.
    Time(Timestamp),
    /// A position of PostgreSQL's log.
    Lsn(u64),
    /// So many bytes of the replication stream of Redis.
    Offset(u64),
}

/// As the command line takes it.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Time(at) => write!(f, "{at}"),
            Moment::Lsn(lsn) => write!(f, "{}", Lsn(*lsn)),
            Moment::Offset(offset) => write!(f, "offset:{offset}"),
        }
    }
}

impl FromStr for Moment {
    type Err = String;
    /// A time, a position of PostgreSQL's log, `offset:1234` of Redis.
    fn from_str(text: &str) -> Result<Moment, String> {
        if let Some(offset) = text.strip_prefix("offset:") {
            return offset.parse().map(Moment::Offset).map_err(|_| format!("{offset:?} is no offset"));
        }
        let lsn = || text.parse::<Lsn>().ok().map(|lsn| Moment::Lsn(lsn.0));
        time::moment(text).map(Moment::Time).or_else(|wrong| lsn().ok_or(wrong))
    }
}

impl Moment {
    /// As a target of PostgreSQL; `None`: not one.
    pub fn recovery(self) -> Option<Recovery> {
        let target = match self {
            Moment::Time(at) => Target::Time(at),
            Moment::Lsn(lsn) => Target::Lsn(lsn),
            Moment::Offset(_) => return None,
        };
        Some(Recovery { target, before: false, then: Then::Promote, timeline: None })
    }

    /// As a target of Redis; `None`: not one.
    pub fn aim(self) -> Option<Aim> {
        let target = match self {
            Moment::Time(at) => replay::Target::Time(at),
            Moment::Offset(offset) => replay::Target::Offset(offset),
            Moment::Lsn(_) => return None,
        };
        Some(Aim { target, before: false, history: None })
    }
}

/// The snapshot from which `moment` is reached, and whether the log after it leads there; of a source without a log, the newest of that time.
/// Fails with `Kind::Usage` where it cannot be reached.
pub fn snapshot_before(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    moment: Moment,
) -> Result<(Commit, Snapshot, bool)> {
    let elsewhere = || {
        let help = "Nothing was restored. A position such as 0/1A2B3C is PostgreSQL's, offset:1234 is that of Redis; a time is for all.";
        Failure::new(Kind::Usage, format!("{moment} is no point of {source}"), help)
    };
    let logged = recover::has_log(open, source)?;
    if let (Moment::Time(at), false) = (moment, logged) {
        return restore::find(open, source, &Pick::At(at)).map(|(commit, snapshot)| (commit, snapshot, false));
    }
    let (commit, snapshot) = if recover::kind(open, source)?.as_deref() == Some(redis::KIND) {
        let aim = moment.aim().ok_or_else(elsewhere)?;
        replay::route(open, identities, source, &aim).map(|(commit, snapshot, _)| (commit, snapshot))?
    } else {
        let recovery = moment.recovery().ok_or_else(elsewhere)?;
        recover::route(open, identities, source, &recovery).map(|(commit, snapshot, _)| (commit, snapshot))?
    };
    Ok((commit, snapshot, true))
}

/// A complete snapshot, and how far the log leads on from it before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub seq: u64,
    pub begin: Timestamp,
    pub end: Timestamp,
}

/// What can be drawn: each complete snapshot with the time after it that the log covers, as far as it is not older than `since`.
pub fn spans(open: &Open, source: &SourceName, whole: &Whole, since: Timestamp) -> Result<Vec<Span>> {
    let log = Log::list(&open.store, &open.trust, source)?;
    let windows = log.windows(&open.store, &open.trust)?;
    let complete: Vec<&Snapshot> =
        whole.snapshots().map(|(_, s)| s).filter(|s| s.outcome == Outcome::Complete).collect();
    let window = |s: &Snapshot| {
        let range = s.log.as_ref()?;
        windows.iter().position(|w| recover::holds(&log, w, range, s.started))
    };
    let all = complete.iter().enumerate().map(|(n, s)| {
        let on = window(s);
        let next = complete.get(n + 1).filter(|next| on.is_some() && window(next) == on).map(|next| next.finished);
        let end =
            on.and_then(|w| windows.get(w)).map_or(s.finished, |w| next.map_or(w.until, |next| next.min(w.until)));
        let begin = s.finished.max(since);
        // Of what lies before `since` only its log counts.
        let end = if s.data_time >= since { end.max(begin) } else { end };
        Span { seq: s.seq, begin, end }
    });
    Ok(all.filter(|span| span.begin <= span.end).collect())
}

impl Span {
    /// A moment in it, `draw` being an even draw below a number; none where no log leads on.
    pub fn moment(&self, draw: impl FnOnce(u64) -> Result<u64>) -> Result<Option<Timestamp>> {
        // The first whole millisecond after the snapshot, and the last that the log covers.
        let (begin, end) = (self.begin.as_millisecond() + 1, self.end.as_millisecond());
        let Some(length) = u64::try_from(end - begin).ok() else { return Ok(None) };
        let drawn = begin + i64::try_from(draw(length + 1)?).context("draw a moment")?;
        Ok(Some(Timestamp::from_millisecond(drawn).context("draw a moment")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_written() {
        let read = |text: &str| text.parse::<Moment>();
        let at: Timestamp = "2026-11-22T14:05:06.123Z".parse().unwrap();
        assert_eq!(read("2026-11-22T14:05:06.123Z"), Ok(Moment::Time(at)));
        assert_eq!(read("1/A0"), Ok(Moment::Lsn(0x1_0000_00a0)));
        assert_eq!(read("offset:77"), Ok(Moment::Offset(77)));
        for moment in [Moment::Time(at), Moment::Lsn(0x1_0000_00a0), Moment::Offset(77)] {
            assert_eq!(read(&moment.to_string()), Ok(moment));
        }
        for wrong in ["offset:", "offset:-1", "1/x", "yesterday"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_moment_lies_within_the_log_and_any_of_it_may_be_drawn() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let span = Span { seq: 1, begin: at(1000), end: at(1003) };
        let drawn = |n| span.moment(|below| Ok(if below == 3 { n } else { panic!("{below}") })).unwrap();
        assert_eq!([0, 1, 2].map(drawn), [at(1001), at(1002), at(1003)].map(Some));
        let alone = Span { end: span.begin, ..span };
        assert_eq!(alone.moment(|_| panic!("there is nothing to draw")).unwrap(), None);
    }
}
