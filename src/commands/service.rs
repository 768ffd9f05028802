//! What the shipped systemd unit lets the agent write, held against what the configuration wants it to: a drop-in for the difference.

use anyhow::{Context, Result};
use rustix::fs::{Access, access};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{Config, SourceKind};
use crate::storage::location::Location;

/// Whom the unit runs as.
pub const USER: &str = "blackstart";
/// What the unit may write: its `StateDirectory`.
const STATE: &str = "/var/lib/blackstart";
/// What it has for itself (`PrivateTmp`): empty at each start, and gone when it stops.
const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];
/// Where administrators put drop-ins, and where they lie at run time only.
const DROP_INS: [&str; 2] = ["/etc/systemd/system/blackstart.service.d", "/run/systemd/system/blackstart.service.d"];

/// A path that the agent must be able to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub what: String,
    /// What lies there must still be there after a restart.
    pub lasting: bool,
    /// It is blackstart's alone: what another user has made there, root by hand, the service cannot change.
    pub own: bool,
}

/// What stands in the way of writing a path under the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Everything but its own is read-only to it (`ProtectSystem=strict`, `ProtectHome=read-only`).
    ReadOnly,
    /// It would be written, and be gone when the unit stops.
    Private,
}

/// Everything that the configuration has the agent write.
pub fn written(config: &Config) -> Result<Vec<Written>> {
    let one = |path: PathBuf, what: &str, lasting| Written { path, what: what.into(), lasting, own: false };
    let own = |path: PathBuf, what: &str| Written { own: true, ..one(path, what, true) };
    let mut all = Vec::new();
    if let Location::Directory(_) = Location::parse(&config.repository)? {
        all.push(own(PathBuf::from(config.location()?), "the repository"));
    }
    all.push(own(config.state(), "the state"));
    all.push(one(config.scratch(), "scratch of drills", false));
    if let Some(parent) =
        config.agent.metrics_file.as_ref().and_then(|file| Some(config.base().join(file).parent()?.to_owned()))
    {
        all.push(one(parent, "the metrics file", true));
    }
    for source in config.source.iter().filter(|source| source.kind == SourceKind::Chroma) {
        all.push(one(config.path_of(source)?, &format!("the lock of {}", source.name), true));
    }
    for written in &mut all {
        let path = std::path::absolute(&written.path);
        written.path = path.with_context(|| format!("resolve {}", written.path.display()))?;
    }
    Ok(all)
}

/// What keeps the unit from writing `written`, with what drop-ins `allow` it.
pub fn obstacle(written: &Written, allow: &[PathBuf]) -> Option<Obstacle> {
    let below = |place: &Path| written.path.starts_with(place);
    if below(Path::new(STATE)) || allow.iter().any(|place| below(place)) {
        return None;
    }
    if PRIVATE.iter().any(|place| below(Path::new(place))) {
        return written.lasting.then_some(Obstacle::Private);
    }
    Some(Obstacle::ReadOnly)
}

/// Of what is to be the service's alone, what is not, and the cure. `user`: whom the service runs as, where there is such a user.
pub fn strangers<'a>(written: &'a [Written], user: Option<u32>) -> Vec<(&'a Path, String)> {
    let told = |one: &'a Written| {
        let path = one.path.as_path();
        let what = match foreign(path, user.filter(|_| one.own)?).transpose()? {
            Ok(foreign) => format!(
                "{} is not the service's: what another user makes there, root by hand, it cannot change. Give it all: chown -R {USER}: {}",
                foreign.display(),
                path.display()
            ),
            Err(error) => format!("whose it is cannot be seen: {error:#}"),
        };
        Some((path, what))
    };
    written.iter().filter_map(told).collect()
}

/// The first thing in `path`, or itself, that is not `user`'s.
fn foreign(path: &Path, user: u32) -> Result<Option<PathBuf>> {
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = match path.symlink_metadata() {
            // Gone meanwhile, or never made.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.with_context(|| format!("look at {}", path.display()))?,
        };
        if metadata.uid() != user {
            return Ok(Some(path));
        }
        if metadata.is_dir() {
            let list = || std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
            left.extend(list().with_context(|| format!("list {}", path.display()))?);
        }
    }
    Ok(None)
}

/// Paths that the drop-ins of this machine let the unit write.
pub fn allowed() -> Vec<PathBuf> {
    let files = DROP_INS.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    texts.flat_map(|text| writable(&text)).collect()
}

/// `ReadWritePaths=` of a drop-in.
fn writable(text: &str) -> Vec<PathBuf> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("ReadWritePaths="));
    lines.flat_map(str::split_whitespace).map(|path| PathBuf::from(path.trim_start_matches(['-', '+']))).collect()
}

/// A drop-in that lets the unit write these.
pub fn drop_in(paths: &[&Path]) -> String {
    let lines: Vec<String> = paths
        .iter()
        .map(|path| {
            let path = path.display();
            format!("# It must be there, and be the service's, with all that is in it: install -d -m 0700 {path} && chown -R blackstart: {path}\nReadWritePaths={path}\n")
        })
        .collect();
    format!(
        "# {}/paths.conf; then: systemctl daemon-reload && systemctl restart blackstart\n[Service]\n{}",
        DROP_INS[0],
        lines.concat()
    )
}

/// Whether this very process may write there; of what is not there yet, where it would be made.
pub fn may_write(path: &Path) -> Result<(), rustix::io::Errno> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    access(there, Access::WRITE_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_writes_its_state_and_what_drop_ins_allow() {
        let of = |path: &str, lasting| Written { path: path.into(), what: "x".into(), lasting, own: false };
        let text = "[Service]\nReadWritePaths=/srv/a -/srv/b\n ReadWritePaths=+/srv/c\n#ReadWritePaths=/srv/d\n";
        let allow = writable(text);
        for (path, lasting, expected) in [
            ("/var/lib/blackstart/state", true, None),
            ("/var/lib/blackstart2", true, Some(Obstacle::ReadOnly)),
            ("/tmp/scratch", false, None),
            ("/var/tmp/repo", true, Some(Obstacle::Private)),
            ("/srv/a/repo", true, None),
            ("/srv/b", true, None),
            ("/srv/c", true, None),
            ("/srv/d", true, Some(Obstacle::ReadOnly)),
        ] {
            assert_eq!(obstacle(&of(path, lasting), &allow), expected, "{path}");
        }
        let printed = drop_in(&[Path::new("/srv/d"), Path::new("/srv/e")]);
        assert_eq!(writable(&printed), [PathBuf::from("/srv/d"), PathBuf::from("/srv/e")], "{printed}");
    }

    #[test]
    fn what_another_user_has_made_is_found_however_deep() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("packs/a")).unwrap();
        crate::durable::publish_new(&dir.path().join("packs/a/one"), b"x", 0o600).unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(foreign(dir.path(), me).unwrap(), None);
        assert_eq!(foreign(dir.path(), me + 1).unwrap(), Some(dir.path().to_owned()));
        assert_eq!(foreign(&dir.path().join("not yet"), me).unwrap(), None);
        let deep = dir.path().join("packs/a/one");
        // Only root may give files away.
        if std::os::unix::fs::chown(&deep, Some(me + 1), None).is_ok() {
            assert_eq!(foreign(dir.path(), me).unwrap(), Some(deep));
        }
    }
}
