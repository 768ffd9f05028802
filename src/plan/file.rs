//! The text of a plan, and what must hold in it. Errors name the file, the line and the cure.

use anyhow::Result;
use jiff::SignedDuration;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::check::CheckOf;
use super::{Action, InDrill, Notify, OnFailure, Plan, PointOf, Restore, RestoreGroup, Stage, Variables, WaitFor};
use crate::config::Config;
use crate::config::text::explain;
use crate::error::{Failure, Kind};
use crate::job::Rhythm;
use crate::repository::layout::{GroupName, Hash, SourceName};
use crate::secret::{Secret, Text};
use crate::time::optional_length as duration;

/// Longest run of a stage that says nothing of it.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Stages of a plan.
const STAGES_MAX: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    about: String,
    #[serde(default, deserialize_with = "duration")]
    rpo: Option<SignedDuration>,
    #[serde(default, deserialize_with = "duration")]
    rto: Option<SignedDuration>,
    drill: Option<Rhythm>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    stage: Vec<WrittenStage>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStage {
    name: String,
    after: Option<Vec<String>>,
    #[serde(default, deserialize_with = "duration")]
    budget: Option<SignedDuration>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<SignedDuration>,
    run: Option<Vec<String>>,
    restore: Option<WrittenRestore>,
    check: Option<Vec<CheckOf>>,
    wait_for: Option<WrittenWait>,
    notify: Option<WrittenNotify>,
    drill: Option<WrittenDrill>,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    undo: Vec<String>,
    #[serde(default)]
    secrets: BTreeMap<String, Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRestore {
    source: Option<SourceName>,
    group: Option<GroupName>,
    to: WrittenPlaces,
    point: Option<WrittenPoint>,
    #[serde(default)]
    replace: bool,
    version: Option<String>,
    identity: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWait {
    http: Option<String>,
    tcp: Option<String>,
    file: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNotify {
    text: String,
    webhook: Option<Text>,
    #[serde(default)]
    run: Vec<String>,
}

/// A path, or of a group one for each member. By hand, for the line of an error.
#[derive(Debug)]
enum WrittenPlaces {
    One(String),
    Each(BTreeMap<SourceName, String>),
}

impl<'de> Deserialize<'de> for WrittenPlaces {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WrittenPlaces, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenPlaces;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or of a group { MEMBER = path, … }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WrittenPlaces, E> {
                Ok(WrittenPlaces::One(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenPlaces, A::Error> {
                BTreeMap::deserialize(de::value::MapAccessDeserializer::new(map)).map(WrittenPlaces::Each)
            }
        }
        d.deserialize_any(Either)
    }
}

/// `"latest"`, `"verified"` or a number. By hand, because an untagged enum would lose the line of an error.
#[derive(Debug)]
struct WrittenPoint(PointOf);

impl<'de> Deserialize<'de> for WrittenPoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WrittenPoint, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = WrittenPoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"latest\", \"verified\" or the number of a snapshot")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WrittenPoint, E> {
                match text {
                    "latest" => Ok(WrittenPoint(PointOf::Latest)),
                    "verified" => Ok(WrittenPoint(PointOf::Verified)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<WrittenPoint, E> {
                let seq = u64::try_from(n).ok().filter(|n| *n > 0);
                seq.map(|n| WrittenPoint(PointOf::Seq(n)))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(n), &self))
            }
        }
        d.deserialize_any(Either)
    }
}

/// `"run"`, `"skip"` or `{ run = […] }`.
#[derive(Debug)]
struct WrittenDrill(InDrill);

impl<'de> Deserialize<'de> for WrittenDrill {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WrittenDrill, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Instead {
            run: Vec<String>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenDrill;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"run\", \"skip\" or { run = [program, arguments…] }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<WrittenDrill, E> {
                match text {
                    "run" => Ok(WrittenDrill(InDrill::Run)),
                    "skip" => Ok(WrittenDrill(InDrill::Skip)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<WrittenDrill, A::Error> {
                drop(seq);
                Err(de::Error::custom("write { run = [program, arguments…] }"))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenDrill, A::Error> {
                let instead = Instead::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(WrittenDrill(InDrill::Replace(instead.run)))
            }
        }
        d.deserialize_any(Either)
    }
}

pub fn parse(text: &str, path: &Path, config: &Config) -> Result<Plan> {
    let written: Written = toml::from_str(text).map_err(|e| explain(&e, text, path))?;
    let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let wrong = |stage: Option<&str>, what: String| {
        let line = stage.map_or(1, |name| line_of(text, name));
        let stage = stage.map_or(String::new(), |name| format!("stage {name:?}: "));
        let help = "Nothing was done. Correct the plan; `blackstart check` reads it again.";
        Failure::new(Kind::Config, format!("{}, line {line}: {stage}{what}", path.display()), help)
    };
    if SourceName::new(&name).is_err() {
        let what = format!("{name:?} cannot name a plan: use lower-case letters, digits, `-` and `_`");
        return Err(wrong(None, what));
    }
    if written.stage.is_empty() || written.stage.len() > STAGES_MAX {
        return Err(wrong(None, format!("a plan has 1 to {STAGES_MAX} [[stage]], this has {}", written.stage.len())));
    }
    let mut plan = Plan {
        name,
        file: path.to_owned(),
        hash: Hash::of(text.as_bytes()),
        about: written.about,
        rpo: written.rpo,
        rto: written.rto,
        drill: written.drill,
        variables: written.variables,
        stages: Vec::new(),
    };
    for stage in written.stage {
        let name = stage.name.clone();
        let stage = complete(stage, &plan.stages, config).map_err(|what| wrong(Some(&name), what))?;
        plan.stages.push(stage);
        fits(&plan, config).map_err(|what| wrong(Some(&name), what))?;
    }
    Ok(plan)
}

/// What is restored, and where it goes.
fn restoring(written: WrittenRestore, config: &Config) -> Result<Action, String> {
    let WrittenRestore { source, group, to, point, replace, version, identity } = written;
    let point = point.map_or(PointOf::Latest, |p| p.0);
    match (source, group, to) {
        (Some(source), None, WrittenPlaces::One(to)) => {
            Ok(Action::Restore(Restore { source, to, point, replace, version, identity }))
        }
        (Some(_), None, WrittenPlaces::Each(_)) => Err("`to` of a source is one path".into()),
        (None, Some(_), _) if version.is_some() || identity.is_some() => {
            Err("`version` and `identity` are of one source: ask for them in a check".into())
        }
        (None, Some(group), to) => {
            let Some(known) = config.group.iter().find(|known| known.name == group) else {
                let all: Vec<String> = config.group.iter().map(|known| known.name.to_string()).collect();
                let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
                return Err(format!("{group} is no group of {}: there are {all}", config.file.display()));
            };
            let to = match to {
                WrittenPlaces::One(to) => known.sources.iter().map(|m| (m.clone(), format!("{to}/{m}"))).collect(),
                WrittenPlaces::Each(to) => to,
            };
            let lacking = known.sources.iter().find(|member| !to.contains_key(*member));
            let strange = to.keys().find(|name| !known.sources.contains(name));
            match (lacking, strange) {
                (Some(member), _) => Err(format!("`to` does not say where {member} goes, which is in group {group}")),
                (_, Some(name)) => Err(format!("`to` names {name}, which is not in group {group}")),
                _ => Ok(Action::RestoreGroup(RestoreGroup { group, to, point, replace })),
            }
        }
        _ => Err("`restore` takes a source or a group".into()),
    }
}

/// The stage with its one action; `before` are those in front of it.
fn complete(written: WrittenStage, before: &[Stage], config: &Config) -> Result<Stage, String> {
    if before.iter().any(|s| s.name == written.name) {
        return Err("another stage has this name".into());
    }
    let after = match written.after {
        Some(after) => after,
        None => before.last().map(|s| s.name.clone()).into_iter().collect(),
    };
    if let Some(unknown) = after.iter().find(|name| !before.iter().any(|s| s.name == **name)) {
        return Err(format!("`after` names {unknown:?}, which is no stage above this one"));
    }
    let restore = written.restore.map(|restore| restoring(restore, config)).transpose()?;
    let wait = written.wait_for.map(|w| match (w.http, w.tcp, w.file) {
        (Some(url), None, None) => Ok(Action::WaitFor(WaitFor::Http(url))),
        (None, Some(address), None) => Ok(Action::WaitFor(WaitFor::Tcp(address))),
        (None, None, Some(path)) => Ok(Action::WaitFor(WaitFor::File(path))),
        _ => Err("`wait_for` takes one of http, tcp, file".to_owned()),
    });
    let notify = written.notify.map(|n| Action::Notify(Notify { text: n.text, webhook: n.webhook, run: n.run }));
    let actions = [written.run.map(Action::Run), restore, written.check.map(Action::Check), wait.transpose()?, notify];
    let mut actions = actions.into_iter().flatten();
    let (Some(action), None) = (actions.next(), actions.next()) else {
        return Err("a stage does one thing: run, restore, check, wait_for or notify".into());
    };
    let timeout = written.timeout.map(Duration::try_from).transpose().map_err(|e| e.to_string())?;
    Ok(Stage {
        name: written.name,
        after,
        budget: written.budget,
        timeout: timeout.unwrap_or(TIMEOUT),
        action,
        in_drill: written.drill.map_or(InDrill::Usual, |d| d.0),
        on_failure: written.on_failure,
        undo: written.undo,
        secrets: written.secrets,
    })
}

/// That the last stage's source is known, its variables are, and no program is empty.
fn fits(plan: &Plan, config: &Config) -> Result<(), String> {
    let Some(stage) = plan.stages.last() else { return Ok(()) };
    let mut variables = Variables::new(&plan.variables);
    variables.set("scratch", Path::new("/"));
    let restored = plan.sources();
    restored.iter().for_each(|source| variables.set(format!("copy.{source}"), Path::new("/")));
    let mut texts: Vec<&String> = stage.undo.iter().collect();
    if let InDrill::Replace(argv) = &stage.in_drill {
        texts.extend(argv);
        if argv.is_empty() {
            return Err("there is no program to run in a drill".into());
        }
    }
    match &stage.action {
        Action::Run(argv) if argv.is_empty() => return Err("there is no program to run".into()),
        Action::Run(argv) => texts.extend(argv),
        Action::Restore(_) | Action::RestoreGroup(_) => {
            for (source, to, _) in stage.places() {
                if !config.source.iter().any(|s| s.name == *source) {
                    let known: Vec<&str> = config.source.iter().map(|s| s.name.as_str()).collect();
                    let known = known.join(", ");
                    return Err(format!("{source} is no source of {}: there are {known}", config.file.display()));
                }
                if restored.iter().filter(|s| *s == source).count() > 1 {
                    return Err(format!("{source} is restored by a stage above already"));
                }
                variables.fill(to).map_err(|e| e.to_string())?;
            }
            if stage.in_drill == InDrill::Run {
                return Err("a drill restores to scratch, never to `to`: leave drill = \"run\" out".into());
            }
        }
        Action::Check(checks) => {
            if checks.is_empty() {
                return Err("there is nothing to check".into());
            }
            let kind_of =
                |name: &SourceName| config.source.iter().find(|s| s.name == *name).map_or("", |s| s.kind.name());
            let kinds: Vec<_> = restored.iter().map(|name| (name, kind_of(name))).collect();
            for check in checks {
                check.validate(&kinds)?;
                texts.extend(check.texts());
            }
        }
        Action::WaitFor(WaitFor::Http(text) | WaitFor::Tcp(text) | WaitFor::File(text)) => texts.push(text),
        Action::Notify(notify) => {
            texts.push(&notify.text);
            texts.extend(&notify.run);
        }
    }
    texts.into_iter().try_for_each(|text| variables.fill(text).map(drop)).map_err(|e| e.to_string())
}

/// The line on which the stage is named.
fn line_of(text: &str, stage: &str) -> usize {
    let named = |line: &str| {
        line.trim_start().strip_prefix("name").is_some_and(|rest| rest.contains('=') && rest.contains(stage))
    };
    text.lines().position(named).map_or(1, |n| n + 1)
}
