//! What stands wrong with the common points of groups.

use super::{Problem, View, problem};
use crate::config::GroupConfig;
use crate::notify::Severity;
use crate::repository::layout::SourceName;

/// What is wrong with the common points of a group, with a job or without.
pub fn of_points(view: &View, group: &GroupConfig) -> Option<Problem> {
    let name = SourceName::of_group(&group.name);
    let faults = &view.seen.get(&name)?.faults;
    let first = faults.first()?;
    let title = format!("group {}: {} common points are wrong", group.name, faults.len());
    let detail = format!(
        "What belongs together in them cannot be brought back as one. Other points, and the snapshots of the members, are as they were. \
         `blackstart verify` shows more: {first}"
    );
    Some(problem(format!("{name}/damaged"), Severity::Critical, None, title, detail))
}

/// The command that backs a source up, or a group.
pub fn backup(source: &SourceName) -> String {
    match source.group() {
        Some(group) => format!("blackstart backup --group {group}"),
        None => format!("blackstart backup {source}"),
    }
}

/// Title and detail of the alarm that there is nothing to go back to.
pub fn never(source: &SourceName) -> (String, String) {
    match source.group() {
        Some(group) => (
            format!("group {group} has no good common point"),
            format!(
                "Its members cannot be brought back to one moment. Run `blackstart backup --group {group}` by hand and see what it says"
            ),
        ),
        None => (
            format!("{source} has never been backed up"),
            format!(
                "A disaster now would lose everything in it. Run `blackstart backup {source}` by hand, and see what it says"
            ),
        ),
    }
}
