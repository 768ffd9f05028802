//! The command line of `verify` and `confirm`.

use clap::Args;
use jiff::SignedDuration;
use std::path::PathBuf;

use super::{Place, source};
use crate::operations::reread::Amount;
use crate::repository::layout::SourceName;

/// Check that the repository is whole: signatures, chain, and that every object is there
///
/// Exit codes: 0 whole, 4 something is missing, damaged or forged, 10 no repository there, 1 failed otherwise.
///
/// Example: blackstart verify orders --hashes
#[derive(Debug, Args)]
pub struct Verify {
    /// One source; without it, all
    #[arg(value_parser = source)]
    pub source: Option<SourceName>,
    /// Fetch every object and compare its SHA-256
    #[arg(long)]
    pub hashes: bool,
    /// Decrypt every byte, too; those first that were read longest ago
    #[arg(long)]
    pub read_data: bool,
    /// Read this much of each source's data and leave the rest to later runs: 5%, 20GiB
    #[arg(long, value_name = "SHARE|SIZE", value_parser = amount, requires = "read_data")]
    pub subset: Option<Amount>,
    /// Begin no further pack after this time: 30m, 2h
    #[arg(long = "for", value_name = "TIME", value_parser = crate::time::length, requires = "read_data")]
    pub during: Option<SignedDuration>,
    /// The recovery key file
    #[arg(long, value_name = "FILE", requires = "read_data")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
}

/// A share of all, or a size.
fn amount(text: &str) -> Result<Amount, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return crate::size::read(text).map(Amount::Bytes).map_err(|e| format!("{e}, nor a share such as 5%"));
    };
    match percent.trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Amount::Share(percent / 100.0)),
        _ => Err(format!("{text:?} is no share: write more than 0% and at most 100%")),
    }
}

/// Say that the times of a snapshot are right, although the store's clock contradicts them
///
/// Such a snapshot never expires, and makes room for no other. Without --snapshot it lists them: exit code 4, or 6 if there is none. It takes the
/// recovery key, since a host must not confirm its own times.
///
/// Example: blackstart confirm orders --snapshot 7 --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Confirm {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// The snapshot with this number; may be repeated
    #[arg(long, value_name = "N")]
    pub snapshot: Vec<u64>,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
}
