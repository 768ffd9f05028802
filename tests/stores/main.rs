//! Redis, Valkey and ChromaDB: the real engines, written to while they are backed up, and what goes wrong with them.
#![allow(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "test files need no durability")]

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod canary;
mod chroma;
mod groups;
mod lost;
mod redis;
mod stream;
mod undo;

use blackstart::entry::{EntryKind, Name};
use blackstart::report::Check;
use blackstart::source::{Finished, Piece, Source};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::binary::{configure, expect};

/// Reads a source to its end into the directory `to`, as the pipeline and a restore would.
fn copy_all(source: &mut dyn Source, to: &Path) -> anyhow::Result<Finished> {
    let path_of = |name: &Name| to.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
    std::fs::create_dir_all(to).unwrap();
    let mut last = None;
    // No multiple of most page sizes, so that whole pages must be chosen.
    let mut buffer = vec![0; 1_000_003];
    while let Some(entry) = source.next()? {
        assert!(last.as_ref().is_none_or(|l| *l < entry.path), "{:?} out of order", entry.path);
        last = Some(entry.path.clone());
        match entry.kind {
            EntryKind::Dir if entry.path.is_empty() => {}
            EntryKind::Dir => std::fs::create_dir(path_of(&entry.path)).unwrap(),
            EntryKind::Hardlink => {
                std::fs::hard_link(path_of(entry.target.as_ref().unwrap()), path_of(&entry.path)).unwrap();
            }
            _ => {
                let mut file = std::fs::File::create(path_of(&entry.path)).unwrap();
                let stream = loop {
                    match source.read(&mut buffer)? {
                        Piece::Data(n) => {
                            assert_eq!(n % entry.page.unwrap_or(1) as usize, 0);
                            file.write_all(&buffer[..n]).unwrap();
                        }
                        Piece::Hole(n) => drop(file.seek(SeekFrom::Current(n.cast_signed())).unwrap()),
                        Piece::End => break false,
                        Piece::StreamEnd => break true,
                        Piece::Lost | Piece::Same(_) => panic!("lost {:?}", entry.path),
                    }
                };
                assert!(stream || file.metadata().unwrap().len() == entry.size, "{:?}", entry.path);
            }
        }
    }
    source.finish()
}

fn failed(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|c| !c.passed).collect()
}

/// Message and help of an error.
fn said(error: &anyhow::Error) -> String {
    format!("{error:#} | {}", blackstart::error::help_of(error).unwrap_or("no help"))
}

/// A repository in `home` with one source.
fn protect(home: &Path, source: &str) {
    expect(home, &["init", "--repo", "repo"], 0);
    configure(home, &format!("\n[[source]]\nname = \"store\"\n{source}\n"));
}

/// The report of the one source of a verb.
fn report(home: &Path, arguments: &[&str], code: i32) -> serde_json::Value {
    let ran = expect(home, &[arguments, &["--json"]].concat(), code).json();
    ran["report"]["sources"][0].clone()
}

/// Restores the newest snapshot with `recover.py` alone.
fn recover(home: &Path, to: &str) -> PathBuf {
    let output = Command::new("python3")
        .args(["-B", "repo/recover.py", "--root", &support::binary::root_of(home)])
        .args(["--identity", "blackstart/keys/recovery.key", "restore", "store", to])
        .current_dir(home)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    home.join(to)
}
