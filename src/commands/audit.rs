//! What goes into the audit log: every verb that restores, writes, removes, or changes keys or configuration; and `audit`, which shows it.

use anyhow::Result;
use serde_json::json;
use std::ffi::OsString;

use super::output::{Ending, Exit, Shell, table, time};
use crate::audit::{AuditLog, Entry, Phase, Who, redacted};
use crate::cli::{Audit, Verb};
use crate::config::Config;

/// A verb that is being written down.
pub struct Record {
    entry: Entry,
}

impl Record {
    /// Notes that the verb begins. None where it changes nothing and reads no data.
    pub fn begin(shell: &Shell, verb: &Verb, arguments: &[OsString]) -> Option<Record> {
        if !matters(verb) {
            return None;
        }
        let at = shell.clock.now();
        let by = Who::here();
        // The first is the program, one of the others the verb itself.
        let texts = arguments.iter().skip(1).map(|a| a.to_string_lossy().into_owned());
        let record = Record {
            entry: Entry {
                version: 1,
                at,
                id: format!("{}-{}", at.as_millisecond(), by.pid),
                phase: Phase::Begun,
                by,
                host: String::new(),
                verb: verb.name().to_owned(),
                arguments: texts.filter(|a| a != verb.name()).map(|a| redacted(&a)).collect(),
                outcome: None,
                exit: None,
                previous: None,
            },
        };
        record.append(shell, record.entry.clone());
        Some(record)
    }

    /// Notes how it ended.
    pub fn end(self, shell: &Shell, outcome: &str, exit: u8) {
        let (at, outcome) = (shell.clock.now(), Some(outcome.to_owned()));
        let entry = Entry { at, phase: Phase::Ended, outcome, exit: Some(exit), ..self.entry.clone() };
        self.append(shell, entry);
    }

    /// Without a configuration there is no state directory: then nothing is written down here.
    fn append(&self, shell: &Shell, entry: Entry) {
        let Ok(config) = Config::load_alone(shell.config.as_deref()) else { return };
        let log = AuditLog::below(&config.state());
        if let Err(error) = log.append(Entry { host: config.host_name(), ..entry }) {
            shell.warn(format!("{error:#}\n  What you asked for is done all the same."));
        }
    }
}

/// What somebody may ask about later: who brought data back, removed or added some, touched keys or configuration.
fn matters(verb: &Verb) -> bool {
    match verb {
        Verb::Protect(_) | Verb::Init(_) | Verb::Backup(_) | Verb::Drill(_) | Verb::Bisect(_) | Verb::Kit(_) => true,
        Verb::Agent(_) | Verb::WalReceive(_) | Verb::Timeline(_) | Verb::Retire(_) => true,
        Verb::Restore(args) => !args.dry_run,
        Verb::Prune(args) => !args.dry_run,
        Verb::Confirm(args) => !args.snapshot.is_empty(),
        Verb::Check(args) => args.identity.is_some(),
        // Written each minute, perhaps.
        Verb::Canary(args) => args.remove,
        Verb::Snapshots(_) | Verb::Verify(_) | Verb::Status(_) | Verb::Notify(_) | Verb::Health(_) => false,
        // A server calls them for each file of its log.
        Verb::WalPush(_) | Verb::WalGet(_) => false,
        Verb::Report(_) | Verb::Watch(_) | Verb::Audit(_) | Verb::Completions(_) | Verb::Man(_) => false,
    }
}

pub fn run(shell: &Shell, args: &Audit) -> Result<Ending> {
    let config = Config::load_alone(shell.config.as_deref())?;
    let trail = AuditLog::below(&config.state()).read()?;
    let first = trail.entries.len().saturating_sub(args.last);
    let shown = &trail.entries[first..];
    let rows: Vec<[String; 5]> = shown.iter().map(cells).collect();
    shell.say(table(["WHEN", "WHO", "WHAT", "ARGUMENTS", "OUTCOME"], &rows));
    for fault in &trail.faults {
        shell.warn(format!("the audit log is not as it was written: {fault}"));
    }
    let exit = match (trail.faults.is_empty(), trail.entries.is_empty()) {
        (false, _) => Exit::CheckFailed,
        (true, true) => Exit::NothingToDo,
        (true, false) => Exit::Done,
    };
    Ending::new(exit, json!({"entries": shown, "faults": trail.faults}))
}

fn cells(entry: &Entry) -> [String; 5] {
    let Who { user, login, sudo, .. } = &entry.by;
    let behind = login.as_ref().or(sudo.as_ref()).filter(|other| *other != user);
    let who = behind.map_or(user.clone(), |other| format!("{user} ({other})"));
    let outcome = match (&entry.outcome, entry.exit) {
        (None, _) => "begun".to_owned(),
        (Some(outcome), Some(code)) => format!("{outcome} ({code})"),
        (Some(outcome), None) => outcome.clone(),
    };
    [time(entry.at), who, entry.verb.clone(), entry.arguments.join(" "), outcome]
}
