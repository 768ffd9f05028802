//! The `chroma` source against ChromaDB 1.5.9 and 0.5.23, each in a Python of its own.

use super::{copy_all, failed, protect, recover, report, said};
use crate::support::binary::expect;
use crate::support::engines::{Leashed, make, python, writer};
use blackstart::clock::SystemClock;
use blackstart::report::Check;
use blackstart::source::chroma::proof::prove;
use blackstart::source::chroma::verify::Copy;
use blackstart::source::chroma::{Chroma, Options};
use blackstart::source::{Before, Piece, Source};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const VERSIONS: [&str; 2] = ["1.5.9", "0.5.23"];

fn source(path: &Path, scratch: &Path) -> Chroma {
    Chroma::open(path, scratch.to_owned(), Options::default(), Arc::new(SystemClock)).unwrap()
}

fn options(version: &str) -> Options {
    Options { python: Some(python(version)), ..Options::default() }
}

fn none() -> Vec<&'static Check> {
    Vec::new()
}

/// Copies while a client adds, changes and deletes, and syncs its index every second or so: no vector may be lost.
fn under_load(version: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (data, scratch) = (dir.path().join("data"), dir.path().join("scratch"));
    make(version, &data, 64, 1500);
    let log = dir.path().join("log");
    let load = Leashed::start(&writer(version, "load", &data, 64, 1500), &log);
    let until = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(&log).unwrap_or_default().contains("ready") {
        assert!(Instant::now() < until, "the writer does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut counts = Vec::new();
    for i in 0..5 {
        let copy = dir.path().join(format!("copy{i}"));
        let finished = copy_all(&mut source(&data, &scratch), &copy).unwrap();
        assert_eq!(finished.skipped, []);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "scratch is not empty");
        let held = finished.facts["locked_seconds"].as_f64().unwrap();
        assert!(held < 10.0, "the lock was held for {held} s");
        let (checks, found) = Copy::open(&copy).unwrap().verify().unwrap();
        assert_eq!(failed(&checks), none());
        counts.push(found.iter().find(|c| c.name == "alpha").unwrap().count);
        if i == 4 {
            let checks = prove(&copy, dir.path(), &finished.facts, &options(version)).unwrap();
            assert_eq!(failed(&checks), none());
            assert!(
                checks.iter().any(|c| c.name.contains("opened again") && c.name.ends_with("by search")),
                "{checks:?}"
            );
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(load);
    // One of each batch is deleted again a moment after it was added.
    assert!(
        counts.windows(2).all(|two| two[0] <= two[1] + 1) && counts[0] + 1 < counts[4],
        "the writer got nowhere: {counts:?}"
    );
    let errors = fs::read_to_string(&log).unwrap();
    assert!(!errors.contains("Error"), "the writer was disturbed: {errors}");
}

#[test]
fn chroma_1_under_load() {
    under_load(VERSIONS[0]);
}

#[test]
fn chroma_0_5_under_load() {
    under_load(VERSIONS[1]);
}

/// Backup, unchanged backup, backup after changes, drill with the real engine, restore by both programs.
#[test]
fn a_round_trip_stores_changed_vectors_only() {
    let version = VERSIONS[0];
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    make(version, &data, 128, 4000);
    protect(
        home.path(),
        &format!("kind = \"chroma\"\npath = \"data\"\n[source.chroma]\npython = \"{}\"", python(version).display()),
    );
    std::thread::sleep(Duration::from_secs(4)); // so that its files are old enough to be passed over
    let first = report(home.path(), &["backup"], 0);
    assert_eq!((first["outcome"].as_str(), &first["facts"]["verified"]), (Some("complete"), &true.into()), "{first}");
    // Of the deleted collection the segment's directory is still there.
    assert_eq!(first["facts"]["left_out"].as_array().unwrap().len(), 1, "{first}");
    let unchanged = report(home.path(), &["backup"], 0);
    assert_eq!(unchanged["stats"]["bytes_new"], 0, "{unchanged}");
    assert_eq!(
        (&unchanged["stats"]["bytes_read"], &unchanged["facts"]["rounds"]),
        (&0.into(), &0.into()),
        "{unchanged}"
    );
    assert_eq!(unchanged["facts"]["left_out"], first["facts"]["left_out"], "{unchanged}");
    let full = report(home.path(), &["backup", "--full"], 0);
    assert_eq!(
        (&full["stats"]["bytes_read"], &full["stats"]["bytes_new"]),
        (&full["stats"]["bytes"], &0.into()),
        "{full}"
    );
    let output = writer(version, "change", &data, 128, 4000).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let changed = report(home.path(), &["backup"], 0);
    let (all, new) = (changed["stats"]["bytes"].as_u64().unwrap(), changed["stats"]["bytes_new"].as_u64().unwrap());
    assert!(new > 0 && new < all, "{changed}");
    let drill = report(home.path(), &["drill"], 0);
    let names: Vec<&str> = drill["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert!(names.iter().any(|n| n.contains("alpha opened again 1.5.9: by id")), "{names:?}");
    // Without the engine the drill does not claim it.
    let path = home.path().join("blackstart.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("/bin/python\"", "/bin/no-python\"")).unwrap();
    let without = expect(home.path(), &["drill"], 0).out;
    assert!(
        without.contains("(not run: chromadb itself)") && without.contains("  not run chromadb itself: "),
        "{without}"
    );
    assert!(!without.contains("ok      chromadb itself"), "{without}");
    expect(home.path(), &["restore", "store", "--to", "back"], 0);
    let by_hand = recover(home.path(), "by-hand");
    for path in [home.path().join("back"), by_hand] {
        let (checks, found) = Copy::open(&path).unwrap().verify().unwrap();
        assert_eq!(failed(&checks), none());
        let mut names: Vec<&str> = found.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["alpha", "empty", "tiny", "with_mark"]);
        assert_eq!(found.iter().find(|c| c.name == "alpha").unwrap().count, 3999);
    }
}

/// A run that may take shortcuts, after one with these facts that began `started`.
fn again(path: &Path, scratch: &Path, facts: &serde_json::Value, started: Option<Timestamp>) -> Chroma {
    let mut again = source(path, scratch);
    again.compare(Before { facts, seq: 1, shortcuts: started, accept_change: false }).unwrap();
    again
}

#[test]
fn what_did_not_change_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (data, scratch) = (dir.path().join("data"), dir.path().join("scratch"));
    make(VERSIONS[0], &data, 16, 1500);
    std::thread::sleep(Duration::from_millis(600)); // so that the copy is made in one round
    let first = copy_all(&mut source(&data, &scratch), &dir.path().join("first")).unwrap();
    assert_eq!(first.facts["rounds"], 1, "{}", first.facts);
    let later = Some(Timestamp::now() + SignedDuration::from_secs(60));
    let rounds = |name: &str, facts: &serde_json::Value, started| {
        let copied = copy_all(&mut again(&data, &scratch, facts, started), &dir.path().join(name)).unwrap();
        copied.facts["rounds"].as_u64().unwrap()
    };
    assert_eq!(rounds("same", &first.facts, later), 0);
    assert!(same_files(&dir.path().join("first"), &dir.path().join("same")) > 5);
    // A full takes no shortcuts; files may have changed after the basis's run began; what was damaged then is looked at again.
    assert_eq!(rounds("full", &first.facts, None), 1);
    assert_eq!(rounds("young", &first.facts, Some(Timestamp::now())), 1);
    let mut doubtful = first.facts.clone();
    doubtful["verified"] = false.into();
    assert_eq!(rounds("doubtful", &doubtful, later), 1);

    // The pipeline may want to read a file all the same, and a writer may come then.
    let mut reading = again(&data, &scratch, &first.facts, later);
    while reading.next().unwrap().unwrap().path.as_bytes() != b"chroma.sqlite3" {}
    let mut buffer = vec![0; 1 << 20];
    let connection = rusqlite::Connection::open(data.join("chroma.sqlite3")).unwrap();
    connection.execute_batch("PRAGMA user_version = 7").unwrap();
    let error = loop {
        match reading.read(&mut buffer) {
            Ok(Piece::Data(_)) => {}
            Ok(piece) => panic!("{piece:?}"),
            Err(e) => break e,
        }
    };
    assert!(format!("{error:#}").contains("was changed while it was read"), "{error:#}");

    // Of the same size, with its old mtime: the ctime tells.
    let vectors = segment(&data).join("data_level0.bin");
    let before = fs::metadata(&vectors).unwrap().modified().unwrap();
    let second = copy_all(&mut source(&data, &scratch), &dir.path().join("second")).unwrap();
    assert_eq!(rounds("still", &second.facts, later), 0);
    let file = fs::File::options().write(true).open(&vectors).unwrap();
    file.write_all_at(b"!", 300).unwrap();
    file.set_modified(before).unwrap();
    assert!(rounds("changed", &second.facts, later) > 0);
    assert_eq!(fs::read(dir.path().join("changed").join(vectors.strip_prefix(&data).unwrap())).unwrap()[300], b'!');
}

/// How many files two directories have, all of them the same.
fn same_files(one: &Path, other: &Path) -> usize {
    fs::read_dir(one).unwrap().flatten().fold(0, |count, entry| {
        let there = other.join(entry.file_name());
        if entry.path().is_dir() {
            return count + same_files(&entry.path(), &there);
        }
        assert!(fs::read(entry.path()).unwrap() == fs::read(&there).unwrap(), "{} differs", there.display());
        count + 1
    })
}

/// The directory of the one segment with maps.
fn segment(data: &Path) -> PathBuf {
    let maps = |entry: &fs::DirEntry| entry.path().join("index_metadata.pickle").exists();
    fs::read_dir(data).unwrap().flatten().find(maps).unwrap().path()
}

#[test]
fn what_is_damaged_is_stored_as_it_is_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    make(VERSIONS[1], &data, 16, 1200);
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("torn", |s| {
            let maps = fs::read(s.join("index_metadata.pickle")).unwrap();
            fs::write(s.join("index_metadata.pickle"), &maps[..maps.len() / 2]).unwrap();
        }),
        ("contradicts itself", |s| {
            let mut header = fs::read(s.join("header.bin")).unwrap();
            header[29] ^= 0x40;
            fs::write(s.join("header.bin"), header).unwrap();
        }),
        ("shorter than its", |s| fs::write(s.join("length.bin"), b"short").unwrap()),
        ("links", |s| {
            let mut links = fs::read(s.join("link_lists.bin")).unwrap();
            links[0] ^= 1;
            fs::write(s.join("link_lists.bin"), links).unwrap();
        }),
        ("mapped to no element", |s| {
            let mut header = fs::read(s.join("header.bin")).unwrap();
            header[20..28].copy_from_slice(&999u64.to_le_bytes());
            header[56..60].copy_from_slice(&0u32.to_le_bytes());
            fs::write(s.join("header.bin"), header).unwrap();
        }),
        ("is missing", |s| fs::remove_dir_all(s).unwrap()),
    ];
    for (expected, damage) in damages {
        let broken = dir.path().join("broken");
        assert!(Command::new("cp").arg("-a").arg(&data).arg(&broken).status().unwrap().success());
        damage(&segment(&broken));
        let (checks, _) = Copy::open(&broken).unwrap().verify().unwrap();
        let found = format!("{:?}", failed(&checks));
        assert!(
            found.contains(expected) || expected == "mapped to no element" && found.contains("element"),
            "{expected}: {found}"
        );
        fs::remove_dir_all(&broken).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    fs::remove_file(segment(&data).join("data_level0.bin")).unwrap();
    protect(home.path(), &format!("kind = \"chroma\"\npath = \"{}\"", data.display()));
    let partial = report(home.path(), &["backup"], 3);
    assert_eq!(partial["outcome"], "partial", "{partial}");
    assert!(partial["skipped"].to_string().contains("data_level0.bin"), "{partial}");
}

/// Queue rows that are gone although the index has not got them: what the wrong order of copying makes.
#[test]
fn lost_vectors_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    make(VERSIONS[0], &data, 16, 1300);
    assert_eq!(failed(&Copy::open(&data).unwrap().verify().unwrap().0), none());
    let purge = |what: &str| {
        rusqlite::Connection::open(data.join("chroma.sqlite3")).unwrap().execute_batch(what).unwrap();
        format!("{:?}", failed(&Copy::open(&data).unwrap().verify().unwrap().0))
    };
    let changed = purge("DELETE FROM embeddings_queue WHERE id = 'id9'");
    assert!(changed.contains("1 ids were changed after operation 1000"), "{changed}");
    let lost = purge("DELETE FROM embeddings_queue WHERE id = 'id1200'");
    assert!(lost.contains("1 ids have no vector, such as \\\"id1200\\\""), "{lost}");
    let deleted = purge("DELETE FROM embeddings_queue WHERE id = 'id7'");
    assert!(deleted.contains("1 vectors have no id, such as \\\"id7\\\""), "{deleted}");
}

#[test]
fn what_is_no_known_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Chroma::open(path, dir.path().join("scratch"), Options::default(), Arc::new(SystemClock));
    let error = open(dir.path()).map(drop).unwrap_err();
    assert!(said(&error).contains("has no chroma.sqlite3"), "{}", said(&error));
    let data = dir.path().join("data");
    make(VERSIONS[1], &data, 2, 3);
    let alter = |what: &str| {
        rusqlite::Connection::open(data.join("chroma.sqlite3")).unwrap().execute_batch(what).unwrap();
        said(&open(&data).unwrap().next().unwrap_err())
    };
    let old = alter("DROP TABLE embeddings_queue_config");
    assert!(old.contains("written by Chroma 0.4"), "{old}");
    let unknown = alter("ALTER TABLE segments RENAME TO parts");
    assert!(unknown.contains("layout that is not known"), "{unknown}");
    assert_eq!(fs::read_dir(dir.path().join("scratch")).unwrap().count(), 0, "scratch is not empty");
}

/// A copy that a killed run left is removed by the next; one that is in use is not.
#[test]
fn litter_goes_and_work_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (data, scratch) = (dir.path().join("data"), dir.path().join("scratch"));
    make(VERSIONS[1], &data, 2, 3);
    fs::create_dir_all(scratch.join("blackstart-chroma-killed/copy")).unwrap();
    fs::write(scratch.join("blackstart-chroma-killed/lock"), "").unwrap();
    let mut running = source(&data, &scratch);
    running.next().unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1);
    copy_all(&mut source(&data, &scratch), &dir.path().join("second")).unwrap();
    copy_all(&mut running, &dir.path().join("first")).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}
