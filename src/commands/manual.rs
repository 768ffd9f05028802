//! `completions` and `man`: what packages ship, made from the command line's own definition.

use anyhow::{Context, Result};
use clap::CommandFactory;
use serde_json::json;

use super::output::{self, Ending, Exit, Shell};
use crate::cli::{Cli, Completions, Man};
use crate::durable;

const NAME: &str = "blackstart";

pub fn completions(shell: &Shell, args: &Completions) -> Result<Ending> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    let script = String::from_utf8(script).context("write the completions")?;
    if !shell.json {
        output::print_raw(script.trim_end(), false);
    }
    Ending::new(Exit::Done, json!({"script": script}))
}

pub fn pages(shell: &Shell, args: &Man) -> Result<Ending> {
    durable::create_directories(&args.directory).with_context(|| format!("make {}", args.directory.display()))?;
    let mut written = Vec::new();
    let mut command = Cli::command();
    command.build();
    let verbs: Vec<clap::Command> = command.get_subcommands().cloned().collect();
    for command in std::iter::once(command).chain(verbs) {
        // A verb's own name is `backup`; its page and what one types is `blackstart-backup` and `blackstart backup`.
        let name = command.get_display_name().unwrap_or(NAME).to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command.display_name(name.clone())).render(&mut page).context("write a manual page")?;
        let path = args.directory.join(format!("{name}.1"));
        durable::publish_over(&path, &page, 0o644).with_context(|| format!("write {}", path.display()))?;
        written.push(path);
    }
    shell.say(format!("Wrote {} manual pages to {}", written.len(), args.directory.display()));
    Ending::new(Exit::Done, json!({"pages": written}))
}
