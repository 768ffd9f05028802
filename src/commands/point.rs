//! A restore of a PostgreSQL source to a point in time: from the command line to the way there, and what is said of it.

use anyhow::Result;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::output::{Shell, size, time};
use crate::cli::Restore;
use crate::operations::Open;
use crate::operations::restore::{self, Finish, Pick};
use crate::operations::wal::recover::{self, Prepared, Recovery, Route, Target, Then};
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::snapshot::{Commit, Snapshot};

/// The way to a point in time, and what came of it.
pub struct Point {
    pub commit: Commit,
    pub snapshot: Snapshot,
    route: Arc<Route>,
    recovery: Recovery,
    prepared: Arc<Mutex<Option<Prepared>>>,
}

/// The point that the command line means; `None`: a snapshot as it is.
pub fn of(open: &Open, identities: &[Identity], args: &Restore) -> Result<Option<Point>> {
    let aim = &args.aim;
    let explicit = aim.lsn.is_some() || aim.xid.is_some() || aim.name.is_some() || aim.immediate;
    let whole = args.snapshot.is_none() && !args.latest_verified && args.path.is_empty() && !args.in_place;
    if !explicit && (!whole || !recover::has_log(open, &args.source)?) {
        return Ok(None);
    }
    // Where the newest snapshots look wrong, the log would bring the same wrong back: only who asks for a point gets it.
    if !explicit && args.at.is_none() && holds_suspects(open, &args.source)? {
        return Ok(None);
    }
    let target = match (args.at, aim.lsn, aim.xid, &aim.name) {
        (Some(at), ..) => Target::Time(at),
        (_, Some(lsn), ..) => Target::Lsn(lsn.0),
        (_, _, Some(xid), _) => Target::Xid(xid),
        (_, _, _, Some(name)) => Target::Name(name.clone()),
        _ if aim.immediate => Target::Immediate,
        _ => Target::Latest,
    };
    let then = if aim.pause { Then::Pause } else { Then::Promote };
    let recovery = Recovery { target, before: aim.before, then, timeline: aim.timeline };
    let (commit, snapshot, route) = recover::route(open, identities, &args.source, &recovery)?;
    Ok(Some(Point { commit, snapshot, route: Arc::new(route), recovery, prepared: Arc::default() }))
}

/// Whether a restore without a point would pass over snapshots that look wrong.
fn holds_suspects(open: &Open, source: &SourceName) -> Result<bool> {
    let Ok((_, newest)) = restore::find(open, source, &Pick::Latest) else { return Ok(false) };
    Ok(!restore::passed_over(open, source, newest.seq, &Pick::Latest)?.is_empty())
}

impl Point {
    pub fn finish(&self, open: &Open, identities: &[Identity], to: &Path) -> Finish {
        let done = Arc::clone(&self.prepared);
        let keep = move |prepared| *done.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
        recover::finish(open, identities, Arc::clone(&self.route), self.recovery.clone(), to, Box::new(keep))
    }

    pub fn prepared(&self) -> Option<Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what the server will do when it is started.
    pub fn say(&self, shell: &Shell) {
        let Some(prepared) = self.prepared() else { return };
        let log = format!("{} of its log in {} files", size(prepared.bytes), prepared.segments);
        let end = match (&self.recovery.target, self.recovery.then) {
            (Target::Latest, _) => "replays everything that is stored, and opens for writing".to_owned(),
            (_, Then::Promote) => "stops at the target, and opens for writing".into(),
            (_, Then::Pause) => {
                "stops at the target, and opens for reading; select pg_wal_replay_resume() opens it for writing".into()
            }
        };
        shell.say(format!("{log} lie in pg_wal, and the settings are written. Start the server on it: it {end}."));
        if let Some(last) = &prepared.last {
            let at = last.time.map_or_else(String::new, |at| format!(" of {}", time(at)));
            shell.say(format!("The last commit in it is that{at} (transaction {}).", last.xid));
        }
        for note in &prepared.notes {
            shell.say(note);
        }
    }
}
