//! Names of users and groups, read once from `/etc/passwd` and `/etc/group`.
//!
//! Accounts that only a directory service knows (LDAP, `nss`) have no name here; their numbers are kept and restored.

use crate::entry::Name;
use std::collections::HashMap;

/// Numbers to names and back, as this machine had them when [`Accounts::load`] was called.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Table,
    groups: Table,
}

#[derive(Debug, Default)]
struct Table {
    names: HashMap<u32, Name>,
    ids: HashMap<Name, u32>,
}

impl Accounts {
    /// A file that is missing or unreadable counts as empty: then ids alone identify owners.
    pub fn load() -> Accounts {
        let read = |path| Table::parse(&std::fs::read(path).unwrap_or_default());
        Accounts { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    /// The name of a user, empty if unknown.
    pub fn user(&self, uid: u32) -> Name {
        self.users.names.get(&uid).cloned().unwrap_or_default()
    }

    /// The name of a group, empty if unknown.
    pub fn group(&self, gid: u32) -> Name {
        self.groups.names.get(&gid).cloned().unwrap_or_default()
    }

    pub fn uid(&self, user: &Name) -> Option<u32> {
        self.users.ids.get(user).copied()
    }

    pub fn gid(&self, group: &Name) -> Option<u32> {
        self.groups.ids.get(group).copied()
    }
}

impl Table {
    /// Lines `name:password:id:…`; the first line of a name or number counts, as in libc.
    fn parse(text: &[u8]) -> Table {
        let mut table = Table::default();
        for line in text.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
            let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) else { continue };
            table.names.entry(id).or_insert_with(|| Name::new(name));
            table.ids.entry(Name::new(name)).or_insert(id);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_counts_and_rubbish_does_not() {
        let table = Table::parse(b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:\n# comment\nbad:x:abc:\nroot:x:7:\n");
        assert_eq!(table.names[&0], Name::new("root"));
        assert_eq!(table.ids[&Name::new("root")], 0);
        assert_eq!(table.ids[&Name::new("toor")], 0);
        assert!(!table.ids.contains_key(&Name::new("bad")));
    }
}
