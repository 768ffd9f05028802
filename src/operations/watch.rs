//! Looks at a repository from outside, without any key: what is the newest point of each source, and is that as it should be? The agents
//! may all be dead; silence is what this notices.

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Open, group, reach, verified};
use crate::report::Outcome;
use crate::repository::layout::{self, GroupName, Hash, SourceName};
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Commit, Line, Snapshot};
use crate::storage;

/// How old a newest point may be.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub newest: SignedDuration,
    /// Instead of `newest`, for these sources.
    pub of_source: BTreeMap<SourceName, SignedDuration>,
    /// Where given: how old the newest point that a drill has proven may be.
    pub verified: Option<SignedDuration>,
}

/// The newest commit of each source that was ever seen: an older head later on is an alarm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen(pub BTreeMap<SourceName, (u64, Hash)>);

/// What can be seen of one source.
#[derive(Debug, Clone, Serialize)]
pub struct Sight {
    pub source: SourceName,
    pub host: Option<String>,
    /// The newest commit of any kind, and its hash.
    pub head: Option<(u64, Hash)>,
    /// The newest complete snapshot.
    pub seq: Option<u64>,
    /// The time of its data, or up to when the log goes on from there; the store's own time where that is earlier, since a clock that is ahead must
    /// not make it look fresh.
    pub newest: Option<Timestamp>,
    /// The newest data that a drill has proven; looked for only where there is a bound.
    pub verified: Option<Timestamp>,
    /// Commits that do not verify, down to the newest complete snapshot.
    pub faults: Vec<String>,
    /// Commits that somebody has deleted or written over in a store that keeps versions.
    pub covered: usize,
    pub rolled_back: bool,
    /// Since when it is given up on purpose: then it may be silent.
    pub retired: Option<Timestamp>,
    /// The store does not give what the source has in it: nothing above is known.
    pub unread: Option<Unread>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// The first look that could not read it; of a look alone, that one.
    pub since: Timestamp,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The newest point is older than it may be.
    Stale,
    /// The newest proven point is older than it may be, or there is none.
    Unproven,
    /// The store does not give what there is: whether all is well cannot be said.
    Unread,
    /// There is no complete snapshot.
    Missing,
    /// Commits do not verify.
    Damaged,
    /// Somebody has deleted or written over commits; their first versions are there.
    Covered,
    /// The head is older than one seen before.
    RolledBack,
}

/// As in `--json`, and in the keys of notices.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Stale => "stale",
            Cause::Unproven => "unproven",
            Cause::Unread => "unread",
            Cause::Missing => "missing",
            Cause::Damaged => "damaged",
            Cause::Covered => "covered",
            Cause::RolledBack => "rolled-back",
        })
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Alarm {
    pub source: SourceName,
    pub cause: Cause,
    /// For people.
    pub text: String,
}

/// Something about a group's common points that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GroupAlarm {
    pub group: GroupName,
    pub cause: Cause,
    /// For people.
    pub text: String,
}

/// Looks at every source of the repository, at those that it has traces of, at those seen before, and at those `expected`.
pub fn look(open: &Open, seen: &Seen, bounds: &Bounds, expected: &[SourceName]) -> Result<Vec<Sight>> {
    let mut names: BTreeSet<SourceName> = series::sources(&open.store)?.into_iter().collect();
    names.extend(seen.0.keys().chain(bounds.of_source.keys()).chain(expected).cloned());
    // A lease outlives the snapshots that somebody deletes.
    let leases = open.store.list(layout::LEASES).context("list leases")?;
    names.extend(
        leases.iter().filter_map(|lease| SourceName::new(lease.key.as_str().strip_prefix(layout::LEASES)?).ok()),
    );
    let mut sights = Vec::new();
    for name in names {
        let sight = look_at(open, name.clone(), seen, bounds.verified.is_some());
        sights.push(match sight {
            // Each source of a store that is gone is waited for at length: two say enough.
            Err(error) if storage::is_outage(&error) && sights.iter().all(Sight::is_unread) && !sights.is_empty() => {
                return Err(error);
            }
            Err(error) => {
                let unread = Some(Unread { since: open.now(), why: format!("{error:#}") });
                Sight { unread, ..Sight::of(name) }
            }
            Ok(sight) => sight,
        });
    }
    Ok(sights)
}

fn look_at(open: &Open, source: SourceName, seen: &Seen, with_drills: bool) -> Result<Sight> {
    let series = Series::list(&open.store, &open.trust, &source)?;
    let mut sight = Sight::of(source);
    sight.covered = series.covers().len();
    if let Some((seq, hash)) = seen.0.get(&sight.source) {
        sight.rolled_back = match series.has(*seq, *hash) {
            Err(error) if storage::is_silence(&error) => return Err(error),
            had => !had.unwrap_or(false),
        };
    }
    for commit in series.newest_first() {
        match commit {
            Err(error) if storage::is_silence(&error) => return Err(error),
            Err(e) => sight.faults.push(format!("{e:#}")),
            Ok(commit) => {
                sight.head.get_or_insert((commit.seq(), commit.hash));
                // Unless a snapshot came after it, or what may have been one.
                if let Line::Retire(record) = &commit.line
                    && sight.host.is_none()
                    && sight.faults.is_empty()
                {
                    sight.retired.get_or_insert(record.started);
                }
                if let Some(snapshot) = sight.take(&commit, &series) {
                    let log = reach::log_after(open, snapshot)?;
                    sight.newest = sight.newest.max(log.map(|log| log.until));
                    break;
                }
            }
        }
    }
    if with_drills {
        let whole = series.whole();
        if let Some((seq, why)) = whole.faults.iter().find(|(seq, _)| whole.unread.contains(seq)) {
            anyhow::bail!("the store does not give commit {seq} of {}: {why}", sight.source);
        }
        let proofs = verified::of(open, &sight.source)?;
        let proven = whole.snapshots().filter(|(commit, _)| proofs.iter().any(|p| p.commit == commit.hash));
        sight.verified = proven.map(|(_, s)| s.data_time).max();
    }
    Ok(sight)
}

impl Sight {
    /// Nothing is known yet.
    fn of(source: SourceName) -> Sight {
        Sight {
            host: None,
            head: None,
            seq: None,
            newest: None,
            verified: None,
            faults: Vec::new(),
            covered: 0,
            rolled_back: false,
            retired: None,
            unread: None,
            source,
        }
    }

    fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// `commit`'s snapshot, if it is the newest complete one.
    fn take<'c>(&mut self, commit: &'c Commit, series: &Series) -> Option<&'c Snapshot> {
        let Line::Snapshot(snapshot) = &commit.line else { return None };
        self.host.get_or_insert_with(|| snapshot.host.clone());
        if snapshot.outcome != Outcome::Complete {
            return None;
        }
        self.seq = Some(snapshot.seq);
        self.newest = Some(series.stored_at(snapshot.seq).map_or(snapshot.data_time, |at| at.min(snapshot.data_time)));
        Some(snapshot)
    }
}

/// What is wrong with what was seen. Pure.
pub fn judge(sights: &[Sight], bounds: &Bounds, now: Timestamp) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for sight in sights {
        let source = &sight.source;
        let mut raise = |cause, text: String| alarms.push(Alarm { source: source.clone(), cause, text });
        if let Some(Unread { since, why }) = &sight.unread {
            let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
            raise(Cause::Unread, format!("it cannot be read since {since}: {why}"));
            continue;
        }
        if sight.rolled_back {
            raise(
                Cause::RolledBack,
                "a commit that was there is gone: the store shows an older state, or somebody deleted it".into(),
            );
        }
        if sight.covered > 0 {
            raise(
                Cause::Covered,
                format!(
                    "{} commits were deleted or written over; the store still has their first versions",
                    sight.covered
                ),
            );
        }
        if let Some(first) = sight.faults.first() {
            raise(Cause::Damaged, format!("{} commits do not verify: {first}", sight.faults.len()));
        }
        if sight.retired.is_some() {
            continue;
        }
        let most = bounds.of_source.get(source).copied().unwrap_or(bounds.newest);
        match sight.newest.map(|at| now.duration_since(at)) {
            None => raise(Cause::Missing, "there is no complete snapshot".into()),
            Some(age) if age > most => {
                raise(Cause::Stale, format!("the newest point is {} old, and may be {}", rough(age), rough(most)));
            }
            Some(_) => {}
        }
        match (bounds.verified, sight.verified.map(|at| now.duration_since(at))) {
            (Some(_), None) => raise(Cause::Unproven, "no drill has proven a snapshot".into()),
            (Some(most), Some(age)) if age > most => {
                raise(
                    Cause::Unproven,
                    format!("the newest proven point is {} old, and may be {}", rough(age), rough(most)),
                );
            }
            _ => {}
        }
    }
    alarms
}

/// What is wrong with the common points that were seen. Pure.
pub fn judge_groups(sights: &[group::Sight], bounds: &Bounds, now: Timestamp) -> Vec<GroupAlarm> {
    let mut alarms = Vec::new();
    for sight in sights {
        let mut raise = |cause, text: String| alarms.push(GroupAlarm { group: sight.group.clone(), cause, text });
        if let Some(why) = &sight.unread {
            raise(Cause::Unread, format!("it cannot be read: {why}"));
            continue;
        }
        if let Some(first) = sight.faults.first() {
            raise(Cause::Damaged, format!("{} common points are wrong: {first}", sight.faults.len()));
        }
        match sight.newest.map(|at| now.duration_since(at)) {
            _ if sight.retired => {}
            None => raise(Cause::Missing, "there is no whole common point".into()),
            Some(age) if age > bounds.newest => {
                let (age, most) = (rough(age), rough(bounds.newest));
                raise(Cause::Stale, format!("the newest whole common point is {age} old, and may be {most}"));
            }
            Some(_) => {}
        }
    }
    alarms
}

/// Remembers what was seen. A head once seen is forgotten only for a newer one.
pub fn remember(seen: &mut Seen, sights: &[Sight]) {
    for sight in sights.iter().filter(|sight| !sight.rolled_back) {
        if let Some(head) = sight.head {
            seen.0.insert(sight.source.clone(), head);
        }
    }
}

fn rough(length: SignedDuration) -> String {
    let minutes = length.as_mins();
    match minutes {
        ..2 => format!("{} s", length.as_secs()),
        2..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} d", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(age_minutes: i64) -> Sight {
        let newest = Timestamp::UNIX_EPOCH - SignedDuration::from_mins(age_minutes);
        Sight {
            host: Some("db1".into()),
            head: Some((3, Hash([0; 32]))),
            seq: Some(3),
            newest: Some(newest),
            ..Sight::of(SourceName::new("orders").unwrap())
        }
    }

    fn causes(sight: Sight, bounds: &Bounds) -> Vec<Cause> {
        judge(&[sight], bounds, Timestamp::UNIX_EPOCH).into_iter().map(|alarm| alarm.cause).collect()
    }

    #[test]
    fn each_cause_raises_its_alarm() {
        let mut bounds = Bounds { newest: SignedDuration::from_hours(2), of_source: BTreeMap::new(), verified: None };
        assert_eq!(causes(sight(120), &bounds), []);
        assert_eq!(causes(sight(121), &bounds), [Cause::Stale]);
        assert_eq!(causes(Sight { newest: None, ..sight(0) }, &bounds), [Cause::Missing]);
        assert_eq!(
            causes(Sight { rolled_back: true, covered: 1, ..sight(0) }, &bounds),
            [Cause::RolledBack, Cause::Covered]
        );
        let unread = Some(Unread { since: Timestamp::UNIX_EPOCH, why: "x".into() });
        assert_eq!(causes(Sight { newest: None, unread, ..sight(0) }, &bounds), [Cause::Unread], "not Missing");
        assert_eq!(causes(Sight { faults: vec!["x".into()], ..sight(0) }, &bounds), [Cause::Damaged]);
        // What is given up may be silent, and nothing else.
        let retired = Sight { retired: Some(Timestamp::UNIX_EPOCH), ..sight(9999) };
        assert_eq!(causes(retired.clone(), &bounds), []);
        assert_eq!(causes(Sight { newest: None, seq: None, ..retired.clone() }, &bounds), []);
        let gone = Sight { rolled_back: true, faults: vec!["x".into()], ..retired };
        assert_eq!(causes(gone, &bounds), [Cause::RolledBack, Cause::Damaged]);
        bounds.verified = Some(SignedDuration::from_hours(24));
        assert_eq!(causes(sight(0), &bounds), [Cause::Unproven]);
        assert_eq!(causes(Sight { verified: Some(Timestamp::UNIX_EPOCH), ..sight(0) }, &bounds), []);
        bounds.of_source.insert(SourceName::new("orders").unwrap(), SignedDuration::from_mins(1));
        assert_eq!(causes(Sight { verified: Some(Timestamp::UNIX_EPOCH), ..sight(5) }, &bounds), [Cause::Stale]);
    }
}
