//! What stands wrong with the receiver of a source's log.

use jiff::{SignedDuration, Timestamp};

use super::super::observe::Seen;
use super::super::receivers::Standing;
use crate::job::Job;
use crate::notify::Severity;
use crate::operations::receiver::Event;
use crate::size::in_words;

/// A receiver may be away for so long: servers are restarted, connections break.
const AWAY: SignedDuration = SignedDuration::from_secs(30);
const AWAY_CRITICAL: SignedDuration = SignedDuration::from_mins(10);
/// So far behind it may be without an RPO; with one, half of that.
const BEHIND: SignedDuration = SignedDuration::from_mins(5);
/// More than this a server should not have to keep.
const KEPT_MAX: u64 = 1 << 30;

/// One finding: what it is (for its key), how bad, title and detail.
pub type Found = (&'static str, Severity, String, String);

pub fn problems(job: &Job, standing: &Standing, seen: Option<&Seen>, now: Timestamp) -> Vec<Found> {
    let source = &job.source;
    let mut found = Vec::new();
    if let Some((since, why)) = &standing.down {
        let away = now.duration_since(*since);
        if away > AWAY {
            let severity = if away > AWAY_CRITICAL { Severity::Critical } else { Severity::Warning };
            let detail = format!(
                "What is written since {since:.0} is safe nowhere but on the server, which keeps it in its replication slot (PostgreSQL) or while its backlog reaches (Redis). It goes on by itself; see that the server runs and lets the receiver in, with `blackstart check`: {why}"
            );
            found.push(("receiver", severity, format!("{source}: its log is not received"), detail));
        }
    } else if let Some(current) = standing.current {
        let most = job.rpo.map_or(BEHIND, |rpo| (rpo / 2).min(BEHIND));
        if now.duration_since(current) > most {
            let behind = in_words(standing.behind);
            let title = format!("{source}: the log falls behind");
            let detail = format!(
                "{behind} of it are not stored, and a disaster now would lose what is younger than {current:.0}. The store or the line is slower than the server writes: \
                 see what else uses them"
            );
            found.push(("log-behind", Severity::Warning, title, detail));
        }
    }
    if let Some((retained, status)) = &standing.slot {
        if Event::is_endangered(status) {
            let title = format!("{source}: the server may remove log that is not stored ({status})");
            let detail = format!(
                "{} wait there. Raise max_slot_wal_keep_size, or let the receiver catch up. Once it is lost there is a gap, and points in time need a new snapshot",
                in_words(*retained)
            );
            found.push(("slot", Severity::Critical, title, detail));
        } else if *retained > KEPT_MAX {
            let title = format!("{source}: the server keeps {} of log for us", in_words(*retained));
            let detail = "A server whose disk is full stops. See why the log is not stored as fast as it is written; a receiver that is not wanted any \
                          more leaves a replication slot behind, which must be dropped";
            found.push(("log-kept", Severity::Warning, title, detail.into()));
        }
    }
    if needs_snapshot(standing, seen) {
        let title = format!("{source}: its log has a gap");
        let why = standing.gap.clone().unwrap_or_else(|| "no snapshot lies before what is stored of it".into());
        let detail =
            format!("Moments since then cannot be reached before there is a new snapshot, which is on its way: {why}");
        found.push(("log-gap", Severity::Warning, title, detail));
    }
    found
}

/// Of what nothing can be said: a receiver that was just started has yet to show what it has, and one that has just gone may come back.
pub fn unknown(standing: Option<&Standing>, seen: Option<&Seen>, now: Timestamp) -> Vec<&'static str> {
    let Some(standing) = standing else { return vec!["receiver", "log-behind", "slot", "log-kept", "log-gap"] };
    let mut unknown = Vec::new();
    if let Some((since, _)) = &standing.down {
        unknown.push("log-behind");
        unknown.extend((now.duration_since(*since) <= AWAY).then_some("receiver"));
    } else if standing.current.is_none() {
        unknown.push("log-behind");
    }
    if standing.slot.is_none() {
        unknown.extend(["slot", "log-kept"]);
    }
    if standing.stretch.is_none_or(|(_, since)| !has_looked(seen, since)) {
        unknown.push("log-gap");
    }
    unknown
}

fn has_looked(seen: Option<&Seen>, since: Timestamp) -> bool {
    seen.and_then(|seen| seen.looked).is_some_and(|looked| looked > since)
}

/// Whether no snapshot leads into the stretch that is being written, as far as the repository shows.
pub fn needs_snapshot(standing: &Standing, seen: Option<&Seen>) -> bool {
    let (Some((stretch, since)), Some(seen)) = (standing.stretch, seen) else { return false };
    has_looked(Some(seen), since) && seen.newest.is_some() && seen.into != Some(stretch)
}

#[cfg(test)]
mod tests {
    use super::super::super::observe::Newest;
    use super::*;
    use crate::operations::reach::LogEnd;
    use crate::repository::log::Position;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn found(standing: &Standing, now: i64) -> Vec<(&'static str, Severity)> {
        let job = crate::job::parse("source = \"a\"\nevery = \"1d\"\nrpo = \"1m\"\n", std::path::Path::new("a.toml"));
        let all = problems(&job.unwrap().job, standing, None, at(now));
        all.into_iter().map(|(what, severity, ..)| (what, severity)).collect()
    }

    fn take(standing: &mut Standing, now: i64, events: &[Event]) {
        events.iter().for_each(|event| standing.take(event, at(now)));
    }

    const NONE: [(&str, Severity); 0] = [];

    #[test]
    fn what_a_receiver_has_not_shown_yet_is_not_taken_for_mended() {
        let mut standing = Standing { down: Some((at(0), "just started".into())), ..Standing::default() };
        let unknown = |standing: &Standing, now| unknown(Some(standing), None, at(now));
        assert_eq!(unknown(&standing, 30), ["log-behind", "receiver", "slot", "log-kept", "log-gap"]);
        assert_eq!(unknown(&standing, 31), ["log-behind", "slot", "log-kept", "log-gap"]);
        take(&mut standing, 40, &[Event::Streaming { stretch: 1, timeline: 1, position: "0/1".into() }]);
        take(
            &mut standing,
            40,
            &[Event::Lag { bytes: 0, current: Some(at(40)) }, Event::Slot { retained: 1, status: "reserved".into() }],
        );
        assert_eq!(unknown(&standing, 41), ["log-gap"]);
        assert_eq!(super::unknown(Some(&standing), Some(&Seen::of_test(None, None, at(41))), at(42)), [""; 0]);
    }

    #[test]
    fn away_behind_and_endangered_are_told_in_time() {
        let mut standing = Standing::default();
        let streaming = Event::Streaming { stretch: 1, timeline: 1, position: "0/1".into() };
        take(&mut standing, 0, &[streaming.clone(), Event::Lag { bytes: 0, current: Some(at(0)) }]);
        // Half of the RPO of a minute.
        assert_eq!(found(&standing, 30), NONE);
        assert_eq!(found(&standing, 31), [("log-behind", Severity::Warning)]);
        take(&mut standing, 31, &[Event::Lag { bytes: 5, current: Some(at(0)) }]);
        assert_eq!((standing.current, standing.behind), (Some(at(0)), 5));
        // A clock ahead of ours makes nothing fresher than now.
        take(&mut standing, 40, &[Event::Lag { bytes: 0, current: Some(at(4000)) }]);
        assert_eq!(standing.current, Some(at(40)));
        let waiting = |why: &str| Event::Waiting { why: why.into(), seconds: 1.0 };
        take(&mut standing, 50, &[waiting("gone")]);
        take(&mut standing, 60, &[waiting("still gone")]);
        assert_eq!(found(&standing, 80), NONE);
        assert_eq!(found(&standing, 81), [("receiver", Severity::Warning)]);
        assert_eq!(found(&standing, 651), [("receiver", Severity::Critical)]);
        take(&mut standing, 700, &[streaming, Event::Lag { bytes: 0, current: Some(at(700)) }]);
        assert_eq!(found(&standing, 700), NONE);
        for (retained, status, expected) in [
            (1 << 30, "reserved", None),
            ((1 << 30) + 1, "extended", Some(("log-kept", Severity::Warning))),
            (7, "unreserved", Some(("slot", Severity::Critical))),
            (7, "lost", Some(("slot", Severity::Critical))),
        ] {
            take(&mut standing, 700, &[Event::Slot { retained, status: status.into() }]);
            assert_eq!(found(&standing, 700).first().copied(), expected, "{status}");
        }
    }

    #[test]
    fn a_snapshot_is_needed_only_once_one_has_looked_and_found_none() {
        let mut standing = Standing::default();
        take(&mut standing, 10, &[Event::Streaming { stretch: 2, timeline: 1, position: "0/1".into() }]);
        let log = |stretch| Some(LogEnd { stretch, timeline: 1, position: Position(1), until: at(0) });
        let newest = Some(Newest::of_test(at(5)));
        let seen = |looked, stretch| Seen::of_test(newest.clone(), log(stretch), at(looked));
        assert!(!needs_snapshot(&standing, None));
        assert!(!needs_snapshot(&standing, Some(&seen(10, 1))), "it was looked at before the stretch began");
        assert!(needs_snapshot(&standing, Some(&seen(11, 1))));
        assert!(!needs_snapshot(&standing, Some(&seen(11, 2))));
        // The first backup comes by itself.
        assert!(!needs_snapshot(&standing, Some(&Seen::of_test(None, log(1), at(11)))));
    }
}
