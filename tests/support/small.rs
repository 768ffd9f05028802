//! A small file system, to be filled: a disk that is full, without filling anybody's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A small file system in memory, unmounted when dropped.
pub struct Small(PathBuf);

/// Set for a test that runs again in a namespace of its own.
const WITHIN: &str = "BLACKSTART_TEST_WITHIN_NAMESPACE";

impl Small {
    /// Whoever may not mount runs the test again where everybody may: as root of a user namespace of its own. `None`: it has passed there.
    /// `test`: its name, as the test program lists it.
    pub fn mount(at: PathBuf, megabytes: u32, test: &str) -> Option<Small> {
        fs::create_dir(&at).unwrap();
        let size = format!("size={megabytes}m");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at).output().unwrap();
        if output.status.success() {
            return Some(Small(at));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            std::env::var_os(WITHIN).is_none(),
            "no small disk can be mounted, not even in a user namespace: {said}"
        );
        let again = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(WITHIN, "1")
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&again.stderr));
        assert!(
            again.status.success() && text.contains("1 passed"),
            "this test needs a small disk: run it as root, or where unprivileged user namespaces are allowed.\nmount: {said}\n{text}"
        );
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
