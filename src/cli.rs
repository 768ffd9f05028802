//! The command line. The doc comments are the help.

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;

use crate::repository::layout::SourceName;
use crate::time::{length, moment as time};

mod daemon;
mod evidence;
mod period;
mod verify;
pub mod wal;
mod watch;
pub use daemon::{Agent, Audit, Health, Notify};
pub use evidence::{Bisect, Canary, Drill, Form, Report, ReportVerb};
pub use period::Period;
pub use verify::{Confirm, Verify};
pub use watch::Watch;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 3 partial, 4 a check or drill failed, 5 done but RPO or RTO missed, 6 nothing to do, \
10 no repository, 11 another writer, 12 wrong key, 64 usage, 78 configuration, 130 interrupted.

At 3 a.m.: blackstart restore SOURCE --to DIR --identity FILE";

/// Backups that prove they come back.
#[derive(Debug, Parser)]
#[command(name = "blackstart", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Args)]
pub struct Global {
    /// The configuration; otherwise $BLACKSTART_CONFIG, ./blackstart.toml, /etc/blackstart/blackstart.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "With every verb")]
    pub config: Option<PathBuf>,
    /// Print one JSON document on stdout, for errors too
    #[arg(long, global = true, help_heading = "With every verb")]
    pub json: bool,
    /// Print nothing but warnings and errors
    #[arg(long, short, global = true, help_heading = "With every verb")]
    pub quiet: bool,
    /// When it has ended, write metrics to FILE, for node_exporter's textfile collector: what the repository shows of the sources
    #[arg(long, global = true, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Protect(Protect),
    Init(Init),
    Check(Check),
    Backup(Backup),
    Snapshots(Snapshots),
    Restore(Box<Restore>),
    Drill(Drill),
    Verify(Verify),
    Prune(Prune),
    Confirm(Confirm),
    Retire(Retire),
    Status(Status),
    Kit(Kit),
    Agent(Agent),
    Notify(Notify),
    Health(Health),
    Timeline(wal::Timeline),
    WalReceive(wal::WalReceive),
    WalPush(wal::WalPush),
    WalGet(wal::WalGet),
    Report(Report),
    Bisect(Bisect),
    Canary(Canary),
    Watch(Watch),
    Audit(Audit),
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
            Verb::Confirm(_) => "confirm",
            Verb::Retire(_) => "retire",
            Verb::Status(_) => "status",
            Verb::Kit(_) => "kit",
            Verb::Agent(_) => "agent",
            Verb::Notify(_) => "notify",
            Verb::Health(_) => "health",
            Verb::Timeline(_) => "timeline",
            Verb::WalReceive(_) => "wal-receive",
            Verb::WalPush(_) => "wal-push",
            Verb::WalGet(_) => "wal-get",
            Verb::Report(_) => "report",
            Verb::Bisect(_) => "bisect",
            Verb::Canary(_) => "canary",
            Verb::Watch(_) => "watch",
            Verb::Audit(_) => "audit",
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
    /// Directories, SQLite databases, addresses (postgres://user@host/database, redis://host); without any, all sources of the configuration
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
    /// What the key certified here may do: `host` writes snapshots; `keeper` prunes, on another machine and with another credential
    #[arg(long, value_enum, default_value = "host", requires = "identity")]
    pub role: KeyRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyRole {
    Host,
    Keeper,
}

/// Test the configuration, the store, the keys and the sources for real
///
/// Example: blackstart check --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Check {
    /// Try out this recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Say what the shipped systemd unit cannot write, and print a drop-in for it
    #[arg(long)]
    pub service: bool,
}

/// Back up now
///
/// Exit codes: 0 done, 3 partial (something was skipped, or some of the sources failed), 4 a snapshot looks wrong, 11 another writer holds the
/// series, 64 usage, 78 configuration, 1 failed otherwise.
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
    /// The source is right as it is, though it has changed greatly: suspect snapshots, a dump that shrank, another server
    #[arg(long)]
    pub accept_change: bool,
    /// The names are those of groups: the points of all members are fixed together, and one signed object says which snapshots belong together
    #[arg(long, requires = "sources")]
    pub group: bool,
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
    /// Where the pages go; it is made if need be
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
    /// One source; without it, all
    #[arg(value_parser = source)]
    pub source: Option<SourceName>,
    #[command(flatten)]
    pub place: Place,
}

/// Restore a source into a new directory; nothing is ever overwritten
///
/// Without more it takes the newest good snapshot. With --into it goes on into the engine: every byte is restored and checked first, then loaded.
///
/// Exit codes: 0 done, 3 restored but not everything, 10 no repository there, 12 wrong key, 64 usage (no such snapshot, DIR exists), 1 failed otherwise.
///
/// Example: blackstart restore orders --at "2026-01-31 03:00" --to /srv/restored
#[derive(Debug, Args)]
pub struct Restore {
    /// The source, as `blackstart snapshots` lists it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// A directory that does not exist yet
    #[arg(long, value_name = "DIR", required_unless_present_any = ["into", "plan"])]
    pub to: Option<PathBuf>,
    /// Load it: dumps into a new database (postgres://user@host/name, password in $PGPASSWORD), a command through its `restore` programs (with
    /// --confirm SOURCE and no address)
    #[arg(long, value_name = "ADDRESS", conflicts_with = "in_place")]
    pub into: Option<Option<String>>,
    /// With --into: roles and tablespaces, too
    #[arg(long, requires = "into")]
    pub globals: bool,
    /// This time, where a log is stored; otherwise the newest snapshot whose data is not younger: 2026-01-31T03:00:00Z, or "2026-01-31 03:00" in local time
    #[arg(long, value_name = "TIME", value_parser = time, group = "which")]
    pub at: Option<Timestamp>,
    #[command(flatten)]
    pub aim: wal::Aim,
    /// The snapshot with this number
    #[arg(long, value_name = "N", group = "which")]
    pub snapshot: Option<u64>,
    /// The newest snapshot that a drill has proven
    #[arg(long, group = "which")]
    pub latest_verified: bool,
    /// This file or directory of the source only; may be repeated
    #[arg(long, value_name = "P")]
    pub path: Vec<PathBuf>,
    /// PostgreSQL: restore this tablespace, named by its OID or by the directory in which it lay, to a directory that is empty or does not exist; may be
    /// repeated. Otherwise it comes to lie below DIR
    #[arg(long, value_name = "OLD=DIR", value_parser = wal::moved, requires = "to", conflicts_with_all = ["into", "plan", "group", "path", "in_place"])]
    pub tablespace: Vec<(String, PathBuf)>,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Ask for data that lies in an archive class, and wait for it; without this, say what it takes
    #[arg(long, value_enum, value_name = "HASTE")]
    pub thaw: Option<ThawHaste>,
    /// Wait so long for it; the same command again waits on
    #[arg(long, value_name = "TIME", value_parser = length, default_value = "48h", requires = "thaw")]
    pub thaw_wait: SignedDuration,
    /// Put it where DIR is now, and keep what is there beside it
    #[arg(long, requires = "confirm")]
    pub in_place: bool,
    /// The name of the source once more
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub confirm: Option<SourceName>,
    /// SOURCE is the name of a restore plan: show it, and run it for real once its name is confirmed
    #[arg(long, conflicts_with_all = ["to", "into", "which", "path", "in_place", "repo"])]
    pub plan: bool,
    /// SOURCE is the name of a group: all members from one common point, each below DIR under its own name; --snapshot is the number of the point
    #[arg(long, conflicts_with_all = ["plan", "into", "path", "in_place", "lsn", "xid", "name", "immediate", "before", "pause", "timeline"])]
    pub group: bool,
    /// Go on behind the last good stage of a plan that stopped
    #[arg(long, requires = "plan", conflicts_with = "restart")]
    pub resume: bool,
    /// Begin a plan anew that stopped
    #[arg(long, requires = "plan")]
    pub restart: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ThawHaste {
    Bulk,
    Standard,
    Expedited,
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
    /// Take away the delete markers and later versions that somebody has put over objects that snapshots need
    #[arg(long)]
    pub uncover: bool,
}

/// Give a source up on purpose: its snapshots stay, nothing is due for it any more, and its silence raises no alarm
///
/// It takes the key of a host or keeper. A later `backup SOURCE`, asked for by name, takes the source up again; `prune SOURCE` expires its snapshots.
///
/// Example: blackstart retire old-shop --confirm old-shop --why 'moved to shop'
#[derive(Debug, Args)]
pub struct Retire {
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// The source's name once more
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub confirm: Option<SourceName>,
    /// For whoever wonders later; it is stored in clear text
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
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

fn source(text: &str) -> Result<SourceName, String> {
    SourceName::new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        super::Cli::command().debug_assert();
    }
}
