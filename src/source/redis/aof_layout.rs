//! Where a server with an append-only file looks for its data: the directory, the names, the manifest.

use anyhow::Result;

use super::connection::{Connection, Reply};
use super::engine;
use super::server::{Flavour, Info};
use crate::entry::Entry;

/// From Redis 7 on an append-only file is a directory with a manifest.
pub(super) fn has_manifests(info: &Info) -> bool {
    let (flavour, version) = info.version();
    flavour == Flavour::Valkey || engine::major_minor(&version).is_some_and(|v| v >= (7, 0))
}

/// Names of the directory of the append-only file and of its files; the defaults where the user may not ask.
pub(super) fn aof_names(connection: Option<&mut Connection>) -> Result<(String, String)> {
    let mut names = ["appendonlydir".to_owned(), "appendonly.aof".to_owned()];
    let Some(connection) = connection else { return Ok(names.into()) };
    for (name, parameter) in names.iter_mut().zip(["appenddirname", "appendfilename"]) {
        if let Some(Reply::List(pair)) = connection.try_command(&["CONFIG", "GET", parameter])?
            && let Some(value) = pair.get(1).and_then(Reply::text)
            && !value.is_empty()
            && !value.contains(['/', '%', ' '])
            && value != ".."
        {
            value.clone_into(name);
        }
    }
    Ok(names.into())
}

/// What the manifest beside a base file says (<https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/>).
pub(super) fn manifest(entry: &Entry) -> Vec<u8> {
    let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
    let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".manifest");
    format!("file {name}.1.base.rdb seq 1 type b\n").into_bytes()
}
