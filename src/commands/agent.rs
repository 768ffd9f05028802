//! `agent`: the daemon. It logs to stderr: JSON lines, or plain ones on a terminal.

use anyhow::Result;
use serde_json::json;
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

use super::output::{Ending, Exit, Shell};
use crate::agent::{self, Agent};
use crate::error::{Failure, Kind};

pub fn run(shell: &Shell) -> Result<Ending> {
    let config = shell.config()?;
    if !config.jobs.iter().any(|job| job.enabled) {
        let help = format!(
            "Nothing was done. Write a job: {}/NAME.toml with `source = \"NAME\"` and `rpo = \"1h\"` in it.",
            config.schedules().display()
        );
        return Err(Failure::new(Kind::Config, "there is no job that is switched on", help));
    }
    log();
    let host = config.host_name();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), host, config = %config.file.display(), "the agent starts");
    let agent = Agent::start(config, Arc::clone(&shell.clock))?;
    let _signals = agent::listen(agent.sender())?;
    let stopped = agent.run();
    for abandoned in &stopped.abandoned {
        tracing::warn!(run = abandoned, "abandoned: it is as if it had never begun, and it comes again");
    }
    tracing::info!("the agent has stopped");
    Ending::new(Exit::Done, json!({"abandoned": stopped.abandoned}))
}

/// `BLACKSTART_LOG` chooses levels as tracing's filters do; `info` otherwise.
fn log() {
    let filter = EnvFilter::try_from_env("BLACKSTART_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only tests have one already.
    if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init().ok();
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init().ok();
    }
}
