//! Processes as `/proc` shows them (proc(5)): who descends from whom, what memory they hold, and how to end one without ever hitting another.

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long what is asked to end may take before it is killed, and how long the dead may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
const GOING: Duration = Duration::from_secs(10);

/// What tells a process from every other, also from one that gets its number later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks from the start of the machine to its own.
    pub started: u64,
    /// Of the machine, since numbers and ticks begin anew.
    pub boot: String,
}

impl Process {
    /// The one that has this number now.
    pub fn of(pid: u32) -> Option<Process> {
        // Where a service sees of `/proc` its processes only, number and ticks must do.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Some(Process { pid, started: Stat::of(pid)?.started, boot })
    }

    /// Whether it runs still.
    pub fn is_there(&self) -> bool {
        Process::of(self.pid).as_ref() == Some(self) && Stat::of(self.pid).is_some_and(|stat| !stat.dead)
    }

    /// Whether it works on what lies below `directory`: by its arguments, or by its own directory.
    pub fn is_about(&self, directory: &Path) -> bool {
        let arguments = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let wanted = directory.as_os_str().as_encoded_bytes();
        let named = !wanted.is_empty() && arguments.windows(wanted.len()).any(|window| window == wanted);
        named || std::fs::read_link(format!("/proc/{}/cwd", self.pid)).is_ok_and(|own| own.starts_with(directory))
    }

    /// Ends it with all that descends from it: asked first, as servers are asked to stop at once, then killed. Whether all have gone.
    pub fn end(&self) -> bool {
        let mut held: Vec<(Process, OwnedFd)> = Vec::new();
        for pid in family(&BTreeSet::from([self.pid])) {
            let Some(process) = Process::of(pid) else { continue };
            // Held before it is looked at again: what has the number then is what a signal will reach.
            let handle = Pid::from_raw(pid.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            if let Some(handle) = handle.filter(|_| process.is_there()) {
                held.push((process, handle));
            }
        }
        if !held.iter().any(|(process, _)| process == self) {
            return true;
        }
        let all_gone = |within: Duration| {
            let until = Instant::now() + within;
            while held.iter().any(|(process, _)| process.is_there()) {
                if Instant::now() >= until {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            true
        };
        // What has gone meanwhile needs no signal.
        for (_, handle) in held.iter().filter(|(process, _)| process == self) {
            let _gone = pidfd_send_signal(handle, Signal::INT);
        }
        if all_gone(PATIENCE) {
            return true;
        }
        for (_, handle) in &held {
            let _gone = pidfd_send_signal(handle, Signal::KILL);
        }
        all_gone(GOING)
    }
}

/// `/proc/<pid>/stat`, as far as it matters here.
struct Stat {
    parent: u32,
    started: u64,
    /// It has ended, and nobody has asked how.
    dead: bool,
}

impl Stat {
    fn of(pid: u32) -> Option<Stat> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name, in parentheses, may have anything in it.
        let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let dead = ["Z", "X"].contains(rest.first()?);
        Some(Stat { parent: rest.get(1)?.parse().ok()?, started: rest.get(19)?.parse().ok()?, dead })
    }
}

/// `leaders`, and all that descends from them.
pub fn family(leaders: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (BTreeSet::new(), leaders.iter().copied().collect::<Vec<u32>>());
    while let Some(pid) = next.pop() {
        if found.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Bytes that a process holds and the kernel cannot drop: its own share of what is shared, and what was swapped out.
pub fn memory(pid: u32) -> u64 {
    let sum = |file: &str, names: &[&str]| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let kilobytes = |value: &str| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
        let found: Vec<u64> =
            lines.filter(|(name, _)| names.contains(name)).filter_map(|(_, value)| kilobytes(value)).collect();
        (!found.is_empty()).then(|| found.iter().sum::<u64>() * 1024)
    };
    let shares = sum("smaps_rollup", &["Pss_Anon", "Pss_Shmem", "SwapPss"]);
    // Where that may not be read, what is shared counts for each.
    shares.or_else(|| sum("status", &["RssAnon", "RssShmem", "VmSwap"])).unwrap_or(0)
}

/// Bytes of memory that are free for more here, as the kernel estimates it; less where the control group allows less.
pub fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    Some(machine.min(allowed_by_the_group().unwrap_or(u64::MAX)))
}

/// What the memory controller leaves (cgroup v2), with what it could take back from the page cache; `None`: it sets no bound.
fn allowed_by_the_group() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    let read = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(&path).join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let used = number("memory.current")?.saturating_sub(page_cache(&read("memory.stat")?));
    Some(number("memory.max")?.saturating_sub(used))
}

/// Bytes of files that the kernel can drop, in `memory.stat`; what lies in a tmpfs is none of them.
fn page_cache(stat: &str) -> u64 {
    let pairs = stat.lines().filter_map(|line| line.split_once(' '));
    let files = pairs.filter(|(name, _)| ["active_file", "inactive_file"].contains(name));
    files.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_dropped_is_free() {
        let stat = "anon 1000\nfile 700\nshmem 100\ninactive_anon 5\nactive_file 200\ninactive_file 400\n";
        assert_eq!(page_cache(stat), 600);
        assert!(memory_available().is_some_and(|free| free > 1 << 20), "this machine has some memory left");
        assert!(memory(std::process::id()) > 1 << 16, "this process holds some");
    }
}
