//! What is known of one file, directory, link or device: the shape shared by sources, the index and restore.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of a name or path as the system has them. In JSON, `%` and bytes that are not UTF-8 are written `%XX` (FORMAT.md §2.4).
/// Ordered component by component: as byte strings in which `/` is the lowest byte.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Name(pub Vec<u8>);

impl Name {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Name {
        Name(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `self/name`, or `name` below the root.
    pub fn join(&self, name: &[u8]) -> Name {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.0.is_empty() {
            bytes.extend_from_slice(&self.0);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Name(bytes)
    }

    /// The escaped form of FORMAT.md §2.4.
    pub fn escaped(&self) -> String {
        let mut out = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '%' { out.push_str("%25") } else { out.push(c) }
            }
            for b in chunk.invalid() {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }

    /// The inverse of [`Name::escaped`]. `None` if a `%` is not followed by two hex digits.
    pub fn unescape(text: &str) -> Option<Name> {
        if !text.contains('%') {
            return Some(Name(text.as_bytes().to_vec()));
        }
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&b, tail)) = rest.split_first() {
            rest = tail;
            if b != b'%' {
                out.push(b);
                continue;
            }
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        }
        Some(Name(out))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        let common = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
        let rank = |b: u8| if b == b'/' { 0u16 } else { u16::from(b) + 1 };
        match common {
            Some(i) => rank(self.0[i]).cmp(&rank(other.0[i])),
            None => self.0.len().cmp(&other.0.len()),
        }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.escaped())
    }
}

/// For people: the escaped form, control characters escaped too, so that a name cannot move the cursor.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.escaped().chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.escaped())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Name::unescape(&text).ok_or_else(|| serde::de::Error::custom("malformed % escape in a name"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    File,
    Dir,
    Symlink,
    Hardlink,
    Fifo,
    Char,
    Block,
}

/// One entry of a source. `path` is relative to the source's root; the root itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: Name,
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Permission bits, 0o7777.
    pub mode: u32,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub user: Name,
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub group: Name,
    /// Seconds since the epoch, nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of a regular file, 0 for all else.
    #[serde(default)]
    pub size: u64,
    /// Page size of a paged file, in bytes; absent for a streamed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Where a symlink points; for a hard link, the path of the file it is another name of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// Major and minor number of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdev: Option<(u32, u32)>,
    /// Extended attributes by name, values base64 in JSON.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "xattrs")]
    pub xattrs: BTreeMap<Name, Vec<u8>>,
    /// What must be equal for the file to count as unchanged without being read. `None`: always read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<Stat>,
}

/// Device, inode, ctime seconds, ctime nanoseconds of the file as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat(pub u64, pub u64, pub i64, pub u32);

mod xattrs {
    use super::Name;
    use base64::prelude::{BASE64_STANDARD, Engine};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(map: &BTreeMap<Name, Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        map.iter().map(|(k, v)| (k.escaped(), BASE64_STANDARD.encode(v))).collect::<BTreeMap<_, _>>().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<Name, Vec<u8>>, D::Error> {
        BTreeMap::<Name, String>::deserialize(d)?
            .into_iter()
            .map(|(k, v)| Ok((k, BASE64_STANDARD.decode(v).map_err(serde::de::Error::custom)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slash_sorts_lowest() {
        let mut names: Vec<Name> = ["a.txt", "a/b", "a", "a/b/c", "a-b", ""].map(Name::new).to_vec();
        names.sort();
        assert_eq!(names, ["", "a", "a/b", "a/b/c", "a-b", "a.txt"].map(Name::new));
    }

    proptest! {
        #[test]
        fn escape_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let name = Name(bytes);
            prop_assert_eq!(Name::unescape(&name.escaped()), Some(name.clone()));
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
        }
    }
}
