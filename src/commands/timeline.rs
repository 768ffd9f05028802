//! `timeline`: what happened, from the stored log; and how to go back to just before it.

use anyhow::Result;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, table, time};
use super::wal::when;
use crate::cli::wal::Timeline;
use crate::operations::wal::timeline::{Options, timeline};

pub fn run(shell: &Shell, args: &Timeline) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let options = Options { from: args.from, to: args.to, all: args.all, limit: args.limit };
    let busy = shell.busy(format!("reading the log of {}", args.source));
    let report = timeline(&reader.open, &keys.identities, &args.source, &options)?;
    drop(busy);
    for window in &report.windows {
        shell.say(format!(
            "The log from {} to {} is stored without a gap, timeline {}, until {}.",
            window.from,
            window.to,
            window.timeline,
            time(window.until)
        ));
    }
    if report.left_out > 0 {
        shell.say(format!(
            "{} earlier ones are left out; --from and --to narrow the time, --limit shows more.",
            report.left_out
        ));
    }
    let rows: Vec<[String; 4]> = report
        .happened
        .iter()
        .map(|h| [when(h.time), h.position.clone(), h.xid.to_string(), h.what.to_string()])
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
    Ending::new(Exit::Done, report)
}
