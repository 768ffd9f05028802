//! One backup, top to bottom: lease, basis, read and store, commit.

mod choose;
mod commit;
mod options;
mod report;
mod resume;
mod retired;
mod room;
mod run;

pub use options::Options;
pub use report::BackupReport;

use anyhow::Result;

use self::run::{Committed, Run};
use super::Host;
use super::tiers::Tiering;
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;
use crate::repository::trust::Role;
use crate::source::Source;

/// [`backup_tiered`] without tiers.
pub fn backup(
    host: &Host,
    name: &SourceName,
    open_source: &dyn Fn() -> Result<Box<dyn Source>>,
    options: Options,
) -> Result<BackupReport> {
    backup_tiered(host, name, open_source, options, None)
}

/// Backs up one source, into the storage class and with the lock that its tiers ask for. `open_source` is called once for each try (at
/// most twice).
pub fn backup_tiered(
    host: &Host,
    name: &SourceName,
    open_source: &dyn Fn() -> Result<Box<dyn Source>>,
    options: Options,
    tiering: Option<Tiering>,
) -> Result<BackupReport> {
    let key = host.keys.signing.public();
    let certified = host.open.trust.may_sign(&key, Role::Host, name, host.open.now());
    if !certified {
        return Err(Failure::new(
            Kind::WrongKey,
            format!("this host's key {} is not certified to write {name} in this repository", key.id()),
            "Nothing was written. Certify it with the recovery key file: `init --host-key FILE --identity RECOVERY_KEY`.",
        ));
    }
    let _lease = host.lease(name).map_err(|error| room::wanting(error, name))?;
    let mut lost_once = None;
    let once = || Run::prepare(host, name, options.clone(), tiering)?.go(&mut *open_source()?);
    for _ in 0..2 {
        match once().map_err(|error| room::wanting(error, name))? {
            Committed::Done(report) => return Ok(*report),
            Committed::Overtaken(by) => lost_once = Some(by),
        }
    }
    Err(Failure::new(
        Kind::Busy,
        format!("another writer committed {} of {name} meanwhile, twice", lost_once.unwrap_or_default()),
        "Nothing was lost; this run's data is not in a snapshot. Make sure that one host alone writes this source.",
    ))
}
