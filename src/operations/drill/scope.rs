//! What a drill tests, and what it leaves open: both stand in its report.

use crate::operations::evidence::Level;
use crate::repository::snapshot::Snapshot;

/// What a level tests, and what it leaves open.
pub(super) fn scope(level: Level, snapshot: &Snapshot) -> (Vec<String>, Vec<String>) {
    let kind = &snapshot.kind;
    let tested = match level {
        Level::Existence => "that every stored object of the snapshot is there",
        Level::Hashes => "every stored byte of the snapshot against its SHA-256",
        Level::Decode => "that every stored byte decrypts and decompresses with the recovery key",
        Level::Engine => "a whole restore with the code of a real one, every byte of it, and the proof of its kind",
        Level::Point => {
            "a whole restore with the code of a real one, every byte of it, the stored log up to the point, and the proof of its kind"
        }
        Level::GameDay => {
            "that this program notices faults of a copy of the repository, refuses what is not whole, and brings back the next best point"
        }
        Level::ColdStart => {
            "a restore by recover.py with python3, age, zstd and ssh-keygen alone, every byte of it, and the proof of its kind"
        }
    };
    let mut open = Vec::new();
    if level < Level::Decode {
        open.push("decryption and decompression".to_owned());
    }
    if !level.proves() {
        open.push(format!("the restore, and a start of {kind} on the copy"));
    }
    open.push("the application itself (a restore plan can check it)".to_owned());
    open.push("another machine, network and store than those of this drill".to_owned());
    (vec![format!("{tested} (kind {kind})")], open)
}
