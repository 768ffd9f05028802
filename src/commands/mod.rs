//! One short file for each verb: it reads the configuration, calls operations, and says what came of it.

use clap::Parser;
use serde_json::json;
use std::ffi::OsString;
use std::sync::Arc;

use crate::cli::{Cli, Verb};
use crate::clock::SystemClock;
use crate::error::Kind;
use crate::storage::retry;
use output::{Ending, Shell};

mod agent;
mod apart;
mod audit;
mod backup;
mod bisect;
mod bucket;
mod canary;
mod check;
mod confirm;
mod drill;
mod evidence;
mod group;
mod health;
mod help;
mod init;
mod kit;
mod load;
mod manual;
mod notify;
mod open;
mod output;
mod plan;
mod point;
mod policies;
mod protect;
mod prune;
mod receive;
mod report;
mod restore;
mod retire;
mod sample;
mod service;
mod setup;
mod several;
mod signals;
mod snapshots;
mod status;
mod textfile;
mod thaw;
mod timeline;
mod verify;
mod wal;
mod watch;

/// Runs a command line and gives the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = usage(&error, arguments.iter().any(|a| a == "--json"));
            return wal::usage_code(&arguments).filter(|_| code != 0).unwrap_or(code);
        }
    };
    let shell = Shell {
        json: cli.global.json,
        quiet: cli.global.quiet,
        config: cli.global.config,
        clock: Arc::new(SystemClock),
    };
    // The agent listens for itself.
    if !matches!(cli.verb, Verb::Agent(_)) {
        retry::tell_of_waits(output::still_waiting);
        signals::listen(cli.verb.name(), shell.json);
    }
    let record = audit::Record::begin(&shell, &cli.verb, &arguments);
    let result = run(&shell, &cli.verb);
    let outcome = output::outcome(&result);
    let code = shell.finish(cli.verb.name(), result);
    if let Some(path) = cli.global.metrics_file.as_deref().filter(|_| !matches!(cli.verb, Verb::Agent(_))) {
        textfile::write(&shell, path);
    }
    if let Some(record) = record {
        record.end(&shell, outcome, code);
    }
    code
}

fn run(shell: &Shell, verb: &Verb) -> anyhow::Result<Ending> {
    match verb {
        Verb::Protect(args) => protect::run(shell, args),
        Verb::Init(args) => init::run(shell, args),
        Verb::Check(args) => check::run(shell, args),
        Verb::Backup(args) if args.group => group::backup(shell, args),
        Verb::Backup(args) => backup::run(shell, args),
        Verb::Snapshots(args) => snapshots::run(shell, args),
        Verb::Restore(args) if args.plan => plan::for_real(shell, args),
        Verb::Restore(args) if args.into.is_some() => load::run(shell, args),
        Verb::Restore(args) if args.group => group::restore(shell, args),
        Verb::Restore(args) => restore::run(shell, args),
        Verb::Drill(args) if args.plan => plan::rehearsed(shell, args),
        Verb::Drill(args) if args.group => group::drill(shell, args),
        Verb::Drill(args) => drill::run(shell, args),
        Verb::Verify(args) => verify::run(shell, args),
        Verb::Prune(args) => prune::run(shell, args),
        Verb::Status(args) => status::run(shell, args),
        Verb::Kit(args) => kit::run(shell, args),
        Verb::Agent(_) => agent::run(shell),
        Verb::Notify(args) => notify::run(shell, args),
        Verb::Health(args) => health::run(shell, args),
        Verb::Timeline(args) => timeline::run(shell, args),
        Verb::WalReceive(args) => receive::run(shell, args),
        Verb::WalPush(args) => wal::run_push(shell, args),
        Verb::WalGet(args) => wal::run_get(shell, args),
        Verb::Report(args) => report::run(shell, args),
        Verb::Bisect(args) => bisect::run(shell, args),
        Verb::Canary(args) => canary::run(shell, args),
        Verb::Watch(args) => watch::run(shell, args),
        Verb::Confirm(args) => confirm::run(shell, args),
        Verb::Retire(args) => retire::run(shell, args),
        Verb::Audit(args) => audit::run(shell, args),
        Verb::Completions(args) => manual::completions(shell, args),
        Verb::Man(args) => manual::pages(shell, args),
    }
}

/// Help and version are no errors.
fn usage(error: &clap::Error, json: bool) -> u8 {
    if !error.use_stderr() {
        output::print_raw(error.to_string().trim_end(), false);
        return 0;
    }
    if json {
        let message = error.to_string();
        let error =
            json!({"kind": output::kind_name(Kind::Usage), "message": message.trim_end(), "help": "blackstart --help"});
        output::print_json(&json!({"version": 1, "verb": null, "error": error}));
    } else {
        output::print_raw(error.to_string().trim_end(), true);
    }
    Kind::Usage.exit_code()
}
