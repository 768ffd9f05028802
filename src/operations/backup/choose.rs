//! What a run compares with: nothing, everything read all the same, or the snapshot before it. That depends on what this host remembers of the series
//! and on what the store still has (FORMAT.md §3-5, §4-4).

use anyhow::{Result, anyhow};

use super::run::Run;
use crate::error::{Failure, Kind};
use crate::operations::basis::{lost_index, survey};
use crate::repository::history::Cover;
use crate::repository::layout::Hash;
use crate::repository::sealed::SealedPart;
use crate::repository::series::Series;
use crate::repository::snapshot::{Commit, Mode, Snapshot};
use crate::storage;

impl Run<'_> {
    /// Compares the series with what this host has seen of it: a store that shows an older state is an alarm (FORMAT.md §6).
    pub(super) fn look_back(&mut self, series: &Series) -> Result<()> {
        if let Some((seq, hash)) = self.memory.missed()
            && still_there(series, seq, hash)?
        {
            self.memory.miss(None)?;
        }
        if let Some((seq, hash)) = self.memory.seen()
            && !still_there(series, seq, hash)?
        {
            self.rolled_back = true;
            // This run's commit is what will have been seen next; prune must not forget over that what is gone.
            self.memory.miss(Some((seq, hash)))?;
            self.notices.push(format!(
                "{}: ALARM: this host has seen commit {seq} ({hash}) in the repository, and it is not there any more; the head is now {}. \
                 Somebody deleted it, or the store shows an older state. This run is a full. Find out before you trust the repository",
                self.name, self.head
            ));
        } else if let Some(head) = self.previous {
            self.memory.see(self.head, head)?;
        }
        Ok(())
    }

    /// Objects that were deleted or written over in a store that keeps versions: they are used as they were, but somebody is at work there.
    pub(super) fn note_covers(&mut self, commits: &[Cover], packs: &[Cover]) {
        let Some(first) = commits.first().or(packs.first()) else { return };
        self.covered = true;
        self.notices.push(format!(
            "{}: ALARM: {} commits and {} packs have been deleted or written over in the store, the first of them {} at {}. The store keeps versions, so \
             nothing is lost as long as it does. Somebody has rights that he should not have: `verify` names the objects, `prune --uncover` brings them back",
            self.name,
            commits.len(),
            packs.len(),
            first.object,
            first.at
        ));
    }

    /// Decides between incremental, full and baseline, and surveys the basis.
    pub(super) fn choose(&mut self, newest: Option<Commit>) -> Result<()> {
        self.lineage = new_lineage()?;
        let Some((commit, snapshot)) = newest.as_ref().and_then(|c| Some((c, c.snapshot()?))) else {
            self.begin_baseline("first run");
            return Ok(());
        };
        let remembered = self.memory.has_sent(&commit.hash);
        let continues = remembered && !self.rolled_back;
        if !remembered && commit.signer != self.host.keys.signing.public() && !self.options.adopt {
            return Err(Failure::new(
                Kind::Busy,
                format!("{} was last written by another key ({} on {})", self.name, commit.signer.id(), snapshot.host),
                "Nothing was written. If this host takes over from that one, say so once with --adopt; if both run, give one of them another source name.",
            ));
        }
        let epoch = self.host.open.trust.epoch;
        if snapshot.epoch > epoch {
            return Err(Failure::new(
                Kind::CheckFailed,
                format!(
                    "the last snapshot of {} is of epoch {}, and the trust records end with epoch {epoch}",
                    self.name, snapshot.epoch
                ),
                "Nothing was written: it would be encrypted to recipients that are no longer in force. A trust record is missing from the repository; put it back, or have the owner of the root key issue it again.",
            ));
        }
        match self.memory.lineage() {
            Some(lineage) if continues => self.lineage = lineage.to_owned(),
            _ if self.rolled_back => self.why = "the repository is not what this host has seen: a new lineage".into(),
            _ => {
                self.why = "this host does not remember writing the last snapshot: a new lineage".into();
                self.notices.push(format!("{}: {}", self.name, self.why));
            }
        }
        let identities = [self.host.keys.identity.clone()];
        let sealed = SealedPart::open(snapshot, &identities);
        self.before = sealed.as_ref().ok().map(|s| (snapshot.seq, snapshot.kind.clone(), s.facts.clone()));
        if !self.options.accept_change {
            self.fingerprints = sealed.as_ref().map(|s| s.fingerprints.clone()).unwrap_or_default();
        }
        let since = self.started.duration_since(snapshot.baseline_started);
        let index_lost = self.index_lost(snapshot)?;
        let baseline = match &sealed {
            _ if snapshot.epoch != epoch => Some("the recipients have changed"),
            _ if self.options.baseline => Some("asked for"),
            Err(_) => Some("this host's index key cannot read the last snapshot"),
            _ if index_lost => Some("index objects of the last snapshot are missing"),
            _ if since > self.options.baseline_every => Some("the last baseline is too old"),
            Ok(_) => None,
        };
        if let Some(why) = baseline {
            self.begin_baseline(why);
            return Ok(());
        }
        let sealed = sealed?;
        if !continues {
            self.mode = Mode::Full;
        } else if self.options.full {
            self.mode = Mode::Full;
            self.why = "asked for".into();
        }
        let incremental = self.mode == Mode::Incremental;
        let survey = survey(&self.host.open, snapshot, &sealed, &identities, incremental, self.options.heal)?;
        self.note_covers(&[], &survey.covers);
        self.basis = survey.basis;
        self.basis.shortcuts = incremental.then_some(snapshot.started);
        self.lost = survey.lost;
        self.secrets = sealed.secrets.clone();
        self.basis_of = Some((snapshot.clone(), sealed));
        Ok(())
    }

    /// Whether index objects of `snapshot` are gone; a notice says which.
    fn index_lost(&mut self, snapshot: &Snapshot) -> Result<bool> {
        let lost = lost_index(&self.host.open, snapshot)?;
        if !lost.is_empty() {
            self.notices.push(format!(
                "{}: index objects of snapshot {} are missing from the store or have another size, so that it cannot be restored: {lost:?}. \
                 This run is a baseline. Find out who deleted them; `verify` lists the snapshots hurt",
                self.name, snapshot.seq
            ));
        }
        Ok(!lost.is_empty())
    }

    fn begin_baseline(&mut self, why: &str) {
        self.mode = Mode::Full;
        self.why = format!("baseline: {why}");
    }
}

/// Whether the series still has a commit that this host has seen. That it cannot be read now is not yet an alarm.
fn still_there(series: &Series, seq: u64, hash: Hash) -> Result<bool> {
    match series.has(seq, hash) {
        Err(e) if e.chain().any(|cause| cause.is::<storage::Error>()) => Err(e),
        found => Ok(found.unwrap_or(false)),
    }
}

fn new_lineage() -> Result<String> {
    let mut id = [0u8; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow!("draw random bytes"))?;
    Ok(id.iter().map(|b| format!("{b:02x}")).collect())
}
