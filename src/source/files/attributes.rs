//! Extended attributes of what lies in a directory, without following symlinks and without opening it.

use crate::entry::Name;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::PathBuf;

/// The kernel's bound for a list of names and for a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;

pub(super) struct Attributes {
    buffer: Vec<u8>,
    value: Vec<u8>,
    /// The root's path, where `/proc` is not there to name directories by descriptor.
    without_proc: Option<PathBuf>,
}

impl Attributes {
    pub fn new(root: PathBuf) -> Attributes {
        let without_proc = (!std::path::Path::new("/proc/self/fd").exists()).then_some(root);
        Attributes { buffer: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX], without_proc }
    }

    /// All attributes of `name` in `dir` (the directory `path` of the source) that this process may list.
    /// Most files have none: that costs one call.
    pub fn read(&mut self, dir: BorrowedFd<'_>, path: &Name, name: &[u8]) -> Result<BTreeMap<Name, Vec<u8>>, Errno> {
        let place = self.place(dir, path, name)?;
        let length = match rustix::fs::llistxattr(&place, &mut self.buffer[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            listed => listed?,
        };
        let mut found = BTreeMap::new();
        for name in self.buffer[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
            match rustix::fs::lgetxattr(&place, name, &mut self.value[..]) {
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
