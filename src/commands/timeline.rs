//! `timeline`: what happened, from the stored log; and how to go back to just before it.

use anyhow::Result;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, table, time};
use super::wal::when;
use crate::cli::wal::Timeline;
use crate::operations::wal::commands::{CommandsReport, commands, is_of_redis};
use crate::operations::wal::timeline::{Options, timeline};
use crate::progress::Progress;

pub fn run(shell: &Shell, args: &Timeline) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let options = Options { from: args.from, to: args.to, all: args.all, limit: args.limit };
    let busy = shell.busy(format!("reading the log of {}", args.source), &Progress::default());
    if is_of_redis(&reader.open, &args.source)? {
        let report = commands(&reader.open, &keys.identities, &args.source, &options)?;
        drop(busy);
        return of_redis(shell, &report);
    }
    let report = timeline(&reader.open, &keys.identities, &args.source, &options)?;
    drop(busy);
    warn_of_lost(shell, &report.lost);
    for window in &report.windows {
        shell.say(format!(
            "The log from {} to {} is stored without a gap, timeline {}, until {}.",
            window.from,
            window.to,
            window.timeline,
            time(window.until)
        ));
        for at in &window.broken {
            shell.warn(format!(
                "it makes no sense at {at}: it was damaged before it was stored, a server replays it up to there, and what the rest of that file holds is not told of"
            ));
        }
    }
    say_left_out(shell, report.left_out);
    let rows: Vec<[String; 4]> = report
        .happened
        .iter()
        .map(|h| [when(h.time), h.position.clone(), transaction(h.xid), h.what.to_string()])
        .collect();
    if rows.is_empty() {
        shell.say(format!(
            "Nothing that destroys data, and no restore point, among {} commits. --all lists them.",
            report.commits
        ));
    } else {
        shell.say(table(["TIME", "POSITION", "TRANSACTION", "WHAT"], &rows));
        shell.say(format!(
            "To go back to just before one of them: blackstart restore {} --lsn POSITION --before --to DIR",
            report.source
        ));
    }
    let whole = report.windows.iter().all(|window| window.broken.is_empty());
    let exit = match (report.lost.is_empty(), whole) {
        (false, _) => Exit::CheckFailed,
        (true, false) => Exit::Partial,
        (true, true) => Exit::Done,
    };
    Ending::new(exit, report)
}

/// Before what is told: something is not.
fn warn_of_lost(shell: &Shell, lost: &[String]) {
    for what in lost {
        shell.warn(format!(
            "a part of the log cannot be used, and nothing that happened in it is told here: {what}. Bring it back from another copy of the repository; `verify` names all that is damaged."
        ));
    }
}

/// What belongs to none, as restore points do, has the number 0.
fn transaction(xid: u32) -> String {
    if xid == 0 { "-".to_owned() } else { xid.to_string() }
}

fn say_left_out(shell: &Shell, left_out: u64) {
    if left_out > 0 {
        shell
            .say(format!("{left_out} earlier ones are left out; --from and --to narrow the time, --limit shows more."));
    }
}

fn of_redis(shell: &Shell, report: &CommandsReport) -> Result<Ending> {
    warn_of_lost(shell, &report.lost);
    for window in &report.windows {
        let stored = format!("The stream from offset {} to {} is stored", window.from, window.to);
        match window.snapshot {
            Some(snapshot) => shell.say(format!(
                "{stored} without a gap, from the end of snapshot {snapshot} on, until {}.",
                time(window.until)
            )),
            None => shell
                .say(format!("{stored}, and no snapshot lies in it: nothing leads back into it, and it was not read.")),
        }
    }
    say_left_out(shell, report.left_out);
    if report.happened.is_empty() {
        let commands = report.commands;
        shell.say(format!("Nothing that deletes, moves or replaces keys among {commands} commands. --all lists them."));
    }
    for told in &report.happened {
        let happened = &told.happened;
        let during = if happened.until > happened.time {
            format!(" to {}, by {} commands", time(happened.until), happened.commands)
        } else {
            String::new()
        };
        shell.say(format!("{}{during}  {}", time(happened.time), happened.what));
        shell.say(format!("    just before it: {}", told.restore));
    }
    Ending::new(if report.lost.is_empty() { Exit::Done } else { Exit::CheckFailed }, report)
}
