//! `notify`: the channels; with `--test`, a message through each of them.

use anyhow::Result;
use serde_json::json;

use super::output::{Ending, Exit, Shell};
use crate::cli::Notify;
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::notify::{Channel, Message, Notice, Phase, Problem, Severity, send};

pub fn run(shell: &Shell, args: &Notify) -> Result<Ending> {
    let config = shell.config()?;
    let chosen: Vec<&Channel> =
        config.notify.iter().filter(|c| args.channels.is_empty() || args.channels.contains(&c.name)).collect();
    if let Some(unknown) = args.channels.iter().find(|name| !config.notify.iter().any(|c| c.name == **name)) {
        let known: Vec<&str> = config.notify.iter().map(|c| c.name.as_str()).collect();
        let help = format!("Nothing was sent. There are: {}.", known.join(", "));
        return Err(Failure::new(Kind::Usage, format!("there is no [[notify]] named {unknown:?}"), help));
    }
    if chosen.is_empty() {
        shell.say("Nobody is told of anything: the configuration has no [[notify]].");
        return Ending::new(Exit::NothingToDo, json!({"channels": []}));
    }
    let mut exit = Exit::Done;
    let mut reports = Vec::new();
    for channel in chosen {
        let kind = channel.kind().unwrap_or("ping");
        if !args.test {
            shell.say(format!("{}: {kind}, from {:?} on", channel.name, channel.severity).to_lowercase());
            reports.push(json!({"channel": channel.name, "kind": kind}));
            continue;
        }
        if channel.kind().is_none() {
            let why = "pings are not tried: a ping counts as a backup or a drill";
            shell.say(format!("{}: NOT TRIED: {why}", channel.name));
            reports.push(json!({"channel": channel.name, "kind": kind, "not_tried": why}));
            continue;
        }
        let tried = messages(shell, &config, channel).iter().try_for_each(|m| send(channel, m, config.base()));
        match &tried {
            Ok(()) => shell.say(format!("{}: the test went through ({kind}); see that it has arrived", channel.name)),
            Err(error) => {
                exit = Exit::CheckFailed;
                shell.warn(format!("{}: the test did NOT go through ({kind}): {error:#}", channel.name));
            }
        }
        let error = tried.err().map(|e| format!("{e:#}"));
        reports.push(json!({"channel": channel.name, "kind": kind, "error": error}));
    }
    Ending::new(exit, json!({"channels": reports}))
}

/// What a test sends.
fn messages(shell: &Shell, config: &Config, channel: &Channel) -> Vec<Message> {
    let now = shell.clock.now();
    let problem = Problem {
        key: "test".into(),
        severity: Severity::Info,
        source: None,
        title: "this is a test of blackstart's notices".into(),
        detail: "Nothing is wrong. Somebody ran `blackstart notify --test`".into(),
    };
    let notice = |phase| Notice {
        version: 1,
        phase,
        at: now,
        since: now,
        host: config.host_name(),
        problem: problem.clone(),
        head: None,
    };
    let mut messages = vec![Message::Notice(Box::new(notice(Phase::Test)))];
    if channel.pagerduty.is_some() {
        // What is triggered must be resolved, or somebody's night is over.
        messages.push(Message::Notice(Box::new(notice(Phase::Recovered))));
    }
    messages
}
