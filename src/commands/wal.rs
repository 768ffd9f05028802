//! `wal-push` and `wal-get`: what a PostgreSQL server calls to archive its log, and to get it back.

use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, time};
use crate::cli::wal::{WalGet, WalPush};
use crate::limits::LEVEL;
use crate::operations::wal::get::{Got, get};
use crate::operations::wal::push::push;

/// A server takes any smaller code of `restore_command` for the end of the log, and opens for writing.
pub const OUT_OF_REACH: u8 = 200;

pub fn run_push(shell: &Shell, args: &WalPush) -> Result<Ending> {
    let config = shell.config()?;
    let host = shell.host(&config)?;
    let path = std::path::absolute(&args.path).with_context(|| format!("resolve {}", args.path.display()))?;
    let report = push(&host, &args.source, &path, config.level.unwrap_or(LEVEL))?;
    for note in &report.notes {
        shell.warn(note);
    }
    Ending::new(Exit::Done, report)
}

/// Every failure has an exit code that ends recovery: only a file that is not there is 1.
pub fn run_get(shell: &Shell, args: &WalGet) -> Result<Ending> {
    match got(shell, args) {
        Ok(Got::Written(bytes)) => Ending::new(Exit::Done, json!({"file": args.file, "bytes": bytes})),
        Ok(Got::NotThere) => Ending::new(Exit::Failed(1), json!({"file": args.file, "bytes": null})),
        Err(error) => {
            shell.complain(&error);
            Ending::new(Exit::Failed(OUT_OF_REACH), super::output::error_value(&error))
        }
    }
}

fn got(shell: &Shell, args: &WalGet) -> Result<Got> {
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let to: &Path = &args.to;
    let to = std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?;
    get(&reader.open, &keys.identities, &args.source, &args.file, &to)
}

/// What a server must make of a command line that cannot be read: for `wal-get` not the end of the log.
pub fn usage_code(arguments: &[std::ffi::OsString]) -> Option<u8> {
    arguments.iter().any(|argument| argument == "wal-get").then_some(OUT_OF_REACH)
}

/// For `timeline`: the time of something.
pub fn when(at: Option<jiff::Timestamp>) -> String {
    at.map_or_else(String::new, time)
}
