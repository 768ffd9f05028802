//! What retention decides on the snapshots of a source, as they are stored, with the log between them.

use anyhow::Result;
use jiff::Timestamp;

use super::Open;
use super::retention::{Decision, LogPart, Point, Policy, Reason, decide, keep_for_the_log};
use super::verified::{Proof, Proven};
use super::wal::recover::holds;
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::log::{Log, Window};
use crate::repository::series::Whole;
use crate::repository::snapshot::{Commit, Snapshot};

/// What retention decides, with what gaps in the log make necessary.
pub fn decisions(
    open: &Open,
    source: &SourceName,
    whole: &Whole,
    proven: &Proven,
    policy: &Policy,
) -> Result<Vec<Decision>> {
    let (points, now) = (points(whole, &proven.proofs), open.now());
    let mut decisions = decide(&points, policy, now);
    keep_what_may_be_verified(&mut decisions, whole, proven);
    if policy.points_in_time.is_some() && points.iter().any(|point| point.reaches_from.is_some()) {
        let log = Log::list(&open.store, &open.trust, source)?;
        let windows = log.windows(&open.store, &open.trust)?;
        let inside = |window: &Window| {
            let lies = |s: &&Snapshot| s.log.as_ref().is_some_and(|range| holds(&log, window, range, s.started));
            whole.snapshots().map(|(_, s)| s).filter(lies).map(|s| s.seq).collect()
        };
        // What cannot be read or does not verify may reach further, and what is being caught up on does not tell how far it reaches.
        let doubtful = !log.faults.is_empty();
        let until = |window: &Window| match window.until {
            known if !doubtful && known != Timestamp::UNIX_EPOCH => known,
            _ => Timestamp::MAX,
        };
        let parts: Vec<LogPart> =
            windows.iter().map(|window| LogPart { until: until(window), snapshots: inside(window) }).collect();
        keep_for_the_log(&mut decisions, &points, &parts, policy, now);
        // One that lies in no part may lie in that.
        let lies = |seq: u64| parts.iter().any(|part| part.snapshots.contains(&seq));
        for (decision, point) in decisions.iter_mut().zip(&points).filter(|_| doubtful) {
            if point.complete && point.reaches_from.is_some() && decision.keep.is_empty() && !lies(point.seq) {
                decision.keep.push(Reason::PointsInTime);
            }
        }
    }
    Ok(decisions)
}

/// A report that is broken may have proven the newest verified snapshot: what it may have proven stays until a newer one is proven.
fn keep_what_may_be_verified(decisions: &mut [Decision], whole: &Whole, proven: &Proven) {
    let verified = |d: &&Decision| d.keep.contains(&Reason::NewestVerified);
    let newest = decisions.iter().find(verified).map_or(0, |decision| decision.seq);
    for (decision, (_, snapshot)) in decisions.iter_mut().zip(whole.snapshots()) {
        if snapshot.seq > newest && proven.doubt(snapshot).is_some() {
            decision.keep.push(Reason::MayBeVerified);
        }
    }
}

/// What retention knows of each snapshot.
pub fn points(whole: &Whole, proofs: &[Proof]) -> Vec<Point> {
    let point = |(commit, s): (&Commit, &Snapshot)| Point {
        seq: s.seq,
        data_time: s.data_time,
        complete: s.outcome == Outcome::Complete,
        verified: proofs.iter().any(|p| p.commit == commit.hash),
        suspect: whole.is_suspect(s),
        reaches_from: s.log.as_ref().map(|_| s.finished),
    };
    whole.snapshots().map(point).collect()
}
