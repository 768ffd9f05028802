//! What lies behind a snapshot: what of its log cannot be used, and commits that do not verify. A restore to the newest state must pass over neither
//! in silence, as if the log or the series ended there.

use anyhow::Result;
use jiff::Timestamp;

use super::commands::ID_SHOWN;
use super::recover::holds;
use super::replay;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::restore::{Pick, broken_after, does_not_verify, nothing_newer_is_gone};
use crate::repository::layout::Hash;
use crate::repository::log::{Log, Lost, Window};
use crate::repository::series::{Series, Whole};
use crate::repository::snapshot::{LogRange, Snapshot};
use crate::source::postgres::wal::Lsn;
use crate::source::redis;
use crate::storage;
use crate::time;

/// What is stored of a log.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    pub log: &'a Log,
    pub windows: &'a [Window],
    /// What cannot be used.
    pub lost: &'a [Lost],
}

/// A snapshot from which a restore goes on, and the part of the log that follows it.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub snapshot: &'a Snapshot,
    pub window: Option<&'a Window>,
}

impl<'a> Stored<'a> {
    /// What may follow where the range of a snapshot ends that was begun at `started`, and cannot be used. `window`: the part of the log that follows
    /// there. Of timelines up to `up_to`.
    pub fn lost_behind(
        self,
        (range, started): (&LogRange, Timestamp),
        window: Option<&Window>,
        up_to: Option<u32>,
    ) -> Option<&'a Lost> {
        let number = |at: usize| self.log.stretches[at].line.n;
        // A snapshot that no part of the log holds was taken while this stretch was written, or a later one of which nothing can be used.
        let written = || self.log.stretches.iter().rev().find(|s| s.line.started <= started);
        let from = window.map_or_else(|| written().map_or(0, |stretch| stretch.line.n), |window| number(window.last));
        // What comes after the next gap does not follow, sound or not.
        let gap = self.windows.iter().map(|window| number(window.first)).find(|first| *first > from);
        let numbers = from..gap.unwrap_or(u64::MAX);
        let up_to = up_to.unwrap_or(u32::MAX);
        self.lost.iter().find(|lost| numbers.contains(&lost.stretch) && lost.may_follow(range, up_to))
    }

    /// Fails where what follows upon the way, on timelines up to `up_to`, cannot all be used.
    pub fn leads_on(self, way: Way, up_to: Option<u32>) -> Result<()> {
        let Some(range) = &way.snapshot.log else { return Ok(()) };
        let lost = self.lost_behind((range, way.snapshot.started), way.window, up_to);
        lost.map_or(Ok(()), |lost| Err(self.cannot_be_used(way, lost)))
    }

    /// Fails where the newest state may lie in something that cannot be used: in the log, or in a commit that does not verify, unless the log goes
    /// on beyond that; or in one that this host has `seen`, as it was known before the series was listed, and that is gone.
    pub fn leads_to_newest(
        self,
        way: Way,
        (series, whole): (&Series, &Whole),
        seen: Option<(u64, Hash)>,
        up_to: Option<u32>,
    ) -> Result<()> {
        self.leads_on(way, up_to)?;
        // When it was made nobody can say any more, nor whether the log goes on beyond it.
        if let Err(gone) = nothing_newer_is_gone(series.lacks(seen), whole, way.snapshot, &Pick::Latest) {
            let help = format!("{} Find out who deleted it, or why the store shows an older state.", self.instead(way));
            return Err(Failure::new(Kind::CheckFailed, gone.to_string(), help));
        }
        let Some(broken) = broken_after(whole, way.snapshot, &Pick::Latest) else { return Ok(()) };
        let beyond = |window: &Window| {
            // By the store's clock too, so that an engine's that is ahead does not make the log longer.
            let until = window.until.min(window.stored_at);
            let newest = self.windows.last() == Some(window) && up_to.is_none_or(|t| t >= window.to.0);
            newest && series.stored_at(broken.0).is_some_and(|at| at <= until)
        };
        if way.window.is_some_and(beyond) {
            return Ok(());
        }
        Err(does_not_verify(&way.snapshot.source, broken, self.instead(way)))
    }

    /// The same of what was at a time to which the way leads: a commit that does not verify hides nothing, unless it may belong to a later part of
    /// the log.
    pub fn leads_to(self, way: Way, whole: &Whole, time: Timestamp) -> Result<()> {
        let later = |window: &Window| {
            let mut begun = self.windows.iter().map(|other| &self.log.stretches[other.first].line);
            let last = self.log.stretches[window.last].line.n;
            begun.any(|line| line.n > last && line.started <= time)
        };
        match broken_after(whole, way.snapshot, &Pick::At(time)) {
            Some(broken) if way.window.is_none_or(later) => {
                Err(does_not_verify(&way.snapshot.source, broken, self.instead(way)))
            }
            _ => Ok(()),
        }
    }

    fn cannot_be_used(self, way: Way, lost: &Lost) -> anyhow::Error {
        let Snapshot { source, seq, .. } = way.snapshot;
        let what = format!("stretch {} of the log of {source} follows snapshot {seq} and cannot be used", lost.stretch);
        let help = self.instead(way);
        match lost.refused {
            Some(kind) => {
                let message = "what came later is in that stretch".to_owned();
                let help = format!("Look at the store, and at what this credential may read. {help}");
                let because = Failure { kind: Kind::Failed, message, help };
                anyhow::Error::new(storage::Error::new(kind, "get", &lost.key).because(because)).context(what)
            }
            None => Failure::new(
                Kind::CheckFailed,
                format!("{what}: {}", lost.told()),
                format!(
                    "{help} What came later is in that stretch: bring its objects back from another copy of the repository; `blackstart verify` names them."
                ),
            ),
        }
    }

    /// What to ask for instead.
    fn instead(self, way: Way) -> String {
        let (snapshot, log) = (way.snapshot, self.log);
        let end = way.window.filter(|w| snapshot.log.as_ref().is_some_and(|range| w.to.1 > range.end));
        let end = end.map(|window| {
            let to = window.to.1.0;
            let at = match snapshot.kind.as_str() {
                redis::KIND => {
                    let id = replay::history(log, snapshot, Some(window), to).unwrap_or_default();
                    format!("--offset {to} --history {}", id.get(..ID_SHOWN).unwrap_or(id))
                }
                _ => format!("--lsn {}", Lsn(to)),
            };
            // Of what is being caught up on nobody knows how far it reaches.
            let known =
                (window.until != Timestamp::UNIX_EPOCH).then(|| format!(" up to {}", time::local(window.until)));
            format!("`{at}` restores it with the log{}; ", known.unwrap_or_default())
        });
        format!(
            "Nothing was written. The newest that can be reached comes from snapshot {seq}: {}`--snapshot {seq}` restores that alone, with data of {}.",
            end.unwrap_or_default(),
            time::local(snapshot.data_time),
            seq = snapshot.seq
        )
    }
}

/// Fails where what follows upon `snapshot` on its own timeline cannot all be used.
pub fn whole(open: &Open, snapshot: &Snapshot) -> Result<()> {
    let Some(range) = &snapshot.log else { return Ok(()) };
    let log = Log::list(&open.store, &open.trust, &snapshot.source)?;
    let survey = log.survey(&open.store, &open.trust)?;
    let window = survey.windows.iter().rev().find(|window| holds(&log, window, range, snapshot.started));
    let stored = Stored { log: &log, windows: &survey.windows, lost: &survey.lost };
    stored.leads_on(Way { snapshot, window }, Some(range.timeline))
}
