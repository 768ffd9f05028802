//! A copy of a repository in scratch, as far as a drill needs it: for `recover.py`, which must not reach the original, or to be harmed.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{File, FileTimes};
use std::path::Path;
use std::time::SystemTime;

use crate::durable;
use crate::interrupt;
use crate::operations::Open;
use crate::repository::layout;
use crate::repository::snapshot::Snapshot;
use crate::storage::Key;

/// Copies `objects`, what everything is trusted by, and the commits of the source up to `newest`, with their times: a commit's own are compared
/// with them. Gives the bytes fetched.
pub(super) fn mirror(
    open: &Open,
    newest: &Snapshot,
    objects: impl IntoIterator<Item = Key>,
    copy: &Path,
) -> Result<u64> {
    let mut keys: BTreeMap<Key, Option<jiff::Timestamp>> = objects.into_iter().map(|key| (key, None)).collect();
    keys.insert(layout::repository(), None);
    for prefix in [layout::TRUST.to_owned(), layout::snapshots(&newest.source)] {
        let listed = open.store.list(&prefix).context("list the repository")?;
        keys.extend(listed.into_iter().map(|object| (object.key, Some(object.modified))));
    }
    // What has come since is not part of it.
    keys.retain(|key, _| layout::parse_snapshot(key).is_none_or(|(_, seq)| seq <= newest.seq));
    let mut fetched = 0;
    for (key, modified) in keys {
        interrupt::check("Nothing was changed but scratch.")?;
        let body = open.store.get(&key).with_context(|| format!("read {key}"))?;
        fetched += body.len() as u64;
        let path = copy.join(key.as_str());
        durable::publish_new(&path, &body, 0o600).with_context(|| format!("copy {key}"))?;
        if let Some(modified) = modified {
            let times = FileTimes::new().set_modified(SystemTime::from(modified));
            File::open(&path).and_then(|file| file.set_times(times)).with_context(|| format!("copy {key}"))?;
        }
    }
    Ok(fetched)
}
