//! What is said of a target to which nothing stored leads: what can be reached instead.

use super::{Recovery, Target, from, recoverable};
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::wal::behind::Way;
use crate::operations::wal::get::Files;
use crate::report::Outcome;
use crate::repository::layout::SourceName;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::source::postgres::wal::Lsn;

pub(super) fn error(
    open: &Open,
    files: Option<&Files>,
    (source, recovery): (&SourceName, &Recovery),
    all: &[(&Commit, &Snapshot)],
) -> anyhow::Error {
    if let (Target::Time(time), Some(files)) = (&recovery.target, files)
        && let Some((_, snapshot)) = all.iter().rfind(|(_, s)| s.outcome == Outcome::Complete && s.finished <= *time)
    {
        let route = from(Some(files), snapshot, recovery.timeline);
        let way = Way { snapshot, window: route.as_ref().and_then(|route| route.window.as_ref()) };
        if let Err(lost) = files.stored().leads_on(way, recovery.timeline) {
            return lost;
        }
    }
    let what = match &recovery.target {
        Target::Latest | Target::Immediate => "a snapshot of a PostgreSQL server's files".to_owned(),
        Target::Time(time) => format!("the time {time}"),
        Target::Lsn(lsn) => format!("position {}", Lsn(*lsn)),
        Target::Xid(xid) => format!("the end of transaction {xid}"),
        Target::Name(name) => format!("the restore point {name}"),
    };
    let windows = recoverable(open, source).unwrap_or_default();
    let mut help = "Nothing was written.".to_owned();
    if windows.is_empty() {
        let points: Vec<String> = all.iter().rev().take(5).map(|(_, s)| format!("{:.0}", s.data_time)).collect();
        help.push_str(&format!(
            " No log is stored that follows a snapshot, so only the snapshots themselves can be reached: {}. `wal-receive` stores the log.",
            if points.is_empty() { "there is none".to_owned() } else { points.join(", ") }
        ));
    }
    for window in &windows {
        help.push_str(&format!(
            " Everything from {:.0} (snapshot {}) to {:.0} ({}) can be reached.",
            window.from, window.snapshot, window.until, window.position
        ));
    }
    if windows.last().is_some_and(|last| matches!(recovery.target, Target::Time(time) if time > last.until)) {
        help.push_str(
            " If nothing was written since, the newest state is that of your time: leave --at out to restore it.",
        );
    }
    match recovery.target {
        Target::Name(_) => help.push_str(&format!(" `timeline {source}` lists the restore points of the log.")),
        Target::Xid(_) => {
            help.push_str(&format!(" `timeline {source} --all` lists the transactions that were committed in it."))
        }
        _ => {}
    }
    Failure::new(Kind::Usage, format!("{what} cannot be reached with what is stored of {source}"), help)
}
