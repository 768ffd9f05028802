//! Harm that is done to objects in the copy of a repository, and put right again.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::storage::Key;

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
