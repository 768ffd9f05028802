//! Jobs that drill restore plans: from a job file that names one, or from the plan itself, by its `drill`.
//!
//! A plan whose text is wrong keeps nothing else from running: it is noted, and the agent tells of it.

use anyhow::Result;

use super::file::place;
use super::{CatchUp, Job, Overlap, Planned, Task};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::plan::{self, Plan};
use crate::repository::layout::SourceName;

/// Adds a job for each plan that is to be drilled; `named` are those that have a job file.
pub fn add(config: &mut Config, mut named: Vec<Job>) -> Result<()> {
    for file in plan::files(config)? {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let own = named.iter().position(|job| job.source.plan() == Some(&name)).map(|n| named.remove(n));
        match Plan::read(&file, config) {
            Ok(plan) => config.jobs.extend(job(&plan, own)?),
            Err(error) => config.wrong_plans.push((name, format!("{error:#}"))),
        }
    }
    let Some(job) = named.first() else { return Ok(()) };
    let plan = job.source.plan().unwrap_or_default();
    Err(Failure::new(
        Kind::Config,
        format!("{}: it is for the plan {plan}, which does not exist", place(job, "plan")),
        format!("Nothing was done. A plan is a file beside the configuration: restore-plans/{plan}.toml."),
    ))
}

fn job(plan: &Plan, own: Option<Job>) -> Result<Option<Job>> {
    let usual = Job {
        file: plan.file.clone(),
        enabled: true,
        source: SourceName::of_plan(&plan.name)?,
        plan: None,
        members: Vec::new(),
        tasks: Default::default(),
        rpo: None,
        rto: None,
        continuous: false,
        jitter: None,
        catch_up: CatchUp::default(),
        overlap: Overlap::default(),
        blackout: Vec::new(),
    };
    let from_file = own.is_some();
    let mut job = own.unwrap_or(usual);
    if !job.tasks.contains_key(&Task::DRILL) {
        job.tasks.extend(plan.drill.clone().map(|rhythm| (Task::DRILL, rhythm)));
    }
    if job.tasks.is_empty() {
        let help = "Nothing was done. Add `drill = { every = \"7d\" }` to the job or to the plan.";
        let what = format!("{}: this job never does anything", job.file.display());
        return if from_file { Err(Failure::new(Kind::Config, what, help)) } else { Ok(None) };
    }
    job.rto = plan.rto;
    job.plan = Some(Planned { hash: plan.hash, sources: plan.sources() });
    Ok(Some(job))
}
