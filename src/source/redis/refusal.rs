//! What a server's refusal means for the data, and what to do.

use super::address::Endpoint;
use crate::error::{Failure, Kind};

/// The rights that a backup needs, as one command for `redis-cli`.
pub const RIGHTS: &str = "ACL SETUSER backup on >PASSWORD resetkeys -@all +ping +info +sync +psync +replconf";

const NOTHING: &str = "Nothing was backed up; the earlier snapshots stand.";

/// An error for what the server said: `NOPERM this user has no permissions …`.
pub fn refused(endpoint: &Endpoint, said: &str) -> anyhow::Error {
    let code = said.split(' ').next().unwrap_or_default();
    let (what, help) = match code {
        "NOAUTH" => ("it wants a password", "Set `password = { file = \"…\" }`, and the user in the address: redis://USER@HOST; for `protect`, set REDISCLI_AUTH in its environment.".to_owned()),
        "WRONGPASS" => ("it does not accept this user and password", "Check the user in the address and the secret that `password` names.".to_owned()),
        "NOPERM" => (
            "this user may not do what a backup must do",
            format!("Give the user these rights and no others: {RIGHTS}. Where replication commands are forbidden, name the server's RDB file: \
                     [source.redis] file = \"/var/lib/redis/dump.rdb\", and allow +bgsave +lastsave +info."),
        ),
        "LOADING" => (
            "it is still loading its data set, and has only a part of it",
            "Wait until it has loaded (INFO persistence: loading_eta_seconds), then run the backup again.".to_owned(),
        ),
        "NOMASTERLINK" | "MASTERDOWN" => (
            "it is a replica that has lost its master: what it has is old, by nobody knows how much",
            "Back up the master, or repair the replica first.".to_owned(),
        ),
        "DENIED" => (
            "it is in protected mode and talks to its own machine only",
            "Give the server a password, or run the backup on its machine.".to_owned(),
        ),
        _ if said.contains("unknown command") => (
            "it has no such command: a managed service, or the command was renamed",
            "Where there is no replication, name the server's RDB file: [source.redis] file = \"/var/lib/redis/dump.rdb\". \
             A managed service has its own export; store that with a source of kind `files` or `command`."
                .to_owned(),
        ),
        _ => ("it refused", "Look at the server's log; then run the backup again.".to_owned()),
    };
    Failure::new(Kind::Failed, format!("cannot read {endpoint}: {what} ({said})"), format!("{NOTHING} {help}"))
}

/// An error of our own about the server or what it sent.
pub fn unusable(endpoint: &Endpoint, what: impl std::fmt::Display, help: &str) -> anyhow::Error {
    Failure::new(Kind::Failed, format!("cannot read {endpoint}: {what}"), format!("{NOTHING} {help}"))
}
