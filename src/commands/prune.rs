//! `prune`: remove what retention no longer keeps.

use anyhow::Result;
use jiff::SignedDuration;
use serde_json::json;

use super::backup::each;
use super::output::{Ending, Exit, Shell, count, size};
use crate::cli::Prune;
use crate::error::{Failure, Kind};
use crate::operations::prune;

/// Objects younger than this stay unless the configuration says otherwise.
const GRACE: SignedDuration = SignedDuration::from_hours(24);

pub fn run(shell: &Shell, args: &Prune) -> Result<Ending> {
    let config = shell.config()?;
    let mut sources = config.chosen(&args.sources)?;
    if args.sources.is_empty() {
        sources.retain(|s| s.retention.is_some());
    }
    if sources.is_empty() {
        shell.say("There is nothing to prune: no source has a [source.retention], so nothing expires.");
        return Ending::new(Exit::NothingToDo, json!({"sources": []}));
    }
    let host = shell.host(&config)?;
    each(shell, sources, |source| {
        let Some(policy) = &source.retention else {
            let help = "Nothing was removed. Without a [source.retention] section nothing expires.";
            return Err(Failure::new(Kind::Config, format!("{} has no retention policy", source.name), help));
        };
        let mut plan = prune::plan(&host.open, &source.name, policy, config.grace.unwrap_or(GRACE))?;
        plan.remove_covers = args.uncover;
        let go = plan.remove.len() as u64;
        let stay = plan.decisions.iter().filter(|d| !d.keep.is_empty()).count() as u64;
        let planned = json!({"source": source.name, "plan": &plan});
        if plan.young_count > 0 {
            let young = count(plan.young_count, "object");
            shell.say(format!(
                "{}: {young} that no snapshot needs will go once older than the grace period",
                source.name
            ));
        }
        if args.dry_run && !plan.covers.is_empty() {
            shell.warn(format!(
                "{}: {} have been deleted or written over in the store: see `verify`",
                source.name,
                count(plan.covers.len() as u64, "object")
            ));
        }
        if args.dry_run {
            let numbers: Vec<String> = plan.remove.iter().map(|r| r.seq.to_string()).collect();
            shell.say(format!(
                "{}: would remove {} [{}] and {} ({}), and keep {}",
                source.name,
                count(go, "snapshot"),
                numbers.join(", "),
                count(plan.unnamed_count, "object"),
                size(plan.unnamed_bytes),
                count(stay, "snapshot")
            ));
            return Ok((Exit::Done, planned));
        }
        let report = prune::sweep(&host, plan)?;
        let objects = report.objects_deleted.saturating_sub(go);
        shell.say(format!(
            "{}: removed {} and {} that no snapshot needs ({}), kept {}",
            source.name,
            count(go, "snapshot"),
            count(objects, "object"),
            size(report.bytes_freed),
            count(stay, "snapshot")
        ));
        report.refused.iter().for_each(|what| shell.warn(format!("{}: not deleted: {what}", source.name)));
        Ok((Exit::Done, json!({"source": source.name, "plan": planned["plan"], "report": report})))
    })
}
