//! `restore --into`: back through the programs that take the streams, after every byte was checked.

use super::support::binary::{configure, expect, noise};
use super::{home, shell};
use std::fs;
use std::path::Path;

/// A dump of 3 MB and a short one, taken back by `restore` lines of shell.
fn two_streams(at: &Path, first: &str, second: &str) {
    fs::write(at.join("big"), noise(3, 3_000_000)).unwrap();
    configure(
        at,
        &format!(
            "[[source]]\nname = \"dump\"\nkind = \"command\"\n[source.command]\n\
             [[source.command.stream]]\nfile = \"a\"\ndump = [\"cat\", \"big\"]\nrestore = {first}\n\
             [[source.command.stream]]\nfile = \"b\"\ndump = [\"echo\", \"short\"]\nrestore = {second}\n"
        ),
    );
    expect(at, &["backup"], 0);
}

fn leftovers(at: &Path) -> usize {
    fs::read_dir(at.join("scratch")).map_or(0, |entries| entries.count())
}

const INTO: [&str; 5] = ["restore", "dump", "--into", "--confirm", "dump"];

#[test]
fn streams_go_through_their_programs() {
    let home = home();
    let at = home.path();
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(at.join("blackstart.toml"), format!("scratch = \"scratch\"\n{config}")).unwrap();
    two_streams(at, "[\"sh\", \"-c\", \"cat > taken\"]", "[\"cp\", \"{file}\", \"taken-too\"]");
    let asks = expect(at, &["restore", "dump", "--into"], 64);
    assert!(asks.err.contains("--into --confirm dump"), "{}", asks.err);
    expect(at, &["restore", "dump", "--into", "--confirm", "orders"], 64);
    expect(at, &["restore", "dump"], 64);
    let dry = expect(at, &[&INTO[..], &["--dry-run"]].concat(), 0);
    assert!(dry.out.contains("Would restore") && !at.join("taken").exists(), "{}", dry.out);
    let report = expect(at, &[&INTO[..], &["--json"]].concat(), 0).json();
    assert_eq!(report["report"]["loaded"][0]["bytes"], 3_000_000, "{report}");
    assert!(fs::read(at.join("taken")).unwrap() == noise(3, 3_000_000));
    assert_eq!(fs::read_to_string(at.join("taken-too")).unwrap(), "short\n");
    assert_eq!(leftovers(at), 0);
    expect(at, &[&INTO[..], &["--to", "kept"]].concat(), 0);
    assert!(at.join("kept/a").exists());
}

#[test]
fn a_program_that_fails_leaves_the_checked_files() {
    let home = home();
    let at = home.path();
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(at.join("blackstart.toml"), format!("scratch = \"scratch\"\n{config}")).unwrap();
    two_streams(
        at,
        "[\"sh\", \"-c\", \"cat > taken\"]",
        "[\"sh\", \"-c\", \"cat >&2; echo no such table >&2; exit 5\"]",
    );
    let failed = expect(at, &INTO, 1);
    assert!(failed.err.contains("b was not loaded: sh exited with 5:\n  short\n  no such table"), "{}", failed.err);
    assert!(failed.err.contains("Loaded before it: a."), "{}", failed.err);
    assert_eq!(leftovers(at), 1, "the files that the error speaks of");
}

#[test]
fn a_program_that_reads_too_little_is_doubtful() {
    let home = home();
    let at = home.path();
    two_streams(at, "[\"sh\", \"-c\", \"head -c 100 > taken\"]", "[\"cat\"]");
    let doubtful = expect(at, &INTO, 3);
    assert!(doubtful.err.contains("without reading the last"), "{}", doubtful.err);
}

#[test]
fn what_cannot_be_loaded_is_said_before_anything_is_fetched() {
    let home = home();
    let at = home.path();
    shell(at, "echo data", "");
    expect(at, &["backup"], 0);
    let none = expect(at, &INTO, 78);
    assert!(none.err.contains("names no program that takes dump back"), "{}", none.err);
    shell(at, "echo data", "restore = [\"no-such-program\"]");
    let missing = expect(at, &INTO, 1);
    assert!(missing.err.contains("there is no program \"no-such-program\" here"), "{}", missing.err);
    shell(at, "echo data", "restore = [\"cat\"]");
    let address = expect(at, &["restore", "dump", "--into", "somewhere", "--confirm", "dump"], 64);
    assert!(address.err.contains("takes no address"), "{}", address.err);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"keys\"\n");
    fs::create_dir(at.join("keys")).unwrap();
    fs::write(at.join("keys/x"), "x").unwrap();
    expect(at, &["backup", "tree"], 0);
    let tree = expect(at, &["restore", "tree", "--into", "--confirm", "tree"], 64);
    assert!(tree.err.contains("is not loaded into anything"), "{}", tree.err);
    // A damaged snapshot is not loaded at all.
    let packs = super::support::binary::files_below(&at.join("repo/packs/dump"), |_| true);
    fs::write(&packs[0], b"damaged").unwrap();
    shell(at, "echo data", "restore = [\"sh\", \"-c\", \"cat > loaded\"]");
    expect(at, &INTO, 1);
    assert!(!at.join("loaded").exists());
}

/// What looks wrong is passed over here as by a restore to files, and no more in silence.
#[test]
fn that_a_newer_snapshot_looks_wrong_is_said_before_an_older_one_is_loaded() {
    let home = home();
    let at = home.path();
    let lines = "max_shrink = \"100%\"\nrestore = [\"sh\", \"-c\", \"cat > taken\"]";
    shell(at, "yes good | head -c 2000000", lines);
    expect(at, &["backup"], 0);
    expect(at, &["backup"], 0);
    shell(at, "echo", lines);
    expect(at, &["backup"], 4);
    let loaded = expect(at, &INTO, 0);
    assert!(loaded.err.contains("LOOK WRONG") && loaded.err.contains("--snapshot 3"), "{}", loaded.all());
    assert_eq!(fs::read(at.join("taken")).unwrap().len(), 2_000_000);
}
