//! PostgreSQL's own programs: where they are, of which version, and how they reach a server without a secret in their arguments.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

use super::client::{Address, Binding, Host, TlsMode};
use crate::child::{self, SECRET_FILE, SecretFile, Spec};
use crate::error::{Failure, Kind};
use crate::net::Roots;

/// Where packages put them, below a directory for each major version.
const PLACES: [(&str, &str); 3] = [("/usr/lib/postgresql", "bin"), ("/usr/pgsql", "bin"), ("/opt/postgresql", "bin")];
/// What libpq trusts where the address names nothing else: the file that Debian, Red Hat and Alpine have in common, or its own.
const CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const VERSION_WAIT: Duration = Duration::from_secs(30);

/// A directory with programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub bin: PathBuf,
    pub major: u32,
}

impl Programs {
    /// The oldest version of at least `major` whose directory has all of `needed`: in `bin` alone if it is given, otherwise in the usual places
    /// and in `$PATH`. `None` where there is none.
    pub fn find(bin: Option<&Path>, needed: &[&str], major: u32) -> Option<Programs> {
        Programs::all(bin, needed).into_iter().find(|programs| programs.major >= major)
    }

    /// All versions that there are, the oldest first.
    pub fn all(bin: Option<&Path>, needed: &[&str]) -> Vec<Programs> {
        let Some(first) = needed.first() else { return Vec::new() };
        let mut found: Vec<Programs> = Vec::new();
        for bin in bin.map_or_else(places, |bin| vec![bin.to_owned()]) {
            if needed.iter().all(|program| bin.join(program).is_file())
                && let Ok(major) = major_of(&bin.join(first))
            {
                found.push(Programs { bin, major });
            }
        }
        // In the order in which they were found where versions are equal.
        found.sort_by_key(|programs| programs.major);
        found
    }

    /// A program with arguments that reaches `address`, in `database`. Fails with `Kind::Config` where the password cannot be handed over.
    pub fn spec(&self, program: &str, arguments: &[&str], address: &Address, database: &str) -> Result<Spec> {
        let mut spec = Spec::new([self.bin.join(program).into_os_string()]);
        spec.argv.extend(arguments.iter().map(OsString::from));
        reach(&mut spec, address, database);
        if let Some(password) = &address.password {
            spec.file = Some(password_file(password)?);
            spec.set.push(("PGPASSFILE".into(), SECRET_FILE.into()));
        }
        Ok(spec)
    }
}

/// Sets libpq's variables: "Environment Variables" in the PostgreSQL manual.
fn reach(spec: &mut Spec, address: &Address, database: &str) {
    let mut set = |name: &str, value: OsString| spec.set.push((name.into(), value));
    set(
        "PGHOST",
        match &address.host {
            Host::Tcp(host) => host.into(),
            Host::Unix(directory) => directory.into(),
        },
    );
    set("PGPORT", address.port.to_string().into());
    set("PGUSER", address.user.clone().into());
    set("PGDATABASE", database.into());
    set("PGAPPNAME", address.application.clone().into());
    set("PGCONNECT_TIMEOUT", address.connect.as_secs().to_string().into());
    let (tls, proven) = match address.tls {
        TlsMode::Disable => ("disable", false),
        TlsMode::Prefer => ("prefer", false),
        TlsMode::Require => ("require", false),
        TlsMode::VerifyCa => ("verify-ca", true),
        TlsMode::VerifyFull => ("verify-full", true),
    };
    set("PGSSLMODE", tls.into());
    match &address.roots {
        Roots::File(path) => set("PGSSLROOTCERT", path.into()),
        // `system` is known from version 16 on; the file is known to all.
        Roots::System if proven => {
            let file = CERTIFICATES.iter().find(|path| Path::new(path).exists());
            set("PGSSLROOTCERT", file.unwrap_or(&"system").into());
        }
        Roots::System => {}
    }
    set(
        "PGCHANNELBINDING",
        match address.binding {
            Binding::Disable => "disable".into(),
            Binding::Prefer => "prefer".into(),
            Binding::Require => "require".into(),
        },
    );
}

/// "The Password File" in the PostgreSQL manual: the password of every server, database and user. One line, in which a backslash takes the next
/// character as it is.
fn password_file(password: &Zeroizing<String>) -> Result<SecretFile> {
    if password.contains(['\n', '\r']) {
        return Err(Failure::new(
            Kind::Config,
            "the password has a line break in it, which PostgreSQL's own programs cannot be given in a file",
            "Nothing was done. Give the role another password.",
        ));
    }
    let mut contents = Zeroizing::new(String::with_capacity(2 * password.len() + 16));
    contents.push_str("*:*:*:*:");
    for letter in password.chars() {
        if matches!(letter, ':' | '\\') {
            contents.push('\\');
        }
        contents.push(letter);
    }
    contents.push('\n');
    Ok(SecretFile { contents, secret: password.clone() })
}

fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> =
        std::env::var_os("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect());
    for (root, bin) in PLACES {
        // `/usr/lib/postgresql/15/bin`, and `/usr/pgsql-15/bin`.
        let (directory, prefix) = if Path::new(root).is_dir() { (root, "") } else { ("/usr", "pgsql-") };
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        places.extend(versions.map(|entry| entry.path().join(bin)).filter(|bin| bin.is_dir()));
    }
    places
}

/// The major version of a program: 15 of `pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
fn major_of(program: &Path) -> Result<u32> {
    let mut spec = Spec::new([program.as_os_str()]);
    spec.argv.push("--version".into());
    let text = child::run(&spec, VERSION_WAIT, 4096)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (_, version) = text.split_once("(PostgreSQL) ").with_context(|| format!("{text:?} names no version"))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{text:?} names no version"))
}

/// `text` as a quoted name in SQL.
pub fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_written_so_that_it_is_read_as_it_is() {
        let file = |password: &str| password_file(&Zeroizing::new(password.to_owned()));
        assert_eq!(*file(r"a:b\c'd").unwrap().contents, "*:*:*:*:a\\:b\\\\c'd\n");
        let refused = file("two\nlines").err().unwrap();
        assert!(format!("{refused:#}").contains("line break") && !format!("{refused:#}").contains("two"));
    }
}
