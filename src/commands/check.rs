//! `check`: try everything for real, and change nothing.

use anyhow::{Context, Result};
use jiff::SignedDuration;
use serde::Serialize;
use serde_json::json;

use super::apart;
use super::bucket::{self, Remark};
use super::open::KeyCanary;
use super::output::{Ending, Exit, Shell, count, size, span, time};
use super::plan::say_state;
use super::service::{self, Obstacle};
use super::setup::lacking;
use crate::accounts::Accounts;
use crate::agent;
use crate::cli::Check;
use crate::config::{Config, SYSTEM, SourceConfig, SourceKind};
use crate::entry::Name;
use crate::error::{Kind, help_of, kind_of};
use crate::job::Job;
use crate::operations::Open;
use crate::operations::reach::{self, WayOn};
use crate::operations::restore::{self, Pick};
use crate::plan::{self, Plan};
use crate::repository::keys::{KeyFile, KeyPair};
use crate::repository::layout::{GroupName, SourceName};
use crate::repository::series::Series;
use crate::repository::trust::Role;
use crate::scheduler;
use crate::source::canary::Act;
use crate::source::postgres;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Missed,
    Failed,
}

#[derive(Serialize)]
struct Finding {
    what: String,
    state: State,
    detail: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, state: State, detail: impl Into<String>) {
        self.0.push(Finding { what: what.into(), state, detail: detail.into() });
    }

    fn result(&mut self, what: impl Into<String>, result: Result<String>) {
        match result {
            Ok(detail) => self.add(what, State::Ok, detail),
            Err(error) => self.error(what, State::Failed, &error),
        }
    }

    fn error(&mut self, what: impl Into<String>, state: State, error: &anyhow::Error) {
        let help = help_of(error).map_or(String::new(), |help| format!("\n         help: {help}"));
        self.add(what, state, format!("{error:#}{help}"));
    }
}

pub fn run(shell: &Shell, args: &Check) -> Result<Ending> {
    let config = shell.config()?;
    let open = shell.open(&config)?;
    let mut found = Findings::default();
    let sources = count(config.source.len() as u64, "source");
    found.add("configuration", State::Ok, format!("{}: {sources}", config.file.display()));
    found.add("repository", State::Ok, format!("{}, root key {}", open.store.place(), open.trust.root.id()));
    store(&open, &mut found);
    bucket(&config, &open, &mut found);
    let drop_in = paths(&config, args.service, &mut found)?;
    found.result("host key", host_key(&config, &open));
    recovery(args, &open, &mut found)?;
    kept_apart(&config, &mut found);
    for source in &config.source {
        let opened = config.open_source(source, &shell.clock).and_then(|mut opened| match opened.kind() {
            // Its first entry would begin a backup on the server; that it lets us in is known by now.
            postgres::PHYSICAL => Ok(opened.root()),
            _ => opened.next().map(|_| opened.root()),
        });
        found.result(format!("source {}", source.name), opened.context("open the source"));
        if source.continuous && source.kind == SourceKind::Redis {
            found.result(format!("log of {}", source.name), may_follow(shell, &config, source));
        }
        canary(&config, source, &mut found);
        age(&open, source, &mut found);
    }
    members(&config, &open, &mut found);
    schedule(shell, &config, &open, &mut found);
    plans(&config, &open, &mut found)?;
    for finding in &found.0 {
        let state = match finding.state {
            State::Ok => "ok     ",
            State::Warning => "WARNING",
            State::Missed => "MISSED ",
            State::Failed => "FAILED ",
        };
        shell.say(format!("{state}  {}: {}", finding.what, finding.detail));
    }
    let any = |state| found.0.iter().any(|f| f.state == state);
    let exit = match (any(State::Failed), any(State::Missed)) {
        (true, _) => Exit::CheckFailed,
        (false, true) => Exit::Missed,
        _ => Exit::Done,
    };
    if let Some(text) = &drop_in {
        shell.say(format!("\nA drop-in that lets the unit write there:\n\n{text}"));
    }
    Ending::new(exit, json!({"checks": found.0, "drop_in": drop_in}))
}

/// That what the agent writes can be written: by this process, and under the shipped unit where that is asked for, or where it would be used.
/// Gives the drop-in that the unit needs.
fn paths(config: &Config, asked: bool, found: &mut Findings) -> Result<Option<String>> {
    let (written, allowed) = (service::written(config)?, service::allowed());
    let unit = asked || (Path::new("/run/systemd/system").is_dir() && config.file == Path::new(SYSTEM));
    let mut needed = Vec::new();
    let user = Accounts::load().uid(&Name::new(service::USER)).filter(|_| unit);
    for one in &written {
        let (path, what) = (one.path.display(), &one.what);
        if let Err(error) = service::may_write(&one.path) {
            let state = if one.lasting { State::Failed } else { State::Warning };
            found.add(format!("path {path}"), state, format!("{what} cannot be written by this user: {error}"));
        }
        match service::obstacle(one, &allowed).filter(|_| unit) {
            None => {}
            Some(Obstacle::ReadOnly) => {
                needed.push(one.path.as_path());
                let text =
                    format!("{what} is read-only to the service: its unit may write below /var/lib/blackstart alone");
                found.add(format!("path {path}"), State::Warning, text);
            }
            Some(Obstacle::Private) => {
                let text = format!(
                    "{what} would be lost: the service has a /tmp of its own, which is gone when it stops. Put it elsewhere"
                );
                found.add(format!("path {path}"), State::Failed, text);
            }
        }
    }
    for (path, what) in service::strangers(&written, user) {
        found.add(format!("path {}", path.display()), State::Failed, what);
    }
    needed.dedup();
    Ok((!needed.is_empty()).then(|| service::drop_in(&needed)))
}

/// That every restore plan reads, and whether a drill has verified it as it is now.
fn plans(config: &Config, open: &Open, found: &mut Findings) -> Result<()> {
    for file in plan::files(config)? {
        let what = format!("plan {}", file.file_stem().unwrap_or_default().to_string_lossy());
        match Plan::read(&file, config) {
            Err(error) => found.add(what, State::Failed, format!("{error:#}")),
            Ok(read) => {
                let state = plan::state(&read, &plan::reports(open, &read.name)?);
                let verified = matches!(state, plan::State::Verified { .. });
                found.add(what, if verified { State::Ok } else { State::Warning }, say_state(&state));
            }
        }
    }
    Ok(())
}

fn store(open: &Open, found: &mut Findings) {
    match open.store.probe() {
        Err(error) => found.add("store", State::Failed, format!("{:#}", anyhow::Error::new(error))),
        Ok(capabilities) => {
            let missing = lacking(&capabilities);
            if missing.is_empty() {
                found.add("store", State::Ok, "conditional writes work");
            }
            missing.into_iter().for_each(|what| found.add("store", State::Warning, what));
        }
    }
}

fn bucket(config: &Config, open: &Open, found: &mut Findings) {
    match bucket::remarks(config, open) {
        Err(error) => found.add("bucket", State::Failed, format!("{error:#}")),
        Ok(remarks) => {
            for remark in remarks {
                let (state, text) = match remark {
                    Remark::Well(text) => (State::Ok, text),
                    Remark::Warning(text) => (State::Warning, text),
                    Remark::Wrong(text) => (State::Failed, text),
                };
                found.add("bucket", state, text);
            }
        }
    }
}

fn host_key(config: &Config, open: &Open) -> Result<String> {
    let public = KeyPair::read(&config.host_key())?.signing.public();
    let keeps = |source: &SourceConfig| open.trust.may_sign(&public, Role::Keeper, &source.name, open.now());
    if !config.source.is_empty() && config.source.iter().all(keeps) {
        return Ok(format!("{}, certified as keeper: it may prune, and not back up", public.id()));
    }
    for source in &config.source {
        anyhow::ensure!(
            open.trust.may_sign(&public, Role::Host, &source.name, open.now()),
            "{} is not certified for {}; certify it: `blackstart init --repo LOCATION --identity RECOVERY_KEY_FILE`",
            public.id(),
            source.name
        );
    }
    Ok(format!("{}, certified", public.id()))
}

/// That the receiver of a Redis source would be let in.
fn may_follow(shell: &Shell, config: &Config, source: &SourceConfig) -> Result<String> {
    let backlog = config.open_redis(source, &shell.clock)?.place().try_rights()?;
    Ok(backlog.map_or_else(
        || "its replication stream may be followed".into(),
        |bytes| format!("its replication stream may be followed; the server keeps {} of it for a receiver that is away (repl-backlog-size)", size(bytes)),
    ))
}

/// The canary: nothing is protected by a key that nobody has tried.
fn recovery(args: &Check, open: &Open, found: &mut Findings) -> Result<()> {
    if let Some(path) = &args.identity {
        let keys = KeyFile::read(path)?;
        found.result(
            "recovery key",
            KeyCanary::fly(open, &keys.identities).map(|()| "it decrypts what is sealed to it".into()),
        );
        return Ok(());
    }
    match KeyCanary::recall(open) {
        Some(canary) => found.add("recovery key", State::Ok, format!("last tried {}", time(canary.at))),
        None => found.add(
            "recovery key",
            State::Failed,
            "it has not been tried: nothing counts as protected before `blackstart check --identity FILE` has decrypted something",
        ),
    }
    Ok(())
}

/// That no single loss takes the sources, the repository and the key.
fn kept_apart(config: &Config, found: &mut Findings) {
    if let Some(why) = apart::key_at_hand(config) {
        found.add("recovery key", State::Warning, why);
    }
    if let Some(why) = apart::same_disk(config) {
        found.add("repository", State::Warning, why);
    }
    for (source, why) in apart::open_to_all(config) {
        found.add(format!("password of {source}"), State::Warning, why);
    }
}

/// What the agent would do when, and whether that keeps the RPO.
fn schedule(shell: &Shell, config: &Config, open: &Open, found: &mut Findings) {
    let now = shell.clock.now();
    let sources = config.jobs.iter().filter(|j| j.enabled).map(|j| (j.source.clone(), BTreeSet::new())).collect();
    let seen = match agent::observe(open, &sources, &BTreeMap::new()) {
        Ok(seen) => seen,
        Err(error) => return found.add("schedule", State::Failed, format!("{error:#}")),
    };
    for job in &config.jobs {
        let what = format!("job {}", job.file.file_name().unwrap_or_default().to_string_lossy());
        if !job.enabled {
            found.add(what, State::Ok, format!("{} is switched off", job.source));
            continue;
        }
        if let Some(unread) = seen.get(&job.source).and_then(|seen| seen.unread.as_ref()) {
            found.add(
                what.clone(),
                State::Failed,
                format!("{}: the store does not give it: {}", job.source, unread.why),
            );
        }
        let usual = seen.get(&job.source).map_or(Duration::ZERO, |s| s.usual);
        let usual = SignedDuration::try_from(usual).unwrap_or_default();
        if let Some(warning) = scheduler::warning(job, usual, now) {
            found.add(what.clone(), State::Warning, warning);
        }
        let tasks: Vec<String> = job.tasks.iter().map(|(task, rhythm)| format!("{task} {rhythm}")).collect();
        let worst = scheduler::worst_case(job, usual, now);
        let worst = worst.map_or(String::new(), |d| format!("; at worst {} of data are lost", span(d.as_secs_f64())));
        let worst = if job.continuous { "; the log is received all the time".to_owned() } else { worst };
        found.add(what, State::Ok, format!("{}: {}{worst}", job.source, tasks.join(", ")));
        if let Some(group) = job.source.group() {
            let newest = seen.get(&job.source).and_then(|seen| seen.newest.as_ref()).map(|newest| newest.data_time);
            of_group(&group, newest.map(|at| now.duration_since(at)), job.rpo, found);
        }
    }
    without_job(config, open, found);
    let drills = config.jobs.iter().any(|j| j.enabled && j.drills().next().is_some());
    if drills && !config.drill_key().exists() {
        let detail =
            format!("there is no key file at {}: drills on the schedule cannot run", config.drill_key().display());
        found.add("drill key", State::Warning, detail);
    }
}

/// Sources that no job backs up, where others have one: most likely a file was forgotten.
fn without_job(config: &Config, open: &Open, found: &mut Findings) {
    let backed_up = |job: &&Job| job.enabled && job.tasks.keys().any(|task| task.is_backup());
    let jobs: Vec<&Job> = config.jobs.iter().filter(backed_up).collect();
    let forgotten = config.source.iter().filter(|source| !jobs.iter().any(|job| job.covers(&source.name)));
    for source in forgotten.filter(|_| !jobs.is_empty()) {
        let retired = Series::list(&open.store, &open.trust, &source.name).and_then(|series| series.retired());
        if !matches!(retired, Ok(Some(_))) {
            let why = "no job backs it up: the agent leaves it alone, and does not miss it. Add a file to schedules/, or back it up from cron";
            found.add(format!("source {}", source.name), State::Warning, why);
        }
    }
}

/// That the canary can be written. A backup does not depend on it.
fn canary(config: &Config, source: &SourceConfig, found: &mut Findings) {
    let what = format!("canary of {}", source.name);
    let tried = config.canary(source).and_then(|canary| {
        let Some(canary) = canary else { return Ok(None) };
        canary.carry_out(Act::Try).map(|()| Some(canary.place()))
    });
    match tried {
        Ok(None) => {}
        Ok(Some(place)) => found.add(what, State::Ok, format!("can be written: {place}")),
        Err(error) => found.error(what, State::Warning, &error),
    }
}

/// How old the newest common point is.
fn of_group(group: &GroupName, age: Option<SignedDuration>, rpo: Option<SignedDuration>, found: &mut Findings) {
    let what = format!("newest common point of group {group}");
    let Some(age) = age else {
        let detail = format!("there is none that is whole: run `blackstart backup --group {group}`");
        return found.add(what, State::Failed, detail);
    };
    let late = rpo.is_some_and(|rpo| age > rpo);
    let target = rpo.map_or(String::new(), |rpo| format!(", RPO {}", span(rpo.as_secs_f64())));
    let detail = format!("its data is of {} ago{target}", span(age.as_secs_f64()));
    found.add(what, if late { State::Missed } else { State::Ok }, detail);
}

/// That no group has a member that is given up: it would have no common point any more.
fn members(config: &Config, open: &Open, found: &mut Findings) {
    for group in &config.group {
        let retired = |name: &&SourceName| {
            let series = Series::list(&open.store, &open.trust, name);
            matches!(series.and_then(|series| series.retired()), Ok(Some(_)))
        };
        let gone: Vec<&str> = group.sources.iter().filter(retired).map(SourceName::as_str).collect();
        if !gone.is_empty() && gone.len() < group.sources.len() {
            let gone = gone.join(", ");
            let detail =
                format!("{gone} is retired, so that it has no common point any more: take it out of [[group]]");
            found.add(format!("group {}", group.name), State::Failed, detail);
        }
    }
}

fn age(open: &Open, source: &SourceConfig, found: &mut Findings) {
    let what = format!("newest snapshot of {}", source.name);
    let series = Series::list(&open.store, &open.trust, &source.name);
    if let Ok(Some(record)) = series.and_then(|series| series.retired()) {
        let detail = format!("the source is retired since {}: nothing is due", time(record.started));
        return found.add(what, State::Ok, detail);
    }
    let snapshot = match restore::find(open, &source.name, &Pick::Latest) {
        Ok((_, snapshot)) => snapshot,
        // What is there and cannot be read, or does not verify, is no reason to back up and forget it.
        Err(error) if kind_of(&error) != Kind::Usage => return found.error(what, State::Failed, &error),
        Err(_) => return found.add(what, State::Failed, "there is none: run `blackstart backup`"),
    };
    let log_of = format!("log of {}", source.name);
    let WayOn { log, lost, .. } = reach::way_after(open, &snapshot).unwrap_or_else(|error| {
        found.add(log_of.clone(), State::Failed, format!("{error:#}"));
        WayOn::default()
    });
    if let Some(lost) = lost {
        let detail = format!("it cannot be used to its end: {lost}. Run `blackstart verify`, and back up now");
        found.add(log_of, State::Failed, detail);
    }
    let age = open.now().duration_since(reach::point(&snapshot, log.as_ref()));
    let late = source.rpo.is_some_and(|rpo| age > rpo);
    let target = source.rpo.map_or(String::new(), |rpo| format!(", RPO {}", span(rpo.as_secs_f64())));
    let on = log.map_or(String::new(), |log| format!(", and its log up to {}", time(log.until)));
    let detail = format!("data of {}{on}, {} ago{target}", time(snapshot.data_time), span(age.as_secs_f64()));
    found.add(what, if late { State::Missed } else { State::Ok }, detail);
}
