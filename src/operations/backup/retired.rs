//! What a run does about a source that was given up on purpose (FORMAT.md §3-18).

use anyhow::Result;

use super::run::Run;
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;
use crate::repository::snapshot::Retirement;

impl Run<'_> {
    /// What was given up on purpose is backed up only by somebody who asks for just that.
    pub(super) fn take_up_again(&mut self, record: &Retirement) -> Result<()> {
        if !self.options.revive {
            return Err(given_up(self.name, record, "Nothing was read or written."));
        }
        let (at, host) = (record.started, &record.host);
        self.notices.push(format!("{}: was retired {at:.0} by {host}; this backup takes it up again", self.name));
        Ok(())
    }
}

/// The end of a run; `done` says what became of what it did.
pub(super) fn given_up(name: &SourceName, record: &Retirement, done: &str) -> anyhow::Error {
    let why = record.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    Failure::new(
        Kind::Usage,
        format!("{name} was retired {:.0} by {}{why}", record.started, record.host),
        format!(
            "{done} `blackstart backup {name}`, by its name, takes it up again; otherwise take it out of the configuration."
        ),
    )
}
