//! `confirm`: the times of a snapshot are right, although the store's clock contradicts them.

use anyhow::Result;
use serde_json::json;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, table, time};
use crate::cli::Confirm;
use crate::error::{Failure, Kind};
use crate::operations::confirm::{Mistimed, confirm, mistimed};
use crate::repository::trust::Trust;

pub fn run(shell: &Shell, args: &Confirm) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    if args.snapshot.is_empty() {
        let found = mistimed(&reader.open, &args.source)?;
        if found.is_empty() {
            shell.say(format!("No snapshot of {} is suspect by its times.", args.source));
            return Ending::new(Exit::NothingToDo, json!({"mistimed": found}));
        }
        let rows: Vec<[String; 4]> = found.iter().map(cells).collect();
        shell.say(table(["SEQ", "DATA OF", "FINISHED, BY THE HOST", "STORED, BY THE STORE"], &rows));
        shell.say(format!(
            "These never expire, and make room for no other. If the host's times are right: blackstart confirm {} --snapshot N --identity FILE",
            args.source
        ));
        return Ending::new(Exit::CheckFailed, json!({"mistimed": found}));
    }
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let Some(root) = &keys.signing else {
        let help = "Nothing was confirmed. Give the recovery key file that `init` made: --identity FILE.";
        return Err(Failure::new(Kind::WrongKey, "this key file has no root key in it", help));
    };
    let report = confirm(&reader.open, root, &args.source, &args.snapshot)?;
    for one in &report.confirmed {
        shell.say(format!(
            "{}: the times of snapshot {} are confirmed: data of {}",
            report.source,
            one.seq,
            time(one.data_time)
        ));
    }
    // What was written counts for whoever reads: nothing may stand in its way.
    Trust::load(&reader.open.store, Some(&reader.open.trust.root.id()))?;
    Ending::new(Exit::Done, report)
}

fn cells(one: &Mistimed) -> [String; 4] {
    let stored = one.stored.map_or("it does not say".into(), time);
    [one.seq.to_string(), time(one.data_time), time(one.finished), stored]
}
