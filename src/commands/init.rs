//! `init`: the repository, the keys and the configuration, and nothing backed up yet.

use anyhow::{Context, Result};

use super::output::{Ending, Exit, Shell, count};
use super::setup::{self, Joining, Keys};
use crate::cli::{Init, KeyRole};
use crate::config::{Config, resolve_location};
use crate::error::{Failure, Kind};
use crate::repository::trust::Role;

fn role(role: KeyRole) -> Role {
    match role {
        KeyRole::Host => Role::Host,
        KeyRole::Keeper => Role::Keeper,
    }
}

pub fn run(shell: &Shell, args: &Init) -> Result<Ending> {
    let here = std::env::current_dir().context("find the current directory")?;
    let location = resolve_location(&args.repo, &here)?;
    let config = std::path::absolute(Config::place_for_new(shell.config.as_deref()))?;
    let beside = config.with_file_name("blackstart").join("keys");
    let mut keys = Keys::below(&args.keys.clone().map_or(Ok(beside), std::path::absolute)?);
    if let Some(path) = &args.host_key {
        keys.host = std::path::absolute(path)?;
    }
    if args.role == KeyRole::Keeper && args.host_key.is_none() {
        keys.host = keys.host.with_file_name("keeper.key");
    }
    let made = if let Some(identity) = &args.identity {
        setup::join(shell, &location, &keys, &Joining { identity, role: role(args.role) }, &config)?
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
    if args.role == KeyRole::Keeper {
        shell.say(format!("Recovery key   {} (no longer needed here)", made.recovery_key.display()));
        shell.say(
            "This key may prune, and write nothing else. Copy the [[source]] sections of the hosts' configurations, with their retention, into this one, and \
             give it a credential of its own that may delete (`kit` prints its policy). Take the right to delete from the hosts.",
        );
    } else if args.identity.is_some() {
        shell.say(format!("Recovery key   {} (no longer needed here)", made.recovery_key.display()));
        shell.say(match Config::load(Some(&made.config)).map(|config| config.source.len()) {
            Ok(sources) if sources > 0 => {
                format!(
                    "This host may write there now. Its configuration has {}: `blackstart backup`.",
                    count(sources as u64, "source")
                )
            }
            _ => {
                "This host may write there now, and protects nothing yet: `blackstart protect PATH` does it.".to_owned()
            }
        });
    } else {
        shell.say(format!("Recovery key   {} (move it off this machine, and print it)", made.recovery_key.display()));
        shell.say("Nothing is backed up yet: `blackstart protect PATH` does it.");
    }
    Ending::new(Exit::Done, made)
}
