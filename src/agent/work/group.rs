//! One run of a group: the same operation as `backup --group`. It is a run of the group, and of each member that got its snapshot.

use anyhow::Result;
use serde_json::{Value, json};
use std::sync::Arc;

use super::{Done, backed_up, host, options};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Kind, help_of, kind_of};
use crate::operations::backup;
use crate::operations::group::{self, GroupReport, MemberRun};
use crate::repository::layout::GroupName;

pub fn back_up(config: &Config, clock: &Arc<dyn Clock>, name: &GroupName, full: bool) -> Result<Done> {
    let sources = config.chosen(&config.named_group(name)?.sources)?;
    let options = options(config, full)?;
    let mut members = Vec::new();
    for source in sources {
        members.push(MemberRun {
            name: source.name.clone(),
            open: Box::new(|| config.open_source(source, clock)),
            options: backup::Options { canary: config.canary_stated(source), ..options.clone() },
            tiering: config.tiering(source)?,
        });
    }
    done(&group::backup(&host(config, clock)?, name, members)?)
}

/// What came of it: the worst of its members where there is a common point, and nothing less than a failure where there is none.
fn done(report: &GroupReport) -> Result<Done> {
    let name = &report.name;
    let (mut members, mut errors, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for member in &report.members {
        match &member.report {
            Ok(backup) => {
                let done = backed_up(backup)?;
                reports.push(done.report.clone());
                members.push((member.source.clone(), done));
            }
            Err(error) => {
                reports.push(json!({"source": member.source, "error": format!("{error:#}")}));
                errors.push((&member.source, error));
            }
        }
    }
    let lines = |result: &str| {
        let all = members.iter().filter(|(_, done)| done.result == result).map(|(_, done)| done.line.clone());
        all.collect::<Vec<_>>().join("; ")
    };
    let (result, line, data_time, point) = match &report.point {
        Ok(point) => {
            let (n, at) = (point.group.n, point.group.data_time());
            let whole = format!("point {n} of group {name} has the data of {at:.0}");
            let (result, line) = match (lines("check-failed"), lines("partial")) {
                (suspect, _) if !suspect.is_empty() => ("check-failed", format!("{whole}, but {suspect}")),
                (_, partial) if !partial.is_empty() => ("partial", format!("{whole}, but {partial}")),
                _ => ("done", whole),
            };
            (result, line, Some(at), serde_json::to_value(point)?)
        }
        Err(why) => {
            // Another run holds a member, mostly one that somebody started by hand: that says nothing of the data.
            let busy = !errors.is_empty() && errors.iter().all(|(_, error)| kind_of(error) == Kind::Busy);
            let all: Vec<String> = errors.iter().map(|(source, error)| format!("{source}: {error:#}")).collect();
            let stored: Vec<&str> = members.iter().map(|(source, _)| source.as_str()).collect();
            let stored = if stored.is_empty() { "no member".to_owned() } else { stored.join(", ") };
            let line = format!(
                "group {name} has no common point of now: {why}; {stored} got a snapshot of its own. {}",
                all.join("; ")
            );
            (if busy { "busy" } else { "failed" }, line.trim_end().to_owned(), None, Value::Null)
        }
    };
    let bytes = members.iter().fold((0, 0), |sum, (_, done)| (sum.0 + done.bytes.0, sum.1 + done.bytes.1));
    let help = errors.iter().find_map(|(_, error)| help_of(error).map(str::to_owned));
    let report = json!({"group": name, "point": point, "no_point": report.point.as_ref().err(), "sources": reports});
    Ok(Done { result, line, report, data_time, bytes, help, members })
}
