//! The command line of `watch`.

use clap::Args;
use jiff::SignedDuration;
use std::path::PathBuf;

use super::{Place, source};
use crate::repository::layout::SourceName;
use crate::time::length;

/// Raise the alarm when agents fall silent: a look at every source of a repository from outside, without any key
///
/// With --notify it tells the channels of the configuration: once when something begins, again every day, and once when it is over. Best on another
/// machine than the agents', with a configuration of `repository`, `root` and [[notify]] alone.
///
/// Exit codes: 0 all is well, 3 somebody could not be told, 4 something is missing, damaged or tampered with, 5 a newest point is too old.
///
/// Example: blackstart watch --config /etc/blackstart/watch.toml --notify --older-than 2h --every 5m
///
/// Example: blackstart watch --repo s3://bucket/prefix --root SHA256:… --older-than 2h --every 5m
#[derive(Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    pub place: Place,
    /// How old the newest point of a source may be
    #[arg(long, value_name = "TIME", value_parser = length, default_value = "26h")]
    pub older_than: SignedDuration,
    /// Another bound for one source, which must be there; may be repeated
    #[arg(long, value_name = "SOURCE=TIME", value_parser = bound)]
    pub bound: Vec<(SourceName, SignedDuration)>,
    /// How old the newest point that a drill has proven may be
    #[arg(long, value_name = "TIME", value_parser = length)]
    pub verified_within: Option<SignedDuration>,
    /// Remember the newest commits in this file: sources that vanish and stores that show an older state raise the alarm, too
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Tell the [[notify]] channels of the configuration; who was told what is kept in --state, otherwise in `watch.json` of the state directory
    #[arg(long)]
    pub notify: bool,
    /// Look again and again, and speak when something has changed
    #[arg(long, value_name = "TIME", value_parser = length)]
    pub every: Option<SignedDuration>,
    /// Stop after so many looks
    #[arg(long, value_name = "N", requires = "every")]
    pub rounds: Option<u64>,
}

fn bound(text: &str) -> Result<(SourceName, SignedDuration), String> {
    let (name, time) = text.split_once('=').ok_or("write SOURCE=TIME, such as orders=2h")?;
    Ok((source(name)?, length(time)?))
}
