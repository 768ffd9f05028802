//! The canary of a source: where it is written, and when one last was.

use anyhow::{Context, Result};
use jiff::Timestamp;
use std::path::PathBuf;

use super::{Config, SourceConfig, SourceKind};
use crate::durable;
use crate::error::{Failure, Kind};
use crate::repository::layout::SourceName;
use crate::source::canary::{Act, Canary, Home, Stated};
use crate::source::redis::address::Address as RedisAddress;
use crate::source::{files, postgres};

/// Below the state directory: a file for each source, with the time of the last canary that was written.
const WRITTEN: &str = "canaries";

/// A drill would miss it in every copy.
fn is_left_out(source: &SourceConfig, canary: &Canary) -> Result<bool> {
    let select = source.postgres.as_ref().map(|options| &options.select);
    Ok(match (source.kind, select, canary.at.split_once('.')) {
        (SourceKind::Files, ..) => files::leaves_out(&source.exclude, &canary.at)?,
        (SourceKind::Postgres, Some(select), Some((schema, table))) => {
            let database = canary.database.as_deref();
            !select.takes_table(schema, table) || database.is_some_and(|name| !select.takes_database(name))
        }
        _ => false,
    })
}

impl Config {
    /// The canary of a source, if it has one. An error: its address cannot be read.
    pub fn canary(&self, source: &SourceConfig) -> Result<Option<Canary>> {
        let Some(options) = &source.canary else { return Ok(None) };
        let url = options.url.as_ref().or(source.url.as_ref());
        // The password belongs to the address that it stands with.
        let password = if options.url.is_some() { &options.password } else { &source.password };
        let password = options.password.as_ref().or(password.as_ref());
        let home = match source.kind {
            SourceKind::Sqlite => Home::Sqlite(self.path_of(source)?),
            SourceKind::Files => Home::Files(self.path_of(source)?),
            SourceKind::Chroma => Home::Chroma(self.path_of(source)?),
            SourceKind::Postgres => {
                let url = url.with_context(|| format!("source {} has no url", source.name))?;
                let mut address = postgres::address(url, password, self.base())?;
                let named = options.database.clone().or(address.database.take());
                address.database = Some(named.unwrap_or_else(|| postgres::logical::ANY_DATABASE.to_owned()));
                Home::Postgres(Box::new(address))
            }
            SourceKind::Redis => {
                let url = url.with_context(|| format!("source {} has no url", source.name))?;
                let mut address = RedisAddress::parse(&url.read(self.base())?)?;
                if let Some(password) = password {
                    address.password = Some(password.read(self.base())?);
                }
                Home::Redis(Box::new(address))
            }
            SourceKind::Command => return Ok(None),
        };
        let canary = Canary::new(source.name.as_str(), home, options);
        if is_left_out(source, &canary)? {
            let message = format!("the backups of {} leave out its canary, {}", source.name, canary.place());
            let help = "Backups go on; none is written. Let `exclude` or `select` take it in, or name another place: `at` and `database` in [source.canary].";
            return Err(Failure::new(Kind::Config, message, help));
        }
        Ok(Some(canary))
    }

    /// What a snapshot of the source says of it. A canary must not keep a backup from being made: one that cannot be told of is left out.
    pub fn canary_stated(&self, source: &SourceConfig) -> Option<Stated> {
        let canary = self.canary(source).ok()??;
        Some(canary.stated(self.canary_written(&source.name)))
    }

    /// Writes one now, and notes when: gives the time that stands in it.
    pub fn write_canary(&self, source: &SourceName, canary: &Canary, now: Timestamp) -> Result<Timestamp> {
        // Engines keep microseconds at most: what is noted must not be younger than what they give back.
        let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        canary.carry_out(Act::Write(now))?;
        let path = self.written_at(source);
        path.parent()
            .map_or(Ok(()), durable::create_directories)
            .context("make a directory for what canaries were written")?;
        durable::publish_over(&path, now.to_string().as_bytes(), 0o600)
            .with_context(|| format!("note that the canary of {source} was written"))?;
        Ok(now)
    }

    /// Takes all of it out of the source.
    pub fn remove_canary(&self, source: &SourceName, canary: &Canary) -> Result<()> {
        canary.carry_out(Act::Remove)?;
        durable::remove(&self.written_at(source)).with_context(|| format!("forget the canary of {source}"))
    }

    /// The last that this host has written.
    pub fn canary_written(&self, source: &SourceName) -> Option<Timestamp> {
        std::fs::read_to_string(self.written_at(source)).ok()?.trim().parse().ok()
    }

    fn written_at(&self, source: &SourceName) -> PathBuf {
        self.state().join(WRITTEN).join(source.as_str())
    }
}
