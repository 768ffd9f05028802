//! Back into the engine: each restored stream through its `restore` program.
//!
//! Only files whose every byte has been checked come here, so a program never sees half a stream.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Instant;

use super::feed::{Fed, feed};
use super::options::{Options, Stream};
use super::program::{self, Programs};
use crate::error::{Failure, Kind};
use crate::report::Loaded;

/// Finds out, before anything is fetched, whether `files` can be loaded: each has a `restore` program, and it is here.
pub fn prepare(options: &Options, base: &Path) -> Result<()> {
    let programs = Programs::new(options, base)?;
    let streams = options.streams()?;
    let help =
        "Nothing was restored. Give `restore = [\"program\", …]` in [source.command], or restore the files: --to DIR.";
    for stream in &streams {
        if stream.restore.is_empty() {
            let message = format!("the configuration names no program that takes {} back", stream.file);
            return Err(Failure::new(Kind::Config, message, help));
        }
        if programs.find(&stream.restore).is_none() {
            let message = format!("there is no program {:?} here, which takes {} back", stream.restore[0], stream.file);
            return Err(Failure::new(
                Kind::Failed,
                message,
                "Nothing was restored. Install it, or restore the files: --to DIR.",
            ));
        }
    }
    Ok(())
}

/// Runs the `restore` program of every stream in `copy`, one after another, in the order of their names. Stops at the first that fails.
pub fn load(options: &Options, base: &Path, copy: &Path) -> Result<Vec<Loaded>> {
    let programs = Programs::new(options, base)?;
    let streams = options.streams()?;
    let mut loaded = Vec::new();
    for entry in std::fs::read_dir(copy).with_context(|| format!("list {}", copy.display()))? {
        let name = entry?.file_name();
        if !streams.iter().any(|stream| name == *stream.file) {
            let message = format!("the snapshot has a stream {}, and the configuration has not", name.display());
            return Err(Failure::new(
                Kind::Config,
                message,
                format!("Nothing was loaded. The restored files are in {}.", copy.display()),
            ));
        }
    }
    for stream in &streams {
        let one = load_one(stream, &programs, &copy.join(&stream.file)).map_err(|e| {
            let done: Vec<&str> = loaded.iter().map(|l: &Loaded| l.file.as_str()).collect();
            let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", ") };
            let help = format!(
                "Loaded before it: {done}. What {} has taken of {} nobody knows: look at what it loads into. The restored files, every byte \
                 checked, are in {}; correct the cause and load them again.",
                program::name(&stream.restore),
                stream.file,
                copy.display()
            );
            Failure::new(Kind::Failed, format!("{} was not loaded: {e:#}", stream.file), help)
        })?;
        loaded.push(one);
    }
    Ok(loaded)
}

fn load_one(stream: &Stream, programs: &Programs, file: &Path) -> Result<Loaded> {
    let began = Instant::now();
    let bytes = file.metadata().with_context(|| format!("look at {}", file.display()))?.len();
    let Fed { ended, unread } = feed(&stream.restore, file, programs)?;
    ended.success()?;
    Ok(Loaded {
        file: stream.file.clone(),
        program: program::name(&stream.restore),
        bytes,
        bytes_unread: unread,
        seconds: began.elapsed().as_secs_f64(),
        stderr: ended.stderr,
    })
}
