//! How the programs of a source are run: their environment, their directory, their limits.

use anyhow::Result;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::Options;
use crate::child::Spec;
use crate::secret::Text;

/// Stands for the path of the stream's file in an argument.
const FILE: &str = "{file}";
/// Stands for the path of an empty directory, which is gone afterwards.
const SCRATCH: &str = "{scratch}";

/// What all programs of one source have in common, secrets read.
pub(super) struct Programs {
    common: Spec,
    pub timeout: Duration,
    pub idle_timeout: Duration,
}

impl Programs {
    /// Reads the secrets. `base` is the configuration's directory. Fails with `Kind::Config`.
    pub fn new(options: &Options, base: &Path) -> Result<Programs> {
        let mut common = Spec { directory: options.directory(base), ..Spec::default() };
        common.pass = options.pass.iter().map(OsString::from).collect();
        for (name, value) in &options.environment {
            match value {
                Text::Plain(text) => common.set.push((name.into(), text.into())),
                Text::Secret(secret) => common.secret.push((name.into(), secret.read(base)?)),
            }
        }
        Ok(Programs { common, timeout: options.timeout(), idle_timeout: options.idle_timeout() })
    }

    pub fn spec(&self, argv: &[String]) -> Spec {
        Spec { argv: argv.iter().map(OsString::from).collect(), ..self.common.clone() }
    }

    /// `argv` for a stream that lies in `file`: its path where the arguments ask for it; otherwise the program gets it on its stdin.
    pub fn spec_for(&self, argv: &[String], file: &Path, scratch: &Path) -> Spec {
        let mut spec = self.spec(argv);
        for (argument, text) in spec.argv.iter_mut().zip(argv) {
            *argument = filled(text, file, scratch);
        }
        spec.input = !argv.iter().any(|argument| argument.contains(FILE));
        spec
    }

    /// Where the program of `argv` is, as the child would find it.
    pub fn find(&self, argv: &[String]) -> Option<PathBuf> {
        let program = Path::new(argv.first()?);
        let runs = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if program.components().count() > 1 {
            let path = self.common.directory.as_deref().unwrap_or(Path::new("")).join(program);
            return runs(&path).then_some(path);
        }
        let set = self.common.set.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        let path = set.or_else(|| std::env::var_os("PATH"))?;
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| runs(path))
    }
}

/// Whether a program wants an empty directory.
pub(super) fn wants_scratch(argv: &[String]) -> bool {
    argv.iter().any(|argument| argument.contains(SCRATCH))
}

/// An argument with paths in the places of their names. Paths need not be UTF-8.
fn filled(argument: &str, file: &Path, scratch: &Path) -> OsString {
    let mut out = OsString::new();
    let mut rest = argument;
    loop {
        let next = [(FILE, file), (SCRATCH, scratch)]
            .into_iter()
            .filter_map(|(name, path)| Some((rest.find(name)?, name, path)));
        let Some((at, name, path)) = next.min_by_key(|(at, ..)| *at) else {
            out.push(rest);
            return out;
        };
        out.push(&rest[..at]);
        out.push(path);
        rest = &rest[at + name.len()..];
    }
}

/// The last part of a program's path, for people.
pub(super) fn name(argv: &[String]) -> String {
    let program = argv.first().map_or("", String::as_str);
    Path::new(program).file_name().unwrap_or(OsStr::new(program)).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_take_the_places_of_their_names() {
        let fill = |text| filled(text, Path::new("/f"), Path::new("/s"));
        assert_eq!(fill("{file}"), "/f");
        assert_eq!(fill("--from={file} to {scratch}/x{file}"), "--from=/f to /s/x/f");
        assert_eq!(fill("{files} {scratch"), "{files} {scratch");
    }
}
