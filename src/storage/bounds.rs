//! What every implementation refuses alike: objects and ranges beyond `limits::OBJECT_MAX`, since bodies lie in memory.

use super::{Error, Key, Kind, Result};
use crate::limits::{MIB, OBJECT_MAX};
use std::ops::Range;

/// Bytes of an object that `replace` takes: leases are a few hundred. Larger objects need no version, and a directory does
/// not hash a pack on each read to have one.
pub const REPLACED_MAX: usize = 64 << 10;

/// Refuses a body for `replace` of more than `REPLACED_MAX` bytes.
pub fn check_replaced(key: &Key, bytes: usize) -> Result<()> {
    if bytes <= REPLACED_MAX {
        return Ok(());
    }
    Err(Error::new(Kind::Other, "replace", key).because(format!("{bytes} bytes; only leases are ever replaced")))
}

/// Refuses a body of more than `OBJECT_MAX` bytes.
pub fn check_size(operation: &'static str, key: &Key, bytes: u64) -> Result<()> {
    if bytes <= OBJECT_MAX as u64 {
        return Ok(());
    }
    let cause = format!("{bytes} bytes; no object of a repository is larger than {} MiB", OBJECT_MAX / MIB);
    Err(Error::new(Kind::Other, operation, key).because(cause))
}

/// The length of `range`, in bytes. Refuses a range that runs backwards or is too long.
pub fn check_range(key: &Key, range: &Range<u64>) -> Result<usize> {
    let Some(length) = range.end.checked_sub(range.start) else {
        return Err(Error::new(Kind::Other, "get", key).because("the range ends before it begins"));
    };
    check_size("get", key, length)?;
    Ok(length as usize)
}
