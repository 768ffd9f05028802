//! `restore --into`: restore, check every byte, then load it into the engine.

use anyhow::{Context, Result};
use std::path::PathBuf;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, size, span};
use super::restore::{pick, say};
use crate::cli::Restore;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::backup;
use crate::operations::load::{self, LoadReport};
use crate::operations::restore::{self, Request};
use crate::report::Outcome;

pub fn run(shell: &Shell, args: &Restore) -> Result<Ending> {
    if args.into.as_ref().is_some_and(Option::is_some) {
        let message = format!("{} is loaded by its programs, and takes no address", args.source);
        return Err(Failure::new(
            Kind::Usage,
            message,
            "Nothing was restored. Where they load to stands in the programs' own arguments.",
        ));
    }
    if args.confirm.as_ref() != Some(&args.source) {
        let message =
            format!("what the programs of {} do to the data that is there, blackstart cannot know", args.source);
        let help = format!("Nothing was restored. If it is to be loaded: --into --confirm {}", args.source);
        return Err(Failure::new(Kind::Usage, message, help));
    }
    let reader = shell.reader(&args.place)?;
    let config = match &reader.config {
        Some(config) => config,
        None => &shell.config()?,
    };
    let source = config.chosen(std::slice::from_ref(&args.source))?[0];
    let keys = recovery_key(Some(config), args.identity.as_deref())?;
    let open = &reader.open;
    let (commit, snapshot) = restore::find(open, &args.source, &pick(open, args)?)?;
    let settings = config.settings(source);
    load::prepare(&snapshot, &settings)?;
    let workers = backup::Options::default().workers;
    let mut request = Request { to: PathBuf::new(), in_place: false, paths: Vec::new(), workers, finish: None };
    if args.dry_run {
        let forecast = restore::forecast(open, &keys.identities, &snapshot, &request, None)?;
        let to_load = size(forecast.bytes);
        shell.say(format!(
            "Would restore snapshot {} of {} and load {to_load} into its programs",
            forecast.seq, args.source
        ));
        return Ending::new(Exit::Done, forecast);
    }
    let scratch = match &args.to {
        Some(to) => {
            request.to =
                std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?.components().collect();
            None
        }
        None => {
            let base = config.scratch();
            durable::create_directories(&base).with_context(|| format!("make {}", base.display()))?;
            let scratch = tempfile::Builder::new()
                .prefix("blackstart-load-")
                .tempdir_in(&base)
                .context("make a scratch directory")?;
            request.to = std::path::absolute(scratch.path())?.join("restored");
            Some(scratch)
        }
    };
    let busy = shell.busy(format!("restoring and loading {}", args.source));
    let result = load::load(open, &keys.identities, &commit, &snapshot, &request, &settings);
    drop(busy);
    if let Some(scratch) = scratch
        && result.is_err()
        && request.to.exists()
    {
        // What was restored and checked is worth more than a tidy disk: the error says where it is.
        drop(scratch.keep());
    }
    let report = result?;
    say(shell, &report.restored);
    tell(shell, &report);
    let doubtful = report.restored.outcome == Outcome::Partial || report.restored.notes_count > 0 || !report.is_whole();
    Ending::new(if doubtful { Exit::Partial } else { Exit::Done }, report)
}

fn tell(shell: &Shell, report: &LoadReport) {
    for loaded in &report.loaded {
        let took = span(loaded.seconds);
        shell.say(format!("Loaded {}: {} took {} in {took}.", loaded.file, loaded.program, size(loaded.bytes)));
        if loaded.bytes_unread > 0 {
            shell.warn(format!(
                "{} ended well without reading the last {} bytes of {}: see whether all of it is there",
                loaded.program, loaded.bytes_unread, loaded.file
            ));
        }
    }
}
