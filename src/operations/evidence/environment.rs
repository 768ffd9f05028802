//! Where a drill or restore ran: for an auditor, and to tell why one was slower than another.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use crate::accounts::Accounts;
use crate::limits::MIB;
use crate::repository::layout::Hash;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Environment {
    pub host: String,
    /// System and kernel.
    pub system: String,
    pub user: String,
    pub cpus: u64,
    pub memory_bytes: u64,
    /// Where it restored to, and what was free there at the start.
    pub place: String,
    pub free_bytes: u64,
    /// SHA-256 of the running program.
    pub program: Option<Hash>,
    /// What keeps it apart from the live systems.
    pub isolation: String,
}

impl Environment {
    /// As it is here and now. `place` must exist.
    pub fn here(place: &Path, isolation: &str) -> Environment {
        let system = rustix::system::uname();
        let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
        Environment {
            host: text(system.nodename()),
            system: format!("{} {} {}", text(system.sysname()), text(system.release()), text(system.machine())),
            user: user(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from) as u64,
            memory_bytes: memory().unwrap_or(0),
            place: place.display().to_string(),
            free_bytes: rustix::fs::statvfs(place).map_or(0, |s| s.f_bavail * s.f_frsize),
            program: program(),
            isolation: isolation.into(),
        }
    }
}

/// The name of the user that this runs as, or the number.
pub fn user() -> String {
    let id = rustix::process::getuid().as_raw();
    let name = Accounts::load().user(id).to_string();
    if name.is_empty() { id.to_string() } else { name }
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Read once: the file may be replaced while this runs, and it does not change for the process.
fn program() -> Option<Hash> {
    static PROGRAM: OnceLock<Option<Hash>> = OnceLock::new();
    *PROGRAM.get_or_init(|| {
        let mut file = File::open("/proc/self/exe").ok()?;
        let (mut hasher, mut part) = (Sha256::new(), vec![0; MIB]);
        loop {
            match file.read(&mut part).ok()? {
                0 => return Some(Hash(hasher.finalize().into())),
                n => hasher.update(&part[..n]),
            }
        }
    })
}
