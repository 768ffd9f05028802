//! `init`: the repository, the keys and the configuration, and nothing backed up yet.

use anyhow::{Context, Result};

use super::output::{Ending, Exit, Shell};
use super::setup::{self, Keys};
use crate::cli::Init;
use crate::config::{Config, resolve_location};
use crate::error::{Failure, Kind};

pub fn run(shell: &Shell, args: &Init) -> Result<Ending> {
    let here = std::env::current_dir().context("find the current directory")?;
    let location = resolve_location(&args.repo, &here)?;
    let config = std::path::absolute(Config::place_for_new(shell.config.as_deref()))?;
    let beside = config.with_file_name("blackstart").join("keys");
    let mut keys = Keys::below(&args.keys.clone().map_or(Ok(beside), std::path::absolute)?);
    if let Some(path) = &args.host_key {
        keys.host = std::path::absolute(path)?;
    }
    let made = if let Some(identity) = &args.identity {
        setup::join(shell, &location, &keys, identity, &config)?
    } else {
        if config.exists() {
            let help = "Nothing was changed. `protect PATH` adds sources to it; --config FILE names another for a new repository.";
            return Err(Failure::new(Kind::Usage, format!("{} exists already", config.display()), help));
        }
        setup::create(shell, &location, &keys, &config)?
    };
    shell.say(format!("Repository     {}", made.repository));
    shell.say(format!("Root key       {}", made.root));
    shell.say(format!("Configuration  {}", made.config.display()));
    shell.say(format!("Host key       {} (stays here)", made.host_key.display()));
    shell.say(format!("Recovery key   {} (move it off this machine, and print it)", made.recovery_key.display()));
    shell.say("Nothing is backed up yet: `blackstart protect PATH` does it.");
    Ending::new(Exit::Done, made)
}
