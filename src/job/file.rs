//! The text of a job file, and what must hold in it.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::drills::Drills;
use super::rhythm::Interval;
use super::{CatchUp, Declared, Job, Overlap, Rhythm, Task};
use crate::config::source::SourceConfig;
use crate::config::text::explain;
use crate::error::{Failure, Kind};
use crate::operations::retention::Policy;
use crate::operations::tiers::Tiers;
use crate::repository::layout::{GroupName, SourceName};
use crate::time::{Window, free_at, length, optional_length as duration};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "yes")]
    enabled: bool,
    source: Option<SourceOf>,
    /// A restore plan that is drilled.
    plan: Option<String>,
    /// A `[[group]]` that is backed up as one.
    group: Option<String>,
    /// Incremental backups, every so often.
    every: Option<Interval>,
    full: Option<Rhythm>,
    incremental: Option<Rhythm>,
    drill: Option<Drills>,
    prune: Option<Rhythm>,
    verify: Option<Rhythm>,
    #[serde(default, deserialize_with = "duration")]
    rpo: Option<SignedDuration>,
    #[serde(default, deserialize_with = "duration")]
    rto: Option<SignedDuration>,
    jitter: Option<Jitter>,
    #[serde(default)]
    catch_up: CatchUp,
    #[serde(default)]
    overlap: Overlap,
    #[serde(default)]
    blackout: Vec<Window>,
    retention: Option<Policy>,
    tier: Option<Tiers>,
}

fn yes() -> bool {
    true
}

/// The name of a `[[source]]` of `blackstart.toml`, or a table of the same shape.
#[derive(Debug)]
enum SourceOf {
    Named(SourceName),
    Inline(Box<SourceConfig>),
}

/// By hand, because an untagged enum would lose the line of an error.
impl<'de> Deserialize<'de> for SourceOf {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<SourceOf, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SourceOf;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a source, or a [source] table")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SourceOf, E> {
                SourceName::new(text).map(SourceOf::Named).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SourceOf, A::Error> {
                let source = SourceConfig::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(SourceOf::Inline(Box::new(source)))
            }
        }
        d.deserialize_any(Either)
    }
}

/// A length of time, or `"0s"` for none.
#[derive(Debug, Clone, Copy)]
struct Jitter(SignedDuration);

impl<'de> Deserialize<'de> for Jitter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Jitter, D::Error> {
        let text = String::deserialize(d)?;
        if text == "0s" || text == "0" {
            return Ok(Jitter(SignedDuration::ZERO));
        }
        length(&text).map(Jitter).map_err(de::Error::custom)
    }
}

pub fn parse(text: &str, path: &Path) -> Result<Declared> {
    let written: Written = toml::from_str(text).map_err(|e| explain(&e, text, path))?;
    let declared = declare(written, path).and_then(|declared| {
        // A source of `blackstart.toml` may have an RPO, from which a job without any rhythm gets one.
        check(&declared.job, declared.inline.is_some()).map(|()| declared)
    });
    declared.map_err(|(key, what, cure)| {
        let help = format!("Nothing was done. {cure} `blackstart check` reads it again.");
        Failure::new(Kind::Config, format!("{}, line {}: {what}", path.display(), line_of(text, key)), help)
    })
}

const IDLE: &str = "this job never does anything";
const IDLE_CURE: &str = "Add `rpo = \"1h\"`, `every = \"30m\"`, or `full = { cron = \"0 2 * * *\" }`.";

/// The key that is to blame, what is wrong, and the cure.
type Wrong = (&'static str, String, &'static str);

/// A job that drills a plan.
fn of_plan(written: Written, name: &str, path: &Path) -> Result<Declared, Wrong> {
    let others = [
        ("source", written.source.is_some()),
        ("group", written.group.is_some()),
        ("every", written.every.is_some()),
        ("full", written.full.is_some()),
        ("incremental", written.incremental.is_some()),
        ("prune", written.prune.is_some()),
        ("verify", written.verify.is_some()),
        ("rpo", written.rpo.is_some()),
        ("rto", written.rto.is_some()),
        ("retention", written.retention.is_some()),
        ("tier", written.tier.is_some()),
    ];
    if let Some((key, _)) = others.iter().find(|(_, given)| *given) {
        let what = format!("`{key}` does not belong to a job that drills a plan");
        return Err((key, what, "Leave it out; targets stand in the plan."));
    }
    let source = SourceName::of_plan(name)
        .map_err(|e| ("plan", format!("{e:#}"), "Give the name of the plan's file without `.toml`."))?;
    let drill = written.drill.map(|drills| drills.of_plan().map_err(|what| ("drill", what, "Leave `level` out.")));
    let job = Job {
        file: path.to_owned(),
        enabled: written.enabled,
        source,
        plan: None,
        members: Vec::new(),
        tasks: drill.transpose()?.map(|rhythm| (Task::DRILL, rhythm)).into_iter().collect(),
        rpo: None,
        rto: None,
        continuous: false,
        jitter: written.jitter.map(|jitter| jitter.0),
        catch_up: written.catch_up,
        overlap: written.overlap,
        blackout: written.blackout,
    };
    Ok(Declared { job, inline: None, retention: None, tier: None })
}

/// A job that backs up a group.
fn of_group(written: Written, name: &str, path: &Path) -> Result<Declared, Wrong> {
    let others = [
        ("source", written.source.is_some(), "A job is for one source or for one group."),
        (
            "drill",
            written.drill.is_some(),
            "Drill a plan whose stage restores the group, or each member by a job of its own.",
        ),
        ("prune", written.prune.is_some(), "Retention works by source: give each member a job with `prune`."),
        ("verify", written.verify.is_some(), "Give the members jobs with `verify`."),
        ("rto", written.rto.is_some(), "Targets of restores stand with the members, or in a plan."),
        ("retention", written.retention.is_some(), "Retention stands with the members: give all of them the same."),
        ("tier", written.tier.is_some(), "Tiers stand with the members."),
    ];
    if let Some((key, _, cure)) = others.iter().find(|(_, given, _)| *given) {
        return Err((key, format!("`{key}` does not belong to a job that backs up a group"), cure));
    }
    let name = GroupName::new(name)
        .map_err(|e| ("group", format!("{e:#}"), "Give the name of a [[group]] of blackstart.toml."))?;
    let mut job = Job {
        file: path.to_owned(),
        enabled: written.enabled,
        source: SourceName::of_group(&name),
        plan: None,
        members: Vec::new(),
        tasks: backups(&written)?,
        rpo: written.rpo,
        rto: None,
        continuous: false,
        jitter: written.jitter.map(|jitter| jitter.0),
        catch_up: written.catch_up,
        overlap: written.overlap,
        blackout: written.blackout,
    };
    job.derive();
    Ok(Declared { job, inline: None, retention: None, tier: None })
}

/// When backups run.
fn backups(written: &Written) -> Result<BTreeMap<Task, Rhythm>, Wrong> {
    if written.every.is_some() && written.incremental.is_some() {
        let what = "`every` and `incremental` both say when incremental backups run".to_owned();
        return Err(("every", what, "Keep one of them."));
    }
    let every = written.every.map(|every| Rhythm::Every(every.0));
    let rhythms = [(Task::Full, written.full.clone()), (Task::Incremental, written.incremental.clone().or(every))];
    Ok(rhythms.into_iter().filter_map(|(task, rhythm)| Some((task, rhythm?))).collect())
}

fn declare(written: Written, path: &Path) -> Result<Declared, Wrong> {
    if let Some(name) = written.plan.clone() {
        return of_plan(written, &name, path);
    }
    if let Some(name) = written.group.clone() {
        return of_group(written, &name, path);
    }
    let mut tasks = backups(&written)?;
    let Some(named) = written.source else {
        let what = "the job is for nothing".to_owned();
        return Err(("source", what, "Name a `source`, a `group`, or a `plan` to drill."));
    };
    let rhythms = [(Task::Prune, written.prune), (Task::Verify, written.verify)];
    tasks.extend(rhythms.into_iter().filter_map(|(task, rhythm)| Some((task, rhythm?))));
    tasks.extend(written.drill.into_iter().flat_map(Drills::tasks));
    let (source, mut inline) = match named {
        SourceOf::Named(name) => (name, None),
        SourceOf::Inline(source) => (source.name.clone(), Some(*source)),
    };
    let of_source = inline.as_mut();
    let (rpo, rto, retention, tier) =
        of_source.map_or((None, None, None, None), |s| (s.rpo.take(), s.rto.take(), s.retention.take(), s.tier.take()));
    let rpo = once("rpo", written.rpo, rpo)?;
    let rto = once("rto", written.rto, rto)?;
    let retention = once("retention", written.retention, retention)?;
    let tier = once("tier", written.tier, tier)?;
    let mut job = Job {
        file: path.to_owned(),
        enabled: written.enabled,
        source,
        plan: None,
        members: Vec::new(),
        tasks,
        rpo,
        rto,
        jitter: written.jitter.map(|jitter| jitter.0),
        catch_up: written.catch_up,
        overlap: written.overlap,
        blackout: written.blackout,
        continuous: inline.as_ref().is_some_and(|source| source.continuous),
    };
    job.derive();
    Ok(Declared { job, inline, retention, tier })
}

/// A value that may stand in the job or in its source, and not in both.
fn once<T>(key: &'static str, job: Option<T>, source: Option<T>) -> Result<Option<T>, Wrong> {
    match (job, source) {
        (Some(_), Some(_)) => {
            Err((key, format!("`{key}` is given twice, for the job and for its source"), "Keep one of them."))
        }
        (job, source) => Ok(job.or(source)),
    }
}

/// Some moment to look at gaps from; the same every time, so that a file is right or wrong whenever it is read.
fn beginning() -> Timestamp {
    Timestamp::from_second(1_704_067_200).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn check(job: &Job, whole: bool) -> Result<(), Wrong> {
    if whole && job.tasks.is_empty() {
        return Err(("source", IDLE.to_owned(), IDLE_CURE));
    }
    if free_at(&job.blackout, beginning()).is_none() {
        let what = "the blackout windows leave no time to run in".to_owned();
        return Err(("blackout", what, "Shorten them, or name the days they are for."));
    }
    for (task, rhythm) in &job.tasks {
        if let (Rhythm::Cron(_), Some(jitter)) = (rhythm, job.jitter)
            && jitter >= rhythm.gaps().0
        {
            let what = format!("the jitter is as long as the time between two runs of `{task}`");
            return Err(("jitter", what, "Make it shorter."));
        }
    }
    Ok(())
}

/// The file of a job and the line of `key` in it, for people.
pub fn place(job: &Job, key: &str) -> String {
    let text = std::fs::read_to_string(&job.file).unwrap_or_default();
    format!("{}, line {}", job.file.display(), line_of(&text, key))
}

/// The line of a top-level key, for people; the first if it is not there.
fn line_of(text: &str, key: &str) -> usize {
    let begins = |line: &str| {
        let line = line.trim_start().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '=', ']', '.']))
    };
    text.lines().position(begins).map_or(1, |at| at + 1)
}
