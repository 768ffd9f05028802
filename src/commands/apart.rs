//! What one disk, one thief or one fire would take together: the repository beside its sources, the recovery key on this machine, and secrets
//! that every user may read. None of it keeps a backup from being made, and all of it may be meant.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{Config, SourceConfig};
use crate::secret::Secret;
use crate::storage::location::Location;

/// Why the repository is no other place than some of the sources; `None` where it is, or lies on S3.
pub fn same_disk(config: &Config) -> Option<String> {
    let Ok(Location::Directory(repository)) = Location::parse(&config.location().ok()?) else { return None };
    let disk = disk(&repository)?;
    let beside = |source: &&SourceConfig| config.path_of(source).ok().and_then(|path| self::disk(&path)) == Some(disk);
    let names: Vec<&str> = config.source.iter().filter(beside).map(|source| source.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} lies on the same file system as {}: a dead disk takes both. Put it on another disk or machine, or on S3",
            repository.display(),
            names.join(", ")
        )
    })
}

fn disk(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.dev())
}

/// The recovery key lies here, although no drill of the agent is said to need it.
pub fn key_at_hand(config: &Config) -> Option<String> {
    let (key, for_drills) = (config.recovery_key(), config.agent.drill_key.is_some());
    let wanted = for_drills && config.drill_key() == key;
    (key.exists() && !wanted).then(|| {
        format!("{} lies on this machine: whoever takes it reads the backups, and a fire takes both. Move it to the kit, off this machine", key.display())
    })
}

/// Files of passwords that others than their owner and group may read, with their sources.
pub fn open_to_all(config: &Config) -> Vec<(String, String)> {
    let file = |source: &SourceConfig| match &source.password {
        Some(Secret::File(path)) => Some(config.directory().join(path)),
        _ => None,
    };
    let open = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o004 != 0);
    let found = config.source.iter().filter_map(|source| Some((source.name.to_string(), file(source).filter(open)?)));
    found
        .map(|(name, path)| (name, format!("every user of this machine may read {}: chmod 600 it", path.display())))
        .collect()
}
