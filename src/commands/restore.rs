//! `restore`: bring a source back, beside whatever is there.

use anyhow::{Context, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::load;
use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, size, span, time};
use crate::cli::Restore;
use crate::entry::Name;
use crate::error::{Failure, Kind};
use crate::operations::restore::{self, Pick, Request, RestoreReport};
use crate::operations::{Open, backup, drill};
use crate::report::Outcome;
use crate::target;

pub fn run(shell: &Shell, args: &Restore) -> Result<Ending> {
    if args.into.is_some() {
        return load::run(shell, args);
    }
    let to = args.to.as_deref().context("--to DIR says where to restore")?;
    let to = std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?;
    // `DIR/` means DIR.
    let to: PathBuf = to.components().collect();
    if args.in_place {
        may_replace(args, &to)?;
    }
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let open = &reader.open;
    let (commit, snapshot) = restore::find(open, &args.source, &pick(open, args)?)?;
    if args.in_place && snapshot.kind != "files" {
        let help = "Nothing was changed. Restore beside it, stop what uses the database, and move the file into place; remove its -wal and -shm first.";
        return Err(Failure::new(Kind::Usage, "a database is not replaced in place", help));
    }
    let paths: Vec<Name> = args.path.iter().map(|p| name_of(p)).collect();
    let workers = backup::Options::default().workers;
    let finish = if paths.is_empty() { restore::finish_of(&snapshot, &to) } else { None };
    let request = Request { to, in_place: args.in_place, paths, workers, finish };
    if args.dry_run {
        if !args.in_place {
            target::must_be_free(&request.to)?;
        }
        let rate = drill::verified(open, &args.source)?
            .iter()
            .rev()
            .find(|p| p.seconds > 0.0)
            .map(|p| p.bytes as f64 / p.seconds);
        let forecast = restore::forecast(open, &keys.identities, &snapshot, &request, rate)?;
        shell.say(format!(
            "Would restore snapshot {} of {} (data of {}) to {}: {} entries, {}; {} to fetch in {} packs{}",
            forecast.seq,
            forecast.source,
            time(forecast.data_time),
            forecast.to.display(),
            forecast.entries,
            size(forecast.bytes),
            size(forecast.bytes_to_fetch),
            forecast.packs,
            forecast.seconds.map_or(String::new(), |s| format!("; about {}, as drills measured", span(s)))
        ));
        return Ending::new(Exit::Done, forecast);
    }
    let busy = shell.busy(format!("restoring {}", args.source));
    let report = restore::restore(open, &keys.identities, &commit, &snapshot, &request)?;
    drop(busy);
    say(shell, &report);
    let partial = report.outcome == Outcome::Partial || report.notes_count > 0;
    Ending::new(if partial { Exit::Partial } else { Exit::Done }, report)
}

fn may_replace(args: &Restore, to: &Path) -> Result<()> {
    if args.confirm.as_ref() != Some(&args.source) {
        let help = format!(
            "Nothing was changed. To put the restore where {} is now: --in-place --confirm {}",
            to.display(),
            args.source
        );
        return Err(Failure::new(Kind::Usage, "--confirm names another source", help));
    }
    Ok(())
}

pub fn pick(open: &Open, args: &Restore) -> Result<Pick> {
    Ok(match (args.at, args.snapshot) {
        (Some(at), _) => Pick::At(at),
        (_, Some(seq)) => Pick::Seq(seq),
        _ if args.latest_verified => {
            Pick::LatestVerified(drill::verified(open, &args.source)?.iter().map(|p| p.seq).collect())
        }
        _ => Pick::Latest,
    })
}

/// A path of the source, relative to its root.
fn name_of(path: &Path) -> Name {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    Name::new(bytes.strip_suffix(b"/").unwrap_or(bytes))
}

pub fn say(shell: &Shell, report: &RestoreReport) {
    shell.say(format!(
        "Restored snapshot {} of {} (data of {}) to {}: {} entries, {}, in {}. Every byte was checked.",
        report.seq,
        report.source,
        time(report.data_time),
        report.to.display(),
        report.entries,
        size(report.bytes),
        span(report.phases.total)
    ));
    if let Some(kept) = &report.kept {
        shell.say(format!("What was there is at {}.", kept.display()));
    }
    if report.outcome == Outcome::Partial {
        shell.warn("this snapshot is partial: something could not be read when it was made");
    }
    for note in &report.notes {
        shell.warn(format!("{}: {}", note.path, note.why));
    }
}
