//! Giving a restored stream to a program: on its stdin, or by its path.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::ChildStdin;
use tempfile::TempDir;

use super::program::{self, Programs};
use crate::child::{Child, Ended};

const PIECE: usize = 256 << 10;

/// How a program took a stream.
pub(super) struct Fed {
    pub ended: Ended,
    /// Bytes that it did not want. 0 where it read the file by its path: then nobody knows.
    pub unread: u64,
}

/// Runs `argv` on `file` until it ends. An `Err` says that it could not be run or did not end in time, not that it failed.
pub(super) fn feed(argv: &[String], file: &Path, programs: &Programs) -> Result<Fed> {
    let scratch = match program::wants_scratch(argv) {
        true => Some(scratch_beside(file)?),
        false => None,
    };
    let spec = programs.spec_for(argv, file, scratch.as_ref().map_or(Path::new(""), |scratch| scratch.path()));
    let mut opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let size = opened.metadata().with_context(|| format!("look at {}", file.display()))?.len();
    let mut child = Child::spawn(&spec)?;
    let Some(pipe) = child.input() else {
        return Ok(Fed { ended: child.wait(programs.timeout)?, unread: 0 });
    };
    let pump = std::thread::spawn(move || pump(&mut opened, pipe));
    // A child that is killed closes its end of the pipe, which ends the pump.
    let ended = child.wait(programs.timeout)?;
    let taken = pump.join().ok().context("hand the stream to the program")??;
    Ok(Fed { ended, unread: size.saturating_sub(taken) })
}

/// An empty directory outside of the restored copy, which must stay as it is.
fn scratch_beside(file: &Path) -> Result<TempDir> {
    let outside = file.parent().and_then(Path::parent).context("a restored stream lies in a directory")?;
    tempfile::Builder::new().prefix("blackstart-scratch-").tempdir_in(outside).context("make a scratch directory")
}

/// The bytes that the pipe took. That the program closes it before the end is no error here.
fn pump(file: &mut File, mut pipe: ChildStdin) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut taken = 0;
    loop {
        let length = match file.read(&mut buffer) {
            Ok(0) => return Ok(taken),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context("read the restored stream"),
        };
        match pipe.write_all(&buffer[..length]) {
            Ok(()) => taken += length as u64,
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(taken),
            Err(e) => return Err(e).context("hand the stream to the program"),
        }
    }
}
