//! `prune`: remove what retention no longer keeps.

use anyhow::Result;
use serde_json::{Value, json};

use super::output::{Ending, Exit, Shell, count, numbers, size, time};
use super::several::{each, is_retired};
use crate::cli::Prune;
use crate::config::{Config, SourceConfig};
use crate::error::{Failure, Kind};
use crate::operations::Host;
use crate::operations::group;
use crate::operations::locks::{self, Settled};
use crate::operations::prune::{self, Plan};

pub fn run(shell: &Shell, args: &Prune) -> Result<Ending> {
    let config = shell.config()?;
    let mut sources = config.chosen(&args.sources)?;
    if args.sources.is_empty() {
        sources.retain(|s| s.retention.is_some());
    }
    if sources.is_empty() {
        shell.say("note: no source has a [source.retention], so nothing expires.");
        return Ending::new(Exit::Done, json!({"sources": []}));
    }
    let host = shell.host(&config)?;
    if args.sources.is_empty() {
        sources.retain(|source| !is_retired(shell, &host.open, source));
    }
    each(shell, sources, |source| one(shell, args, &config, &host, source))
}

fn one(shell: &Shell, args: &Prune, config: &Config, host: &Host, source: &SourceConfig) -> Result<(Exit, Value)> {
    let Some(policy) = &source.retention else {
        let help = "Nothing was removed. Without a [source.retention] section nothing expires.";
        return Err(Failure::new(Kind::Config, format!("{} has no retention policy", source.name), help));
    };
    let tiering = config.tiering(source)?;
    let mut plan = prune::plan(&host.open, &source.name, policy, config.grace.unwrap_or(prune::GRACE))?;
    plan.remove_covers = args.uncover;
    let go = plan.remove.len() as u64;
    let stay = plan.decisions.iter().filter(|d| !d.keep.is_empty()).count() as u64;
    foretell(shell, source, &plan);
    let broken = group::broken_by(&host.open, &source.name, &plan.remove)?;
    for (group, n) in &broken {
        shell.say(format!("{}: point {n} of group {group} will not be whole any more", source.name));
    }
    let planned = json!({"source": source.name, "plan": &plan, "groups": broken});
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
    let report = prune::sweep(host, plan)?;
    let objects = report.objects_deleted.saturating_sub(go + report.folded);
    shell.say(format!(
        "{}: removed {} and {} that no snapshot needs ({}), kept {}",
        source.name,
        count(go, "snapshot"),
        count(objects, "object"),
        size(report.bytes_freed),
        count(stay, "snapshot")
    ));
    report.refused.iter().for_each(|what| shell.warn(format!("{}: not deleted: {what}", source.name)));
    let settled = tiering.map(|tiering| locks::settle(&host.open, &source.name, tiering)).transpose()?;
    if let Some(settled) = &settled {
        say_settled(shell, source, settled);
    }
    let exit = if report.refused.is_empty() { Exit::Done } else { Exit::Partial };
    Ok((
        exit,
        json!({"source": source.name, "plan": planned["plan"], "groups": planned["groups"], "report": report, "settled": settled}),
    ))
}

/// What will not go, and until when.
fn foretell(shell: &Shell, source: &SourceConfig, plan: &Plan) {
    let name = &source.name;
    if plan.young_count > 0 {
        let young = count(plan.young_count, "object");
        shell.say(format!("{name}: {young} that no snapshot needs will go once older than the grace period"));
    }
    for (seq, until) in &plan.locked {
        shell.say(format!("{name}: snapshot {seq} stays: it is locked until {}", time(*until)));
    }
    if !plan.covers.is_empty() {
        let covered = count(plan.covers.len() as u64, "object");
        shell.warn(format!("{name}: {covered} were deleted or written over in the store: see `verify`"));
    }
}

fn say_settled(shell: &Shell, source: &SourceConfig, settled: &Settled) {
    let name = &source.name;
    if !settled.locked.is_empty() {
        shell.say(format!("{name}: longer locks for the snapshots {}", numbers(&settled.locked)));
    }
    for (class, packs) in &settled.marked {
        shell.say(format!(
            "{name}: {} marked for {class}; the lifecycle rule of the bucket moves them (`check` prints it)",
            count(*packs, "pack")
        ));
    }
    if settled.too_cold > 0 {
        let packs = count(settled.too_cold, "pack");
        shell.warn(format!(
            "{name}: {packs} lie in a slower class than the tiers want; they restore, archives after a thaw"
        ));
    }
}
