//! The groups in `status`: how fresh the newest common point is that is whole, and whether points have lost a member.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;

use crate::commands::output::{span, time};
use crate::config::Config;
use crate::operations::Open;
use crate::operations::group::{self, Sight};
use crate::repository::layout::{GroupName, SourceName};

#[derive(Serialize)]
pub struct Row {
    #[serde(flatten)]
    sight: Sight,
    rpo_exposure_seconds: Option<f64>,
    rpo_seconds: Option<f64>,
    /// What is wrong, for people.
    pub attention: Option<String>,
    /// Nothing worse than that it is old.
    #[serde(skip)]
    pub only_late: bool,
}

/// One row for each group of the repository and of the configuration.
pub fn rows(open: &Open, config: Option<&Config>) -> Result<Vec<Row>> {
    let mut sights = group::look(open)?;
    let seen: BTreeSet<GroupName> = sights.iter().map(|sight| sight.group.clone()).collect();
    let configured = config.iter().flat_map(|config| config.group.iter().map(|group| group.name.clone()));
    sights.extend(configured.filter(|name| !seen.contains(name)).map(Sight::of));
    Ok(sights.into_iter().map(|sight| row(sight, config, open.now())).collect())
}

fn row(sight: Sight, config: Option<&Config>, now: Timestamp) -> Row {
    let name = SourceName::of_group(&sight.group);
    let job = config.and_then(|config| config.jobs.iter().find(|job| job.enabled && job.source == name));
    let rpo = job.and_then(|job| job.rpo).map(|rpo| rpo.as_secs_f64());
    let exposure = sight.newest.map(|at| now.duration_since(at).as_secs_f64().max(0.0));
    let late = matches!((exposure, rpo), (Some(exposure), Some(rpo)) if exposure > rpo);
    let group = &sight.group;
    let attention = match sight.faults.first() {
        Some(first) => Some(format!("common points are wrong: {first}: run `blackstart verify`")),
        None if sight.newest.is_none() => {
            Some(format!("has no common point that is whole: run `blackstart backup --group {group}`"))
        }
        None if late => Some("the newest common point is older than the RPO allows".into()),
        None => None,
    };
    let only_late = late && sight.faults.is_empty();
    Row { sight, rpo_exposure_seconds: exposure, rpo_seconds: rpo, attention, only_late }
}

impl Row {
    pub fn group(&self) -> &GroupName {
        &self.sight.group
    }

    pub fn say(&self) -> String {
        let group = &self.sight.group;
        let point = match (self.sight.n, self.sight.newest, self.rpo_exposure_seconds) {
            (Some(n), Some(at), Some(age)) => {
                let target = self.rpo_seconds.map_or(String::new(), |rpo| format!(" of {}", span(rpo)));
                format!("point {n} has the data of {} ({} ago{target})", time(at), span(age))
            }
            _ => "no common point".into(),
        };
        let attention = self.attention.as_ref().map_or(String::new(), |what| format!("; {what}"));
        format!("group {group}: {point}{attention}")
    }
}
