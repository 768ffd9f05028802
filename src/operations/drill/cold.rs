//! A cold start: what the disaster leaves is the repository and the kit. `recover.py` restores from a bare copy with stock tools, and without
//! this program (FORMAT.md §7).

use anyhow::Result;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::mirror::mirror;
use crate::child::{Child, Spec};
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::report::{Check, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::series;
use crate::repository::snapshot::Snapshot;
use crate::storage::Key;

const PROGRAMS: [&str; 4] = ["python3", "age", "zstd", "ssh-keygen"];
/// What every repository has.
const RECOVER: &str = "recover.py";
/// Its longest run.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Copies what one snapshot needs into `scratch` and lets `recover.py` restore it to `to`. Gives the bytes fetched, too.
pub fn restore(
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    (scratch, to): (&Path, &Path),
    times: &Stopwatch,
) -> Result<(Check, u64)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(missing) = PROGRAMS.iter().find(|p| !std::env::split_paths(&path).any(|d| d.join(p).exists())) {
        let help = "Nothing was restored, and nothing is said of the backup. Install it: apt-get install python3 age zstd openssh-client.";
        return Err(Failure::new(Kind::Environment, format!("a cold start needs {missing}, which is not here"), help));
    }
    let copy = scratch.join("repository");
    let fetched = times.time("fetch", || {
        let objects = series::objects_of(&open.store, snapshot)?.into_keys();
        mirror(open, snapshot, objects.chain([Key::new(RECOVER)]), &copy)
    })?;
    let script = copy.join(RECOVER).into_os_string();
    let words = ["--root", &open.trust.root.id(), "--identity", "/dev/stdin", "restore", snapshot.source.as_str()];
    let seq = snapshot.seq.to_string();
    let argv = ["python3".into(), script].into_iter().chain(words.map(Into::into)).chain([to.into()]);
    let argv = argv.chain(["--seq".into(), seq.into()]);
    let mut child = Child::spawn(&Spec { input: true, ..Spec::new(argv) })?;
    if let Some(mut input) = child.input() {
        // The key goes through the pipe alone. That the other end has gone shows in how it ends.
        drop(identities.iter().try_for_each(|identity| {
            use age::secrecy::ExposeSecret;
            writeln!(input, "{}", identity.to_string().expose_secret())
        }));
    }
    let ended = times.time("recover.py", || child.wait(PATIENCE))?;
    let found = match ended.status.code() {
        // 3: restored, with a remark such as an owner that only root can set; what differs the proof finds.
        Some(0 | 3) => "restored".to_owned(),
        _ => ended.success().err().map_or_else(String::new, |e| format!("{e:#}")),
    };
    Ok((Check::compare("recover.py with stock tools", "restored", found), fetched))
}
