//! A small file system, to be filled. Only root can make one; without, tests that need one are skipped, and say so.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A small file system in memory, unmounted when dropped.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: PathBuf, megabytes: u32) -> Option<Small> {
        fs::create_dir(&at).unwrap();
        let size = format!("size={megabytes}m");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at).output();
        match output {
            Ok(output) if output.status.success() => Some(Small(at)),
            other => {
                println!("skipped: no file system can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
