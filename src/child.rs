//! Child processes: dump tools, restore tools, engines started for a drill. Each runs in a process group of its own, which ends with it: what
//! a child leaves running there is killed, unless starting something is what it is for ([`Spec::starts`]).
//!
//! A child is known to have succeeded only from [`Child::wait`], after its output has ended: bytes alone prove nothing.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, Mode};
use rustix::process::{Gid, Pid, Signal, Uid, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

use crate::interrupt;
mod groups;
mod network;
pub mod process;
pub mod watch;
pub use groups::kill_all;
pub use network::can_be_cut_off;

/// Lines of stderr that are kept, and bytes of one line.
const TAIL_LINES: usize = 40;
const LINE_MAX: u64 = 4096;
/// How long a child may take to end by itself once it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);

const STOPPED: &str = "The program that was running for it was ended. The same command again starts it anew.";

/// What to run.
#[derive(Clone, Default)]
pub struct Spec {
    /// Program and arguments; no shell. Arguments are visible to every user of the machine: no secret belongs here.
    pub argv: Vec<OsString>,
    /// Variables to set.
    pub set: Vec<(OsString, OsString)>,
    /// Secret variables to set. They are never shown, and struck out of what is kept of stderr.
    pub secret: Vec<(OsString, Zeroizing<String>)>,
    /// A secret in a file that the child finds as its stdin, [`SECRET_FILE`]. It lies in memory and nowhere else: not on a disk, and not in the
    /// environment, which goes on to whatever the child starts. Not together with `input`.
    pub file: Option<SecretFile>,
    /// Variables to pass on beside [`PASSED_ON`]; everything else of our environment is withheld.
    pub pass: Vec<OsString>,
    pub directory: Option<PathBuf>,
    /// User and group to become, from root.
    pub user: Option<(u32, u32)>,
    pub input: bool,
    pub output: Output,
    /// It starts what is to go on when it has exited: a service. A daemon leaves its starter's group only after it was forked, so that
    /// ending the group when the starter exits would hit it at times.
    pub starts: bool,
    /// It has no business on any network: it gets one of its own with nothing in it, where this machine allows that. Sockets in the file system stay.
    pub cut_off: bool,
}

/// Variables that every child gets.
pub const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// The contents of a file, and what of it is struck out of what is kept of stderr.
#[derive(Clone)]
pub struct SecretFile {
    pub contents: Zeroizing<String>,
    pub secret: Zeroizing<String>,
}

/// Where a child finds its [`Spec::file`], as often as it opens it.
pub const SECRET_FILE: &str = "/proc/self/fd/0";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// Thrown away.
    #[default]
    Null,
    /// For [`Child::output`].
    Piped,
}

impl Spec {
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Spec {
        Spec { argv: argv.into_iter().map(|a| a.as_ref().to_owned()).collect(), ..Spec::default() }
    }

    /// The program's name, for people.
    pub fn name(&self) -> String {
        self.argv.first().map_or_else(String::new, |program| program.to_string_lossy().into_owned())
    }
}

/// Without the values of variables.
impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<_> = self.set.iter().map(|(n, _)| n).chain(self.secret.iter().map(|(n, _)| n)).collect();
        f.debug_struct("Spec")
            .field("argv", &self.argv)
            .field("set", &set)
            .field("pass", &self.pass)
            .finish_non_exhaustive()
    }
}

/// A running child. Dropping it kills its whole process group.
pub struct Child {
    name: String,
    starts: bool,
    child: std::process::Child,
    noted: Option<watch::Noted>,
    stderr: Option<JoinHandle<()>>,
    tail: Arc<Mutex<VecDeque<String>>>,
    ended: Option<ExitStatus>,
}

impl Child {
    pub fn spawn(spec: &Spec) -> Result<Child> {
        let mut argv = spec.argv.iter();
        let Some(program) = argv.next() else { bail!("there is no program to run") };
        let mut command = match network::cut_off(spec.user).filter(|_| spec.cut_off) {
            Some(prefix) => prefix.before(program),
            None => Command::new(program),
        };
        command.args(argv).env_clear().process_group(0).stderr(Stdio::piped());
        for name in PASSED_ON.iter().map(OsStr::new).chain(spec.pass.iter().map(OsString::as_os_str)) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(spec.set.iter().map(|(name, value)| (name, value)));
        command.envs(spec.secret.iter().map(|(name, value)| (name, value.as_str())));
        command.stdin(match &spec.file {
            Some(file) => in_memory(file, spec.user).context("hand over a secret")?.into(),
            None if spec.input => Stdio::piped(),
            None => Stdio::null(),
        });
        command.stdout(if spec.output == Output::Piped { Stdio::piped() } else { Stdio::null() });
        if let Some(directory) = &spec.directory {
            command.current_dir(directory);
        }
        if let Some((user, group)) = spec.user {
            command.uid(user).gid(group);
        }
        let name = spec.name();
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        groups::running().insert(child.id());
        let noted = watch::note(child.id());
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().map(|pipe| {
            let tail = Arc::clone(&tail);
            let secrets = spec.secret.iter().map(|(_, value)| value).chain(spec.file.iter().map(|file| &file.secret));
            let secrets = secrets.cloned().collect::<Vec<_>>();
            std::thread::spawn(move || keep_tail(pipe, &secrets, &tail))
        });
        let mut child = Child { name, starts: spec.starts, child, noted: None, stderr, tail, ended: None };
        // A child that cannot be noted ends with this error.
        child.noted = noted?;
        Ok(child)
    }

    /// The pipe to the child's stdin; once.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The pipe from the child's stdout; once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the child ends, at most for `wait` and until a signal asks this process to stop; then it is killed and the result is an error.
    pub fn wait(&mut self, wait: Duration) -> Result<Ended> {
        let until = Instant::now() + wait;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.poll()? {
                if let Some(reader) = self.stderr.take() {
                    // Somebody outside of its group may hold the pipe open: his words do not matter.
                    let grace = Instant::now() + Duration::from_secs(1);
                    while !reader.is_finished() && Instant::now() < grace {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                return Ok(Ended { name: self.name.clone(), status, stderr: self.tail() });
            }
            if Instant::now() >= until {
                self.kill();
                bail!("{} did not end within {} s and was killed{}", self.name, wait.as_secs(), said(&self.tail()));
            }
            interrupt::check(STOPPED).inspect_err(|_| self.kill())?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Whether the child has ended, without waiting.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(exit) = self.exited()?
        {
            self.notice(&exit);
            // Until it is reaped nobody else can have its number.
            if self.starts {
                groups::running().remove(&self.child.id());
            } else {
                self.kill_group();
            }
            self.ended = self.child.try_wait().with_context(|| format!("look after {}", self.name))?;
            self.noted = None;
        }
        Ok(self.ended)
    }

    fn exited(&self) -> Result<Option<WaitIdStatus>> {
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return Ok(None) };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), look).with_context(|| format!("look after {}", self.name))
    }

    /// Whom somebody else has killed, the watch must know.
    fn notice(&self, exit: &WaitIdStatus) {
        if exit.terminating_signal() == Some(Signal::KILL.as_raw())
            && let Some(noted) = &self.noted
        {
            noted.was_killed();
        }
    }

    /// The last lines of stderr so far.
    pub fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Sends `signal` to the child alone.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Some(pid) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _gone = rustix::process::kill_process(pid, signal);
        }
    }

    /// Asks the child to end by `signal`, and kills it after some patience.
    pub fn stop(mut self, signal: Signal) -> Result<Ended> {
        self.signal(signal);
        self.wait(PATIENCE)
    }

    fn kill(&mut self) {
        self.kill_group();
        let _reaped = self.child.wait();
    }

    fn kill_group(&self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _gone = kill_process_group(pid, Signal::KILL);
        }
        groups::running().remove(&self.child.id());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if let Ok(Some(exit)) = self.exited() {
                self.notice(&exit);
            }
            self.kill();
        }
    }
}

/// A child that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub name: String,
    pub status: ExitStatus,
    /// The last lines that it wrote there.
    pub stderr: Vec<String>,
}

impl Ended {
    /// An error unless the child exited with 0. It quotes what the child said last.
    pub fn success(&self) -> Result<()> {
        ensure!(self.status.success(), "{} {}{}", self.name, how(self.status), said(&self.stderr));
        Ok(())
    }
}

/// A file without a name, which nobody but `user` (or who we are) may read.
fn in_memory(file: &SecretFile, user: Option<(u32, u32)>) -> Result<std::fs::File> {
    let made = rustix::fs::memfd_create("secret", MemfdFlags::CLOEXEC)?;
    rustix::fs::fchmod(&made, Mode::RUSR | Mode::WUSR)?;
    if let Some((user, group)) = user {
        rustix::fs::fchown(&made, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    let mut made = std::fs::File::from(made);
    made.write_all(file.contents.as_bytes())?;
    Ok(made)
}

/// Runs a child to its end and gives its output, at most `output_max` bytes. An exit other than 0 is an error.
pub fn run(spec: &Spec, wait: Duration, output_max: u64) -> Result<Vec<u8>> {
    let mut child = Child::spawn(&Spec { output: Output::Piped, input: false, ..spec.clone() })?;
    let mut bytes = Vec::new();
    let reader = child.output().map(|pipe| std::thread::spawn(move || read_all(pipe, output_max)));
    let ended = child.wait(wait)?;
    if let Some(reader) = reader {
        bytes = reader.join().ok().context("read what the child wrote")??;
    }
    ended.success()?;
    Ok(bytes)
}

fn read_all(pipe: ChildStdout, output_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut pipe = pipe.take(output_max + 1);
    pipe.read_to_end(&mut bytes).context("read what the child wrote")?;
    ensure!(bytes.len() as u64 <= output_max, "the output is longer than {output_max} bytes");
    Ok(bytes)
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn said(tail: &[String]) -> String {
    if tail.is_empty() { String::new() } else { format!(":\n  {}", tail.join("\n  ")) }
}

/// Reads to the end, however much it is, and keeps the last lines without `secrets`.
fn keep_tail(pipe: ChildStderr, secrets: &[Zeroizing<String>], tail: &Mutex<VecDeque<String>>) {
    let mut pipe = BufReader::new(pipe);
    // Where a line is cut, half a secret may stand: as much as the longest could be goes with it.
    let longest = secrets.iter().map(|s| s.len() as u64).max().unwrap_or(0);
    loop {
        let mut line = Vec::new();
        match pipe.by_ref().take(LINE_MAX + longest).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n');
        let mut text = String::from_utf8_lossy(&line).trim_end().to_owned();
        for secret in secrets.iter().filter(|s| !s.is_empty()) {
            text = text.replace(secret.as_str(), "…");
        }
        let room = if whole { LINE_MAX } else { LINE_MAX.min((text.len() as u64).saturating_sub(longest)) };
        while text.len() as u64 > room {
            text.pop();
        }
        let mut lines = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(text);
        drop(lines);
        if !whole && pass_over_line(&mut pipe).is_err() {
            return;
        }
    }
}

/// Reads the rest of a line that is too long.
fn pass_over_line(pipe: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = pipe.fill_buf()?;
        let (used, done) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        pipe.consume(used);
        if done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
