//! Memory stays below the promised bound, whatever the source's size.

use crate::support::binary::{command, configure, expect, noise};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// DESIGN §4.
const LIMIT_KB: u64 = 256 << 10;

/// The highest resident size that the process ever had, in kB, as far as one can see before it is gone.
fn peak(home: &Path, arguments: &[&str]) -> u64 {
    let mut child = command(home, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success(), "{arguments:?}");
    peak
}

#[test]
fn peak_memory_is_bounded() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    fs::create_dir(at.join("tree")).unwrap();
    let mut file = File::create(at.join("tree/stream")).unwrap();
    for n in 0..160 {
        file.write_all(&noise(n, 1 << 20)).unwrap();
    }
    drop(file);
    // Compressible: many raw bytes in few packs.
    let mut file = File::create(at.join("tree/log")).unwrap();
    for n in 0..240 {
        file.write_all(&noise(n, 16 << 10).repeat(64)).unwrap();
    }
    drop(file);
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
    for arguments in [
        &["backup"][..],
        &["backup", "--full"],
        &["restore", "tree", "--to", "back"],
        &["drill"],
        &["verify", "--read-data"],
    ] {
        let peak = peak(at, arguments);
        println!("{arguments:?}: {} MB", peak >> 10);
        assert!(peak > 1000 && peak < LIMIT_KB, "{arguments:?}: {peak} kB");
    }
}
