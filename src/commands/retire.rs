//! `retire`: a source is given up on purpose, and nobody is to be alarmed by its silence.

use anyhow::Result;

use super::output::{self, Ending, Exit, Shell, count, time};
use crate::cli::Retire;
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::operations::retire::retire;
use crate::repository::layout::SourceName;

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
    let (name, given) = (args.source.as_str(), args.confirm.as_ref().map(SourceName::as_str));
    let question = format!("Backups of {name} end, and no alarm will say so. Type its name to go on");
    if output::confirmed(name, given, &question)? {
        return Ok(());
    }
    let help = format!("Nothing was changed. To give it up: blackstart retire {name} --confirm {name}");
    Err(Failure::new(Kind::Usage, "a source is retired only if its name is confirmed", help))
}
