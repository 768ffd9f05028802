//! `blackstart.toml`: strict TOML. Unknown keys are errors that name the line and the nearest known key.

mod canary;
mod drill;
mod group;
mod named;
mod places;
pub mod source;
pub(crate) mod text;
mod tier;

use anyhow::{Context, Result};
use jiff::SignedDuration;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::agent;
use crate::clock::Clock;
use crate::error::{Failure, Kind};
use crate::job::Job;
use crate::notify;
use crate::repository::layout::Hash;
use crate::size;
use crate::source::chroma::Chroma;
use crate::source::command::Command;
use crate::source::files::{Files, FilesOptions};
use crate::source::postgres;
use crate::source::redis::Redis;
use crate::source::sqlite::Sqlite;
use crate::source::{Settings, Source};
use crate::time::optional_length as duration;
pub use drill::DrillConfig;
pub use group::GroupConfig;
pub use places::resolve_location;
pub use source::{SourceConfig, SourceKind};
use text::explain;

const NAME: &str = "blackstart.toml";
/// Where the service looks.
pub const SYSTEM: &str = "/etc/blackstart/blackstart.toml";
const VARIABLE: &str = "BLACKSTART_CONFIG";

/// A parsed `blackstart.toml`. Paths in it are as written; the methods resolve them against the file's directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A directory, or `s3://bucket/prefix?…`.
    pub repository: String,
    /// Fingerprint of the root key that this host trusts.
    pub root: Option<String>,
    /// Name of this host in commits.
    pub host: Option<String>,
    pub host_key: Option<PathBuf>,
    /// Where the recovery key file lies while it is still on this machine.
    pub recovery_key: Option<PathBuf>,
    /// Memory of this host's commits, and caches.
    pub state: Option<PathBuf>,
    /// How much may wait on the disk of `state` while the store is slower than a source is read.
    #[serde(default, deserialize_with = "size::optional")]
    pub spool: Option<u64>,
    /// Where drills restore to. It needs room for a whole source.
    pub scratch: Option<PathBuf>,
    /// A new baseline is due after this long.
    #[serde(default, deserialize_with = "duration")]
    pub baseline: Option<SignedDuration>,
    /// zstd's, for every source; otherwise what suits each.
    pub level: Option<i32>,
    /// Objects younger than this are never pruned.
    #[serde(default, deserialize_with = "duration")]
    pub grace: Option<SignedDuration>,
    #[serde(default)]
    pub drill: DrillConfig,
    #[serde(default)]
    pub agent: agent::Options,
    /// Who is told what is wrong.
    #[serde(default)]
    pub notify: Vec<notify::Channel>,
    #[serde(default)]
    pub source: Vec<SourceConfig>,
    /// Sources that are backed up and brought back together.
    #[serde(default)]
    pub group: Vec<GroupConfig>,
    /// What `schedules/*.toml` beside this file says; also the sources there stand in `source`.
    #[serde(skip)]
    pub jobs: Vec<Job>,
    /// Restore plans whose text is wrong: name and error.
    #[serde(skip)]
    pub wrong_plans: Vec<(String, String)>,
    /// Where this was read from.
    #[serde(skip)]
    pub file: PathBuf,
    /// Of the text that it was read from, for the record.
    #[serde(skip)]
    pub hash: Option<Hash>,
}

impl Config {
    /// The configuration in force: `given`, `$BLACKSTART_CONFIG`, `./blackstart.toml`, `/etc/blackstart/blackstart.toml`.
    pub fn find(given: Option<&Path>) -> Option<PathBuf> {
        if let Some(named) = Config::named(given) {
            return named.exists().then_some(named);
        }
        [NAME, SYSTEM].map(PathBuf::from).into_iter().find(|path| path.exists())
    }

    /// Where a new configuration goes.
    pub fn place_for_new(given: Option<&Path>) -> PathBuf {
        Config::named(given).unwrap_or_else(|| NAME.into())
    }

    fn named(given: Option<&Path>) -> Option<PathBuf> {
        given.map(Path::to_owned).or_else(|| std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    /// Finds and reads the configuration with its jobs. Every failure is of `Kind::Config`.
    pub fn load(given: Option<&Path>) -> Result<Config> {
        Config::load_alone(given)?.with_jobs()
    }

    /// As [`Config::load`], without the jobs.
    pub fn load_alone(given: Option<&Path>) -> Result<Config> {
        let Some(path) = Config::find(given) else {
            let looked = Config::named(given).map_or(format!("./{NAME} and {SYSTEM}"), |p| p.display().to_string());
            return Err(Failure::new(
                Kind::Config,
                format!("there is no configuration at {looked}"),
                "Nothing was done. `blackstart protect PATH --repo LOCATION` writes one; --config FILE or $BLACKSTART_CONFIG names another. \
                 To read a repository without one, give --repo LOCATION --root FINGERPRINT.",
            ));
        };
        let path = std::path::absolute(&path).with_context(|| format!("resolve {}", path.display()))?;
        let text = text::read(&path, "The configuration must be a small text file that this user may read.")?;
        Config::parse(&text, &path)
    }

    pub fn parse(text: &str, path: &Path) -> Result<Config> {
        let mut config: Config = toml::from_str(text).map_err(|e| explain(&e, text, path))?;
        config.file = path.to_owned();
        config.hash = Some(Hash::of(text.as_bytes()));
        config.validate().with_context(|| format!("read {}", path.display()))?;
        Ok(config)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        for (i, source) in self.source.iter().enumerate() {
            if self.source[..i].iter().any(|s| s.name == source.name) {
                let help =
                    "Nothing was done. Each source has a series of snapshots of its own: give each a name of its own.";
                return Err(Failure::new(Kind::Config, format!("two sources are named {}", source.name), help));
            }
            source.validate()?;
            if let Some(policy) = &source.retention {
                policy.validate().with_context(|| format!("retention of {}", source.name))?;
            }
            if let (Some(tiers), Some(policy)) = (&source.tier, &source.retention) {
                tiers.validate(policy, source.rto).with_context(|| format!("tiers of {}", source.name))?;
            }
        }
        self.group.iter().enumerate().try_for_each(|(i, group)| group.validate(&self.group[..i]))?;
        self.drill.validate()?;
        self.agent.validate()?;
        notify::validate(&self.notify)?;
        if self.level.is_some_and(|level| !(1..=22).contains(&level)) {
            return Err(Failure::new(
                Kind::Config,
                "level is a number from 1 to 22",
                "Nothing was done. Leave it out: the default is a good one.",
            ));
        }
        Ok(())
    }

    /// What a proof or a loading of the source must know beside its snapshot.
    pub fn settings(&self, source: &SourceConfig) -> Settings {
        Settings {
            base: self.directory().to_owned(),
            chroma: source.chroma.clone(),
            command: source.command.clone(),
            postgres: source.postgres.clone().map(|options| options.below(self.directory())),
            redis: source.redis.clone(),
        }
    }

    /// A source of kind `redis`: to be backed up, or to be followed.
    pub fn open_redis(&self, source: &SourceConfig, clock: &Arc<dyn Clock>) -> Result<Redis> {
        let url = source.url.as_ref().with_context(|| format!("source {} has no url", source.name))?;
        let password = source.password.as_ref().map(|p| p.read(self.base())).transpose()?;
        let options = source.redis.clone().unwrap_or_default().below(self.base());
        Redis::open(&url.read(self.base())?, password, options, Arc::clone(clock))
    }

    /// What may change while it is read: also the canary, which is written whenever it is due.
    fn may_change(&self, source: &SourceConfig) -> Vec<String> {
        let canary = self.canary(source).ok().flatten().map(|canary| format!("/{}", canary.at));
        source.tolerate_changing.iter().cloned().chain(canary).collect()
    }

    /// Opens a source for one run.
    pub fn open_source(&self, source: &SourceConfig, clock: &Arc<dyn Clock>) -> Result<Box<dyn Source>> {
        Ok(match source.kind {
            SourceKind::Chroma => {
                let options = source.chroma.clone().unwrap_or_default().below(self.base());
                Box::new(Chroma::open(&self.path_of(source)?, self.scratch(), options, Arc::clone(clock))?)
            }
            SourceKind::Redis => Box::new(self.open_redis(source, clock)?),
            SourceKind::Postgres => {
                let url = source.url.as_ref().with_context(|| format!("source {} has no url", source.name))?;
                let address = postgres::address(url, source.password.as_ref(), self.directory())?;
                postgres::open(address, source.postgres.clone().unwrap_or_default().below(self.directory()), clock)?
            }
            SourceKind::Command => {
                let options =
                    source.command.as_ref().with_context(|| format!("source {} has no command", source.name))?;
                Box::new(Command::open(options, self.directory(), Arc::clone(clock))?)
            }
            SourceKind::Sqlite => Box::new(Sqlite::open(&self.path_of(source)?, Arc::clone(clock))?),
            SourceKind::Files => {
                let options = FilesOptions {
                    exclude: source.exclude.clone(),
                    one_file_system: source.one_file_system,
                    tolerate_changing: self.may_change(source),
                    within: self.within(source)?,
                };
                Box::new(Files::open(&self.path_of(source)?, options, &**clock)?)
            }
        })
    }
}

#[cfg(test)]
mod tests;
