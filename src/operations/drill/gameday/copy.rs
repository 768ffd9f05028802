//! The copy of a repository that is harmed, and put right again.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Points;
use crate::durable;
use crate::interrupt;
use crate::operations::Open;
use crate::repository::layout;
use crate::storage::Key;

/// The repository, as far as the points need it, with the times of the original: a commit's own are compared with them.
pub fn mirror(open: &Open, points: &Points, copy: &Path) -> Result<u64> {
    let mut keys: BTreeMap<Key, Option<jiff::Timestamp>> =
        points.objects.keys().map(|key| (key.clone(), None)).collect();
    keys.insert(layout::repository(), None);
    for prefix in ["trust/".to_owned(), layout::snapshots(&points.snapshot.source)] {
        let listed = open.store.list(&prefix).context("list the repository")?;
        keys.extend(listed.into_iter().map(|object| (object.key, Some(object.modified))));
    }
    // What has come since is not part of it.
    keys.retain(|key, _| layout::parse_snapshot(key).is_none_or(|(_, seq)| seq <= points.snapshot.seq));
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

/// What is done to an object of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    Remove,
    Flip,
    Truncate,
}

/// Objects of the copy that were harmed, with their first bytes.
pub struct Harmed(Vec<(PathBuf, PathBuf)>);

impl Harmed {
    pub fn all<'k>(copy: &Path, keys: impl IntoIterator<Item = &'k Key>, harm: Harm) -> Result<Harmed> {
        let mut harmed = Harmed(Vec::new());
        for key in keys {
            let (path, aside) = (copy.join(key.as_str()), copy.with_file_name(format!("aside-{}", harmed.0.len())));
            move_file(&path, &aside).with_context(|| format!("harm {key}"))?;
            let mut bytes = fs::read(&aside).with_context(|| format!("harm {key}"))?;
            harmed.0.push((path.clone(), aside));
            let middle = bytes.len() / 2;
            match harm {
                Harm::Remove => continue,
                Harm::Flip => bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1),
                Harm::Truncate => bytes.truncate(middle),
            }
            durable::publish_new(&path, &bytes, 0o600).with_context(|| format!("harm {key}"))?;
        }
        Ok(harmed)
    }

    /// Puts all back, with their times.
    pub fn undo(self) -> Result<()> {
        self.0.iter().try_for_each(|(path, aside)| move_file(aside, path)).context("put an object back")
    }
}

#[expect(clippy::disallowed_methods, reason = "inside scratch, which is gone after a crash of the machine")]
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::rename(from, to)
}
