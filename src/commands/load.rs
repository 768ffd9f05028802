//! `restore --into`: restore, check every byte, then load it into the engine.

use anyhow::{Context, Result};
use std::path::PathBuf;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, check_line, size, span, time};
use super::restore::{name_of, pick, say, say_suspects};
use crate::cli::Restore;
use crate::config::Config;
use crate::durable;
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::limits;
use crate::operations::load::{self, LoadReport, Wish};
use crate::operations::restore::{self, Pick, Request};
use crate::report::Outcome;
use crate::source::Settings;
use crate::source::postgres::client::Address;
use crate::source::postgres::logical;

/// Where libpq takes a password from; in the address everybody on the machine could read it.
const PASSWORD: &str = "PGPASSWORD";

pub fn run(shell: &Shell, args: &Restore) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let config = reader.config.or_else(|| shell.config().ok());
    let keys = recovery_key(config.as_ref(), args.identity.as_deref())?;
    let open = &reader.open;
    let wanted = pick(open, args)?;
    let (commit, snapshot) = restore::find(open, &args.source, &wanted)?;
    if matches!(wanted, Pick::Latest | Pick::At(_)) {
        say_suspects(shell, open, &snapshot, &wanted)?;
    }
    let address = match snapshot.kind.as_str() {
        "command" => no_address(args)?,
        _ => address(args)?,
    };
    if snapshot.kind == "command" && args.confirm.as_ref() != Some(&args.source) {
        let message =
            format!("what the programs of {} do to the data that is there, blackstart cannot know", args.source);
        let help = format!("Nothing was restored. If it is to be loaded: --into --confirm {}", args.source);
        return Err(Failure::new(Kind::Usage, message, help));
    }
    let settings = settings(config.as_ref(), args);
    let workers = limits::workers();
    let mut paths: Vec<Name> = args.path.iter().map(|path| name_of(path)).collect();
    if args.globals && !paths.is_empty() {
        paths.push(Name::new(logical::GLOBALS));
    }
    let mut request = Request { paths, ..Request::new(PathBuf::new(), workers) };
    let wish = |request| Wish {
        snapshot: &snapshot,
        request,
        settings: &settings,
        address: address.as_ref(),
        globals: args.globals,
    };
    let asked = request.clone();
    let plan = load::prepare(&keys.identities, &wish(&asked))?;
    if args.dry_run {
        let forecast = restore::forecast(open, &keys.identities, &snapshot, &request, None)?;
        let bytes = size(forecast.bytes);
        shell.say(format!("Would restore snapshot {} of {} and load {bytes}", forecast.seq, args.source));
        return Ending::new(Exit::Done, forecast);
    }
    let scratch = place(args, config.as_ref(), &mut request)?;
    let busy = shell.busy(format!("restoring and loading {}", args.source), &request.progress);
    let result = load::load(open, &keys.identities, &commit, &wish(&request), &plan);
    drop(busy);
    if let Some(scratch) = scratch
        && result.is_err()
        && request.to.exists()
    {
        // What was restored and checked is worth more than a tidy disk: the error says where it is.
        drop(scratch.keep());
    }
    let report = result?;
    if args.to.is_some() {
        say(shell, &report.restored);
    } else {
        let restored = &report.restored;
        shell.say(format!(
            "Restored snapshot {} of {} (data of {}). Every byte was checked.",
            restored.seq,
            restored.source,
            time(restored.data_time)
        ));
    }
    tell(shell, &report);
    Ending::new(exit(&report), report)
}

fn exit(report: &LoadReport) -> Exit {
    if report.checks.iter().any(|check| !check.passed) {
        return Exit::CheckFailed;
    }
    let restored = &report.restored;
    let doubtful = restored.outcome == Outcome::Partial || restored.notes_count > 0 || !report.is_whole();
    if doubtful { Exit::Partial } else { Exit::Done }
}

/// Programs know by themselves where they load to.
fn no_address(args: &Restore) -> Result<Option<Address>> {
    if !matches!(args.into, Some(Some(_))) {
        return Ok(None);
    }
    let message = format!("{} is loaded by its programs, and takes no address", args.source);
    Err(Failure::new(
        Kind::Usage,
        message,
        "Nothing was restored. Where they load to stands in the programs' own arguments.",
    ))
}

/// The server to load into, with its password from the environment.
fn address(args: &Restore) -> Result<Option<Address>> {
    let Some(Some(url)) = &args.into else { return Ok(None) };
    let mut address = Address::parse(url)?;
    if address.password.is_some() {
        return Err(Failure::new(
            Kind::Usage,
            "the address has a password in it, which everybody on this machine could read",
            format!("Nothing was restored. Take it out, and set it as ${PASSWORD}."),
        ));
    }
    address.password = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty()).map(Zeroizing::new);
    Ok(Some(address))
}

/// What the configuration says of the source; nothing on a machine that has none.
fn settings(config: Option<&Config>, args: &Restore) -> Settings {
    let source =
        config.and_then(|config| Some((config, config.source.iter().find(|source| source.name == args.source)?)));
    source.map(|(config, source)| config.settings(source)).unwrap_or_default()
}

/// Where the files go: to `--to`, or into scratch, which is gone in the end.
fn place(args: &Restore, config: Option<&Config>, request: &mut Request) -> Result<Option<TempDir>> {
    if let Some(to) = &args.to {
        let to = std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?;
        request.to = to.components().collect();
        return Ok(None);
    }
    let base = config.map_or_else(std::env::temp_dir, Config::scratch);
    durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
    let scratch =
        tempfile::Builder::new().prefix("blackstart-load-").tempdir_in(&base).context("make a scratch directory")?;
    request.to = std::path::absolute(scratch.path())?.join("restored");
    Ok(Some(scratch))
}

fn tell(shell: &Shell, report: &LoadReport) {
    for loaded in &report.loaded {
        let took = span(loaded.seconds);
        shell.say(format!("Loaded {}: {} took {} in {took}.", loaded.file, loaded.program, size(loaded.bytes)));
        for line in &loaded.stderr {
            shell.say(format!("  {line}"));
        }
        if loaded.bytes_unread > 0 {
            shell.warn(format!(
                "{} ended well without reading the last {} bytes of {}: see whether all of it is there",
                loaded.program, loaded.bytes_unread, loaded.file
            ));
        }
    }
    for check in &report.checks {
        if check.passed {
            shell.say(format!("  {}", check_line(check)));
        } else {
            shell.warn(format!("{}: expected {}, found: {}", check.name, check.expected, check.actual));
        }
    }
}
