//! Jobs joined with the configuration: the sources that job files declare, and the targets that stand in either.

use anyhow::{Context, Result};
use jiff::SignedDuration;

use super::file::place;
use super::{Job, Rhythm, Task, load, plans};
use crate::config::{Config, SourceConfig};
use crate::error::{Failure, Kind};
use crate::operations::retention::Policy;
use crate::operations::tiers::Tiers;
use crate::repository::layout::GroupName;

impl Config {
    /// Adds what the job files beside this configuration declare: jobs, sources, targets, retention.
    pub fn with_jobs(mut self) -> Result<Config> {
        let directory = self.schedules();
        let (mut of_plans, mut of_groups) = (Vec::new(), Vec::new());
        for declared in load(&directory)? {
            let mut job = declared.job;
            if job.source.plan().is_some() {
                of_plans.push(job);
                continue;
            }
            if !job.enabled {
                self.jobs.push(job);
                continue;
            }
            if let Some(name) = job.source.group() {
                of_groups.push((name, job));
                continue;
            }
            self.source.extend(declared.inline);
            let Some(source) = self.source.iter_mut().find(|s| s.name == job.source) else {
                let known: Vec<&str> = self.source.iter().map(|s| s.name.as_str()).collect();
                let help = format!(
                    "Nothing was done. There are: {}. A [source] table in the job declares one of its own.",
                    known.join(", ")
                );
                let what = format!("{}: it is for {}, which is no source", place(&job, "source"), job.source);
                return Err(Failure::new(Kind::Config, what, help));
            };
            take_on(source, &mut job, declared.retention, declared.tier)?;
            job.derive();
            if job.tasks.is_empty() {
                let help =
                    "Nothing was done. Add `rpo = \"1h\"`, `every = \"30m\"`, or `full = { cron = \"0 2 * * *\" }`.";
                let what = format!("{}: this job never does anything", place(&job, "source"));
                return Err(Failure::new(Kind::Config, what, help));
            }
            if job.tasks.contains_key(&Task::Prune) && source.retention.is_none() {
                let help = "Nothing was done. Add [retention] to the job: without one nothing expires.";
                let what = format!("{}: prunes without a retention", place(&job, "prune"));
                return Err(Failure::new(Kind::Config, what, help));
            }
            self.jobs.push(job);
        }
        self.validate().with_context(|| format!("read {}", directory.display()))?;
        self.add_groups(of_groups)?;
        plans::add(&mut self, of_plans)?;
        self.members_are_known()?;
        Ok(self)
    }

    /// Adds the jobs of groups, each with the sources that the group has.
    fn add_groups(&mut self, jobs: Vec<(GroupName, Job)>) -> Result<()> {
        for (name, mut job) in jobs {
            let Some(group) = self.group.iter().find(|group| group.name == name) else {
                let known: Vec<String> = self.group.iter().map(|group| group.name.to_string()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let what = format!("{}: it is for the group {name}, which does not exist", place(&job, "group"));
                let help = format!("Nothing was done. The groups of {}: {known}.", self.file.display());
                return Err(Failure::new(Kind::Config, what, help));
            };
            job.members.clone_from(&group.sources);
            // Where nothing else is said, the common points are as fresh as the strictest member must be. What a log keeps, they need not.
            let members = self.source.iter().filter(|source| job.covers(&source.name) && !source.continuous);
            job.rpo = job.rpo.or(members.filter_map(|source| source.rpo).min());
            job.derive();
            if job.tasks.is_empty() {
                let help =
                    "Nothing was done. Add `every = \"30m\"`, `rpo = \"1h\"`, or `full = { cron = \"0 2 * * *\" }`.";
                let what = format!("{}: this job never does anything", place(&job, "group"));
                return Err(Failure::new(Kind::Config, what, help));
            }
            // The runs of the group are theirs: their targets alone are no ground for more.
            for member in self.jobs.iter_mut().filter(|member| job.covers(&member.source) && !member.continuous) {
                member.tasks.retain(|_, rhythm| !matches!(rhythm, Rhythm::Rpo(_)));
            }
            self.jobs.push(job);
        }
        Ok(())
    }
}

/// Targets and retention may stand with the source or with its job; both know them afterwards.
fn take_on(source: &mut SourceConfig, job: &mut Job, retention: Option<Policy>, tier: Option<Tiers>) -> Result<()> {
    let twice = |what: &str| {
        let help = "Nothing was done. Keep one of the two.";
        let what = format!("{what} of {} stands in {} and with the source", job.source, job.file.display());
        Err(Failure::new(Kind::Config, what, help))
    };
    let differ = |a: Option<SignedDuration>, b: Option<SignedDuration>| a.is_some() && b.is_some() && a != b;
    if differ(job.rpo, source.rpo) {
        return twice("the rpo");
    }
    if differ(job.rto, source.rto) {
        return twice("the rto");
    }
    if retention.is_some() && source.retention.is_some() {
        return twice("the retention");
    }
    if tier.is_some() && source.tier.is_some() {
        return twice("the tiers");
    }
    job.continuous = source.continuous;
    (source.rpo, source.rto) = (source.rpo.or(job.rpo), source.rto.or(job.rto));
    (job.rpo, job.rto) = (source.rpo, source.rto);
    source.retention = source.retention.take().or(retention);
    source.tier = source.tier.take().or(tier);
    // Looked at again with all sources; here one still knows the file.
    if let Some(policy) = &source.retention {
        policy.validate().with_context(|| place(job, "retention"))?;
        if let Some(tiers) = &source.tier {
            tiers.validate(policy, source.rto).with_context(|| place(job, "tier"))?;
        }
    }
    Ok(())
}
