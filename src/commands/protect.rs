//! `protect`: the first five minutes. Detect, make keys, back up, restore at once, show the proof.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use super::output::{self, Ending, Exit, Shell};
use super::setup::{self, Keys, Made};
use super::status::restore_command;
use super::{apart, backup, drill, sample};
use crate::cli::{self, Protect};
use crate::config::{Config, SourceConfig, resolve_location};
use crate::error::{Failure, Kind, kind_of};
use crate::interrupt;
use crate::operations::Host;
use crate::repository::keys::KeyFile;
use crate::repository::layout::SourceName;
use crate::secret::{Secret, Text};
use crate::source::detect::{self, Found, Place};
use crate::source::{postgres, redis};

const SAMPLE_REPOSITORY: &str = "./blackstart-repository";

pub fn run(shell: &Shell, args: &Protect) -> Result<Ending> {
    let there = Config::find(shell.config.as_deref());
    let sample = args.paths.is_empty() && there.is_none();
    let paths = if sample { vec![sample::make()?] } else { args.paths.clone() };
    let mut found = Vec::new();
    for path in &paths {
        found.extend(detect::detect(path)?);
    }
    let (config, made) = match there {
        Some(_) => (existing(shell, args)?, None),
        None => create(shell, args, sample).map(|(config, made)| (config, Some(made)))?,
    };
    let (config, names) = add(shell, config, found)?;
    let sources = config.chosen(&names)?;
    if sources.is_empty() {
        shell.say("There is nothing to protect yet: name a path.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    let host = shell.host(&config)?;
    // After `detect`, which must not open database files while they are in use in this process.
    let writer = sample.then(|| sample::keep_writing(&paths[0])).transpose()?;
    let (exit, reports) = protect_all(shell, &config, &host, &sources);
    drop(writer);
    say_end(shell, &config, &host, &reports);
    Ending::new(exit, json!({"config": config.file, "made": made, "sources": reports}))
}

fn existing(shell: &Shell, args: &Protect) -> Result<Config> {
    let config = shell.config()?;
    if let Some(repo) = &args.repo {
        let here = std::env::current_dir().context("find the current directory")?;
        if resolve_location(repo, &here)? != config.location()? {
            return Err(Failure::new(
                Kind::Usage,
                format!("{} names another repository: {}", config.file.display(), config.repository),
                "Nothing was changed. Leave --repo out, or give another --config for the other repository.",
            ));
        }
    }
    Ok(config)
}

fn create(shell: &Shell, args: &Protect, sample: bool) -> Result<(Config, Made)> {
    let repo = match (&args.repo, sample) {
        (Some(repo), _) => repo.as_str(),
        (None, true) => SAMPLE_REPOSITORY,
        (None, false) => {
            return Err(Failure::new(
                Kind::Usage,
                "where should the backups go?",
                "Nothing was done. Name a place on another disk or machine: --repo /mnt/backup, or --repo s3://bucket/prefix?endpoint=https://host.",
            ));
        }
    };
    let location = resolve_location(repo, &std::env::current_dir().context("find the current directory")?)?;
    let path = std::path::absolute(Config::place_for_new(shell.config.as_deref()))?;
    let keys = Keys::below(&path.with_file_name("blackstart").join("keys"));
    let made = setup::create(shell, &location, &keys, &path)?;
    shell.say(format!("Made the repository {} and its keys.", made.repository));
    Ok((Config::load(Some(&path))?, made))
}

/// Adds what was found and is not in the configuration yet; gives the names of all that was found.
fn add(shell: &Shell, config: Config, found: Vec<Found>) -> Result<(Config, Vec<SourceName>)> {
    let mut names = Vec::new();
    let mut taken: Vec<String> = config.source.iter().map(|s| s.name.to_string()).collect();
    let mut blocks = String::new();
    for found in found {
        for note in &found.notes {
            // How it will be done is no warning.
            if found.kind == "postgres" && !note.contains("no data checksums") {
                shell.say(format!("note: {note}"));
            } else {
                shell.warn(note);
            }
        }
        let same = |s: &&SourceConfig| {
            s.kind.name() == found.kind
                && match &found.place {
                    Place::Path(path) => config.path_of(s).is_ok_and(|p| p == *path),
                    Place::Url(url) => s.url.as_ref().is_some_and(|u| *u == Text::Plain(url.clone())),
                }
        };
        if let Some(known) = config.source.iter().find(same) {
            names.push(known.name.clone());
            continue;
        }
        let name = free_name(&found.suggested_name, &taken);
        taken.push(name.clone());
        names.push(SourceName::new(&name)?);
        blocks.push_str(&block(&config, &name, &found)?);
        shell.say(format!("Found {} ({}): source {name}", found.place, found.kind));
    }
    let config = if blocks.is_empty() { config } else { setup::append_sources(&config, &blocks)? };
    Ok((config, names))
}

fn free_name(wish: &str, taken: &[String]) -> String {
    let stem = &wish[..wish.len().min(58)];
    let numbered = (2u32..).map(|n| format!("{stem}-{n}"));
    std::iter::once(wish.to_owned()).chain(numbered).find(|n| !taken.contains(n)).unwrap_or_default()
}

fn block(config: &Config, name: &str, found: &Found) -> Result<String> {
    let place = match &found.place {
        Place::Path(path) => {
            let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            format!("path = {}", setup::quoted(path))
        }
        Place::Url(url) => format!("url = {}", setup::quoted(url)),
    };
    let (name, kind) = (setup::quoted(name), setup::quoted(found.kind));
    let mut text = format!("\n[[source]]\nname = {name}\nkind = {kind}\n{place}\n");
    if let Some(variable) = found.password {
        text.push_str(&format!("password = {{ env = {} }}\n", setup::quoted(variable)));
    }
    let mut exclude = found.exclude.clone();
    if let ("files", Place::Path(path)) = (found.kind, &found.place) {
        exclude.extend(own_places(config)?.iter().filter_map(|own| below(own, path)));
    }
    if !exclude.is_empty() {
        let lines: Vec<String> = exclude.iter().map(|p| format!("  {},\n", setup::quoted(p))).collect();
        text.push_str(&format!("exclude = [\n{}]\n", lines.concat()));
    }
    // A table of its own ends the lines of the source.
    text.push_str(found.settings);
    Ok(text)
}

/// Our own directories, which must not be backed up: a repository in itself, and keys.
fn own_places(config: &Config) -> Result<Vec<PathBuf>> {
    let mut places = vec![config.state(), config.host_key(), config.recovery_key()];
    let location = config.location()?;
    if !location.starts_with("s3://") {
        places.push(location.into());
    }
    Ok(places)
}

fn below(own: &Path, root: &Path) -> Option<String> {
    let relative = own.strip_prefix(root).ok()?.to_str().filter(|r| !r.is_empty())?;
    Some(detect::pattern(relative, ""))
}

/// Backs up every source, and drills it if the recovery key is at hand.
fn protect_all(shell: &Shell, config: &Config, host: &Host, sources: &[&SourceConfig]) -> (Exit, Vec<Value>) {
    let key = Some(config.recovery_key()).filter(|path| path.exists());
    let mut worst = Exit::Done;
    let mut reports = Vec::new();
    for source in sources {
        let mut report = json!({"source": source.name});
        let mut go = || -> Result<Exit> {
            let backup = backup::one(shell, config, host, source, backup::options(config)?)?;
            report["backup"] = serde_json::to_value(&backup)?;
            let Some(key) = &key else { return Ok(backup::exit(&backup)) };
            let keys = KeyFile::read(key).context("it is backed up, and was not restored to prove it")?;
            let drill = drill::one(shell, config, &host.open, &keys, source, drill::Wanted::usual("protect"))?;
            report["drill"] = serde_json::to_value(&drill)?;
            Ok(backup::exit(&backup).max(drill::exit(&drill)))
        };
        match go() {
            Ok(exit) => worst = worst.max(exit),
            Err(error) => {
                let error = error.context(format!("{} is not protected", source.name));
                shell.complain(&error);
                worst = worst.max(Exit::Failed(kind_of(&error).exit_code()));
                report["error"] = output::error_value(&error);
            }
        }
        reports.push(report);
        if interrupt::is_wished() {
            break;
        }
    }
    (worst, reports)
}

fn from_environment(config: &Config, variable: &str) -> bool {
    config.source.iter().any(|s| s.password == Some(Secret::Env(variable.into())))
}

fn say_end(shell: &Shell, config: &Config, host: &Host, reports: &[Value]) {
    shell.say("");
    shell.say(format!("Configuration  {}", config.file.display()));
    shell.say(format!("Repository     {}", host.open.store.place()));
    shell.say(format!("Root key       {}", host.open.trust.root.id()));
    let recovery = config.recovery_key();
    if recovery.exists() {
        shell.say(format!("Recovery key   {}", recovery.display()));
        shell.say("  It is the only key that reads the backups. Write the kit (`blackstart kit DIR --identity FILE`), print it, and");
        shell.say("  move the key file off this machine: with it here, whoever takes this machine reads the backups, and a fire takes both.");
    } else {
        shell.say("The recovery key is not on this machine, as it should be. Nothing was restored to prove this run:");
        shell.say("  `blackstart drill --identity FILE` does it.");
    }
    let of_the_shell = [postgres::detect::PASSWORD, redis::address::PASSWORD];
    for variable in of_the_shell.into_iter().filter(|v| from_environment(config, v)) {
        shell.say(format!("The password is read from ${variable}, which a timer or the agent does not have: put it into a file that only its user may read,"));
        shell.say("  and say password = { file = \"…\" } in the configuration.");
    }
    if let Some(why) = apart::same_disk(config) {
        shell.say(format!("note: {why}."));
    }
    let failed: Vec<&str> =
        reports.iter().filter(|r| r["error"].is_object()).filter_map(|r| r["source"].as_str()).collect();
    if !failed.is_empty() {
        shell.warn(format!(
            "not protected: {}. The configuration has a [[source]] for each: correct it there or take it out, and run `blackstart protect` again",
            failed.join(", ")
        ));
    }
    // What has no snapshot cannot be restored.
    let stored = reports.iter().filter(|report| report["backup"].is_object());
    let names = stored.filter_map(|report| SourceName::new(report["source"].as_str()?).ok());
    for (n, name) in names.enumerate() {
        let command = restore_command(Some(config), &name, &cli::Place::default(), &host.open);
        shell.say(format!("{}{command}", if n == 0 { "Restore with   " } else { "               " }));
    }
}
