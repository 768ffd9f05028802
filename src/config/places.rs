//! Where things lie: paths in the configuration are relative to its directory.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, SourceConfig, SourceKind};
use crate::pipeline::SpoolPlace;
use crate::secret::Text;
use crate::source::chroma;
use crate::source::postgres::client::Address;
use crate::storage::location::Location;

/// Job files lie in this directory beside the configuration.
const SCHEDULES: &str = "schedules";
/// The spool's size in bytes where the configuration says nothing.
const SPOOL: u64 = 4 << 30;
/// Bytes of its disk that stay free in any case; a tenth of it, where that is less.
const LEFT_FREE: u64 = 4 << 30;

impl Config {
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    fn resolve(&self, path: Option<&PathBuf>, otherwise: &str) -> PathBuf {
        self.directory().join(path.map_or(Path::new(otherwise), PathBuf::as_path))
    }

    /// The repository's address, a relative directory made absolute.
    pub fn location(&self) -> Result<String> {
        resolve_location(&self.repository, self.directory())
    }

    pub fn host_key(&self) -> PathBuf {
        self.resolve(self.host_key.as_ref(), "blackstart/keys/host.key")
    }

    pub fn recovery_key(&self) -> PathBuf {
        match &self.recovery_key {
            Some(path) => self.directory().join(path),
            None => self.host_key().with_file_name("recovery.key"),
        }
    }

    /// The key file of drills on a schedule.
    pub fn drill_key(&self) -> PathBuf {
        self.agent.drill_key.as_ref().map_or_else(|| self.recovery_key(), |path| self.directory().join(path))
    }

    pub fn state(&self) -> PathBuf {
        self.resolve(self.state.as_ref(), "blackstart/state")
    }

    /// Where packs wait for a slow store. A directory takes them as fast as the spool's disk would, so it has a spool only if one is asked for.
    pub fn spool(&self) -> Result<Option<SpoolPlace>> {
        let remote = matches!(Location::parse(&self.repository)?, Location::S3(_));
        let limit = self.spool.unwrap_or(if remote { SPOOL } else { 0 });
        Ok((limit > 0).then(|| SpoolPlace { directory: self.state().join("spool"), limit, left_free: LEFT_FREE }))
    }

    pub fn scratch(&self) -> PathBuf {
        self.scratch.as_ref().map_or_else(std::env::temp_dir, |path| self.directory().join(path))
    }

    pub fn host_name(&self) -> String {
        let named = self.host.clone();
        named.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    /// Where a source of a kind with `path` lies.
    pub fn path_of(&self, source: &SourceConfig) -> Result<PathBuf> {
        let path = source.path.as_ref().with_context(|| format!("source {} has no path", source.name))?;
        Ok(self.directory().join(path))
    }

    /// The other sources whose data lies below the path of `tree`, with their paths relative to it.
    pub(super) fn within(&self, tree: &SourceConfig) -> Result<BTreeMap<String, PathBuf>> {
        let root = self.path_of(tree)?;
        let relative = |source: &SourceConfig| {
            let mut path = self.directory().join(source.path.as_ref()?);
            if source.kind == SourceKind::Chroma {
                path.push(chroma::DATABASE);
            }
            let below = path.strip_prefix(&root).ok().filter(|below| !below.as_os_str().is_empty())?;
            Some((source.name.to_string(), below.to_owned()))
        };
        Ok(self.source.iter().filter(|source| source.name != tree.name).filter_map(relative).collect())
    }

    /// What a source reads, for people: its path, or its address as it is written in the configuration.
    pub fn place_of(&self, source: &SourceConfig) -> String {
        match (&source.path, &source.url) {
            (Some(path), _) => self.directory().join(path).display().to_string(),
            (None, Some(Text::Plain(url))) => Address::without_password(url),
            (None, Some(Text::Secret(secret))) => format!("the address in {secret}"),
            (None, None) => format!("{} ({})", source.name, source.kind.name()),
        }
    }

    /// The directory that relative paths in the configuration start from.
    pub fn base(&self) -> &Path {
        self.directory()
    }

    /// The directory of job files.
    pub fn schedules(&self) -> PathBuf {
        self.directory().join(SCHEDULES)
    }
}

/// An address with a relative directory made absolute against `base`.
pub fn resolve_location(location: &str, base: &Path) -> Result<String> {
    Ok(match Location::parse(location)? {
        Location::Directory(path) => {
            let path = std::path::absolute(base.join(path)).context("resolve the repository's directory")?;
            path.to_str().context("the path of a repository must be UTF-8")?.to_owned()
        }
        Location::S3(_) => location.to_owned(),
    })
}
