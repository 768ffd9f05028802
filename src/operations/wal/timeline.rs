//! What happened to a database, from its stored log: so that one can go back to just before a mistake.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::get::Files;
use super::recover::each;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::repository::agefile::Identity;
use crate::repository::layout::SourceName;
use crate::repository::log::{Lost, Window};
use crate::source::postgres::wal::Lsn;
use crate::source::postgres::wal::events::Happened;

#[derive(Debug, Clone)]
pub struct Options {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Every commit; otherwise only what destroys data, and restore points.
    pub all: bool,
    /// At most so many; the last ones.
    pub limit: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct TimelineReport {
    pub source: SourceName,
    pub windows: Vec<WindowRead>,
    pub happened: Vec<Happened>,
    /// More than the limit: the earlier ones are left out.
    pub left_out: u64,
    pub commits: u64,
    /// What is stored of the log and cannot be used: nothing is told of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// A part of the log without a gap.
#[derive(Debug, Clone, Serialize)]
pub struct WindowRead {
    pub from: String,
    pub to: String,
    pub timeline: u32,
    pub until: Timestamp,
    /// Where it makes no sense, if anywhere: damaged before it was stored. Nothing is told of what lies between there and the next segment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<String>,
}

/// Reads the stored log of `source`.
pub fn timeline(
    open: &Open,
    identities: &[Identity],
    source: &SourceName,
    options: &Options,
) -> Result<TimelineReport> {
    let Some(files) = Files::open(open, identities, source)? else {
        return Err(Failure::new(
            Kind::Usage,
            format!("no log of {source} is stored"),
            "Nothing was read. `wal-receive` or `wal-push` stores the log of a PostgreSQL server.",
        ));
    };
    let mut report = TimelineReport {
        source: source.clone(),
        windows: Vec::new(),
        happened: Vec::new(),
        left_out: 0,
        commits: 0,
        lost: files.lost.iter().map(Lost::told).collect(),
    };
    let mut newest = std::collections::VecDeque::new();
    for window in &files.windows {
        if options.from.is_some_and(|from| window.until < from) {
            report.windows.push(read(window, Vec::new()));
            continue;
        }
        let mut tell = |happened: Happened| {
            report.commits += u64::from(happened.is_commit());
            let early = options.from.zip(happened.time).is_some_and(|(from, at)| at < from);
            let late = options.to.zip(happened.time).is_some_and(|(to, at)| at > to);
            if !early && !late && (options.all || happened.is_notable()) {
                newest.push_back(happened);
                if newest.len() > options.limit {
                    newest.pop_front();
                    report.left_out += 1;
                }
            }
            true
        };
        let (mut broken, mut from) = (Vec::new(), Some(window.from.1.0));
        while let Some(start) = from.filter(|start| *start < window.to.1.0) {
            let at = each(&files, window, window.to.0, start, &mut tell)?;
            broken.extend(at.map(|at| Lsn(at).to_string()));
            from = at.map(|at| (at / files.segment_size + 1) * files.segment_size);
        }
        report.windows.push(read(window, broken));
    }
    report.happened = newest.into();
    Ok(report)
}

fn read(window: &Window, broken: Vec<String>) -> WindowRead {
    WindowRead {
        from: Lsn(window.from.1.0).to_string(),
        to: Lsn(window.to.1.0).to_string(),
        timeline: window.to.0,
        until: window.until,
        broken,
    }
}
