//! A repository of every format version that was ever released, checked in, and restored by this program and by `recover.py`.
//!
//! `N/` holds `repository/`, its recovery key (a test key: it protects nothing), and `expected`, what each snapshot must bring back. To add a
//! version: `cargo test --test formats -- --ignored`, then commit what it made. What is there is never made again.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make their sources with plain writes")]

use blackstart::bridge::Store;
use blackstart::clock::{Clock, SystemClock};
use blackstart::operations::backup::{self, Options};
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Host, Open, prune, verify};
use blackstart::repository::FORMAT;
use blackstart::repository::keys::{KeyFile, KeyPair};
use blackstart::repository::layout::{Hash, SourceName};
use blackstart::repository::trust::{Certificate, Role, Trust, TrustRecord};
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::sqlite::Sqlite;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Path to SHA-256, `-> target` of a symlink, or `directory`.
type Contents = BTreeMap<String, String>;

fn versions() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let mut found: Vec<_> = fs::read_dir(here).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

fn contents(root: &Path) -> Contents {
    let (mut found, mut folders) = (Contents::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let about = match path.symlink_metadata().unwrap().file_type() {
                kind if kind.is_dir() => "directory".to_owned(),
                kind if kind.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
                _ => Hash::of(&fs::read(&path).unwrap()).to_string(),
            };
            if path.is_dir() && about == "directory" {
                folders.push(path);
            }
            found.insert(name, about);
        }
    }
    found
}

fn text(contents: &Contents) -> String {
    contents.iter().map(|(path, about)| format!("{about}\t{path}\n")).collect()
}

/// Source and number of each snapshot that `expected` speaks of, with its text.
fn expected(version: &Path) -> Vec<(String, u64, String)> {
    let files = fs::read_dir(version.join("expected")).unwrap().map(|e| e.unwrap().path());
    let parse = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (source, seq) = name.rsplit_once('-').unwrap();
        (source.to_owned(), seq.parse().unwrap(), fs::read_to_string(&path).unwrap())
    };
    files.map(parse).collect()
}

fn root_of(version: &Path) -> String {
    fs::read_to_string(version.join("root")).unwrap().trim().to_owned()
}

#[test]
fn every_version_restores_and_verifies() {
    assert!(!versions().is_empty());
    for version in versions() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(version.join("repository").to_str().unwrap()).unwrap();
        let trust = Trust::load(&store, Some(&root_of(&version))).unwrap();
        let open = Open { store, trust, clock: Arc::new(SystemClock), state: None };
        let identities = KeyFile::read(&version.join("recovery.key")).unwrap().identities;
        let snapshots = expected(&version);
        assert!(snapshots.len() > 3, "{snapshots:?}");
        for (source, seq, text_of_it) in snapshots {
            let (commit, snapshot) = restore::find(&open, &SourceName::new(&source).unwrap(), &Pick::Seq(seq)).unwrap();
            let to = scratch.path().join(format!("{source}-{seq}"));
            restore::restore(&open, &identities, &commit, &snapshot, &Request::new(to.clone(), 2)).unwrap();
            assert_eq!(text(&contents(&to)), text_of_it, "{version:?} {source} {seq}");
        }
        let options = verify::Options { read_data: Some(identities), ..verify::Options::default() };
        let report = verify::verify(&open, None, &options).unwrap();
        assert!(report.sound(), "{version:?}: {report:?}");
    }
}

#[test]
fn every_version_restores_by_hand() {
    for version in versions() {
        let scratch = tempfile::tempdir().unwrap();
        let root = root_of(&version);
        for (source, seq, text_of_it) in expected(&version) {
            let to = scratch.path().join(format!("{source}-{seq}"));
            let output = Command::new("python3")
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("recover/recover.py"))
                .arg("--repository")
                .arg(version.join("repository"))
                .arg("--identity")
                .arg(version.join("recovery.key"))
                .args(["--root", &root, "restore", &source])
                .arg(&to)
                .args(["--seq", &seq.to_string()])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            // A source that is one file comes back as that file.
            let found = if to.is_dir() {
                contents(&to)
            } else {
                let name = text_of_it.trim_end().rsplit_once('\t').unwrap().1.to_owned();
                Contents::from([(name, Hash::of(&fs::read(&to).unwrap()).to_string())])
            };
            assert_eq!(text(&found), text_of_it, "{version:?} {source} {seq}");
        }
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..length).map(step).collect()
}

struct Maker {
    host: Host,
    recovery: KeyPair,
    work: tempfile::TempDir,
    version: PathBuf,
}

impl Maker {
    fn new(version: PathBuf) -> Maker {
        let (recovery, keys) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let store = Store::open(version.join("repository").to_str().unwrap()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let certificate = Certificate {
            role: Role::Host,
            name: "test".into(),
            key: keys.signing.public(),
            index: Some(keys.identity.to_public().to_string()),
            sources: vec!["*".into()],
        };
        let recipients = vec![recovery.identity.to_public().to_string()];
        let record = TrustRecord { recipients, keys: vec![certificate], ..TrustRecord::default() };
        let trust = Trust::create(&store, &recovery.signing, record, clock.now()).unwrap();
        let work = tempfile::tempdir().unwrap();
        let open = Open { store, trust, clock, state: Some(work.path().join("state")) };
        Maker { host: Host { open, keys, name: "test".into() }, recovery, work, version }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A snapshot of `data` or `app.db`, and what it must bring back.
    fn snapshot(&self, source: &str, options: Options) {
        let name = SourceName::new(source).unwrap();
        let clock = &self.host.open.clock;
        let open = || -> anyhow::Result<Box<dyn Source>> {
            Ok(match source {
                "tree" => Box::new(Files::open(&self.path("data"), FilesOptions::default(), &**clock)?),
                _ => Box::new(Sqlite::open(&self.path("app.db"), Arc::clone(clock))?),
            })
        };
        let report = backup::backup(&self.host, &name, &open, options).unwrap();
        let found = match source {
            "tree" => contents(&self.path("data")),
            _ => Contents::from([("app.db".to_owned(), Hash::of(&fs::read(self.path("app.db")).unwrap()).to_string())]),
        };
        fs::create_dir_all(self.version.join("expected")).unwrap();
        fs::write(self.version.join("expected").join(format!("{source}-{}", report.seq)), text(&found)).unwrap();
    }

    fn sql(&self, text: &str) {
        rusqlite::Connection::open(self.path("app.db")).unwrap().execute_batch(text).unwrap();
    }
}

fn make_tree(data: &Path) {
    fs::create_dir_all(data.join("sub/empty")).unwrap();
    fs::write(data.join("empty"), "").unwrap();
    fs::write(data.join("text"), "one line\n".repeat(300)).unwrap();
    // Several chunks, one of them twice.
    fs::write(data.join("noise"), [noise(1, 90_000), vec![7; 50_000], noise(1, 90_000)].concat()).unwrap();
    fs::write(data.join("sub/per%cent und Umläute"), "name").unwrap();
    fs::hard_link(data.join("text"), data.join("sub/hard")).unwrap();
    std::os::unix::fs::symlink("../text", data.join("sub/link")).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 20).unwrap();
}

#[test]
#[ignore = "makes the repository of this version, once"]
fn make() {
    let version = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(FORMAT.to_string());
    assert!(!version.exists(), "{} is there already", version.display());
    let maker = Maker::new(version.clone());
    let key = maker.recovery.to_text("A TEST KEY: it protects nothing but the repository beside it.");
    fs::write(version.join("recovery.key"), key.as_bytes()).unwrap();
    fs::write(version.join("root"), format!("{}\n", maker.host.open.trust.root.id())).unwrap();
    let data = maker.path("data");
    make_tree(&data);
    maker.sql(
        "PRAGMA page_size=1024; CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) INSERT INTO t SELECT i, printf('row %d of the table', i) FROM n",
    );
    let short = || Options { workers: 1, ..Options::default() };
    // The first of each goes by a prune, which leaves its record.
    for source in ["tree", "db"] {
        maker.snapshot(source, short());
        maker.snapshot(source, short());
        let policy = Policy { last: 1, ..Policy::default() };
        let name = SourceName::new(source).unwrap();
        let plan = prune::plan(&maker.host.open, &name, &policy, SignedDuration::ZERO).unwrap();
        prune::sweep(&maker.host, plan).unwrap();
        fs::remove_file(version.join("expected").join(format!("{source}-1"))).unwrap();
    }
    // Layers: what is new, changed, cut, grown and gone.
    fs::write(data.join("text"), "another line\n".repeat(200)).unwrap();
    fs::remove_file(data.join("empty")).unwrap();
    fs::write(data.join("sub/new"), noise(2, 5000)).unwrap();
    maker.sql("UPDATE t SET body='changed' WHERE id % 50 = 0; INSERT INTO t(body) VALUES('one more')");
    maker.snapshot("tree", short());
    maker.snapshot("db", short());
    maker.sql("DELETE FROM t WHERE id > 20; VACUUM");
    fs::remove_dir_all(data.join("sub/empty")).unwrap();
    maker.snapshot("tree", short());
    maker.snapshot("db", short());
    maker.snapshot("tree", Options { baseline: true, ..short() });
    fs::remove_dir_all(version.join("repository/leases")).ok();
}
