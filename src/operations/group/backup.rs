//! One run of a group: every member is an ordinary backup in a thread of its own, with a barrier between them.

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use serde::Serialize;
use std::sync::{Mutex, PoisonError};

use crate::error::{Failure, Kind};
use crate::operations::backup::{BackupReport, Options, backup_tiered};
use crate::operations::tiers::Tiering;
use crate::operations::{Host, Open};
use crate::report::Outcome;
use crate::repository::PROGRAM;
use crate::repository::group::{self, Group, Member, Points, Skew};
use crate::repository::layout::{self, GroupName, Hash, SourceName};
use crate::source::Source;
use crate::source::barrier::{self, Barrier, Span};
use crate::storage;

/// Threads of each member that hash, compress and encrypt, and its packs in memory: members that cannot wait are read at the same time.
const WORKERS: usize = 1;
const PACKS: usize = 3;
/// Tries to write a common point while others write theirs.
const TRIES: usize = 8;

/// Opens a source for one run.
pub type OpenSource<'a> = Box<dyn Fn() -> Result<Box<dyn Source>> + Send + Sync + 'a>;

/// What is to be done for one member.
pub struct MemberRun<'a> {
    pub name: SourceName,
    pub open: OpenSource<'a>,
    pub options: Options,
    pub tiering: Option<Tiering<'a>>,
}

pub struct GroupReport {
    pub name: GroupName,
    /// In the order given.
    pub members: Vec<MemberResult>,
    pub point: Result<Written, String>,
}

/// How the backup of one member ended.
pub struct MemberResult {
    pub source: SourceName,
    pub report: Result<BackupReport>,
    pub span: Option<Span>,
}

/// The common point as it was stored.
#[derive(Debug, Clone, Serialize)]
pub struct Written {
    pub hash: Hash,
    #[serde(flatten)]
    pub group: Group,
}

/// Backs up all members, their points fixed together, and writes the common point if every one of them has been committed. A member that fails
/// does not keep the others from their snapshots. `Err`: all snapshots are as the text says, and the common point could not be stored.
pub fn backup(host: &Host, name: &GroupName, members: Vec<MemberRun>) -> Result<GroupReport> {
    let started = host.open.now();
    let barrier = Barrier::new(members.len(), &*host.open.clock);
    let results: Vec<(SourceName, Result<BackupReport>, usize)> = std::thread::scope(|scope| {
        // All are begun before the first is waited for.
        let mut threads = Vec::new();
        for (n, run) in members.into_iter().enumerate() {
            let (seat, source) = (barrier.member(n), run.name.clone());
            threads.push((source, scope.spawn(|| one(host, run, seat))));
        }
        let mut results = Vec::new();
        for (source, thread) in threads {
            let (report, tries) =
                thread.join().unwrap_or_else(|_| (Err(anyhow!("the thread of {source} panicked (this is a bug)")), 0));
            results.push((source, report, tries));
        }
        results
    });
    let tries: Vec<usize> = results.iter().map(|(.., tries)| *tries).collect();
    let spans = barrier.spans();
    let members =
        results.into_iter().zip(&spans).map(|((source, report, _), span)| MemberResult { source, report, span: *span });
    let members: Vec<MemberResult> = members.collect();
    let point = match common(&members, &tries) {
        Ok(members) => Ok(write(host, name, started, &members)?),
        Err(why) => Err(why),
    };
    Ok(GroupReport { name: name.clone(), members, point })
}

/// One member's backup, and how often its source was opened: only the first time it has a place at the barrier.
fn one(host: &Host, run: MemberRun, seat: barrier::Member) -> (Result<BackupReport>, usize) {
    let state = Mutex::new((Some(seat), 0));
    let open = || {
        let seat = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 += 1;
            state.0.take()
        };
        let mut source = (run.open)()?;
        if let Some(seat) = seat {
            source.join(seat);
        }
        Ok(source)
    };
    let options = Options { workers: WORKERS, packs: PACKS, ..run.options };
    let report = backup_tiered(host, &run.name, &open, options, run.tiering);
    let tries = state.lock().unwrap_or_else(PoisonError::into_inner).1;
    (report, tries)
}

/// The members of a common point; otherwise why there is none.
fn common(members: &[MemberResult], tries: &[usize]) -> Result<Vec<Member>, String> {
    let failed: Vec<String> = members.iter().filter(|m| m.report.is_err()).map(|m| m.source.to_string()).collect();
    if !failed.is_empty() {
        return Err(format!("{} failed", failed.join(", ")));
    }
    let member = |(member, tries): (&MemberResult, &usize)| {
        let report = member.report.as_ref().map_err(|e| format!("{e:#}"))?;
        if *tries != 1 {
            return Err(format!("{} was overtaken by another writer and read again, after the others", member.source));
        }
        let Some(span) = member.span else {
            return Err(format!("{} (kind {}) cannot fix its point together with others", member.source, report.kind));
        };
        Ok(Member {
            source: member.source.clone(),
            kind: report.kind.clone(),
            seq: report.seq,
            commit: report.commit,
            outcome: report.outcome,
            from: span.from,
            to: span.to,
            throughout: span.throughout,
        })
    };
    members.iter().zip(tries).map(member).collect()
}

/// Signs and stores the common point. Of two writers of one place, one goes behind the other.
fn write(host: &Host, name: &GroupName, started: Timestamp, members: &[Member]) -> Result<Written> {
    let stored = || {
        format!(
            "the snapshots of all members are stored, but not the common point of group {name}: run the group again. What belongs together: {}",
            members.iter().map(|m| format!("{} {}", m.source, m.seq)).collect::<Vec<_>>().join(", ")
        )
    };
    append(host, name, started, members).with_context(stored)
}

fn append(host: &Host, name: &GroupName, started: Timestamp, members: &[Member]) -> Result<Written> {
    let open = &host.open;
    let partial = members.iter().any(|m| m.outcome == Outcome::Partial);
    for _ in 0..TRIES {
        let (last, previous) = head(open, name)?;
        let (r#type, format) = group::kind();
        let group = Group {
            r#type,
            format,
            repository: open.trust.id.clone(),
            group: name.clone(),
            n: last + 1,
            previous,
            host: host.name.clone(),
            key: host.keys.signing.public().id(),
            agent: PROGRAM.into(),
            started,
            finished: open.now(),
            outcome: if partial { Outcome::Partial } else { Outcome::Complete },
            skew: Skew::of(members),
            members: members.to_vec(),
        };
        let body = host.keys.signing.sign_line(&group)?;
        let hash = Hash::of(&body);
        match open.store.create(&layout::group(name, group.n), body.into(), &hash.0) {
            Ok(_) => return Ok(Written { hash, group }),
            Err(e) if e.kind == storage::Kind::AlreadyExists => {}
            Err(e) => return Err(e).context("store the common point"),
        }
    }
    bail!("others were faster {TRIES} times")
}

/// Number and hash of the newest point. One that does not verify is never built upon.
fn head(open: &Open, name: &GroupName) -> Result<(u64, Option<Hash>)> {
    let points = Points::list(&open.store, &open.trust, name)?;
    let last = points.last();
    if last == 0 {
        return Ok((0, None));
    }
    let newest = points.read(last).map_err(|e| {
        Failure::new(
            Kind::CheckFailed,
            format!("point {last} of group {name}, the newest, does not verify: {e:#}"),
            "Somebody has changed or forged it. Find out who may write there. A group of another name begins anew.",
        )
    })?;
    Ok((last, Some(newest.hash)))
}
