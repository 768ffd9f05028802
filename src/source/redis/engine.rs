//! Which server can load which RDB file, and where such a server is on this machine.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rdb::Summary;
use super::server::Flavour;
use crate::child::{self, Spec};
use crate::error::{Failure, Kind};

/// Where servers are beside `$PATH`, which of a service is short.
const PLACES: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/opt/valkey/bin"];

/// `7.0.15` is (7, 0).
pub fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// Whether a server is known to refuse a file. `Ok` is no promise: the server itself has the last word.
///
/// The greatest RDB version by release, from each `rdb.h`: Redis 5 and 6: 9, 7.0: 10, 7.2: 11, 7.4 and 8: 12 and above. Valkey 7.2 and 8: 11,
/// 9.0: 80, 9.2: 81. Valkey counts 12 to 79 as foreign, since Redis left its open licence there.
pub fn can_load(flavour: Flavour, version: &str, rdb: &Summary) -> Result<(), String> {
    let Some(release) = major_minor(version) else {
        return Err(format!("version {version:?} of a server is not understood"));
    };
    let file = format!("{}{:0width$}", rdb.magic, rdb.version, width = if rdb.magic == "VALKEY" { 3 } else { 4 });
    let refuse =
        |need: &str| Err(format!("{flavour} {version} cannot load an RDB file of version {file}: it takes {need}"));
    match (flavour, rdb.magic.as_str(), rdb.version) {
        (Flavour::Redis, "VALKEY", v) => refuse(valkey_for(v)),
        (Flavour::Redis, _, v) => {
            let least = match v {
                0..=8 => (4, 0),
                9 => (5, 0),
                10 => (7, 0),
                11 => (7, 2),
                12 => (7, 4),
                _ => (8, 0),
            };
            if release < least { refuse(redis_for(v)) } else { Ok(()) }
        }
        (Flavour::Valkey, "VALKEY", v) if release < (if v <= 80 { (9, 0) } else { (9, 2) }) => refuse(valkey_for(v)),
        (Flavour::Valkey, "REDIS", v @ 12..=79) => refuse(redis_for(v)),
        (Flavour::Valkey, ..) => Ok(()),
    }
}

/// The servers that can load a file, for people.
pub fn loaders(rdb: &Summary) -> String {
    match (rdb.magic.as_str(), rdb.version) {
        ("VALKEY", v) => valkey_for(v).to_owned(),
        (_, v @ 0..=11) => format!("{}, or any Valkey", redis_for(v)),
        (_, v) => format!("{}; Valkey refuses it", redis_for(v)),
    }
}

fn redis_for(version: u32) -> &'static str {
    match version {
        0..=8 => "Redis 4.0 or newer",
        9 => "Redis 5.0 or newer",
        10 => "Redis 7.0 or newer",
        11 => "Redis 7.2 or newer",
        12 => "Redis 7.4 or newer",
        _ => "a Redis 8 at least as new as the one that wrote it",
    }
}

fn valkey_for(version: u32) -> &'static str {
    if version <= 80 { "Valkey 9.0 or newer" } else { "Valkey 9.2 or newer" }
}

/// A server program, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    pub flavour: Flavour,
    pub version: String,
}

/// Finds a server that can load `rdb`: `named`, or of the snapshot's flavour, or of the other. Fails with `Kind::Environment`.
pub fn find(named: Option<&Path>, flavour: Flavour, rdb: &Summary) -> Result<Program> {
    let names = match flavour {
        Flavour::Redis => ["redis-server", "valkey-server"],
        Flavour::Valkey => ["valkey-server", "redis-server"],
    };
    let candidates = match named {
        Some(path) => vec![path.to_owned()],
        None => {
            names.iter().flat_map(|name| places().map(move |place| place.join(name))).filter(|p| p.exists()).collect()
        }
    };
    let mut reasons = Vec::new();
    for path in candidates {
        match identify(&path) {
            Ok(program) => match can_load(program.flavour, &program.version, rdb) {
                Ok(()) => return Ok(program),
                Err(why) => reasons.push(why),
            },
            Err(e) => reasons.push(format!("{e:#}")),
        }
    }
    if reasons.is_empty() {
        reasons.push(format!("there is no {} on this machine", names[0]));
    }
    Err(Failure::new(
        Kind::Environment,
        format!("no server here can load the data: {}", reasons.join("; ")),
        format!(
            "Whether a server takes the data was not tried; that says nothing of the backup. Install {} here, or name the program: [source.redis] server = \"…\".",
            loaders(rdb)
        ),
    ))
}

fn places() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = std::env::split_paths(&path).collect();
    all.extend(PLACES.map(PathBuf::from));
    all.into_iter()
}

/// `Redis server v=7.0.15 sha=…` or `Valkey server v=9.1.2 sha=…`.
fn identify(path: &Path) -> Result<Program> {
    let spec = Spec::new([path.as_os_str(), "--version".as_ref()]);
    let said = child::run(&spec, Duration::from_secs(10), 64 << 10)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = said.split_whitespace().find_map(|word| word.strip_prefix("v="));
    let version = version.with_context(|| format!("{} does not tell its version", path.display()))?;
    let flavour = if said.starts_with("Valkey") { Flavour::Valkey } else { Flavour::Redis };
    Ok(Program { path: path.to_owned(), flavour, version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_loads_what() {
        let rdb = |magic: &str, version| Summary { magic: magic.into(), version, ..Summary::default() };
        let ok = |flavour, server, magic, version| can_load(flavour, server, &rdb(magic, version)).is_ok();
        use Flavour::{Redis, Valkey};
        assert!(ok(Redis, "7.0.15", "REDIS", 10) && !ok(Redis, "7.0.15", "REDIS", 11) && ok(Redis, "7.2", "REDIS", 11));
        assert!(
            ok(Valkey, "8.1.8", "REDIS", 11) && !ok(Valkey, "8.1.8", "REDIS", 12) && !ok(Valkey, "9.1.2", "REDIS", 13)
        );
        assert!(
            ok(Valkey, "9.1.2", "VALKEY", 80)
                && !ok(Valkey, "9.1.2", "VALKEY", 81)
                && !ok(Valkey, "8.1.8", "VALKEY", 80)
        );
        assert!(
            !ok(Redis, "8.4.0", "VALKEY", 80) && ok(Redis, "8.4.0", "REDIS", 13) && !ok(Redis, "7.4.1", "REDIS", 13)
        );
        assert!(can_load(Valkey, "8.1.8", &rdb("VALKEY", 80)).unwrap_err().contains("VALKEY080"));
        assert!(loaders(&rdb("REDIS", 12)).contains("Valkey refuses"));
        assert_eq!(major_minor("9"), Some((9, 0)));
    }
}
