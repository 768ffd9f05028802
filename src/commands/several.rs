//! What is done to several sources, groups or plans: one after the other, and the worst of them decides how the verb ends.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::output::{self, Ending, Exit, Shell, time};
use crate::config::SourceConfig;
use crate::error::{Kind, kind_of};
use crate::operations::Open;
use crate::repository::series::Series;

/// Does `work` for every source, goes on after errors, and ends as the worst of them.
pub fn each<R: Serialize>(
    shell: &Shell,
    sources: Vec<&SourceConfig>,
    mut work: impl FnMut(&SourceConfig) -> Result<(Exit, R)>,
) -> Result<Ending> {
    let mut worst = Exit::Done;
    let mut reports: Vec<Value> = Vec::new();
    let alone = sources.len() == 1;
    for source in sources {
        match work(source) {
            Ok((exit, report)) => {
                worst = worst.max(exit);
                reports.push(serde_json::to_value(report)?);
            }
            Err(error) if alone || kind_of(&error) == Kind::Interrupted => return Err(error),
            Err(error) => {
                let error = error.context(format!("{} failed", source.name));
                shell.complain(&error);
                worst = worst.max(Exit::Failed(kind_of(&error).exit_code()));
                reports.push(json!({"source": source.name, "error": output::error_value(&error)}));
            }
        }
    }
    Ending::new(worst, json!({"sources": reports}))
}

/// Whether a source was given up: then it is left out of what is done to all, and told.
pub fn is_retired(shell: &Shell, open: &Open, source: &SourceConfig) -> bool {
    let series = Series::list(&open.store, &open.trust, &source.name);
    // What cannot be read is for the run to tell of.
    let Ok(Some(record)) = series.and_then(|series| series.retired()) else { return false };
    shell.say(format!(
        "{}: retired {} by {}: left out, unless it is named",
        source.name,
        time(record.started),
        record.host
    ));
    true
}

/// How a backup of several ends of which `stored` is the worst that has its snapshot: some have it, and some have not.
pub fn partly(worst: Exit, stored: Option<Exit>) -> Exit {
    match (worst, stored) {
        (Exit::Failed(_), Some(exit)) => exit.max(Exit::Partial),
        _ => worst,
    }
}

/// The worse of two endings, the first where they are alike.
pub fn worse(before: Option<Ending>, next: Ending) -> Ending {
    match before {
        Some(before) if before.exit >= next.exit => before,
        _ => next,
    }
}
