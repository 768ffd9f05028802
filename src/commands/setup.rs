//! Making a repository, its keys and a configuration: what `protect` and `init` share.

use anyhow::{Context, Result};
use bytes::Bytes;
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::output::Shell;
use crate::bridge::Store;
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind, kind_of};
use crate::repository::keys::KeyPair;
use crate::repository::layout::{self, Hash};
use crate::repository::trust::{Certificate, Role, Trust, TrustRecord};
use crate::storage;
use crate::storage::Key;
use crate::storage::probe::{Capabilities, Support};

pub const README: &str = include_str!("../../recover/README.txt");
pub const RECOVER: &str = include_str!("../../recover/recover.py");
pub const RECOVER_LOG: &str = include_str!("../../recover/recover-log.py");

const RECOVERY_TITLE: &str = "blackstart RECOVERY KEY: reads every backup, and is the only thing that does.\n\
    Move this file OFF the machine that is backed up (a USB stick, a safe, a password manager), print a copy, and delete it here.\n\
    Whoever has it reads everything; if it is lost, so are the backups.";
const HOST_TITLE: &str = "blackstart host key: signs this host's snapshots and reads their file lists, never their data.\n\
    It stays on this machine. Losing it costs one full backup, not data.";

const KEEPER_TITLE: &str = "blackstart keeper key: signs the records of what was pruned, and nothing else. It reads no data.\n\
    It stays on the machine that prunes, best one that is not backed up with the same credential.";

/// Where new keys go, and what the configuration says of it.
pub struct Keys {
    pub recovery: PathBuf,
    pub host: PathBuf,
}

impl Keys {
    pub fn below(directory: &Path) -> Keys {
        Keys { recovery: directory.join("recovery.key"), host: directory.join("host.key") }
    }
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Made {
    pub repository: String,
    pub root: String,
    pub config: PathBuf,
    pub host_key: PathBuf,
    pub recovery_key: PathBuf,
}

/// Creates the repository at `location` with fresh keys, and writes the configuration. An interrupted run may be repeated: keys that are
/// there already are used again.
pub fn create(shell: &Shell, location: &str, keys: &Keys, config: &Path) -> Result<Made> {
    let store = Store::open(location)?;
    let interrupted = keys.recovery.exists() && keys.host.exists();
    match Trust::load(&store, None) {
        Err(e) if kind_of(&e) == Kind::NoRepository => {}
        Err(e) => return Err(e),
        Ok(_) if interrupted => {}
        Ok(trust) => return Err(exists_already(&store, &trust)),
    }
    let recovery = key_pair(&keys.recovery, RECOVERY_TITLE)?;
    let host = key_pair(&keys.host, HOST_TITLE)?;
    let root = recovery.signing.public().id();
    let trust = match Trust::load(&store, Some(&root)) {
        Ok(trust) => trust,
        Err(e) if kind_of(&e) == Kind::NoRepository => {
            let first = TrustRecord {
                recipients: vec![recovery.identity.to_public().to_string()],
                keys: vec![certificate(&host, host_name())],
                ..TrustRecord::default()
            };
            Trust::create(&store, &recovery.signing, first, shell.clock.now())?
        }
        Err(e) => return Err(e),
    };
    put_help(&store)?;
    say_capabilities(shell, &store)?;
    write_config(config, location, &trust, keys)?;
    made(&store, root, keys, config)
}

fn made(store: &Store, root: String, keys: &Keys, config: &Path) -> Result<Made> {
    Ok(Made {
        repository: store.place(),
        root,
        config: std::path::absolute(config)?,
        host_key: keys.host.clone(),
        recovery_key: keys.recovery.clone(),
    })
}

/// Who joins a repository.
pub struct Joining<'a> {
    /// The recovery key file, which certifies.
    pub identity: &'a Path,
    pub role: Role,
}

/// Certifies a key of this machine in a repository that exists, and writes the configuration if there is none.
pub fn join(shell: &Shell, location: &str, keys: &Keys, joining: &Joining, config: &Path) -> Result<Made> {
    let Joining { identity, role } = *joining;
    let store = Store::open(location)?;
    let recovery = KeyPair::read(identity)?;
    let root = recovery.signing.public().id();
    let mut trust = Trust::load(&store, Some(&root))?;
    let host = key_pair(&keys.host, if role == Role::Keeper { KEEPER_TITLE } else { HOST_TITLE })?;
    if trust.certificate(&host.signing.public(), role).is_none() {
        let mut certificate = certificate(&host, host_name());
        if role == Role::Keeper {
            // A keeper reads no index: which objects snapshots need is plain text.
            certificate = Certificate { role, index: None, ..certificate };
        }
        let record = TrustRecord { keys: vec![certificate], ..TrustRecord::default() };
        trust.append(&store, &recovery.signing, record, shell.clock.now())?;
    }
    if !config.exists() {
        write_config(config, location, &trust, keys)?;
    }
    Ok(Made { recovery_key: identity.to_owned(), ..made(&store, root, keys, config)? })
}

fn exists_already(store: &Store, trust: &Trust) -> anyhow::Error {
    Failure::new(
        Kind::Usage,
        format!("there is a repository at {} already (root key {})", store.place(), trust.root.id()),
        "Nothing was changed. Use the configuration that belongs to it; to let this host write there, certify it once: \
         `blackstart init --repo LOCATION --identity RECOVERY_KEY_FILE`. Or choose an empty place.",
    )
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn certificate(host: &KeyPair, name: String) -> Certificate {
    Certificate {
        role: Role::Host,
        name,
        key: host.signing.public(),
        index: Some(host.identity.to_public().to_string()),
        sources: vec!["*".into()],
    }
}

/// Reads a key file, or makes it. The file is durable before anything is encrypted to it.
fn key_pair(path: &Path, title: &str) -> Result<KeyPair> {
    if path.exists() {
        return KeyPair::read(path);
    }
    let keys = KeyPair::generate()?;
    durable::publish_new(path, keys.to_text(title).as_bytes(), 0o600)
        .with_context(|| format!("write key file {}", path.display()))?;
    Ok(keys)
}

/// How to restore without blackstart, in the repository itself.
fn put_help(store: &Store) -> Result<()> {
    for (name, text) in layout::HELP.into_iter().zip([README, RECOVER, RECOVER_LOG]) {
        put_new(store, &Key::new(name), text)?;
    }
    Ok(())
}

fn put_new(store: &Store, key: &Key, text: &'static str) -> Result<()> {
    match store.create(key, Bytes::from_static(text.as_bytes()), &Hash::of(text.as_bytes()).0) {
        Err(e) if e.kind != storage::Kind::AlreadyExists => {
            Err(e).with_context(|| format!("write {} into the repository", key.as_str()))
        }
        _ => Ok(()),
    }
}

/// Says what the store lacks.
pub fn say_capabilities(shell: &Shell, store: &Store) -> Result<Capabilities> {
    let found = store.probe().context("try out what the store guarantees")?;
    for missing in lacking(&found) {
        shell.warn(missing);
    }
    Ok(found)
}

/// What a store does not guarantee, for people.
pub fn lacking(found: &Capabilities) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if found.conditional_create != Support::Works {
        missing.push("this store has no create-if-absent: let one host alone write each source, never two.");
    }
    if found.conditional_replace != Support::Works {
        missing.push("this store has no compare-and-swap: leases do not keep two runs of one source apart.");
    }
    missing
}

fn write_config(path: &Path, location: &str, trust: &Trust, keys: &Keys) -> Result<()> {
    let directory = std::path::absolute(path)?;
    let directory = directory.parent().unwrap_or(Path::new("/"));
    let relative = |path: &Path| -> Result<String> {
        let path = std::path::absolute(path)?;
        Ok(quoted(&path.strip_prefix(directory).unwrap_or(&path).to_string_lossy()))
    };
    let repository = if location.starts_with("s3://") { quoted(location) } else { relative(Path::new(location))? };
    let text = format!(
        "# blackstart's configuration. Paths are relative to this file.\nrepository = {repository}\n\
         # The key that everything is trusted by: compare it with your kit.\nroot = {}\nhost_key = {}\nrecovery_key = {}\nstate = \"blackstart/state\"\n",
        quoted(&trust.root.id()),
        relative(&keys.host)?,
        relative(&keys.recovery)?,
    );
    durable::publish_new(path, text.as_bytes(), 0o644)
        .or_else(|e| if e.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
        .with_context(|| format!("write {}", path.display()))
}

/// Appends `[[source]]` blocks to a configuration, leaving what is there as it is. The result must parse before it is written.
pub fn append_sources(config: &Config, blocks: &str) -> Result<Config> {
    let old = std::fs::read_to_string(&config.file).with_context(|| format!("read {}", config.file.display()))?;
    let text = format!("{}\n{blocks}", old.trim_end_matches('\n').to_owned() + "\n");
    let parsed = Config::parse(&text, &config.file)?;
    durable::publish_over(&config.file, text.as_bytes(), 0o644)
        .with_context(|| format!("write {}", config.file.display()))?;
    parsed.with_jobs()
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
