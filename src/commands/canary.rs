//! `canary`: write a heartbeat into sources now, or take it out of them.

use anyhow::{Context, Result};
use serde_json::json;

use super::output::{Ending, Exit, Shell};
use super::several::each;
use crate::cli::Canary;
use crate::config::SourceConfig;
use crate::error::{Failure, Kind};

pub fn run(shell: &Shell, args: &Canary) -> Result<Ending> {
    let config = shell.config()?;
    let chosen = config.chosen(&args.sources)?;
    if let Some(without) = chosen.iter().find(|s| s.canary.is_none() && !args.sources.is_empty()) {
        let help = "Nothing was written. Put `canary = true` into the source first: only then do drills ask for it.";
        return Err(Failure::new(Kind::Usage, format!("{} has no canary", without.name), help));
    }
    let with: Vec<&SourceConfig> = chosen.into_iter().filter(|source| source.canary.is_some()).collect();
    if with.is_empty() {
        shell.say("No source has a canary: `canary = true` in [[source]] gives it one.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    each(shell, with, |source| {
        let canary = config.canary(source)?.with_context(|| format!("{} has no canary", source.name))?;
        let place = canary.place();
        let now = shell.clock.now();
        if args.remove {
            config.remove_canary(&source.name, &canary)?;
            shell.say(format!("{}: the canary is gone from {place}", source.name));
            return Ok((Exit::Done, json!({"source": source.name, "removed": place})));
        }
        let now = config.write_canary(&source.name, &canary, now)?;
        shell.say(format!("{}: {now} is written into {place}", source.name));
        Ok((Exit::Done, json!({"source": source.name, "written": now, "place": place})))
    })
}
