//! Time zones as people write them.

use jiff::tz::TimeZone;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A time zone by its IANA name, or `local`.
#[derive(Debug, Clone)]
pub struct Zone(pub TimeZone);

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Zone, D::Error> {
        let name = String::deserialize(d)?;
        if name == "local" {
            return Ok(Zone(TimeZone::system()));
        }
        let unknown = |_| {
            D::Error::custom(format!(
                "{name:?} is no time zone known here; write one such as \"Asia/Tokyo\", \"UTC\" or \"local\" (package tzdata has them)"
            ))
        };
        TimeZone::get(&name).map(Zone).map_err(unknown)
    }
}
