//! The checkpoint of a run: what it has stored so far, so that the run after an interrupted one need not store it again (FORMAT.md §3-16).
//!
//! A journal in the host's state: a header, then a line for each pack and each index object that has become durable. It is not synced:
//! what a crash takes from its end is stored again. It never says that something need not be *read*; the next run reads everything that
//! the journal speaks of, and compares. Nor is it believed that an object exists: the store's listing says so.

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::agefile::{self, Identity, Recipient};
use super::index::{PackLine, SortedList};
use super::layout::{Hash, SourceName};
use super::sealed::Secrets;
use super::snapshot::Named;
use crate::durable;

/// Of this file, which is no part of the repository's format: another version's is no checkpoint.
const VERSION: u32 = 1;

/// What a run must have in common with the interrupted one to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    pub repository: String,
    pub source: SourceName,
    pub kind: String,
    /// Id of the host's signing key.
    pub key: String,
    pub epoch: u64,
    /// Whether the run has no basis.
    pub baseline: bool,
    /// The newest snapshot of the series when the run began.
    pub after: Option<Hash>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    circumstances: Circumstances,
    /// Entries of interrupted runs before this one, the oldest first; see [`Checkpoint::unfinished`].
    unfinished: Vec<Vec<Named>>,
    /// The number that the first pack of the run gets.
    next_pack: u64,
    /// [`Secrets`], as an age file to the host's index recipient.
    secrets: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Pack(PackLine),
    /// Object number `nth` of the run's entries, and the number that the next pack was to get when it was made: no pack that the object
    /// names has that or a higher number.
    Entries {
        nth: u64,
        object: Named,
        next_pack: u64,
    },
    /// A list of entries of its own, of a run whose entries come in no order; it stands for those of the run's lists from number `from` on as well.
    List {
        from: usize,
        objects: Vec<Named>,
        next_pack: u64,
    },
}

/// What an interrupted run has left.
#[derive(Debug)]
pub struct Checkpoint {
    /// Durable objects of entries, the oldest first: a list for each interrupted run, several where its entries came in no order. Each list may end
    /// anywhere.
    pub unfinished: Vec<Vec<Named>>,
    pub secrets: Secrets,
    /// Durable packs by number.
    pub packs: BTreeMap<u64, PackLine>,
    /// Above every number that the run, or one before it, may have given a pack.
    pub next_pack: u64,
}

/// Where the checkpoint of `source` lies below the state directory of its repository.
pub fn path(state: &Path, source: &SourceName) -> PathBuf {
    state.join("checkpoints").join(format!("{source}.jsonl"))
}

impl Checkpoint {
    /// The checkpoint at `path`, if there is one that fits. What cannot be read is none: it only saves time.
    pub fn read(path: &Path, circumstances: &Circumstances, identities: &[Identity]) -> Option<Checkpoint> {
        let text = std::fs::read(path).ok()?;
        // A line cut short has no LF and does not count; nor does anything behind a line that makes no sense.
        let mut lines = text.split_inclusive(|b| *b == b'\n').map_while(|line| line.strip_suffix(b"\n"));
        let header: Header = serde_json::from_slice(lines.next()?).ok()?;
        if header.version != VERSION || header.circumstances != *circumstances {
            return None;
        }
        let mut sealed = BASE64_STANDARD.decode(&header.secrets).ok()?;
        let secrets = serde_json::from_slice(&agefile::open(&mut sealed, identities).ok()?).ok()?;
        let (unfinished, next_pack) = (header.unfinished, header.next_pack);
        let mut found = Checkpoint { unfinished, secrets, packs: BTreeMap::new(), next_pack };
        let (mut by_number, mut lists) = (BTreeMap::new(), Vec::new());
        for line in lines.map_while(|line| serde_json::from_slice(line).ok()) {
            match line {
                Line::Pack(pack) => {
                    found.next_pack = found.next_pack.max(pack.number() + 1);
                    found.packs.insert(pack.number(), pack);
                }
                Line::Entries { nth, object, next_pack } => {
                    found.next_pack = found.next_pack.max(next_pack);
                    by_number.insert(nth, object);
                }
                Line::List { from, objects, next_pack } => {
                    found.next_pack = found.next_pack.max(next_pack);
                    lists.truncate(from);
                    lists.push(objects);
                }
            }
        }
        let in_order = by_number.into_iter().zip(0..).map_while(|((nth, object), n)| (nth == n).then_some(object));
        found.unfinished.push(in_order.collect());
        found.unfinished.extend(lists);
        found.unfinished.retain(|entries| !entries.is_empty());
        Some(found)
    }
}

/// Removes the checkpoint at `path`: its run has been committed, or nothing may go on from it.
pub fn forget(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// The checkpoint that a run is writing. After the first error it writes nothing more: what it has written stays true.
pub struct Journal {
    file: Option<File>,
}

/// What a journal begins with.
pub struct Beginning<'a> {
    pub circumstances: &'a Circumstances,
    pub unfinished: &'a [Vec<Named>],
    pub secrets: &'a Secrets,
    /// Who can read the secrets: the host.
    pub recipients: &'a [Recipient],
    /// Packs of interrupted runs before this one.
    pub packs: &'a BTreeMap<u64, PackLine>,
    /// The number that the first pack of this run gets.
    pub next_pack: u64,
}

impl Journal {
    /// Replaces the journal at `path` by one that holds what `beginning` says.
    pub fn begin(path: &Path, beginning: &Beginning) -> Result<Journal> {
        let secrets = agefile::seal(beginning.recipients, &serde_json::to_vec(beginning.secrets)?)?.bytes;
        let header = Header {
            version: VERSION,
            circumstances: beginning.circumstances.clone(),
            unfinished: beginning.unfinished.to_vec(),
            next_pack: beginning.next_pack,
            secrets: BASE64_STANDARD.encode(secrets),
        };
        let mut text = line(&header)?;
        for pack in beginning.packs.values() {
            ensure!(pack.number() < beginning.next_pack, "a pack of an interrupted run has a number of this one");
            text.extend(line(&Line::Pack(pack.clone()))?);
        }
        durable::publish_over(path, &text, 0o600).with_context(|| format!("write {}", path.display()))?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Journal { file: Some(file) })
    }

    /// One that notes nothing.
    pub fn none() -> Journal {
        Journal { file: None }
    }

    /// Notes a durable pack.
    pub fn pack(&mut self, pack: &PackLine) {
        self.note(&Line::Pack(pack.clone()));
    }

    /// Notes a durable object of the entries.
    pub fn entries(&mut self, nth: u64, object: Named, next_pack: u64) {
        self.note(&Line::Entries { nth, object, next_pack });
    }

    /// Notes a durable list of entries.
    pub fn list(&mut self, list: SortedList, next_pack: u64) {
        self.note(&Line::List { from: list.from, objects: list.objects, next_pack });
    }

    fn note(&mut self, what: &Line) {
        let Some(file) = &mut self.file else { return };
        let written = line(what).and_then(|line| file.write_all(&line).context("write the checkpoint"));
        if written.is_err() {
            self.file = None;
        }
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}
