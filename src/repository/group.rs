//! Groups: common points of several sources (FORMAT.md §2.9). The object is written after the commits that it names, names them by their
//! hashes, and is never removed; whether its members are still there is for the reader to see.

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use super::history::{self, Cover, Written};
use super::layout::{self, GroupName, Hash, SourceName};
use super::signed::{PublicKey, SignedLine};
use super::trust::{Role, Trust};
use super::{FORMAT, check_format};
use crate::bridge::Store;
use crate::report::Outcome;
use crate::storage;

/// Members of a group.
pub const MEMBERS_MAX: usize = 16;

/// Several snapshots that hold one point of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub r#type: String,
    pub format: u32,
    pub repository: String,
    pub group: GroupName,
    /// Place in the chain of the group's points, from 1.
    pub n: u64,
    /// Hash of point `n - 1`.
    pub previous: Option<Hash>,
    pub host: String,
    /// Id of the key that signs this.
    pub key: String,
    pub agent: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// Partial, if a member is.
    pub outcome: Outcome,
    pub members: Vec<Member>,
    #[serde(flatten)]
    pub skew: Skew,
}

/// One snapshot of a common point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub source: SourceName,
    pub kind: String,
    pub seq: u64,
    /// Hash of the commit.
    pub commit: Hash,
    pub outcome: Outcome,
    /// The consistent point lies between these.
    pub from: Timestamp,
    pub to: Timestamp,
    /// There is no single point: the source was read throughout.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub throughout: bool,
}

/// How far apart members may be, in milliseconds, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skew {
    /// From the earliest `from` to the latest `to` of the members that have a point; absent where none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<u64>,
    /// The same of all members.
    pub spread_ms: u64,
}

impl Skew {
    pub fn of(members: &[Member]) -> Skew {
        let points: Vec<&Member> = members.iter().filter(|member| !member.throughout).collect();
        Skew { skew_ms: apart(points.into_iter()), spread_ms: apart(members.iter()).unwrap_or_default() }
    }
}

fn apart<'a>(members: impl Iterator<Item = &'a Member> + Clone) -> Option<u64> {
    let from = members.clone().map(|member| member.from).min()?;
    let to = members.map(|member| member.to).max()?;
    u64::try_from(to.duration_since(from).as_nanos().max(0)).ok().map(|nanos| nanos.div_ceil(1_000_000))
}

impl Group {
    /// The time of the oldest data in it.
    pub fn data_time(&self) -> Timestamp {
        self.members.iter().map(|member| member.from).min().unwrap_or(self.started)
    }

    /// The time of the youngest data in it.
    pub fn until(&self) -> Timestamp {
        self.members.iter().map(|member| member.to).max().unwrap_or(self.finished)
    }

    fn check(&self) -> Result<()> {
        let sources: BTreeSet<&SourceName> = self.members.iter().map(|member| &member.source).collect();
        ensure!(!sources.is_empty() && sources.len() <= MEMBERS_MAX, "the group has {} members", sources.len());
        ensure!(sources.len() == self.members.len(), "the group names a source twice");
        ensure!(self.members.iter().all(|member| member.from <= member.to), "a member's point ends before it begins");
        ensure!(self.skew == Skew::of(&self.members), "the skew is not that of its members");
        ensure!(self.n > 1 || self.previous.is_none(), "is the first, but names one before it");
        Ok(())
    }
}

/// A common point that verified.
#[derive(Debug, Clone)]
pub struct Point {
    pub hash: Hash,
    pub signer: PublicKey,
    pub group: Group,
}

impl Point {
    /// Reads and verifies the object that lies at (`name`, `n`).
    pub fn verify(trust: &Trust, name: &GroupName, n: u64, object: &[u8]) -> Result<Point> {
        let signed = SignedLine::parse(object)?;
        check_format(signed.format()?, "the group")?;
        let group: Group = signed.decode()?;
        ensure!(group.r#type == "group", "a signed line of type {}, not a group", group.r#type);
        ensure!(group.repository == trust.id && group.group == *name && group.n == n, "the group belongs elsewhere");
        ensure!(group.key == signed.key.id(), "the group names another key than the one that signed it");
        group.check()?;
        for member in &group.members {
            if !trust.may_sign(&signed.key, Role::Host, &member.source, group.started) {
                bail!("signed by {}, which the root key has not certified for {}", group.key, member.source);
            }
        }
        Ok(Point { hash: Hash::of(object), signer: signed.key, group })
    }
}

/// The names of all groups that have common points.
pub fn names(store: &Store) -> Result<Vec<GroupName>> {
    let listed = history::list(store, layout::GROUPS).context("list groups")?;
    let names: BTreeSet<_> = listed.iter().filter_map(|w| Some(layout::parse_group(&w.key)?.0)).collect();
    Ok(names.into_iter().collect())
}

/// The listing of a group's common points.
pub struct Points<'a> {
    store: &'a Store,
    trust: &'a Trust,
    name: &'a GroupName,
    listed: BTreeMap<u64, Written>,
}

/// The newest points of a group, as far as they verify, the newest first.
#[derive(Debug, Default)]
pub struct Recent {
    pub points: Vec<Point>,
    /// What is missing, does not verify or breaks the chain: (n, why).
    pub faults: Vec<(u64, String)>,
    /// What somebody has put over points; the oldest version counts.
    pub covers: Vec<Cover>,
}

impl<'a> Points<'a> {
    pub fn list(store: &'a Store, trust: &'a Trust, name: &'a GroupName) -> Result<Points<'a>> {
        let listed = history::list(store, &layout::groups(name)).with_context(|| format!("list group {name}"))?;
        let listed = listed.into_iter().filter_map(|w| Some((layout::parse_group(&w.key)?.1, w))).collect();
        Ok(Points { store, trust, name, listed })
    }

    pub fn name(&self) -> &GroupName {
        self.name
    }

    /// The highest number taken; 0 where there is none.
    pub fn last(&self) -> u64 {
        self.listed.last_key_value().map_or(0, |(n, _)| *n)
    }

    /// How many there are; fewer than the highest number where some are missing.
    pub fn count(&self) -> usize {
        self.listed.len()
    }

    /// The store's own time of point `n`.
    pub fn stored_at(&self, n: u64) -> Option<Timestamp> {
        self.listed.get(&n).map(Written::since)
    }

    pub fn read(&self, n: u64) -> Result<Point> {
        let missing = || storage::Error::new(storage::Kind::NotFound, "get", layout::group(self.name, n));
        let written = self.listed.get(&n).ok_or_else(missing)?;
        written.read(self.store, |object| Point::verify(self.trust, self.name, n, object))
    }

    /// The newest `most` points, newest first. A store that cannot be read is an error, an object that does not verify a fault.
    pub fn recent(&self, most: u64) -> Result<Recent> {
        let mut recent = Recent::default();
        // What the point after the one at hand says of it.
        let mut named: Option<Option<Hash>> = None;
        for n in (1..=self.last()).rev().take(usize::try_from(most).unwrap_or(usize::MAX)) {
            recent.covers.extend(self.listed.get(&n).and_then(Written::cover));
            match self.read(n) {
                Ok(point) => {
                    if named.take().is_some_and(|hash| hash != Some(point.hash)) {
                        recent.faults.push((n, "is not the one that the point after it names".into()));
                    }
                    named = Some(point.group.previous);
                    recent.points.push(point);
                }
                Err(e) if !self.listed.contains_key(&n) => {
                    drop(e);
                    recent.faults.push((n, "is missing: somebody removed it".into()));
                    named = None;
                }
                Err(e) if e.is::<storage::Error>() => return Err(e.context("read a common point")),
                Err(e) => {
                    recent.faults.push((n, format!("{e:#}")));
                    named = None;
                }
            }
        }
        Ok(recent)
    }
}

/// The type and format of a new one.
pub fn kind() -> (String, u32) {
    ("group".into(), FORMAT)
}
