//! The proof of restored streams: the marks they had when they were dumped, and the verdict of the operator's own program.

use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::feed::feed;
use super::marks::Marks;
use super::options::{Options, Stream};
use super::program::{self, Programs};
use super::{Facts, StreamFacts};
use crate::error::{Failure, Kind};
use crate::report::Check;

/// Checks the streams in `copy` against `facts`, and with the `verify` programs of `options`, if the configuration is at hand.
pub fn check(copy: &Path, facts: &serde_json::Value, options: Option<&Options>, base: &Path) -> Result<Vec<Check>> {
    let facts: Facts = serde_json::from_value(facts.clone()).context("read the facts of the snapshot")?;
    let streams = options.map_or(Ok(Vec::new()), Options::streams)?;
    let programs = options.map(|options| Programs::new(options, base)).transpose()?;
    let mut checks = Vec::new();
    for fact in &facts.streams {
        let stream = streams.iter().find(|stream| stream.file == fact.file);
        let file = copy.join(&fact.file);
        marks(&file, fact, stream, &mut checks);
        if let (Some(stream), Some(programs)) = (stream, &programs)
            && !stream.verify.is_empty()
        {
            checks.push(verdict(stream, programs, &file)?);
        }
    }
    Ok(checks)
}

/// Whether the programs that are to judge the streams are here. `Kind::Environment`: one is not.
pub fn ready(facts: &serde_json::Value, options: Option<&Options>, base: &Path) -> Result<()> {
    let Some(options) = options else { return Ok(()) };
    let facts: Facts = serde_json::from_value(facts.clone()).context("read the facts of the snapshot")?;
    let programs = Programs::new(options, base)?;
    let streams = options.streams()?;
    let judged =
        |stream: &&Stream| !stream.verify.is_empty() && facts.streams.iter().any(|fact| fact.file == stream.file);
    streams.iter().filter(judged).try_for_each(|stream| is_there(stream, &programs))
}

fn is_there(stream: &Stream, programs: &Programs) -> Result<()> {
    if programs.find(&stream.verify).is_some() {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Environment,
        format!("there is no program {:?} here, which is to verify {}", stream.verify[0], stream.file),
        "The drill was not carried out; that says nothing of the backup. Install the program on the machine that drills.",
    ))
}

fn marks(file: &Path, fact: &StreamFacts, stream: Option<&Stream>, checks: &mut Vec<Check>) {
    let expected = format!("{} bytes, SHA-256 {}", fact.bytes, fact.sha256);
    let read = read(file);
    let actual =
        read.as_ref().map_or_else(|e| format!("{e:#}"), |m| format!("{} bytes, SHA-256 {}", m.bytes, m.sha256()));
    checks.push(Check::compare(format!("{} as it was dumped", fact.file), expected, actual));
    let (Some(stream), Ok(marks)) = (stream, read) else { return };
    let there = |there: bool| if there { "there" } else { "missing" };
    if stream.magic.is_some() {
        checks.push(Check::compare(format!("{}: magic", fact.file), "there", there(marks.has_magic(stream))));
    }
    if stream.end_marker.is_some() {
        checks.push(Check::compare(format!("{}: end marker", fact.file), "there", there(marks.has_end_marker(stream))));
    }
}

fn read(file: &Path) -> Result<Marks> {
    let mut opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut marks = Marks::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match opened.read(&mut buffer).with_context(|| format!("read {}", file.display()))? {
            0 => return Ok(marks),
            length => marks.pass(&buffer[..length]),
        }
    }
}

fn verdict(stream: &Stream, programs: &Programs, file: &Path) -> Result<Check> {
    let name = program::name(&stream.verify);
    is_there(stream, programs)?;
    let fed = feed(&stream.verify, file, programs);
    let actual = match fed.and_then(|fed| fed.ended.success().map_err(|e| anyhow!("{e:#}"))) {
        Ok(()) => "sound".to_owned(),
        Err(e) => format!("{e:#}"),
    };
    Ok(Check::compare(format!("{name} on {}", stream.file), "sound", actual))
}
