//! Extended attributes of what lies in a directory, without following symlinks and without opening it.

use crate::entry::Name;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::PathBuf;

/// Room at first. The kernel clears as much as it is offered, for every file.
const XATTR_USUAL: usize = 512;
/// The kernel's bound for a list of names and for a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;

pub(super) struct Attributes {
    names: Vec<u8>,
    value: Vec<u8>,
    /// The root's path, where `/proc` is not there to name directories by descriptor.
    without_proc: Option<PathBuf>,
}

impl Attributes {
    pub fn new(root: PathBuf) -> Attributes {
        let without_proc = (!std::path::Path::new("/proc/self/fd").exists()).then_some(root);
        Attributes { names: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX], without_proc }
    }

    /// All attributes of `name` in `dir` (the directory `path` of the source) that this process may list.
    /// Most files have none: that costs one call.
    pub fn read(&mut self, dir: BorrowedFd<'_>, path: &Name, name: &[u8]) -> Result<BTreeMap<Name, Vec<u8>>, Errno> {
        let place = self.place(dir, path, name)?;
        let length = match with_room(&mut self.names, |room| rustix::fs::llistxattr(&place, room)) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            listed => listed?,
        };
        let mut found = BTreeMap::new();
        for name in self.names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
            match with_room(&mut self.value, |room| rustix::fs::lgetxattr(&place, name, room)) {
                Ok(n) => drop(found.insert(Name::new(name), self.value[..n].to_vec())),
                // Removed since it was listed, or listed by a layer that does not have it.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// A path that reaches `name` through the open directory, whatever has been put in the place of its parents.
    fn place(&self, dir: BorrowedFd<'_>, path: &Name, name: &[u8]) -> Result<CString, Errno> {
        let mut place = match &self.without_proc {
            None => format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes(),
            Some(root) => {
                let mut place = root.as_os_str().as_encoded_bytes().to_vec();
                place.push(b'/');
                place.extend_from_slice(path.as_bytes());
                place.push(b'/');
                place
            }
        };
        place.extend_from_slice(name);
        CString::new(place).map_err(|_| Errno::INVAL)
    }
}

/// Asks with little room first, then with all there is.
fn with_room(buffer: &mut [u8], ask: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
    match ask(&mut buffer[..XATTR_USUAL]) {
        Err(Errno::RANGE) => ask(buffer),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::fs::{Mode, OFlags, XattrFlags};

    #[test]
    fn without_proc_the_same_is_found_by_path() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("d")).unwrap();
        let file = std::fs::File::create(root.path().join("d/f")).unwrap();
        if rustix::fs::fsetxattr(&file, "user.name", b"value", XattrFlags::empty()).is_err() {
            return;
        }
        let dir = rustix::fs::open(root.path().join("d"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut attributes = Attributes::new(root.path().to_owned());
        let expected = BTreeMap::from([(Name::new("user.name"), b"value".to_vec())]);
        for without_proc in [None, Some(root.path().to_owned())] {
            attributes.without_proc = without_proc;
            let mut found = attributes.read(dir.as_fd(), &Name::new("d"), b"f").unwrap();
            found.retain(|name, _| name.as_bytes().starts_with(b"user."));
            assert_eq!(found, expected);
        }
    }
}
