//! The agent as a process, and what its log and its page say.

use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::binary::command;

/// How long a test waits at the most for what must come. A store that went away in the middle of a look is told after the tries of that look and of the
/// next: some 50 s.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running agent; dropping it kills it.
pub struct Daemon {
    pub child: std::process::Child,
    pub log: PathBuf,
}

impl Daemon {
    pub fn start(home: &Path, environment: &[(&str, &OsStr)]) -> Daemon {
        let mut command = command(home, &["agent"]);
        command.envs(environment.iter().copied());
        Daemon::of(home, command)
    }

    /// The agent that `command` starts.
    pub fn of(home: &Path, mut command: Command) -> Daemon {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let log = home.join(format!("log{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Daemon { child: command.spawn().unwrap(), log }
    }

    /// The log lines so far. Every line is JSON, and none holds a secret.
    pub fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        assert!(!text.contains("AGE-SECRET-KEY") && !text.contains("hunter2"), "{text}");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }

    pub fn count(&self, wanted: impl Fn(&Value) -> bool) -> usize {
        self.lines().iter().filter(|l| wanted(l)).count()
    }

    /// Waits until `n` lines are so.
    pub fn wait(&self, what: &str, n: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        while self.count(&wanted) < n {
            assert!(Instant::now() < until, "{what}: {}", fs::read_to_string(&self.log).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.lines().into_iter().filter(|l| wanted(l)).nth(n - 1).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops it as systemd does; gives the exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.child.wait().unwrap().code().unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let line = self.wait("the address", 1, |l| l["address"].is_string());
        let url = format!("http://{}{path}", line["address"].as_str().unwrap());
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let mut answer = config.new_agent().get(&url).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// A metric's value.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_if_any(name).unwrap_or_else(|| panic!("{name}: {}", self.get("/metrics").1))
    }

    pub fn metric_if_any(&self, name: &str) -> Option<f64> {
        let (status, page) = self.get("/metrics");
        assert_eq!(status, 200);
        page.lines().find_map(|l| l.strip_prefix(name)).map(|value| value.trim().parse().unwrap())
    }

    /// Waits until a metric is so.
    pub fn wait_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !self.metric_if_any(name).is_some_and(&wanted) {
            assert!(
                Instant::now() < until,
                "{name}: {}\n{}",
                self.get("/metrics").1,
                fs::read_to_string(&self.log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn ended(task: &str) -> impl Fn(&Value) -> bool {
    let task = task.to_owned();
    move |l| l["task"] == *task && l["result"] == "done"
}

pub fn told(key: &str, phase: &str) -> impl Fn(&Value) -> bool {
    let (key, phase) = (key.to_owned(), phase.to_owned());
    move |l| l["message"] == "notice" && l["key"] == *key && l["phase"] == *phase
}
