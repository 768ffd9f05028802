//! Secrets in a configuration: never the secret itself, but where it is: `{ env = "…" }`, `{ file = "…" }`, `{ credential = "…" }` (systemd).
//!
//! Nothing here prints a secret: `Debug` shows the reference, and what was read is wiped when it is dropped.

use anyhow::Result;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

use crate::error::{Failure, Kind};

/// Longest secret that is read from a file, in bytes.
const LENGTH_MAX: u64 = 64 << 10;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The name of an environment variable.
    Env(String),
    /// A file; relative to the configuration's directory.
    File(PathBuf),
    /// A credential that systemd passed (`LoadCredential=`), by name.
    Credential(String),
}

/// How it is written in a configuration.
#[derive(Deserialize)]
#[serde(remote = "Secret", rename_all = "lowercase", deny_unknown_fields)]
enum Reference {
    Env(String),
    File(PathBuf),
    Credential(String),
}

/// A table alone. By hand, because the error for anything else would quote it, and it may be the secret itself.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Secret, D::Error> {
        struct Table;
        fn in_plain_sight<E: de::Error>() -> E {
            E::custom(
                "write where the secret is, { env = \"…\" }, { file = \"…\" } or { credential = \"…\" }, and not the secret itself",
            )
        }
        impl<'de> Visitor<'de> for Table {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ env = \"…\" }, { file = \"…\" } or { credential = \"…\" }")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
                Reference::deserialize(de::value::MapAccessDeserializer::new(map))
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Secret, E> {
                Err(in_plain_sight())
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(in_plain_sight())
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(in_plain_sight())
            }
        }
        d.deserialize_any(Table)
    }
}

impl Secret {
    /// Reads the secret. One line end at its end is dropped. `base` is the configuration's directory. Fails with `Kind::Config`.
    pub fn read(&self, base: &Path) -> Result<Zeroizing<String>> {
        let text = match self {
            Secret::Env(name) => std::env::var(name)
                .map(Zeroizing::new)
                .map_err(|_| wrong(format!("the environment variable {name} is not set or not UTF-8")))?,
            Secret::File(path) => read_file(&base.join(path))?,
            Secret::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    wrong(format!(
                        "the credential {name} is wanted, and $CREDENTIALS_DIRECTORY is not set: systemd passes none"
                    ))
                })?;
                read_file(&Path::new(&directory).join(name))?
            }
        };
        let trimmed = text.strip_suffix('\n').unwrap_or(&text);
        let trimmed = trimmed.strip_suffix('\r').unwrap_or(trimmed);
        if trimmed.is_empty() {
            return Err(wrong(format!("{self} is empty")));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Env(name) => write!(f, "the environment variable {name}"),
            Secret::File(path) => write!(f, "the file {}", path.display()),
            Secret::Credential(name) => write!(f, "the credential {name}"),
        }
    }
}

/// A value that may be written out or be kept as a secret: an address that may have a password in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    Plain(String),
    Secret(Secret),
}

impl Text {
    pub fn read(&self, base: &Path) -> Result<Zeroizing<String>> {
        match self {
            Text::Plain(text) => Ok(Zeroizing::new(text.clone())),
            Text::Secret(secret) => secret.read(base),
        }
    }
}

/// A string, or the table of a [`Secret`]. By hand, because an untagged enum would lose the line of an error.
impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Text, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or { env = \"…\" }, { file = \"…\" } or { credential = \"…\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::Plain(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                Secret::deserialize(de::value::MapAccessDeserializer::new(map)).map(Text::Secret)
            }
        }
        d.deserialize_any(Either)
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<String>> {
    use std::io::Read;
    let read = || -> std::io::Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(path)?.take(LENGTH_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => {
            of_somebody_else(path, &format!("the secret in {} may not be read: {e}", path.display()))
        }
        _ => wrong(format!("the secret in {} cannot be read: {e}", path.display())),
    })
}

/// For a secret file that there is and that this user may not read: whose it must be. `Kind::Config`.
pub fn of_somebody_else(path: &Path, message: &str) -> anyhow::Error {
    let uid = rustix::process::geteuid().as_raw();
    let help = format!(
        "Nothing was done. This runs as user {uid}, to whom it must belong: chown {uid} {0} && chmod 0400 {0}. In a container do so outside, \
         with the file that is mounted here.",
        path.display()
    );
    Failure::new(Kind::Config, message, help)
}

fn wrong(message: String) -> anyhow::Error {
    Failure::new(
        Kind::Config,
        message,
        "Nothing was done. Set it where the configuration says it is, readable by this user alone.",
    )
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "test files need no durability")]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        url: Text,
        password: Option<Secret>,
    }

    #[test]
    fn a_secret_is_read_where_it_is_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("p"), "hunter2\n").unwrap();
        let sample: Sample = toml::from_str("url = \"redis://h\"\npassword = { file = \"p\" }\n").unwrap();
        assert_eq!(sample.url, Text::Plain("redis://h".into()));
        let secret = sample.password.unwrap();
        assert_eq!(*secret.read(dir.path()).unwrap(), "hunter2");
        assert!(!format!("{secret:?} {secret}").contains("hunter2"));
        let sample: Sample = toml::from_str("url = { env = \"BLACKSTART_NO_SUCH\" }\n").unwrap();
        let error = sample.url.read(dir.path()).unwrap_err();
        assert_eq!(crate::error::kind_of(&error), Kind::Config);
    }

    #[test]
    fn a_secret_in_plain_sight_is_refused_and_not_repeated() {
        for value in ["\"sEcret-pw-9\"", "90210", "90210.5"] {
            let error = toml::from_str::<Sample>(&format!("url = \"x\"\npassword = {value}\n")).unwrap_err();
            assert!(error.message().contains("{ file = "), "{error:?}");
            assert!(!error.message().contains("sEcret") && !error.message().contains("90210"), "{error:?}");
        }
    }

    #[test]
    fn errors_keep_their_place() {
        let text = "url = \"x\"\npassword = { fil = \"p\" }\n";
        let error = toml::from_str::<Sample>(text).unwrap_err();
        assert!(error.message().contains("`fil`") && error.span().is_some_and(|s| s.start > 9), "{error:?}");
    }
}
