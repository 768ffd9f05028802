//! The canary of a tree: one small file at its top, of constant length and written in place, so that a walk that meets it sees the same file.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Failure, Kind};
use crate::source::canary::{Act, Found};

/// `2026-11-23T09:00:00.123456Z` and a line end.
const FORM: &str = "%Y-%m-%dT%H:%M:%S.%6fZ";
const LENGTH: u64 = 28;

/// Writes, tries or removes the file `name` of the tree at `root`.
pub fn carry_out(root: &Path, name: &str, act: Act) -> Result<()> {
    write(root, name, act).map_err(|e| {
        let path = root.join(name);
        let help = format!(
            "Backups go on. This user needs write access to {} and to the directory; or take `canary` out of the configuration.",
            path.display()
        );
        Failure::new(Kind::Failed, format!("write the canary {}: {e:#}", path.display()), help)
    })
}

fn write(root: &Path, name: &str, act: Act) -> Result<()> {
    ensure!(root.is_dir(), "{} is no directory, and a single file has no room for one", root.display());
    let path = root.join(name);
    match act {
        Act::Try => match open(&path, OFlags::RDWR) {
            Ok(file) => ours(&file).map(drop),
            Err(rustix::io::Errno::NOENT) => {
                Ok(rustix::fs::access(root, rustix::fs::Access::WRITE_OK).context("write into the directory")?)
            }
            Err(e) => Err(e.into()),
        },
        Act::Remove => match open(&path, OFlags::RDONLY) {
            Ok(file) => ours(&file).and_then(|_| crate::durable::remove(&path).context("remove it")),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        },
        Act::Write(at) => {
            let made = open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
            let file = match made {
                Err(rustix::io::Errno::EXIST) => {
                    let file = open(&path, OFlags::RDWR)?;
                    ours(&file)?;
                    file
                }
                other => other?,
            };
            file.write_all_at(format!("{}\n", at.strftime(FORM)).as_bytes(), 0).context("write it")?;
            file.sync_data().context("write it")
        }
    }
}

/// Never through a link: whoever may write into the tree must not lead us out of it.
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map(File::from)
}

/// The time in the file. One that holds anything else is not ours to write over.
fn ours(file: &File) -> Result<Option<Timestamp>> {
    let metadata = file.metadata().context("look at it")?;
    ensure!(metadata.is_file() && metadata.len() <= LENGTH, "another file is in its place, which is left alone");
    let mut text = String::new();
    file.take(LENGTH).read_to_string(&mut text).context("read it")?;
    // One that was made and not written: the writer was killed in between.
    if text.is_empty() {
        return Ok(None);
    }
    let at = text.trim_end().parse();
    at.map(Some).ok().with_context(|| format!("another file is in its place, with {text:?}: it is left alone"))
}

/// What a restored copy holds.
pub fn look(copy: &Path, name: &str) -> Found {
    Found::from_answer(match open(&copy.join(name), OFlags::RDONLY) {
        Ok(file) => ours(&file),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_stays() {
        let tree = tempfile::tempdir().unwrap();
        let at: Timestamp = "2026-11-23T09:00:00.1234567Z".parse().unwrap();
        carry_out(tree.path(), "beat", Act::Try).unwrap();
        assert!(!tree.path().join("beat").exists());
        carry_out(tree.path(), "beat", Act::Write(at)).unwrap();
        let text = std::fs::read_to_string(tree.path().join("beat")).unwrap();
        assert_eq!((text.len() as u64, text.as_str()), (LENGTH, "2026-11-23T09:00:00.123456Z\n"));
        carry_out(tree.path(), "beat", Act::Write(at + jiff::SignedDuration::from_secs(60))).unwrap();
        assert_eq!(look(tree.path(), "beat"), Found::At("2026-11-23T09:01:00.123456Z".parse().unwrap()));
        carry_out(tree.path(), "beat", Act::Remove).unwrap();
        assert!(matches!(look(tree.path(), "beat"), Found::Missing(_)));
        let victim = tree.path().join("victim");
        crate::durable::publish_new(&victim, b"precious", 0o644).unwrap();
        std::os::unix::fs::symlink(&victim, tree.path().join("link")).unwrap();
        for name in ["link", "victim"] {
            for act in [Act::Write(at), Act::Remove, Act::Try] {
                assert!(carry_out(tree.path(), name, act).is_err(), "{name}");
            }
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
