//! The stored log on top of a restored copy, for its engine to replay: as far as it goes, or up to a moment.

use anyhow::{Context, Result, ensure};

use super::case::Case;
use crate::operations::moment::Moment;
use crate::operations::place;
use crate::operations::wal::behind;
use crate::operations::wal::recover::{self, Prepared, Target};
use crate::operations::wal::replay::{self, Aim, Replayed};
use crate::report::Check;
use crate::repository::snapshot::Snapshot;
use crate::source::postgres::proof::Stop;
use crate::source::{postgres, redis};
use crate::storage;

/// A failed check where a part of the log that follows upon the snapshot cannot be used. Of a moment, what comes after it does not matter.
pub fn not_whole(case: &Case) -> Result<Option<Check>> {
    if case.moment.is_some() {
        return Ok(None);
    }
    let (check, _) = whole(behind::whole(case.open, case.snapshot), |()| String::new())?;
    Ok(Some(check).filter(|check| !check.passed))
}

/// Puts the log into `pg_wal`, and up to a moment the settings with which a real restore stops there. Gives whether it is whole, and what the
/// server must then have replayed.
pub fn into_data_directory(case: &Case, options: &mut postgres::Options) -> Result<(Option<Check>, Option<Stop>)> {
    let files = |n: u64| format!("log replayed, {n} files after the snapshot");
    match case.moment {
        None => {
            let Some(route) = recover::route_on(case.open, case.identities, case.snapshot)? else {
                return Ok((None, None));
            };
            let filled = recover::fill(case.open, case.identities, &route, &Target::Latest, case.copy);
            let (check, prepared) = whole(filled.map(|(prepared, _)| prepared), |p| files(p.segments))?;
            if let Some(last) = prepared.and_then(|prepared| prepared.last) {
                options.check.push(format!("select pg_current_wal_insert_lsn() > '{}'", last.position));
            }
            Ok((Some(check), None))
        }
        Some(moment) => {
            let recovery = moment.recovery().context("not a point of PostgreSQL")?;
            let (_, from, route) = recover::route(case.open, case.identities, &case.snapshot.source, &recovery)?;
            same(&from, case.snapshot)?;
            let prepared = recover::prepare(case.open, case.identities, &route, &recovery, case.copy);
            let (check, prepared) =
                whole(prepared, |p| format!("log up to {moment}, {} files after the snapshot", p.segments))?;
            Ok((Some(check), prepared.map(|prepared| stop(moment, prepared))))
        }
    }
}

fn stop(moment: Moment, prepared: Prepared) -> Stop {
    let until = match moment {
        Moment::Time(at) => Some(at),
        Moment::Lsn(_) | Moment::Offset(_) => None,
    };
    Stop { until, beyond: prepared.last.map(|last| last.position) }
}

/// Puts the replication stream behind a second copy, and has a server load both.
pub fn as_append_only_file(case: &Case, facts: &serde_json::Value, options: &redis::Options) -> Result<Vec<Check>> {
    if let Some(check) = not_whole(case)? {
        return Ok(vec![check]);
    }
    let (route, aim) = match case.moment {
        None => {
            let Some(route) = replay::route_on(case.open, case.identities, case.snapshot)? else {
                return Ok(Vec::new());
            };
            (route, Aim { target: replay::Target::Latest, before: false, history: None })
        }
        Some(moment) => {
            let aim = moment.aim().context("not a point of Redis")?;
            let (_, from, route) = replay::route(case.open, case.identities, &case.snapshot.source, &aim)?;
            same(&from, case.snapshot)?;
            (route, aim)
        }
    };
    let copy = case.scratch.join("replayed");
    std::fs::create_dir(&copy).context("make a directory for the replay")?;
    let (from, to) = (case.copy.join(redis::DUMP), copy.join(redis::DUMP));
    std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).context("copy the data set")?;
    let written = replay::write(case.open, case.identities, &route, &aim, &copy);
    let (check, replayed) = whole(written, |r| format!("log replayed up to offset {}", r.written.position))?;
    let Some(replayed) = replayed else { return Ok(vec![check]) };
    let mut checks = vec![check];
    checks.extend(case.moment.map(|moment| not_beyond(moment, &replayed)));
    checks.extend(redis::proof::replayed(&copy, facts, options, &replayed.written)?);
    Ok(checks)
}

/// That nothing is in it which came later.
fn not_beyond(moment: Moment, replayed: &Replayed) -> Check {
    let (passed, actual) = match (moment, replayed.time) {
        (Moment::Time(at), Some(time)) => (time <= at, format!("the last came at {time}")),
        (Moment::Offset(offset), _) => {
            (replayed.written.position <= offset, format!("offset {}", replayed.written.position))
        }
        (_, None) => (true, "nothing came after the snapshot".to_owned()),
        (Moment::Lsn(_), Some(_)) => (false, "a position of PostgreSQL".to_owned()),
    };
    Check { name: "newest of the log in it".into(), expected: format!("not after {moment}"), actual, passed }
}

/// A check that the log was whole, with what was made of it; what the place or the store lacks stays an error, and so does that it was interrupted.
fn whole<T>(made: Result<T>, name: impl FnOnce(&T) -> String) -> Result<(Check, Option<T>)> {
    match made {
        Ok(made) => Ok((Check::compare(name(&made), "whole", "whole"), Some(made))),
        Err(e) if place::is_to_blame(&e) || not_read_or_written(&e) => Err(e),
        Err(e) => Ok((Check::compare("log after the snapshot", "whole", format!("{e:#}")), None)),
    }
}

/// Only a piece that is not there says something of the log.
fn not_read_or_written(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<std::io::Error>())
        || error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<storage::Error>())
            .any(|e| e.kind != storage::Kind::NotFound)
}

/// Meanwhile prune may have taken what the moment was found from.
fn same(found: &Snapshot, chosen: &Snapshot) -> Result<()> {
    ensure!(
        found.seq == chosen.seq,
        "the point is now reached from snapshot {}, not from {}: drill again",
        found.seq,
        chosen.seq
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Failure, Kind};

    #[test]
    fn a_drill_that_is_stopped_says_nothing_of_the_log() {
        let ends = |error: anyhow::Error| whole(Err::<(), _>(error.context("write the log")), |()| String::new());
        for kind in [Kind::Interrupted, Kind::Environment] {
            assert!(ends(Failure::new(kind, "stopped", "")).is_err(), "{kind:?} must be no failed check of the backup");
        }
        let lost = storage::Error::new(storage::Kind::NotFound, "get", "wal/pg/1");
        for fault in [anyhow::anyhow!("a piece does not verify"), lost.into()] {
            let (check, made) = ends(fault).expect("damage is what was found");
            assert!(!check.passed && made.is_none(), "{check:?}");
        }
    }
}
