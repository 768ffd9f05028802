//! The verbs of the daemon.

use clap::Args;

/// Run as a daemon: back up, drill, verify and prune on schedule, tell what is wrong, serve metrics
///
/// Reads schedules/*.toml beside the configuration; SIGHUP or a changed file makes it read them again, SIGTERM stops it.
///
/// Example: blackstart agent --config /etc/blackstart/blackstart.toml
#[derive(Debug, Args)]
pub struct Agent {}

/// Is the agent on this machine alive? For the health checks of containers
///
/// Exit codes: 0 its scheduler looks at the clock, 1 it does not, or there is none.
///
/// Example: blackstart health
#[derive(Debug, Args)]
pub struct Health {
    /// Also ask whether it has read the repository
    #[arg(long)]
    pub ready: bool,
}

/// Show who is told what is wrong, or try it out
///
/// Exit codes: 0 done, 4 a test did not go through, 6 the configuration has no [[notify]].
///
/// Example: blackstart notify --test oncall
#[derive(Debug, Args)]
pub struct Notify {
    /// Names of [[notify]] channels; without any, all
    pub channels: Vec<String>,
    /// Send a test message through each
    #[arg(long)]
    pub test: bool,
}

/// Show who restored, pruned, or changed what on this host, and how it ended
///
/// The log is `audit.jsonl` in the state directory. Exit code 4: a line was altered or taken out.
///
/// Example: blackstart audit --last 20
#[derive(Debug, Args)]
pub struct Audit {
    /// The last N entries
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub last: usize,
}
