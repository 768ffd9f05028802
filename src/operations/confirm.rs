//! Snapshots whose times the store's clock contradicts (FORMAT.md §4-10), and the word of the root's holder that their times are right.
//!
//! A host whose clock was wrong writes such snapshots, and so does one that was taken over and wants to displace good ones by dates of its choice.
//! So no host confirms itself: it takes the recovery key.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::Open;
use crate::error::{Failure, Kind};
use crate::repository::layout::{Hash, SourceName};
use crate::repository::series::{Series, Whole};
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};
use crate::repository::trust::{Confirmation, TrustRecord};

/// A snapshot whose times the store's clock contradicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistimed {
    pub seq: u64,
    pub commit: Hash,
    /// By the host's clock.
    pub data_time: Timestamp,
    pub finished: Timestamp,
    /// By the store's; none where it does not say.
    pub stored: Option<Timestamp>,
}

/// What was confirmed.
#[derive(Debug, Clone, Serialize)]
pub struct ConfirmReport {
    pub source: SourceName,
    pub confirmed: Vec<Mistimed>,
}

/// The snapshots of `source` that are suspect by their times, the oldest first.
pub fn mistimed(open: &Open, source: &SourceName) -> Result<Vec<Mistimed>> {
    Ok(among(&Series::list(&open.store, &open.trust, source)?.whole()))
}

fn among(whole: &Whole) -> Vec<Mistimed> {
    let of = |(commit, snapshot): (&Commit, &Snapshot)| Mistimed {
        seq: snapshot.seq,
        commit: commit.hash,
        data_time: snapshot.data_time,
        finished: snapshot.finished,
        stored: whole.stored_at.get(&snapshot.seq).copied(),
    };
    whole.snapshots().filter(|(_, snapshot)| whole.is_mistimed(snapshot)).map(of).collect()
}

/// Confirms the times of the snapshots `seqs` with the root key: from now on they are kept, and expire, as all others.
pub fn confirm(open: &Open, root: &SigningKey, source: &SourceName, seqs: &[u64]) -> Result<ConfirmReport> {
    let found = mistimed(open, source)?;
    if let Some(other) = seqs.iter().find(|seq| !found.iter().any(|m| m.seq == **seq)) {
        let known: Vec<String> = found.iter().map(|m| m.seq.to_string()).collect();
        let known = if known.is_empty() { "none is".to_owned() } else { format!("these are: {}", known.join(", ")) };
        return Err(Failure::new(
            Kind::Usage,
            format!("snapshot {other} of {source} is not suspect by its times, or not there"),
            format!(
                "Nothing was confirmed. Of {source}, {known}. What looks wrong by its contents is accepted by `backup --accept-change`."
            ),
        ));
    }
    if root.public() != open.trust.root {
        return Err(Failure::new(
            Kind::WrongKey,
            "this key file does not hold the repository's root key",
            "Nothing was confirmed. A host must not confirm its own times: give the recovery key file that `init` made, --identity FILE.",
        ));
    }
    let confirmed: Vec<Mistimed> = found.into_iter().filter(|m| seqs.contains(&m.seq)).collect();
    let word = |m: &Mistimed| Confirmation { source: source.clone(), seq: m.seq, commit: m.commit };
    let record = TrustRecord { confirmed: confirmed.iter().map(word).collect(), ..TrustRecord::default() };
    open.trust.clone().append(&open.store, root, record, open.now())?;
    Ok(ConfirmReport { source: source.clone(), confirmed })
}
