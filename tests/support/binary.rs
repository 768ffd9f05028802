//! The real `blackstart` as a process: its output, its exit code, and never a secret in either.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::servers::{ACCESS_KEY, SECRET_KEY};

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The one JSON document on stdout.
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {} {}", self.out, self.err));
        assert_eq!(value["version"], 1);
        value
    }

    /// Both outputs, for assertions on what an operator sees.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// `blackstart` with `arguments` in `home`, with the keys of the test servers and nothing else of this process's environment that it reads.
pub fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blackstart"));
    command.current_dir(home).env_remove("BLACKSTART_CONFIG").args(arguments).stdin(Stdio::null());
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_REGION", "us-east-1");
    command
}

pub fn run(home: &Path, arguments: &[&str]) -> Ran {
    finish(&command(home, arguments).output().unwrap())
}

pub fn finish(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let ran = Ran { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) };
    for secret in ["AGE-SECRET-KEY", "blackstart-signing-key", SECRET_KEY] {
        assert!(!ran.all().contains(secret), "a secret in the output: {}", ran.all());
    }
    ran
}

/// As [`run`]; fails with both outputs unless the exit code is `code`.
pub fn expect(home: &Path, arguments: &[&str], code: i32) -> Ran {
    let ran = run(home, arguments);
    assert_eq!(ran.code, code, "{arguments:?}\n{}\n{}", ran.out, ran.err);
    ran
}

/// A home with an app in it: a tree, and a database inside the tree.
pub fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("app/etc")).unwrap();
    fs::write(home.path().join("app/etc/app.toml"), "port = 1\n").unwrap();
    let database = rusqlite::Connection::open(home.path().join("app/orders.db")).unwrap();
    database.execute_batch("create table t (n integer); insert into t values (1), (2), (3)").unwrap();
    home
}

/// Adds lines to the configuration in `home`.
pub fn configure(home: &Path, lines: &str) {
    let path = home.join("blackstart.toml");
    let old = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{old}{lines}")).unwrap();
}

/// The root key's fingerprint that the configuration in `home` pins.
pub fn root_of(home: &Path) -> String {
    let config = fs::read_to_string(home.join("blackstart.toml")).unwrap();
    let line = config.lines().find_map(|l| l.strip_prefix("root = ")).unwrap();
    line.trim_matches('"').to_owned()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Turns one bit in the middle of a file.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// All files below `root` whose names satisfy `wanted`.
pub fn files_below(root: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if wanted(path.file_name().unwrap().to_str().unwrap()) {
                found.push(path);
            }
        }
    }
    found
}
