//! `health`: asks the agent of this configuration whether it lives.

use anyhow::Result;
use serde_json::json;
use std::time::Duration;

use super::output::{Ending, Exit, Shell};
use crate::cli::Health;
use crate::config::Config;
use crate::error::{Failure, Kind};

const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(shell: &Shell, args: &Health) -> Result<Ending> {
    let config = Config::load_alone(shell.config.as_deref())?;
    let Some(mut address) = config.agent.address() else {
        let help = "Nothing is wrong with the backups. Give [agent] listen an address, so that the agent can be asked.";
        return Err(Failure::new(Kind::Config, "the agent of this configuration serves nothing", help));
    };
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let paths: &[&str] = if args.ready { &["live", "ready"] } else { &["live"] };
    for path in paths {
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let help =
            "Backups that exist are as they were. The agent's log says more; `blackstart status` shows the backups.";
        let answer = agent.new_agent().get(format!("http://{address}/health/{path}")).call();
        let mut answer = answer
            .map_err(|error| Failure::new(Kind::Failed, format!("no agent answers at {address}: {error}"), help))?;
        let text = answer.body_mut().read_to_string().unwrap_or_default().trim_end().to_owned();
        if !answer.status().is_success() {
            return Err(Failure::new(Kind::Failed, format!("the agent at {address} says: {text}"), help));
        }
        shell.say(text);
    }
    Ending::new(Exit::Done, json!({"address": address.to_string()}))
}
