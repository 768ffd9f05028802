//! Passing over the values of keys: each type's shape, from `rdb.h` of Redis and Valkey.

use anyhow::{Result, bail};

use super::reader::Tap;

/// What shows of a value without decoding it.
#[derive(Default)]
pub struct Value {
    /// As `TYPE` says it.
    pub kind: &'static str,
    pub length: Option<u64>,
    pub text: Option<Vec<u8>>,
}

/// Passes over the value of a key.
pub fn pass(tap: &mut Tap, kind: u8, magic: &str) -> Result<Value> {
    let (kind, length) = match (kind, magic) {
        (0, _) => {
            let (length, text) = tap.pass_text()?;
            return Ok(Value { kind: "string", length, text });
        }
        (1, _) => ("list", Some(with_tail(tap, 1, 0)?)),
        (2, _) => ("set", Some(with_tail(tap, 1, 0)?)),
        (3, _) => ("zset", Some(scores_as_text(tap)?)),
        (4, _) => ("hash", Some(with_tail(tap, 2, 0)?)),
        (5, _) => ("zset", Some(with_tail(tap, 1, 8)?)),
        (7, _) => ("module", pass_module(tap)?),
        (9 | 13 | 16, _) => ("hash", packed(tap)?),
        (10, _) => ("list", packed(tap)?),
        (11 | 20, _) => ("set", packed(tap)?),
        (12 | 17, _) => ("zset", packed(tap)?),
        (14 | 18, _) => ("list", quicklist(tap, kind)?),
        (15 | 19 | 21, _) => ("stream", Some(stream(tap, kind)?)),
        // Fields that expire, so that their number is not what a server has later: Valkey 9, and Redis 7.4 with the least expiry before.
        (22, "VALKEY") => ("hash", with_tail(tap, 2, 8).map(|_| None)?),
        (24, "REDIS") => ("hash", expiring_hash(tap)?),
        (25, "REDIS") => {
            tap.pass(8)?;
            ("hash", packed(tap)?)
        }
        _ => bail!("it has a key of a type ({kind}) that is not known here"),
    };
    Ok(Value { kind, length, text: None })
}

/// Elements of so many strings, each with so many bytes after them.
fn with_tail(tap: &mut Tap, each: u32, tail: u64) -> Result<u64> {
    let count = tap.length()?;
    for _ in 0..count {
        for _ in 0..each {
            tap.pass_string()?;
        }
        tap.pass(tail)?;
    }
    Ok(count)
}

fn scores_as_text(tap: &mut Tap) -> Result<u64> {
    let count = tap.length()?;
    for _ in 0..count {
        tap.pass_string()?;
        // 253 to 255 stand for NaN and the infinities.
        let length = tap.byte()?;
        if length < 253 {
            tap.pass(length.into())?;
        }
    }
    Ok(count)
}

/// One string that holds all elements. Its own count is inside, perhaps compressed: it is not looked at.
fn packed(tap: &mut Tap) -> Result<Option<u64>> {
    tap.pass_string().map(|_| None)
}

/// Nodes of packed elements; from Redis 7 on each has a mark before it.
fn quicklist(tap: &mut Tap, kind: u8) -> Result<Option<u64>> {
    for _ in 0..tap.length()? {
        if kind == 18 {
            tap.length()?;
        }
        tap.pass_string()?;
    }
    Ok(None)
}

fn expiring_hash(tap: &mut Tap) -> Result<Option<u64>> {
    tap.pass(8)?;
    for _ in 0..tap.length()? {
        tap.length()?;
        tap.pass_string()?;
        tap.pass_string()?;
    }
    Ok(None)
}

/// Gives the number of entries.
fn stream(tap: &mut Tap, kind: u8) -> Result<u64> {
    with_tail(tap, 2, 0)?;
    let entries = tap.length()?;
    // The last id; from RDB 10 on the first id, the greatest deleted id and the entries ever added.
    for _ in 0..if kind == 15 { 2 } else { 7 } {
        tap.length()?;
    }
    for _ in 0..tap.length()? {
        tap.pass_string()?;
        for _ in 0..if kind == 15 { 2 } else { 3 } {
            tap.length()?;
        }
        // Entries that were delivered and not acknowledged: id, time, count.
        for _ in 0..tap.length()? {
            tap.pass(16 + 8)?;
            tap.length()?;
        }
        for _ in 0..tap.length()? {
            tap.pass_string()?;
            tap.pass(if kind == 21 { 16 } else { 8 })?;
            let pending = tap.length()?;
            for _ in 0..pending {
                tap.pass(16)?;
            }
        }
    }
    Ok(entries)
}

/// A value that a module wrote: a run of marked parts up to an end mark.
fn module(tap: &mut Tap) -> Result<()> {
    loop {
        match tap.length()? {
            0 => return Ok(()),
            1 | 2 => {
                tap.length()?;
            }
            3 => tap.pass(4)?,
            4 => tap.pass(8)?,
            5 => {
                tap.pass_string()?;
            }
            n => bail!("it has a module's value with a part of a kind ({n}) that is not known here"),
        }
    }
}

fn pass_module(tap: &mut Tap) -> Result<Option<u64>> {
    tap.length()?;
    module(tap)?;
    Ok(None)
}

pub fn module_auxiliary(tap: &mut Tap) -> Result<()> {
    for _ in 0..3 {
        tap.length()?;
    }
    module(tap)
}
