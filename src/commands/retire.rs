//! `retire`: a source is given up on purpose, and nobody is to be alarmed by its silence.

use anyhow::{Context, Result};
use std::io::{IsTerminal, Write};

use super::output::{Ending, Exit, Shell, count, time};
use crate::cli::Retire;
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::operations::retire::retire;

pub fn run(shell: &Shell, args: &Retire) -> Result<Ending> {
    let config = shell.config()?;
    let host = shell.host(&config)?;
    confirmed(args)?;
    let report = retire(&host, &args.source, args.why.clone())?;
    let source = &report.source;
    let newest = report.newest.map_or(String::new(), |at| format!(", the newest with data of {}", time(at)));
    shell.say(format!(
        "{source} is retired: {} of it stay and can be restored{newest}. Nothing is due for it any more, and no silence of it raises an alarm.",
        count(report.snapshots, "snapshot")
    ));
    left(shell, &config, args);
    Ending::new(Exit::Done, report)
}

/// What else speaks of it.
fn left(shell: &Shell, config: &Config, args: &Retire) {
    let source = &args.source;
    if config.source.iter().any(|configured| configured.name == *source) {
        shell.say(format!(
            "It is in {} still: `backup {source}` would take it up again, and `prune {source}` expires its snapshots, both only when asked for it by name.",
            config.file.display()
        ));
    }
    for group in config.group.iter().filter(|group| group.sources.contains(source)) {
        shell.warn(format!(
            "{source} is a member of group {}, which cannot be backed up with it: take it out there",
            group.name
        ));
    }
}

/// By its name, since nothing alarms when this was a mistake.
fn confirmed(args: &Retire) -> Result<()> {
    let named = match &args.confirm {
        Some(name) => name.to_string(),
        None if std::io::stdin().is_terminal() => {
            let mut out = std::io::stderr().lock();
            drop(write!(out, "Backups of {} end, and no alarm will say so. Type its name to go on: ", args.source));
            drop(out.flush());
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("read the answer")?;
            line.trim().to_owned()
        }
        None => String::new(),
    };
    if named == args.source.as_str() {
        return Ok(());
    }
    let help = format!("Nothing was changed. To give it up: blackstart retire {0} --confirm {0}", args.source);
    Err(Failure::new(Kind::Usage, "a source is retired only if its name is confirmed", help))
}
