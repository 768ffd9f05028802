//! The command line. The doc comments are the help.

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::path::PathBuf;

use crate::repository::layout::SourceName;

/// Backups that prove they come back.
#[derive(Debug, Parser)]
#[command(name = "blackstart", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Args)]
pub struct Global {
    /// The configuration; otherwise $BLACKSTART_CONFIG, ./blackstart.toml, /etc/blackstart/blackstart.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON document on stdout, for errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but warnings and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Protect(Protect),
    Init(Init),
    Check(Check),
    Backup(Backup),
    Snapshots(Snapshots),
    Restore(Restore),
    Drill(Drill),
    Verify(Verify),
    Prune(Prune),
    Status(Status),
    Kit(Kit),
    Agent(Agent),
    Notify(Notify),
    Health(Health),
    Completions(Completions),
    Man(Man),
}

impl Verb {
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Protect(_) => "protect",
            Verb::Init(_) => "init",
            Verb::Check(_) => "check",
            Verb::Backup(_) => "backup",
            Verb::Snapshots(_) => "snapshots",
            Verb::Restore(_) => "restore",
            Verb::Drill(_) => "drill",
            Verb::Verify(_) => "verify",
            Verb::Prune(_) => "prune",
            Verb::Status(_) => "status",
            Verb::Kit(_) => "kit",
            Verb::Agent(_) => "agent",
            Verb::Notify(_) => "notify",
            Verb::Health(_) => "health",
            Verb::Completions(_) => "completions",
            Verb::Man(_) => "man",
        }
    }
}

/// Back up paths for the first time, restore them at once into scratch, and show the proof
///
/// Finds out what each path is, makes the repository, keys and configuration if there are none, and adds to them otherwise. Without paths and
/// without a configuration it protects a sample that it makes itself.
///
/// Example: blackstart protect /srv/app --repo /mnt/backup
#[derive(Debug, Args)]
pub struct Protect {
    /// Directories, SQLite databases, postgres://user@host/database; without any, all sources of the configuration
    pub paths: Vec<PathBuf>,
    /// A directory, or s3://bucket/prefix?endpoint=https://host&region=name
    #[arg(long, value_name = "LOCATION")]
    pub repo: Option<String>,
}

/// Create a repository, its keys and a configuration, or certify this host in a repository that exists
///
/// Example: blackstart init --repo s3://bucket/prefix
#[derive(Debug, Args)]
pub struct Init {
    /// A directory, or s3://bucket/prefix?endpoint=https://host&region=name
    #[arg(long, value_name = "LOCATION")]
    pub repo: String,
    /// Where the key files go; otherwise blackstart/keys beside the configuration
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,
    /// The recovery key file of a repository that exists: certify this host there
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The host key file to certify or to make
    #[arg(long, value_name = "FILE")]
    pub host_key: Option<PathBuf>,
}

/// Test the configuration, the store, the keys and the sources for real
///
/// Example: blackstart check --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Check {
    /// Try out this recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// Back up now
///
/// Example: blackstart backup orders --full
#[derive(Debug, Args)]
pub struct Backup {
    /// Sources of the configuration; without any, all
    #[arg(value_parser = source)]
    pub sources: Vec<SourceName>,
    /// Read every byte
    #[arg(long)]
    pub full: bool,
    /// Store everything again, referring to nothing earlier
    #[arg(long)]
    pub baseline: bool,
    /// Continue a series that another host's key has written
    #[arg(long)]
    pub adopt: bool,
    /// Go on although stored data is missing, and store it again
    #[arg(long)]
    pub heal: bool,
    /// Back up a source that has changed greatly: a dump that shrank, another server behind the address
    #[arg(long)]
    pub accept_change: bool,
}

/// Print the completions of a shell
///
/// Example: blackstart completions bash > /etc/bash_completion.d/blackstart
#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

/// Write the manual pages into a directory, one for each verb
///
/// Example: blackstart man /usr/local/share/man/man1
#[derive(Debug, Args)]
pub struct Man {
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

// A repository named on the command line: enough to read it on a fresh machine. No doc comment: clap would make it the help of each verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// The repository, instead of the configuration's
    #[arg(long, value_name = "LOCATION")]
    pub repo: Option<String>,
    /// Fingerprint of its root key (the kit has it)
    #[arg(long, value_name = "SHA256:…", requires = "repo")]
    pub root: Option<String>,
}

/// List snapshots: time of the data, size, proven or not, why each is kept
///
/// Example: blackstart snapshots orders
#[derive(Debug, Args)]
pub struct Snapshots {
    #[arg(value_parser = source)]
    pub source: Option<SourceName>,
    #[command(flatten)]
    pub place: Place,
}

/// Restore a source into a new directory; nothing is ever overwritten
///
/// With --into it goes on into the engine: every byte is restored and checked first, then loaded.
///
/// Example: blackstart restore orders --at "2026-01-31 03:00" --to /srv/restored
#[derive(Debug, Args)]
pub struct Restore {
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// A directory that does not exist yet
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    pub to: Option<PathBuf>,
    /// Load it into its engine: a command through its `restore` programs (with --confirm SOURCE)
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["path", "in_place"])]
    pub into: Option<Option<String>>,
    /// The newest snapshot whose data is not younger: 2026-01-31T03:00:00Z, or "2026-01-31 03:00" in local time
    #[arg(long, value_name = "TIME", value_parser = time, group = "which")]
    pub at: Option<Timestamp>,
    /// The snapshot with this number
    #[arg(long, value_name = "N", group = "which")]
    pub snapshot: Option<u64>,
    /// The newest snapshot that a drill has proven
    #[arg(long, group = "which")]
    pub latest_verified: bool,
    /// This file or directory of the source only; may be repeated
    #[arg(long, value_name = "P")]
    pub path: Vec<PathBuf>,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Put it where DIR is now, and keep what is there beside it
    #[arg(long, requires = "confirm")]
    pub in_place: bool,
    /// The name of the source once more
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub confirm: Option<SourceName>,
    #[command(flatten)]
    pub place: Place,
}

/// Restore into scratch, check, measure, and sign the report
///
/// Example: blackstart drill orders --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Drill {
    /// Sources of the configuration; without any, all
    #[arg(value_parser = source)]
    pub sources: Vec<SourceName>,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// Check that the repository is whole: signatures, chain, and that every object is there
///
/// Example: blackstart verify orders --hashes
#[derive(Debug, Args)]
pub struct Verify {
    #[arg(value_parser = source)]
    pub source: Option<SourceName>,
    /// Fetch every object and compare its SHA-256
    #[arg(long)]
    pub hashes: bool,
    /// Decrypt every byte, too
    #[arg(long)]
    pub read_data: bool,
    /// The recovery key file
    #[arg(long, value_name = "FILE", requires = "read_data")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
}

/// Remove the snapshots that the retention policy no longer keeps
///
/// Example: blackstart prune --dry-run
#[derive(Debug, Args)]
pub struct Prune {
    /// Sources of the configuration; without any, all that have a retention policy
    #[arg(value_parser = source)]
    pub sources: Vec<SourceName>,
    /// Say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// Are we protected? One sentence, then a row for each source
///
/// Exit codes: 0 all is well, 4 a source has no proven snapshot, 5 an RPO or RTO is missed.
///
/// Example: blackstart status --json
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub place: Place,
}

/// Write the break-glass folder: what to read and run when this machine is gone
///
/// Example: blackstart kit /media/usb/kit --identity blackstart/keys/recovery.key
#[derive(Debug, Args)]
pub struct Kit {
    /// Where to write; files that exist are left alone
    pub dir: PathBuf,
    /// Put this recovery key file into the kit
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

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
/// Example: blackstart notify --test oncall
#[derive(Debug, Args)]
pub struct Notify {
    /// Names of [[notify]] channels; without any, all
    pub channels: Vec<String>,
    /// Send a test message through each
    #[arg(long)]
    pub test: bool,
}

fn source(text: &str) -> Result<SourceName, String> {
    SourceName::new(text).map_err(|e| e.to_string())
}

/// RFC 3339, or a local date and time.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let local: DateTime = text.parse().map_err(|_| "write 2026-01-31T03:00:00Z or \"2026-01-31 03:00\"".to_owned())?;
    Ok(local.to_zoned(TimeZone::system()).map_err(|e| e.to_string())?.timestamp())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        super::Cli::command().debug_assert();
    }
}
