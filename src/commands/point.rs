//! A restore to a point in time, from a snapshot and the log after it: from the command line to the way there, and what is said of it.

use anyhow::Result;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::output::{Shell, size, time};
use crate::cli::Restore;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::restore::{self, Finish, LogAhead};
use crate::operations::wal::recover::{self, Prepared, Recovery, Target, Then};
use crate::operations::wal::replay::{self, Aim, Replayed};
use crate::repository::agefile::Identity;
use crate::repository::sealed::SealedPart;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres::wal::events::What;
use crate::source::{postgres, redis};
use crate::target::Branch;

/// The way to a point in time, and what came of it.
pub struct Point {
    pub commit: Commit,
    pub snapshot: Snapshot,
    way: Way,
}

enum Way {
    Postgres { route: Arc<recover::Route>, recovery: Recovery, prepared: Arc<Mutex<Option<Prepared>>> },
    Redis { route: Arc<replay::Route>, aim: Aim, replayed: Arc<Mutex<Option<Replayed>>> },
}

/// The point that the command line means; `None`: a snapshot as it is.
pub fn of(open: &Open, identities: &[Identity], args: &Restore) -> Result<Option<Point>> {
    let aim = &args.aim;
    let explicit =
        aim.lsn.is_some() || aim.xid.is_some() || aim.name.is_some() || aim.offset.is_some() || aim.immediate;
    let whole = args.snapshot.is_none() && !args.latest_verified && args.path.is_empty() && !args.in_place;
    if !explicit && (!whole || !recover::has_log(open, &args.source)?) {
        return Ok(None);
    }
    // Where the newest snapshots look wrong, the log would bring the same wrong back: only who asks for a point gets it.
    if !explicit && args.at.is_none() && restore::passes_over(open, &args.source)? {
        return Ok(None);
    }
    if recover::kind(open, &args.source)?.as_deref() == Some(redis::KIND) {
        return of_redis(open, identities, args).map(Some);
    }
    let target = match (args.at, aim.lsn, aim.xid, &aim.name) {
        (Some(at), ..) => Target::Time(at),
        (_, Some(lsn), ..) => Target::Lsn(lsn.0),
        (_, _, Some(xid), _) => Target::Xid(xid),
        (_, _, _, Some(name)) => Target::Name(name.clone()),
        _ if aim.offset.is_some() || aim.history.is_some() => {
            return Err(elsewhere("--offset", "Redis", "--lsn POSITION"));
        }
        _ if aim.immediate => Target::Immediate,
        _ => Target::Latest,
    };
    let then = if aim.pause { Then::Pause } else { Then::Promote };
    let recovery = Recovery { target, before: aim.before, then, timeline: aim.timeline };
    let (commit, snapshot, route) = recover::route(open, identities, &args.source, &recovery)?;
    let way = Way::Postgres { route: Arc::new(route), recovery, prepared: Arc::default() };
    Ok(Some(Point { commit, snapshot, way }))
}

fn of_redis(open: &Open, identities: &[Identity], args: &Restore) -> Result<Point> {
    let asked = &args.aim;
    let postgres = [
        (asked.lsn.is_some(), "--lsn"),
        (asked.xid.is_some(), "--xid"),
        (asked.name.is_some(), "--name"),
        (asked.pause, "--pause"),
        (asked.timeline.is_some(), "--timeline"),
    ];
    if let Some((_, flag)) = postgres.iter().find(|(given, _)| *given) {
        return Err(elsewhere(flag, "PostgreSQL", "--at TIME or --offset N"));
    }
    let target = match (args.at, asked.offset) {
        (Some(at), _) => replay::Target::Time(at),
        (_, Some(offset)) => replay::Target::Offset(offset),
        _ if asked.immediate => replay::Target::Immediate,
        _ => replay::Target::Latest,
    };
    let aim = Aim { target, before: asked.before, history: asked.history.clone() };
    let (commit, snapshot, route) = replay::route(open, identities, &args.source, &aim)?;
    let way = Way::Redis { route: Arc::new(route), aim, replayed: Arc::default() };
    Ok(Point { commit, snapshot, way })
}

fn elsewhere(flag: &str, engine: &str, instead: &str) -> anyhow::Error {
    Failure::new(
        Kind::Usage,
        format!("{flag} is for {engine}"),
        format!("Nothing was written. Name the point by {instead}."),
    )
}

fn keep<T: Send + 'static>(slot: &Arc<Mutex<Option<T>>>) -> Box<dyn Fn(T) + Send + Sync> {
    let slot = Arc::clone(slot);
    Box::new(move |done| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(done))
}

fn kept<T: Clone>(slot: &Arc<Mutex<Option<T>>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Point {
    pub fn finish(&self, open: &Open, identities: &[Identity], to: &Path, branches: &[Branch]) -> Result<Finish> {
        Ok(match &self.way {
            Way::Postgres { route, recovery, prepared } => {
                let facts = postgres::Facts::of(&SealedPart::open(&self.snapshot, identities)?.facts)?;
                let place = (facts, to, branches);
                recover::finish(open, identities, Arc::clone(route), recovery.clone(), place, keep(prepared))
            }
            Way::Redis { route, aim, replayed } => {
                replay::finish(open, identities, Arc::clone(route), aim.clone(), keep(replayed))
            }
        })
    }

    /// The point, told from every other.
    pub fn name(&self) -> String {
        match &self.way {
            Way::Postgres { recovery, .. } => format!("{recovery:?}"),
            Way::Redis { aim, .. } => format!("{aim:?}"),
        }
    }

    /// The log between the snapshot and the point.
    pub fn ahead(&self) -> Option<LogAhead> {
        match &self.way {
            Way::Postgres { route, recovery, .. } => route.ahead(&recovery.target),
            Way::Redis { route, aim, .. } => route.ahead(aim.target),
        }
    }

    pub fn prepared(&self) -> Result<serde_json::Value> {
        Ok(match &self.way {
            Way::Postgres { prepared, .. } => serde_json::to_value(kept(prepared))?,
            Way::Redis { replayed, .. } => serde_json::to_value(kept(replayed))?,
        })
    }

    /// Says what the server will do when it is started.
    pub fn say(&self, shell: &Shell, identities: &[Identity]) {
        match &self.way {
            Way::Postgres { recovery, prepared, .. } => {
                if let Some(prepared) = kept(prepared) {
                    say_postgres(shell, recovery, &prepared);
                }
                if let Ok(sealed) = SealedPart::open(&self.snapshot, identities) {
                    postgres::restored::advice(&sealed.facts).iter().for_each(|line| shell.say(line));
                }
            }
            Way::Redis { replayed, .. } => {
                if let Some(replayed) = kept(replayed) {
                    say_redis(shell, &replayed);
                }
                if let Ok(sealed) = SealedPart::open(&self.snapshot, identities) {
                    redis::proof::advice_with_log(&sealed.facts).iter().for_each(|line| shell.say(line));
                }
            }
        }
    }
}

fn say_redis(shell: &Shell, replayed: &Replayed) {
    let Replayed { written, time: come } = replayed;
    let until = come.map_or_else(String::new, |at| format!(", the last of which had come at {}", time(at)));
    shell.say(format!(
        "{} commands follow the snapshot in its append-only file{until}: the data set is that of offset {}.",
        written.commands, written.position
    ));
}

/// A server keeps the settings of its recovery, and hands them on to its standbys, which would end where it did.
fn forget(target: &Target) -> String {
    let of_target: &[&str] = match target {
        Target::Latest => &[],
        Target::Immediate => &["recovery_target"],
        Target::Time(_) => &["recovery_target_time"],
        Target::Lsn(_) => &["recovery_target_lsn"],
        Target::Xid(_) => &["recovery_target_xid"],
        Target::Name(_) => &["recovery_target_name"],
    };
    let all = of_target.iter().chain(&["recovery_target_timeline"]);
    all.map(|name| format!("alter system reset {name};")).collect::<Vec<_>>().join(" ")
}

fn say_postgres(shell: &Shell, recovery: &Recovery, prepared: &Prepared) {
    let log = match prepared.segments {
        0 => "The log that came with the snapshot lies".to_owned(),
        1 => format!("{} of its log in one file lie", size(prepared.bytes)),
        files => format!("{} of its log in {files} files lie", size(prepared.bytes)),
    };
    let end = match (&recovery.target, recovery.then) {
        (Target::Latest, _) => "replays everything that is stored, and opens for writing".to_owned(),
        (_, Then::Promote) => "stops at the target, and opens for writing".into(),
        (_, Then::Pause) => {
            "stops at the target, and opens for reading; select pg_wal_replay_resume() opens it for writing".into()
        }
    };
    shell.say(format!("{log} in pg_wal, and the settings are written. A server that is started on it {end}."));
    if let Some(last) = &prepared.last {
        let at = last.time.map_or_else(String::new, |at| format!(" of {}", time(at)));
        // A restore point, or a database that was dropped, is no transaction's end.
        let what = match &last.what {
            What::Commit { .. } => format!("commit in it is that{at} (transaction {})", last.xid),
            what => format!("thing in it is {what}{at}"),
        };
        shell.say(format!("The last {what}."));
    }
    shell.say(format!("Before it gets standbys of its own: {} select pg_reload_conf().", forget(&recovery.target)));
    for note in &prepared.notes {
        shell.say(note);
    }
}
